"""How well a model tells whether a concept is in the image at all: ranking, verdicts, calibration. numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from medsam3.errors import InputError

CALIBRATION_BINS = 10


@dataclass(frozen=True)
class Verdicts:
    """Counts of yes and no answers over images with the concept (positives) and without it (negatives)."""

    true_positives: int
    false_negatives: int
    false_positives: int
    true_negatives: int

    @property
    def sensitivity(self) -> float:
        """Share of the positives that were called present; NaN without positives."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> float:
        """Share of the negatives that were called absent; NaN without negatives."""
        return _ratio(self.true_negatives, self.true_negatives + self.false_positives)

    @property
    def mcc(self) -> float:
        """Matthews correlation in [-1, 1]; NaN without positives or without negatives, 0 for a constant answer.

        Source: Matthews, Biochim. Biophys. Acta 405(2), 1975.
        """
        positives = self.true_positives + self.false_negatives
        negatives = self.true_negatives + self.false_positives
        if not positives or not negatives:
            return float("nan")
        said_yes = self.true_positives + self.false_positives
        said_no = self.true_negatives + self.false_negatives
        if not said_yes or not said_no:
            return 0.0
        above = self.true_positives * self.true_negatives - self.false_positives * self.false_negatives
        return float(above / np.sqrt(float(positives) * negatives * said_yes * said_no))


def verdicts(truth: ArrayLike, answers: ArrayLike) -> Verdicts:
    """Count (n,) answers against (n,) truth, both bool.

    Raises:
        InputError: They differ in length.
    """
    really, said = np.asarray(truth, dtype=np.bool_), np.asarray(answers, dtype=np.bool_)
    _check_lengths(really.shape, said.shape)
    return Verdicts(
        true_positives=int((really & said).sum()),
        false_negatives=int((really & ~said).sum()),
        false_positives=int((~really & said).sum()),
        true_negatives=int((~really & ~said).sum()),
    )


def auroc(truth: ArrayLike, probabilities: ArrayLike) -> float:
    """Give the chance that a positive gets a higher probability than a negative, ties half; NaN without either.

    Source: Hanley and McNeil, Radiology 143(1), 1982.

    Raises:
        InputError: They differ in length.
    """
    really, given = np.asarray(truth, dtype=np.bool_), np.asarray(probabilities, dtype=np.float64)
    _check_lengths(really.shape, given.shape)
    positives, negatives = int(really.sum()), int((~really).sum())
    if not positives or not negatives:
        return float("nan")
    _, level = np.unique(given, return_inverse=True)  # cases of one probability share a level
    above = np.bincount(level[really], minlength=level.max() + 1)
    below = np.bincount(level[~really], minlength=level.max() + 1)
    return float(above @ (np.cumsum(below) - below / 2) / (positives * negatives))


@dataclass(frozen=True)
class CalibrationBin:
    """Cases whose probability fell between `low` and `high`: how many, what was said, what was true."""

    low: float
    high: float
    count: int
    mean_probability: float
    share_present: float


@dataclass(frozen=True)
class CalibrationCurve:
    """Whether a stated probability is kept: bins without cases are left out.

    Attributes:
        error: Expected calibration error: mean gap between what was said and what was true, weighted by cases.
        brier: Mean squared gap between probability and truth (Brier, Monthly Weather Review 78(1), 1950).
    """

    bins: tuple[CalibrationBin, ...]
    error: float
    brier: float


def calibration(truth: ArrayLike, probabilities: ArrayLike) -> CalibrationCurve:
    """Calibration of (n,) probabilities in 0..1 over ten bins of equal width; NaN errors without cases.

    Raises:
        InputError: They differ in length, or a probability lies outside 0..1.
    """
    really, given = np.asarray(truth, dtype=np.bool_), np.asarray(probabilities, dtype=np.float64)
    _check_lengths(really.shape, given.shape)
    if not given.size:
        return CalibrationCurve((), float("nan"), float("nan"))
    if not ((given >= 0) & (given <= 1)).all():
        raise InputError(f"probabilities span {given.min()} to {given.max()}, allowed is 0 to 1")
    number = np.minimum((given * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins = []
    for n in np.unique(number):
        own = number == n
        bins.append(
            CalibrationBin(
                low=float(n / CALIBRATION_BINS),
                high=float((n + 1) / CALIBRATION_BINS),
                count=int(own.sum()),
                mean_probability=float(given[own].mean()),
                share_present=float(really[own].mean()),
            )
        )
    error = sum(found.count * abs(found.mean_probability - found.share_present) for found in bins) / given.size
    return CalibrationCurve(tuple(bins), float(error), float(((given - really) ** 2).mean()))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _check_lengths(truth: tuple[int, ...], answers: tuple[int, ...]) -> None:
    if truth != answers or len(truth) != 1:
        raise InputError(f"truth and answers have shapes {truth} and {answers}, both must be the same (n,)")
