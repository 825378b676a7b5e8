"""Windows for a closer look: parts of a frame that are shown to a model enlarged."""

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
FILLED_SHARES = (0.25, 0.8)
"""Of a window of training, how much the longer side of the box fills."""
LEAST_SHARE = 0.25
ELSEWHERE_SHARE = 0.15

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Crop:
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


def closer_window(box: Box, shape: tuple[int, int]) -> Crop | None:
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
    return Crop(top, bottom, left, right)


def quarters(shape: tuple[int, int]) -> tuple[Crop, ...]:
    """Four windows that overlap and cover (H, W)."""
    height, width = shape
    down, across = round(height * (0.5 + OVERLAP / 2)), round(width * (0.5 + OVERLAP / 2))
    return tuple(
        Crop(top, bottom, left, right)
        for top, bottom in ((0, down), (height - down, height))
        for left, right in ((0, across), (width - across, width))
    )


def random_window(box: Box, shape: tuple[int, int], rng: np.random.Generator) -> Crop | None:
    """A square window that a training view enlarges, of random size around a box, off its centre, sometimes elsewhere.

    None where it would not be clearly smaller than the frame. Arguments as for `closer_window`.
    """
    height, width = shape
    longest = max(shape)
    side = max(box[2] - box[0], box[3] - box[1]) / rng.uniform(*FILLED_SHARES)
    side = round(max(side, LEAST_SHARE * longest))
    if side > CLOSER_BELOW * longest:
        return None
    centre = np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]) + rng.uniform(-0.25, 0.25, size=2) * side
    if rng.random() < ELSEWHERE_SHARE:
        centre = rng.uniform(0, 1, size=2) * (width, height)
    left, right = _span(float(centre[0]), side, width, 1)
    top, bottom = _span(float(centre[1]), side, height, 1)
    return Crop(top, bottom, left, right)


def _span(centre: float, side: int, length: int, step: int) -> tuple[int, int]:
    side = min(side, length)
    first = round((centre - side / 2) / step) * step
    first = int(np.clip(first, 0, length - side))
    return first, first + side
