"""Frozen features on disk: computed once a view, memory-mapped afterwards, resumed where a run was killed.

A view's folder is named by a digest of all that its values depend on (encoder, precision, view, seed and images), so a
stale cache is never read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam3.data.samples import Sample
from medsam3.models.mini.letterbox import SIDE, letterbox, letterbox_labels
from medsam3.train.augment import view_generator, view_of, warp_pixels
from medsam3.train.stain import restain

NECK_SHAPE = (256, 64, 64)
SAVE_EVERY = 50
FIRST_RESTAINED = 2
"""From this view on, microscopy is also shown under made-up stains."""
RESTAINED_CONCEPT = "cell nucleus"

Encode = Callable[[NDArray[np.uint8]], NDArray[np.float16]]


@dataclass(frozen=True)
class CachedView:
    """One view of every sample.

    Attributes:
        number: The view's number; 0 is the plain image.
        seed: Of the random views.
        rows: Row of the arrays by sample name.
        neck: (n, 256, 64, 64) float16, memory-mapped.
        pixels: (n, 256, 256, 3) uint8, memory-mapped: what the encoder saw.
    """

    number: int
    seed: int
    rows: dict[str, int]
    neck: NDArray[np.float16]
    pixels: NDArray[np.uint8]


def view_folder(root: Path, samples: Sequence[Sample], number: int, *, seed: int, encoder: str) -> Path:
    """Where a view of these samples is cached. `encoder` names weights and precision."""
    digest = hashlib.sha256(f"{encoder}/{number}/{seed if number else 0}\n".encode())
    for sample in samples:
        digest.update(f"{sample.name}\n".encode())
    return root / f"view{number}-{digest.hexdigest()[:16]}"


def load_or_make_view(
    folder: Path,
    samples: Sequence[Sample],
    number: int,
    encode: Encode,
    *,
    seed: int,
    on_image: Callable[[], None] = lambda: None,
) -> CachedView:
    """The cached view, after computing what is still missing of it.

    Args:
        folder: Of `view_folder`.
        samples: In a fixed order.
        number: Of the view; see `train.augment.view_of`.
        encode: A square (256, 256, 3) uint8 to neck features (256, 64, 64).
        seed: Of the random views.
        on_image: Called after each image, for a progress bar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count, progress = len(samples), folder / "done.json"
    done = json.loads(progress.read_text()) if progress.exists() else 0
    neck = _open(folder / "neck.npy", np.dtype(np.float16), (count, *NECK_SHAPE))
    pixels = _open(folder / "pixels.npy", np.dtype(np.uint8), (count, SIDE, SIDE, 3))
    for row in range(count):
        if row >= done:
            square, _ = letterbox(samples[row].load_rgb())
            if number >= FIRST_RESTAINED and (nuclei := _nuclei(samples[row])) is not None:
                square = restain(square, nuclei, view_generator(samples[row].name, number, seed=seed))
            square = warp_pixels(square, view_of(samples[row].name, number, seed=seed))
            neck[row], pixels[row] = encode(square), square
            if (row + 1) % SAVE_EVERY == 0 or row + 1 == count:
                _save_progress(progress, row + 1, (neck, pixels))
        on_image()
    return CachedView(number, seed, {sample.name: row for row, sample in enumerate(samples)}, neck, pixels)


def _nuclei(sample: Sample) -> NDArray[np.bool_] | None:
    """Where the nuclei of a microscopy sample are on the square; None for other samples."""
    found = [target for target in sample.targets if target.concept == RESTAINED_CONCEPT]
    return letterbox_labels(found[0].load()) > 0 if found else None


def _open(path: Path, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> np.memmap[tuple[int, ...], np.dtype]:
    mode = "r+" if path.exists() else "w+"
    opened: np.memmap[tuple[int, ...], np.dtype] = np.lib.format.open_memmap(path, mode, dtype, shape)
    return opened


def _save_progress(path: Path, rows: int, arrays: Sequence[np.memmap[tuple[int, ...], np.dtype]]) -> None:
    for array in arrays:
        array.flush()
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(rows))
    temporary.replace(path)
