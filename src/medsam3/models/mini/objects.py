"""What a second opinion changes in a map of logits, and which objects a user's clicks leave."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medsam3.image import ObjectMask
from medsam3.prompts import Point


def blend_where_agreed(
    logits: NDArray[np.float32], second: NDArray[np.float32], share: float, least_iou: float
) -> NDArray[np.float32]:
    """`logits` (H, W), with `share` of a second opinion (H, W) mixed in where the two agree on what they see.

    They agree where their masks, logits above 0, overlap by an intersection over union of `least_iou` or more. A second
    opinion that sees something else is not listened to.
    """
    first_mask, second_mask = logits > 0, second > 0
    union = np.count_nonzero(first_mask | second_mask)
    if not union or np.count_nonzero(first_mask & second_mask) < least_iou * union:
        return logits
    blended: NDArray[np.float32] = (1 - share) * logits + share * second
    return blended


def agreeing(objects: Sequence[ObjectMask], shape: tuple[int, int], points: Sequence[Point]) -> list[ObjectMask]:
    """Objects of a frame (H, W) that a user's clicks leave: those under a positive point where there is one, and none
    under a negative point. All of them where there are no points.
    """
    positive = [point for point in points if point.is_positive]
    negative = [point for point in points if not point.is_positive]
    return [
        found
        for found in objects
        if not any(_is_under(found, shape, point) for point in negative)
        and (not positive or any(_is_under(found, shape, point) for point in positive))
    ]


def _is_under(found: ObjectMask, shape: tuple[int, int], point: Point) -> bool:
    row = min(max(round(point.y), 0), shape[0] - 1) - found.start[1]
    column = min(max(round(point.x), 0), shape[1] - 1) - found.start[2]
    rows, columns = found.crop.shape[1:]
    return 0 <= row < rows and 0 <= column < columns and bool(found.crop[0, row, column])
