"""Windows of a frame as the interactive decoder sees them: square, of any size, each stretched to 256 x 256."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medsam3.models.mini.letterbox import RGB, SIDE
from medsam3.prompts import Box, Point

FILLED = 0.6
"""Of a window's side, how much the longer side of what it is drawn around fills."""
LEAST_SHARE, LEAST_PX = 0.08, 16.0
"""Smallest side of a window, of the frame's longer side, and in pixels."""
Value = TypeVar("Value", bound=np.generic)
Edges = tuple[float, float, float, float]


@dataclass(frozen=True)
class ClickWindow:
    """Where a window lies, in pixels of the frame: the outer edges of its left and top pixels, and its side.

    Attributes:
        left: Of the window.
        top: Of the window.
        side: Of the window.
        longest: The frame's longer side; the window lies in the square of that side.
    """

    left: float
    top: float
    side: float
    longest: int

    @property
    def shares(self) -> Tensor:
        """Left, top and side (3,) as shares of the frame's longer side."""
        return torch.tensor([self.left, self.top, self.side]) / self.longest

    def _at(self, first: float, side: int) -> NDArray[np.intp]:
        places = (first + (np.arange(side) + 0.5) * self.side / side).astype(np.intp)
        return np.minimum(places, self.longest - 1)

    def labels(self, frame: NDArray[Value], side: int = SIDE) -> NDArray[Value]:
        """Take values (H, W) of the frame into (side, side) by nearest neighbour, 0 beyond the frame."""
        rows, columns = self._at(self.top, side), self._at(self.left, side)
        found: NDArray[Value] = frame[
            np.minimum(rows, frame.shape[0] - 1)[:, None], np.minimum(columns, frame.shape[1] - 1)
        ]
        found[rows >= frame.shape[0]], found[:, columns >= frame.shape[1]] = 0, 0
        return found

    def pixels(self, rgb: RGB) -> Tensor:
        """Show the frame (H, W, 3) as (3, 256, 256) in 0..1, from its darkest value to its brightest; 0 beyond it."""
        low, high = int(rgb.min()), int(rgb.max())
        height, width = rgb.shape[:2]
        square = np.full((self.longest, self.longest, 3), low, dtype=np.uint8)
        square[:height, :width] = rgb
        edges = (self.left, self.top, self.left + self.side, self.top + self.side)
        shown = PIL.Image.fromarray(square).resize((SIDE, SIDE), PIL.Image.Resampling.BILINEAR, box=edges)
        values = torch.from_numpy(np.array(shown)).permute(2, 0, 1).float()
        return (values - low) / max(high - low, 1)

    def points(self, clicks: Sequence[Point]) -> NDArray[np.float32]:
        """Place clicks (P, 2) in the window, as x, y in its 256 x 256 pixels."""
        at = np.array([(click.x, click.y) for click in clicks], dtype=np.float32).reshape(-1, 2)
        placed: NDArray[np.float32] = (at + 0.5 - (self.left, self.top)) * np.float32(SIDE / self.side) - 0.5
        return placed

    def box(self, box: Box) -> Edges:
        """Place a box in the window."""
        (x0, y0), (x1, y1) = self.points([Point(box.x0, box.y0), Point(box.x1, box.y1)]).tolist()
        return x0, y0, x1, y1

    def onto(self, logits: Tensor, frame: Tensor) -> Tensor:
        """Put logits (h, h) of the window in the place of the frame's (H, W) there."""
        rows = _inside(self.top, self.side, frame.shape[0])
        columns = _inside(self.left, self.side, frame.shape[1])
        y = ((rows + 0.5 - self.top) / self.side * 2 - 1)[:, None].expand(len(rows), len(columns))
        x = ((columns + 0.5 - self.left) / self.side * 2 - 1)[None].expand(len(rows), len(columns))
        grid = torch.stack([x, y], dim=-1)[None].float()
        near = F.grid_sample(logits[None, None], grid, align_corners=False, padding_mode="border")[0, 0]
        result = frame.clone()
        result[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1] = near
        return result


def _inside(first: float, side: float, length: int) -> Tensor:
    """Pixels whose centres lie in the window."""
    low, high = int(np.ceil(first - 0.5)), int(np.floor(first + side - 0.5))
    return torch.arange(max(0, low), min(length - 1, high) + 1)


def window_around(edges: Edges, shape: tuple[int, ...], filled: float = FILLED) -> ClickWindow:
    """Draw a window around xyxy in pixels, inside the square that holds the frame (H, W)."""
    longest = max(shape[:2])
    extent = max(edges[2] - edges[0], edges[3] - edges[1]) + 1
    side = float(min(max(extent / filled, LEAST_SHARE * longest, LEAST_PX), longest))
    left, top = ((edges[k] + edges[k + 2] + 1) / 2 - side / 2 for k in (0, 1))
    return ClickWindow(float(np.clip(left, 0, longest - side)), float(np.clip(top, 0, longest - side)), side, longest)
