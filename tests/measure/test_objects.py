from __future__ import annotations

import math

import numpy as np
import pytest

from medsam3.image import ObjectMask
from medsam3.measure.objects import THRESHOLDS, ObjectMatch, cgf1, match_objects, positive_micro_f1


def bar(first: int, stop: int) -> ObjectMask:
    return ObjectMask((0, 0, first), np.ones((1, 1, stop - first), dtype=np.bool_), 0.5)


def reference() -> np.ndarray:
    """Object 3 spans columns 0..4, object 7 columns 6..10, object 9 columns 12..16 of row 0, four pixels each."""
    numbers = np.zeros((1, 2, 20), dtype=np.int32)
    numbers[0, 0, 0:4], numbers[0, 0, 6:10], numbers[0, 0, 12:16] = 3, 7, 9
    return numbers


def test_objects_are_matched_one_to_one_by_overlap() -> None:
    # 0..4 fits exactly; 6..9 shares 3 of 4; 13..18 shares 3 of 6; 18..20 shares nothing
    found = match_objects(reference(), [bar(13, 18), bar(0, 4), bar(6, 9), bar(18, 20)])
    assert (found.references, found.predictions) == (3, 4)
    assert found.overlaps == pytest.approx((1, 3 / 4, 3 / 6))
    assert found.true_positives(0.5) == 3
    assert found.true_positives(0.75) == 2
    assert found.f1(0.5) == pytest.approx(6 / 7)
    assert found.f1(0.75) == pytest.approx(4 / 7)
    # a pair of exactly .5 is none for panoptic quality: (1 + .75) / (2 + 2/2 + 1/2)
    assert found.panoptic_quality() == pytest.approx(1.75 / 3.5)


def test_one_mask_over_two_objects_fits_one_of_them_at_most() -> None:
    found = match_objects(reference(), [bar(0, 10)])  # 4 of 10 with either
    assert found.overlaps == pytest.approx((4 / 10,))
    assert found.f1() == 0


def test_matching_maximises_the_sum_where_the_first_choice_would_not() -> None:
    numbers = np.zeros((1, 2, 20), dtype=np.int32)
    numbers[0, 0, 0:4], numbers[0, 0, 4:8] = 1, 2
    # mask A (0..6): IoU 4/6 and 2/8; mask B (0..4): IoU 1 and 0. Best: B with 1, A with 2.
    found = match_objects(numbers, [bar(0, 6), bar(0, 4)])
    assert found.overlaps == pytest.approx((1, 2 / 8))


def test_no_objects_and_no_predictions_leave_f1_unknown() -> None:
    nothing = match_objects(np.zeros((1, 2, 20), dtype=np.int32), [])
    assert nothing == ObjectMatch(0, 0, ())
    assert math.isnan(nothing.f1()) and math.isnan(nothing.panoptic_quality())


def test_all_missed_and_all_invented_score_0() -> None:
    assert match_objects(reference(), []).f1() == 0
    assert match_objects(np.zeros((1, 2, 20), dtype=np.int32), [bar(0, 3)]).panoptic_quality() == 0


def test_pmf1_sums_counts_over_images_with_objects() -> None:
    images = [
        ObjectMatch(2, 2, (0.9, 0.6)),  # .50-.60: 2 pairs; .65-.90: 1; .95: 0
        ObjectMatch(1, 0, ()),  # missed: adds one false negative
        ObjectMatch(0, 3, ()),  # no objects: counts in the presence MCC, not here
    ]
    expected = [2 * pairs / 5 for pairs in (2, 2, 2, 1, 1, 1, 1, 1, 1, 0)]
    assert positive_micro_f1(images) == pytest.approx(expected)
    assert cgf1(images, 0.5) == pytest.approx(sum(expected) / 10 * 0.5)


def test_pmf1_is_unknown_without_any_object() -> None:
    assert np.isnan(positive_micro_f1([ObjectMatch(0, 1, ())])).all()
    assert math.isnan(cgf1([], 1.0))


def test_thresholds_run_from_50_to_95_in_steps_of_5() -> None:
    assert THRESHOLDS == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
