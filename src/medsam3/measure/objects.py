"""How well single objects are found: matching by overlap, F1, panoptic quality, and SAM 3's cgF1. numpy and scipy only.

Objects are a numbered map (N, H, W) for the reference and single masks for the prediction, which may overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from medsam3.geometry import FloatArray
from medsam3.image import ObjectMask

THRESHOLDS: tuple[float, ...] = tuple(round(0.5 + 0.05 * n, 2) for n in range(10))
"""IoU thresholds of cgF1, 0.50 to 0.95."""


@dataclass(frozen=True)
class ObjectMatch:
    """Objects of one image, matched one to one so that the sum of their IoU is greatest.

    Attributes:
        references: Number of reference objects.
        predictions: Number of predicted objects.
        overlaps: IoU of the matched pairs, in (0, 1], best first; pairs that do not overlap are no pairs.
    """

    references: int
    predictions: int
    overlaps: tuple[float, ...]

    def true_positives(self, threshold: float) -> int:
        """Pairs with at least this IoU."""
        return sum(overlap >= threshold for overlap in self.overlaps)

    def f1(self, threshold: float = 0.5) -> float:
        """2 TP / (2 TP + FP + FN) in [0, 1]; NaN without any object."""
        total = self.references + self.predictions
        return 2 * self.true_positives(threshold) / total if total else float("nan")

    def panoptic_quality(self) -> float:
        """Sum of IoU over pairs above 0.5, over TP + FP/2 + FN/2, in [0, 1]; NaN without any object.

        Source: Kirillov et al., CVPR 2019, for one class.
        """
        total = self.references + self.predictions
        return 2 * sum(overlap for overlap in self.overlaps if overlap > 0.5) / total if total else float("nan")


def match_objects(reference: NDArray[np.integer], predicted: Sequence[ObjectMask]) -> ObjectMatch:
    """Match the numbered objects of (N, H, W), 0 for background, with objects found there."""
    overlaps = iou_matrix(reference, predicted)
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    pairs = sorted((float(value) for value in overlaps[rows, columns] if value > 0), reverse=True)
    return ObjectMatch(len(overlaps), len(predicted), tuple(pairs))


def iou_matrix(reference: NDArray[np.integer], predicted: Sequence[ObjectMask]) -> FloatArray:
    """IoU of every reference object, in the order of their numbers, with every predicted one, (R, K)."""
    known = reference > 0
    numbers, found = np.unique(reference[known], return_inverse=True)
    order = np.zeros(reference.shape, dtype=np.int32)
    order[known] = found + 1  # the map with objects numbered 1, 2, ...
    areas = np.bincount(found, minlength=len(numbers)).astype(np.float64)
    overlaps = np.zeros((len(numbers), len(predicted)))
    for column, item in enumerate(predicted):
        shared = np.bincount(order[item.block][item.crop], minlength=len(numbers) + 1)[1:]
        overlaps[:, column] = shared / (areas + item.voxels - shared)
    return overlaps


def positive_micro_f1(matches: Iterable[ObjectMatch]) -> FloatArray:
    """pmF1 at each of `THRESHOLDS`, (10,): counts summed over images that have objects; NaN where there are none.

    Images without a reference object do not count here, they count in the presence MCC. An image in which nothing was
    found adds its objects as missed.

    Source: the evaluation of SAM 3, arXiv 2511.16719.
    """
    positive = [match for match in matches if match.references]
    total = sum(match.references + match.predictions for match in positive)
    if not total:
        return np.full(len(THRESHOLDS), np.nan)
    return np.array([2 * sum(match.true_positives(t) for match in positive) / total for t in THRESHOLDS])


def cgf1(matches: Iterable[ObjectMatch], presence_mcc: float) -> float:
    """Classification-gated F1 in [-1, 1]: mean pmF1 over thresholds times presence MCC (SAM 3 prints it in %).

    Source: the evaluation of SAM 3, arXiv 2511.16719.
    """
    return float(positive_micro_f1(matches).mean()) * presence_mcc
