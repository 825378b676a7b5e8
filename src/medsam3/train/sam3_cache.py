"""The frozen image encoder's output on disk: bfloat16, memory-mapped, one file a view of an image.

A file is named by a hash of all that its values depend on: the encoder's weights, its input size and number format, the
image file's bytes, and the view. Changed weights or a changed image have another name, so that nothing stale is read.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medsam3.data.samples import Sample

BYTES_AT_FULL_SIZE = 2 * 1024 * 72 * 72


def fingerprint(tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], *, about: str = "") -> str:
    """SHA-256 of tensors with their names, sorted, and of a further text that says what else counts."""
    items = tensors.items() if isinstance(tensors, Mapping) else tensors
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(items, key=lambda item: item[0]):
        digest.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@dataclass(frozen=True)
class TrunkCache:
    """Trunk outputs of one encoder.

    Attributes:
        folder: Where they lie; runs may share it.
        encoder: The encoder's fingerprint.
        shape: (D, H, W) of an output.
        seed: Of the random views.
    """

    folder: Path
    encoder: str
    shape: tuple[int, int, int]
    seed: int

    def path(self, sample: Sample, view: int) -> Path:
        """Where the output for a view of a sample is or will be. It reads the image file, to be sure of its bytes."""
        digest = hashlib.sha256(f"{self.encoder}/{view}/{self.seed if view else 0}/".encode())
        digest.update(sample.name.encode() if view or sample.loader is not None else b"")
        digest.update(hashlib.sha256(sample.image.read_bytes()).digest())
        return self.folder / self.encoder[:16] / f"{digest.hexdigest()[:40]}.npy"

    def has(self, path: Path) -> bool:
        """Whether the file is there whole."""
        try:
            return self._open(path).shape == self.shape
        except (OSError, ValueError):
            return False

    def put(self, path: Path, trunk: Tensor) -> None:
        """Write an output (D, H, W), first under another name, so that a killed run leaves no half file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
        bits = trunk.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy()
        with unfinished.open("wb") as stream:
            np.save(stream, bits)
        unfinished.replace(path)

    def get(self, path: Path) -> Tensor:
        """The output (D, H, W) in bfloat16, of which the disk is read as it is used."""
        return torch.from_numpy(np.array(self._open(path))).view(torch.bfloat16)

    def _open(self, path: Path) -> np.memmap[tuple[int, ...], np.dtype[np.int16]]:
        opened: np.memmap[tuple[int, ...], np.dtype[np.int16]] = np.load(path, mmap_mode="r")
        return opened
