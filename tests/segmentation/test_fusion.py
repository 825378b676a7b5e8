"""Votes and identities."""

from __future__ import annotations

import numpy as np
import pytest

from medsam3.errors import InputError
from medsam3.segmentation.fusion import fuse, without_specks
from medsam3.segmentation.options import FusionRules
from medsam3.segmentation.packed import PackedMask, overlap
from medsam3.segmentation.sweep import FoundMask, Step

NOWHERE = np.zeros(3, dtype=np.bool_)


def row(*columns: int) -> PackedMask:
    mask = np.zeros((1, 12), dtype=np.bool_)
    mask[0, list(columns)] = True
    return PackedMask.of(mask)


def columns_of(mask: PackedMask) -> list[int]:
    return np.flatnonzero(mask.dense()[0]).tolist()


def test_two_followed_masks_outvote_what_was_found_and_one_does_not() -> None:
    found = {1: [FoundMask(row(2, 3, 4, 5), 0.9)]}
    up = {1: [Step(0, row(3, 4, 5, 6), 0, 0)]}
    down = {1: [Step(0, row(3, 4, 5, 6), 0, 0)]}
    both = fuse(found, up, down, FusionRules(), may_extend=NOWHERE)[0]
    one = fuse(found, up, {}, FusionRules(), may_extend=NOWHERE)[0]
    assert columns_of(both.masks[1]) == [3, 4, 5, 6]
    assert columns_of(one.masks[1]) == [2, 3, 4, 5]


def test_a_followed_mask_that_sees_something_else_has_no_vote() -> None:
    found = {1: [FoundMask(row(2, 3, 4, 5), 0.9)]}
    far = {1: [Step(0, row(8, 9), 0, 0)]}
    assert columns_of(fuse(found, far, far, FusionRules(), may_extend=NOWHERE)[0].masks[1]) == [2, 3, 4, 5]


def test_one_followed_mask_moves_the_outline_by_its_weight() -> None:
    def strip(last: int) -> PackedMask:
        mask = np.zeros((40, 30), dtype=np.bool_)
        mask[:, 2 : last + 1] = True
        return PackedMask.of(mask)

    # In column c > 9 what was found is c - 9 away and the followed outline 14 - c: 0.6 (14 - c) > c - 9 up to 10.
    rules = FusionRules(followed_weight=0.6)
    trail = fuse({1: [FoundMask(strip(9), 0.9)]}, {1: [Step(0, strip(13), 0, 0)]}, {}, rules, may_extend=NOWHERE)[0]
    assert np.flatnonzero(trail.masks[1].dense()[20]).tolist() == list(range(2, 11))


def test_following_is_believed_where_what_was_found_has_run_over() -> None:
    found = {1: [FoundMask(row(*range(1, 12)), 0.9)]}
    rough = {1: [Step(0, row(3, 4), 0, 0, has_run_over=True)]}
    away = {1: [Step(0, row(8, 9), 0, 0, has_run_over=True)]}
    assert columns_of(fuse(found, rough, {}, FusionRules(), may_extend=NOWHERE)[0].masks[1]) == [3, 4]
    assert columns_of(fuse(found, rough, rough, FusionRules(), may_extend=NOWHERE)[0].masks[1]) == [3, 4]
    # Both sides against each other: what was found stands.
    assert columns_of(fuse(found, rough, away, FusionRules(), may_extend=NOWHERE)[0].masks[1]) == list(range(1, 12))


@pytest.mark.parametrize(("score", "kept"), [(0.5, 1), (0.8, 2)])
def test_what_is_found_once_goes_unless_it_is_clearer_than_what_lasts(score: float, kept: int) -> None:
    found = {0: [FoundMask(row(1, 2, 3), 0.9)], 1: [FoundMask(row(1, 2, 3), 0.7), FoundMask(row(8, 9), score)]}
    up = {0: [Step(0, None, 0, 0)], 1: [Step(0, row(1, 2, 3), 0, 0), Step(1, None, 1, 0)]}
    assert len(fuse(found, up, {}, FusionRules(), may_extend=NOWHERE)) == kept
    assert len(fuse(found, up, {}, FusionRules(least_found=1), may_extend=NOWHERE)) == 2


def test_what_is_found_once_stays_where_nothing_else_is() -> None:
    found = {0: [FoundMask(row(1, 2, 3), 0.9)], 1: [FoundMask(row(1, 2, 3), 0.9)], 2: [FoundMask(row(8, 9), 0.3)]}
    up = {0: [Step(0, None, 0, 0)], 1: [Step(0, row(1, 2, 3), 0, 0)], 2: [Step(1, None, 0, 0)]}
    trails = fuse(found, up, {}, FusionRules(), may_extend=NOWHERE)
    assert [sorted(trail.masks) for trail in trails] == [[0, 1], [2]]


