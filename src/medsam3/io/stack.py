"""A stack of frames or slices that is read as it is needed: `Image` without its pixels, and a way to get them.

Knows nothing of formats: each reader makes one. What is read is checked frame by frame, with the frame's number.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from medsam3.errors import InputError
from medsam3.geometry import Affine, check_affine, spacing_mm
from medsam3.image import Image, Kind, Pixels, Window

ReadFrame = Callable[[int], Pixels]
"""From n to the pixels (H, W, C) of that frame, C 1 or 3."""


@dataclass(frozen=True)
class Stack:
    """A volume or video on disk, one frame of it in memory at a time.

    Attributes:
        shape: (N, H, W).
        channels: 1 (grey) or 3 (RGB).
        read_frame: Reads the pixels (H, W, C) of frame n in the file's own units.
        kind, affine, fps, window, source, metadata: As of `Image`.
    """

    shape: tuple[int, int, int]
    channels: int
    read_frame: ReadFrame
    kind: Kind = "volume"
    affine: Affine | None = None
    fps: float | None = None
    window: Window | None = None
    source: tuple[Path, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.channels not in (1, 3):
            raise InputError(f"the stack is {self.shape} with {self.channels} channels, allowed are 1 or 3, none empty")
        if self.affine is not None:
            object.__setattr__(self, "affine", check_affine(self.affine))
        object.__setattr__(self, "metadata", MappingProxyType(dict(self.metadata)))

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Distance of voxel centres along (n, row, col) in mm; None where no position is known."""
        if self.affine is None:
            return None
        along_n, along_rows, along_columns = spacing_mm(self.affine).tolist()
        return along_n, along_rows, along_columns

    def pixels(self, n: int) -> Pixels:
        """Frame n as (H, W, C).

        Raises:
            InputError: There is no such frame, it cannot be decoded, its size differs, or it holds NaN or infinity.
        """
        if not 0 <= n < self.shape[0]:
            raise InputError(f"frame {n} was asked for, allowed is 0 to {self.shape[0] - 1}")
        pixels = self.read_frame(n)
        if pixels.shape != (*self.shape[1:], self.channels):
            raise InputError(
                f"frame {n} is {pixels.shape} but frame 0 is {(*self.shape[1:], self.channels)} (rows, columns, "
                "channels): separate them"
            )
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise InputError(f"frame {n} holds NaN or infinity: replace them before reading the stack")
        return pixels

    def frame(self, n: int) -> Image:
        """Frame n as a picture in its own place."""
        pixels = self.pixels(n)[None]
        affine = None
        if self.affine is not None:
            affine = self.affine.copy()
            affine[:3, 3] += n * affine[:3, 0]
        source = self.source[n : n + 1] if len(self.source) == self.shape[0] else self.source
        return Image(pixels, affine=affine, window=self.window, source=source, metadata=self.metadata)

    def outline(self) -> Image:
        """The image that writers of masks want: everything but the pixels, which are all 0 and take no memory."""
        nothing = np.broadcast_to(np.zeros((), dtype=np.uint8), (*self.shape, self.channels))
        kind: Kind = "volume" if self.kind == "picture" and self.shape[0] > 1 else self.kind
        return Image(
            nothing,
            kind=kind,
            affine=self.affine,
            fps=self.fps,
            window=self.window,
            source=self.source,
            metadata=self.metadata,
        )

    def load(self) -> Image:
        """The whole stack in memory."""
        pixels = np.stack([self.pixels(n) for n in range(self.shape[0])])
        return replace(self.outline(), pixels=pixels)

    def on_disk(self) -> Image:
        """The whole stack in a temporary file, of which memory holds only what is in use; it goes with the image."""
        first = self.pixels(0)
        is_narrowed = first.dtype.kind == "f" or self.metadata.get("format") == "DICOM"  # slice by slice
        dtype = np.dtype(np.float32) if is_narrowed and first.dtype != np.uint8 else first.dtype
        shape = (*self.shape, self.channels)
        with tempfile.TemporaryFile() as file:
            file.truncate(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
            voxels = np.memmap(file, dtype=dtype, mode="r+", shape=shape)
        for n in range(self.shape[0]):
            voxels[n] = self.pixels(n)
        return replace(self.outline(), pixels=voxels)


def stack_of(image: Image) -> Stack:
    """An image that is in memory already, as a stack."""
    return Stack(
        shape=image.shape,
        channels=image.pixels.shape[3],
        read_frame=lambda n: image.pixels[n],
        kind=image.kind,
        affine=image.affine,
        fps=image.fps,
        window=image.window,
        source=image.source,
        metadata=image.metadata,
    )
