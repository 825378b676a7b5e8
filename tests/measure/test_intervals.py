from __future__ import annotations

import math

import numpy as np
import pytest

from medsam3.errors import InputError
from medsam3.measure.intervals import mean_interval, paired_interval, statistic_interval


def test_the_interval_of_two_groups_reaches_their_means() -> None:
    # drawing 2 of 2 groups gives means 0.2 (1/4 of draws), 0.5 (1/2), 0.8 (1/4): the 2.5th percentile is 0.2
    found = mean_interval([0.1, 0.3, 0.7, 0.9], ["a", "a", "b", "b"])
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx((0.2, 0.8))
    assert (found.cases, found.groups) == (4, 2)


def test_a_larger_group_weighs_more_as_cases_are_averaged() -> None:
    assert mean_interval([1, 1, 1, 0], ["a", "a", "a", "b"]).value == 0.75


def test_independent_cases_give_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(0.7, 0.1, size=400)
    found = mean_interval(values, [str(n) for n in range(400)])
    half_width = 1.96 * values.std() / 20
    assert found.high - found.low == pytest.approx(2 * half_width, rel=0.05)


def test_grouped_cases_have_a_wider_interval_than_independent_ones() -> None:
    values = np.repeat(np.random.default_rng(3).random(10), 20)
    alone = mean_interval(values, [str(n) for n in range(200)])
    grouped = mean_interval(values, [str(n // 20) for n in range(200)])
    assert grouped.high - grouped.low > 3 * (alone.high - alone.low)


def test_the_same_seed_gives_the_same_interval() -> None:
    values, groups = [0.1, 0.9, 0.4, 0.6], list("abcd")
    assert mean_interval(values, groups, seed=5) == mean_interval(values, groups, seed=5)


def test_a_constant_gain_over_paired_cases_has_no_spread() -> None:
    before = np.array([0.1, 0.5, 0.9])
    found = paired_interval(before, before + 0.05, list("abc"))
    assert (found.value, found.low, found.high) == pytest.approx((0.05, 0.05, 0.05))


def test_no_case_and_one_group_have_no_interval() -> None:
    none, one = mean_interval([], []), mean_interval([0.2, 0.4], ["a", "a"])
    assert math.isnan(none.value) and none.cases == 0
    assert one.value == pytest.approx(0.3) and math.isnan(one.low) and math.isnan(one.high)


def test_a_statistic_is_drawn_over_groups_and_its_unknown_draws_left_out() -> None:
    values = np.array([1.0, 2.0, 4.0])

    def largest_unless_1(index: np.ndarray) -> float:
        return float("nan") if values[index].max() == 1 else float(values[index].max())

    found = statistic_interval(largest_unless_1, list("abc"))
    assert (found.value, found.low, found.high) == (4, 2, 4)


def test_nan_values_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="a value is NaN"):
        mean_interval([0.1, math.nan], ["a", "b"])
    with pytest.raises(InputError, match="there must be as many of each"):
        mean_interval([0.1], ["a", "b"])
    with pytest.raises(InputError, match="there must be as many of each"):
        paired_interval([0.1], [0.1, 0.2], ["a"])