def gap(up_mask: PackedMask, down_mask: PackedMask, ages: tuple[int, int]) -> dict[int, PackedMask]:
    """Found on frames 0 and 2, followed through frame 1 from both sides."""
    found = {0: [FoundMask(row(2, 3, 4), 0.9)], 2: [FoundMask(row(2, 3, 4), 0.7)]}
    up = {0: [Step(0, None, 0, 0)], 1: [Step(0, up_mask, None, ages[0])], 2: [Step(0, row(2, 3, 4), 0, 0)]}
    down = {2: [Step(0, None, 0, 0)], 1: [Step(0, down_mask, None, ages[1])], 0: [Step(0, row(2, 3, 4), 0, 0)]}
    trails = fuse(found, up, down, FusionRules(), may_extend=NOWHERE)
    assert len(trails) == 1 and trails[0].score == pytest.approx(0.8)
    return trails[0].masks


def test_a_gap_takes_the_nearer_side_or_what_both_share() -> None:
    assert columns_of(gap(row(1, 2, 3), row(2, 3, 4), (1, 2))[1]) == [1, 2, 3]
    assert columns_of(gap(row(1, 2, 3), row(2, 3, 4), (1, 1))[1]) == [2, 3]


def test_a_gap_beside_another_object_is_filled_only_where_that_is_allowed() -> None:
    found = {0: [FoundMask(row(2, 3), 0.9)], 1: [FoundMask(row(8, 9), 0.9)], 2: [FoundMask(row(2, 3), 0.9)]}
    up = {0: [Step(0, None, 0, 0)], 1: [Step(0, row(2, 3), None, 1)], 2: [Step(0, row(2, 3), 0, 0)]}
    down = {2: [Step(0, None, 0, 0)], 1: [Step(0, row(2, 3), None, 1)], 0: [Step(0, row(2, 3), 0, 0)]}
    bare = fuse(found, up, down, FusionRules(), may_extend=NOWHERE)
    filled = fuse(found, up, down, FusionRules(may_fill_beside=True), may_extend=NOWHERE)
    assert sorted(sorted(trail.masks) for trail in bare) == [[0, 2], [1]]
    assert sorted(sorted(trail.masks) for trail in filled) == [[0, 1, 2], [1]]


def test_a_gap_stays_where_the_sides_do_not_agree() -> None:
    assert 1 not in gap(row(0, 1, 2), row(4, 5, 6), (1, 1))


def test_one_side_alone_counts_only_where_it_may_extend() -> None:
    found = {0: [FoundMask(row(2, 3), 0.9)]}
    up = {0: [Step(0, None, 0, 0)], 1: [Step(0, row(2, 3), None, 1)]}
    everywhere = np.ones(3, dtype=np.bool_)
    assert sorted(fuse(found, up, {}, FusionRules(), may_extend=NOWHERE)[0].masks) == [0]
    assert sorted(fuse(found, up, {}, FusionRules(), may_extend=everywhere)[0].masks) == [0, 1]


def test_two_objects_of_one_frame_never_become_one() -> None:
    # Downwards, one track claims both objects of frame 0 through frame 1: the second claim is refused.
    found = {0: [FoundMask(row(1, 2, 3), 0.9), FoundMask(row(7, 8, 9, 10), 0.9)], 1: [FoundMask(row(1, 2, 3), 0.9)]}
    up = {0: [Step(0, None, 0, 0), Step(1, None, 1, 0)], 1: [Step(0, row(1, 2, 3), 0, 0)]}
    down = {1: [Step(0, None, 0, 0)], 0: [Step(0, row(7, 8, 9), 1, 0)]}
    trails = fuse(found, up, down, FusionRules(least_found=1), may_extend=NOWHERE)
    assert sorted(sorted(trail.masks) for trail in trails) == [[0], [0, 1]]


def test_specks_below_a_share_of_the_largest_part_go() -> None:
    mask = np.zeros((3, 10, 12), dtype=np.bool_)
    mask[0:2, 0:5, 0:5] = True  # 50 voxels
    mask[2, 9, 11] = True
    assert without_specks(mask, 0.02).sum() == 51  # one is 2 % of 50
    assert without_specks(mask, 0.021).sum() == 50
    assert without_specks(mask, 0.0).sum() == 51


def test_overlap_of_packed_masks() -> None:
    assert overlap(row(1, 2, 3), row(2, 3, 4)) == 0.5
    assert overlap(row(1), row(5)) == 0.0
    assert overlap(row(), row()) == 0.0


def test_packed_masks_come_back() -> None:
    mask = np.random.default_rng(0).random((13, 21)) > 0.7
    packed = PackedMask.of(mask)
    np.testing.assert_array_equal(packed.dense(), mask)
    np.testing.assert_array_equal(PackedMask.from_fields(packed.to_fields(), packed.frame).dense(), mask)
    assert packed.area == mask.sum()


def test_rules_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"agree_iou is 1\.5"):
        FusionRules(agree_iou=1.5)
    with pytest.raises(InputError, match="least_found is 0"):
        FusionRules(least_found=0)
