"""The small model's view of a frame: 256 x 256, the long side resized, the rest padded; and the way back.

This is the preprocessing that LiteMedSAM's encoder was trained with: min-max scaled values, padding at the bottom and
right. The way back is exact to the sub-pixel: both sides keep pixel centres at integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

SIDE = 256
RGB = NDArray[np.uint8]
Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True)
class Letterbox:
    """The place of a frame of height x width in the 256 x 256 square: its top left inner_height x inner_width."""

    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the frame."""
        return self.height, self.width

    @property
    def inner_height(self) -> int:
        """Rows of the square that the frame fills."""
        return max(1, round(self.height * SIDE / max(self.height, self.width)))

    @property
    def inner_width(self) -> int:
        """Columns of the square that the frame fills."""
        return max(1, round(self.width * SIDE / max(self.height, self.width)))

    def points_to_square(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (..., 2) as (x, y) in frame pixels, to pixels of the square."""
        scale = np.array([self.inner_width / self.width, self.inner_height / self.height])
        moved: NDArray[np.float64] = (points + 0.5) * scale - 0.5
        return moved

    def boxes_to_square(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Boxes (..., 4) xyxy in frame pixels, to pixels of the square."""
        return self.points_to_square(boxes.reshape(*boxes.shape[:-1], 2, 2)).reshape(boxes.shape)

    def boxes_from_square(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse of `boxes_to_square`."""
        scale = np.array([self.width / self.inner_width, self.height / self.inner_height] * 2)
        moved: NDArray[np.float64] = (boxes + 0.5) * scale - 0.5
        return moved

    def sampled_on_square(self, values: NDArray[Value], *, outside: float) -> NDArray[Value]:
        """Values (H, W) of the frame on the square (256, 256) by nearest neighbour, `outside` where it is padded."""
        rows = ((np.arange(self.inner_height) + 0.5) * self.height / self.inner_height).astype(np.intp)
        columns = ((np.arange(self.inner_width) + 0.5) * self.width / self.inner_width).astype(np.intp)
        square = np.full((SIDE, SIDE), outside, dtype=values.dtype)
        square[: self.inner_height, : self.inner_width] = values[rows[:, None], columns[None]]
        return square

    def logits_to_frame(self, logits: Tensor) -> Tensor:
        """Logits (K, h, w) over the square at any stride that divides it, to (K, height, width)."""
        stride = SIDE // logits.shape[-1]
        if stride > 1:
            size = (SIDE, SIDE)
            logits = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        inner = logits[:, : self.inner_height, : self.inner_width]
        frame = F.interpolate(inner[None], size=(self.height, self.width), mode="bilinear", align_corners=False)
        return frame[0]


def letterbox(rgb: RGB) -> tuple[RGB, Letterbox]:
    """A frame (H, W, 3) uint8 as the square (256, 256, 3) uint8, min-max scaled, zero padded, and where it lies."""
    place = Letterbox(rgb.shape[0], rgb.shape[1])
    size = (place.inner_width, place.inner_height)
    resized = np.asarray(PIL.Image.fromarray(rgb).resize(size, PIL.Image.Resampling.BILINEAR), dtype=np.float32)
    low, high = float(resized.min()), float(resized.max())
    square = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    square[: size[1], : size[0]] = np.rint((resized - low) * (255.0 / max(high - low, 1e-8)))
    return square, place


def letterbox_labels(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """A map of integers (H, W) on the same square by nearest neighbour, 0 where it is padded."""
    return Letterbox(labels.shape[0], labels.shape[1]).sampled_on_square(labels.astype(np.int32, copy=False), outside=0)


def square_tensor(square: RGB) -> Tensor:
    """The square as the encoder reads it: (1, 3, 256, 256) float32 in 0..1."""
    return torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255
