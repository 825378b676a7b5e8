from __future__ import annotations

import math

import pytest

from medsam3.errors import InputError
from medsam3.measure.presence import auroc, calibration, verdicts


def test_verdicts_of_five_positives_and_four_negatives() -> None:
    truth = [1, 1, 1, 1, 1, 0, 0, 0, 0]
    said = [1, 1, 1, 1, 0, 1, 0, 0, 0]
    found = verdicts(truth, said)
    assert (found.true_positives, found.false_negatives) == (4, 1)
    assert (found.false_positives, found.true_negatives) == (1, 3)
    assert found.sensitivity == pytest.approx(4 / 5)
    assert found.specificity == pytest.approx(3 / 4)
    # (4*3 - 1*1) / sqrt(5 * 4 * 5 * 4) = 11 / 20
    assert found.mcc == pytest.approx(11 / 20)


def test_mcc_is_0_for_a_constant_answer_and_unknown_without_negatives() -> None:
    assert verdicts([1, 0, 0], [1, 1, 1]).mcc == 0
    only_positives = verdicts([1, 1], [1, 0])
    assert math.isnan(only_positives.mcc) and math.isnan(only_positives.specificity)
    assert math.isnan(verdicts([], []).sensitivity)


def test_auroc_is_the_share_of_pairs_in_order_with_ties_half() -> None:
    # positives .9 .5, negatives .5 .1: pairs .9>.5, .9>.1, .5=.5 (half), .5>.1: 3.5 of 4
    assert auroc([1, 1, 0, 0], [0.9, 0.5, 0.5, 0.1]) == pytest.approx(3.5 / 4)
    assert auroc([0, 1], [0.9, 0.1]) == 0
    assert math.isnan(auroc([1, 1], [0.3, 0.4]))


def test_calibration_compares_what_was_said_with_what_was_true_bin_by_bin() -> None:
    # bin 0.2..0.3: said .25 twice, one present (gap .25); bin 0.9..1: said 1 and .9, both present (gap .05)
    found = calibration([1, 0, 1, 1], [0.25, 0.25, 1.0, 0.9])
    assert [(bin_.low, bin_.high, bin_.count) for bin_ in found.bins] == [(0.2, 0.3, 2), (0.9, 1.0, 2)]
    assert found.bins[0].share_present == 0.5 and found.bins[0].mean_probability == 0.25
    assert found.error == pytest.approx((2 * 0.25 + 2 * 0.05) / 4)
    # .75^2 + .25^2 + 0 + .1^2 = .635
    assert found.brier == pytest.approx(0.635 / 4)


def test_calibration_without_cases_is_unknown() -> None:
    found = calibration([], [])
    assert found.bins == () and math.isnan(found.error) and math.isnan(found.brier)


def test_lengths_that_differ_and_probabilities_outside_0_to_1_are_refused() -> None:
    with pytest.raises(InputError, match="both must be the same"):
        verdicts([1, 0], [1])
    with pytest.raises(InputError, match="both must be the same"):
        auroc([1, 0], [0.5])
    with pytest.raises(InputError, match="allowed is 0 to 1"):
        calibration([1], [1.2])
