"""95 % intervals by bootstrap over groups: cases of one patient or sequence are drawn together. numpy only, seeded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsam3.errors import InputError
from medsam3.geometry import FloatArray

Statistic = Callable[[NDArray[np.intp]], float]
"""From indices of cases, with repeats, to a number."""

MEAN_DRAWS = 5000
STATISTIC_DRAWS = 1000
_LEVELS = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: Over all cases; NaN without cases.
        low: Lower end; NaN with fewer than two groups, which cannot tell their spread.
        high: Upper end; NaN likewise.
        cases: How many cases.
        groups: How many groups.
    """

    value: float
    low: float
    high: float
    cases: int
    groups: int


def holds(difference: Estimate) -> bool:
    """Say whether the interval of a difference lies wholly on one side of 0."""
    return difference.low > 0 or difference.high < 0


def mean_interval(values: ArrayLike, groups: Sequence[str], *, seed: int = 0) -> Estimate:
    """Mean of (n,) values with its interval; groups (n,) name what is drawn together.

    Raises:
        InputError: The two differ in length, or a value is NaN.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, percentile interval; groups are drawn whole.
    """
    data = np.asarray(values, dtype=np.float64)
    _check_lengths(len(data), len(groups))
    if np.isnan(data).any():
        raise InputError("a value is NaN: leave out cases for which the metric has no meaning, and count them")
    names, owner = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    if not data.size:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, 0)
    if len(names) < 2:
        return Estimate(float(data.mean()), float("nan"), float("nan"), data.size, len(names))
    sums = np.bincount(owner, weights=data)
    counts = np.bincount(owner)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=MEAN_DRAWS)
    return _estimate(float(data.mean()), (drawn @ sums) / (drawn @ counts), data.size, len(names))


def paired_interval(first: ArrayLike, second: ArrayLike, groups: Sequence[str], *, seed: int = 0) -> Estimate:
    """Mean of second minus first over the same cases in the same order, with its interval.

    Raises:
        InputError: They differ in length, or a value is NaN.
    """
    before, after = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    _check_lengths(len(before), len(after))
    return mean_interval(after - before, groups, seed=seed)


def statistic_interval(statistic: Statistic, groups: Sequence[str], *, seed: int = 0) -> Estimate:
    """Any statistic of cases with its interval; draws in which it is NaN (no negatives, say) are left out.

    Args:
        statistic: Takes indices into the cases.
        groups: (n,) name of each case's group.
        seed: Of the draws.
    """
    names, owner = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True)
    value = statistic(np.arange(len(groups)))
    if len(names) < 2:
        return Estimate(value, float("nan"), float("nan"), len(groups), len(names))
    members = [np.flatnonzero(owner == n) for n in range(len(names))]
    rng = np.random.default_rng(seed)
    draws = [
        statistic(np.concatenate([members[n] for n in rng.integers(len(names), size=len(names))]))
        for _ in range(STATISTIC_DRAWS)
    ]
    return _estimate(value, np.array(draws), len(groups), len(names))


def _estimate(value: float, draws: FloatArray, cases: int, groups: int) -> Estimate:
    known = draws[~np.isnan(draws)]
    if np.isnan(value) or not known.size:
        return Estimate(value, float("nan"), float("nan"), cases, groups)
    low, high = np.percentile(known, _LEVELS)
    return Estimate(value, float(low), float(high), cases, groups)


def _check_lengths(first: int, second: int) -> None:
    if first != second:
        raise InputError(f"{first} values and {second} values or groups were given, there must be as many of each")
