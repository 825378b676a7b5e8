"""Stacks for tests: bright blocks on dark, the slice's number in its corner."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medsam3.geometry import Affine
from medsam3.image import Image, Kind, LazyFrames

HEIGHT, WIDTH = 24, 32


def blocks(count: int, *, hidden: tuple[int, ...] = (), first: int = 2, last: int | None = None) -> NDArray[np.uint8]:
    """(N, H, W): a block of 6 x 8 pixels that moves one column a slice from column 4 on, and a still one of 5 x 5."""
    pixels = np.zeros((count, HEIGHT, WIDTH), dtype=np.uint8)
    for n in range(count):
        pixels[n, 0, 1] = n
        pixels[n, 0, 0] = 7 if n in hidden else 0
        if first <= n <= (count - 3 if last is None else last):
            pixels[n, 4:10, 4 + n : 12 + n] = 200
            pixels[n, 16:21, 2:7] = 220
    return pixels


def jumping() -> NDArray[np.uint8]:
    """A video of six frames whose one block jumps across the picture after the third."""
    pixels = np.zeros((6, HEIGHT, WIDTH), dtype=np.uint8)
    pixels[:3, 4:10, 4:12] = 200
    pixels[3:, 14:20, 20:28] = 200
    return pixels


def stack_from(
    pixels: NDArray[np.uint8], *, kind: Kind = "volume", affine: Affine | None = None, fps: float | None = None
) -> Image:
    shape = (pixels.shape[0], pixels.shape[1], pixels.shape[2], 1)
    return Image(LazyFrames(shape, lambda n: pixels[n][..., None]), kind, affine, fps)
