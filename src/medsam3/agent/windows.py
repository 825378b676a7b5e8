"""Where the agent looks closer: windows of a frame that are shown to the model enlarged. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

STEP_SHARE = 1 / 16
"""Windows begin and end on a grid of this part of the longer side, so that near-equal ones are encoded once."""
CLOSER_BELOW = 0.7
"""A window that is not clearly smaller than the frame shows nothing new."""
MARGIN = 0.5
OVERLAP = 0.125


@dataclass(frozen=True)
class Window:
    """Rows `top` to `bottom` and columns `left` to `right` of a frame, stops excluded."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.bottom - self.top, self.right - self.left

    def cut(self, frame: Any) -> Any:
        """The window of an array (H, W, ...)."""
        return frame[self.top : self.bottom, self.left : self.right]


def closer_window(box: tuple[float, float, float, float], shape: tuple[int, int]) -> Window | None:
    """A square window around a box xyxy with half its longer side left free on each side; None where it is no closer.

    Args:
        box: Around what is to be seen better.
        shape: (H, W) of the frame.
    """
    height, width = shape
    longest = max(shape)
    step = max(1, round(longest * STEP_SHARE))
    side = max(box[2] - box[0], box[3] - box[1]) * (1 + 2 * MARGIN)
    side = int(np.ceil(max(side, 4 * step) / step)) * step
    if side > CLOSER_BELOW * longest:
        return None
    left, right = _span((box[0] + box[2]) / 2, side, width, step)
    top, bottom = _span((box[1] + box[3]) / 2, side, height, step)
    return Window(top, bottom, left, right)


def quarters(shape: tuple[int, int]) -> tuple[Window, ...]:
    """Four windows that overlap and cover (H, W)."""
    height, width = shape
    down, across = round(height * (0.5 + OVERLAP / 2)), round(width * (0.5 + OVERLAP / 2))
    return tuple(
        Window(top, bottom, left, right)
        for top, bottom in ((0, down), (height - down, height))
        for left, right in ((0, across), (width - across, width))
    )


def _span(centre: float, side: int, length: int, step: int) -> tuple[int, int]:
    side = min(side, length)
    first = round((centre - side / 2) / step) * step
    first = int(np.clip(first, 0, length - side))
    return first, first + side
