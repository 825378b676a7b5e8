"""From a map of probabilities to single objects: connected parts without specks, each with a score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.geometry import BoolArray
from medsam3.prompts import Point

LEAST_SHARE = 0.0001
"""Parts smaller than this share of the frame are noise, unless nothing larger was found."""


def split_objects(probability: NDArray[np.float32], threshold: float) -> tuple[BoolArray, list[float]]:
    """The 8-connected parts of (H, W) where the probability exceeds the threshold.

    Returns:
        Masks (K, H, W), and the mean probability inside each, in 0..1.
    """
    labels, count = ndimage.label(probability > threshold, structure=np.ones((3, 3)))
    if count == 0:
        return np.zeros((0, *probability.shape), dtype=np.bool_), []
    numbers = np.arange(1, count + 1)
    sizes = ndimage.sum_labels(np.ones_like(labels), labels, numbers)
    means = ndimage.mean(probability, labels, numbers)
    least = min(max(4.0, LEAST_SHARE * probability.size), float(sizes.max()))
    kept = [k for k in range(count) if sizes[k] >= least]
    masks: BoolArray = np.stack([labels == numbers[k] for k in kept])
    return masks, [float(means[k]) for k in kept]


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


def agreeing(masks: BoolArray, points: Sequence[Point]) -> list[int]:
    """Objects of (K, H, W) that a user's clicks leave: those under a positive point where there is one, and none under
    a negative point. All of them where there are no points.
    """

    def under(k: int, point: Point) -> bool:
        rows, columns = masks.shape[1:]
        row, column = min(max(round(point.y), 0), rows - 1), min(max(round(point.x), 0), columns - 1)
        return bool(masks[k, row, column])

    positive = [point for point in points if point.is_positive]
    negative = [point for point in points if not point.is_positive]
    return [
        k
        for k in range(len(masks))
        if not any(under(k, point) for point in negative)
        and (not positive or any(under(k, point) for point in positive))
    ]
