"""Tracks on their way: matching, stopping, coming back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from medsam3.errors import InputError
from medsam3.segmentation.options import TrackingRules
from medsam3.segmentation.packed import PackedMask
from medsam3.segmentation.sweep import FoundMask, PastMask, Sweep, sweep

SIDE = 20


def block(left: int, width: int = 6) -> PackedMask:
    mask = np.zeros((SIDE, SIDE), dtype=np.bool_)
    mask[5:10, left : left + width] = True
    return PackedMask.of(mask)


def stays(n: int, track: int, past: Sequence[PastMask]) -> PackedMask:
    return past[0].mask


def test_a_track_is_the_object_it_overlaps_with_most() -> None:
    # Overlaps of 6 wide blocks 1 and 3 columns apart: 5/7 and 3/9.
    found = {0: [FoundMask(block(4), 0.9)], 1: [FoundMask(block(7), 0.8), FoundMask(block(5), 0.7)]}
    steps = sweep([0, 1], found, stays, TrackingRules())
    assert [(step.track, step.found) for step in steps[1]] == [(0, 1), (1, 0)]


def test_an_object_that_overlaps_too_little_begins_a_track() -> None:
    found = {0: [FoundMask(block(0), 0.9)], 1: [FoundMask(block(4), 0.9)]}  # 2/10
    steps = sweep([0, 1], found, stays, TrackingRules(match_iou=0.21, patience=0))
    assert [(step.track, step.found) for step in steps[1]] == [(1, 0)]


def test_a_track_found_once_ends_where_only_others_are_found() -> None:
    found = {0: [FoundMask(block(0, 4), 0.9)], 1: [FoundMask(block(10, 4), 0.9)]}
    steps = sweep([0, 1], found, stays, TrackingRules())
    assert [(step.track, step.found) for step in steps[1]] == [(1, 0)]
    sure = sweep([0, 1], found, stays, TrackingRules(sure_after=1))
    assert [(step.track, step.found) for step in sure[1]] == [(0, None), (1, 0)]


def test_a_track_that_runs_onto_another_ends() -> None:
    def meets(n: int, track: int, past: Sequence[PastMask]) -> PackedMask:
        return block(10, 6) if n == 2 else past[0].mask

    found = {n: [FoundMask(block(0), 0.9), FoundMask(block(10), 0.8)] for n in (0, 1)} | {
        2: [FoundMask(block(10), 0.8)]
    }
    steps = sweep(range(3), found, meets, TrackingRules(stop_iou=0.0))
    assert [(step.track, step.found) for step in steps[1]] == [(0, 0), (1, 1)]
    # Both are at the object of frame 2: one takes it, and the other is the same object twice.
    assert [(step.track, step.found) for step in steps[2]] == [(0, 0)]


def test_what_lies_inside_a_sure_track_that_has_run_over_is_believed() -> None:
    found = {n: [FoundMask(block(2, 16), 0.9)] for n in (0, 1)} | {2: [FoundMask(block(8, 3), 0.9)]}
    steps = sweep(range(4), found, stays, TrackingRules())
    assert [(step.track, step.found, step.has_run_over) for step in steps[2]] == [(0, 0, False)]
    assert steps[3][0].followed is not None and steps[3][0].followed.crop == (5, 3), "it remembers what was found"


def test_a_sure_track_is_believed_where_what_was_found_has_run_over() -> None:
    found = {n: [FoundMask(block(8, 3), 0.9)] for n in (0, 1)} | {2: [FoundMask(block(2, 16), 0.9)]}
    steps = sweep(range(4), found, stays, TrackingRules())  # 3 of 16 columns overlap, all 3 inside
    assert [(step.track, step.found, step.has_run_over) for step in steps[2]] == [(0, 0, True)]
    assert steps[3][0].followed is not None and steps[3][0].followed.crop == (5, 3), "it remembers what it followed"
    unsure = sweep(range(4), found, stays, TrackingRules(sure_after=3))
    assert [(step.track, step.found) for step in unsure[2]] == [(1, 0)]


@pytest.mark.parametrize(("patience", "last"), [(0, 0), (2, 2), (None, 5)])
def test_patience_is_how_long_an_object_is_followed_without_being_found(patience: int | None, last: int) -> None:
    steps = sweep(range(6), {0: [FoundMask(block(4), 0.9)]}, stays, TrackingRules(patience=patience))
    assert max(steps) == last
    assert [steps[n][0].age for n in sorted(steps)] == list(range(last + 1))


def test_a_track_stops_where_the_overlap_with_the_frame_before_is_low() -> None:
    def jumps(n: int, track: int, past: Sequence[PastMask]) -> PackedMask:
        return block(12) if n == 2 else past[0].mask

    steps = sweep(range(5), {0: [FoundMask(block(4), 0.9)]}, jumps, TrackingRules(patience=None))
    assert sorted(steps) == [0, 1]


def test_a_track_stops_where_it_grows_too_much() -> None:
    def swells(n: int, track: int, past: Sequence[PastMask]) -> PackedMask:
        return block(2, 6 + 6 * n)  # 12 wide on frame 1, which is twice 6

    assert sorted(sweep(range(2), {0: [FoundMask(block(2), 0.9)]}, swells, TrackingRules(largest_growth=1.9))) == [0]
    assert sorted(sweep(range(2), {0: [FoundMask(block(2), 0.9)]}, swells, TrackingRules(largest_growth=2.1))) == [0, 1]


def test_a_lost_object_of_a_video_is_looked_for_again() -> None:
    def hides(n: int, track: int, past: Sequence[PastMask]) -> PackedMask:
        return PackedMask.of(np.zeros((SIDE, SIDE), dtype=np.bool_)) if n in (1, 2) else past[0].mask

    found = {0: [FoundMask(block(4), 0.9)]}
    assert sorted(sweep(range(5), found, hides, TrackingRules(patience=None))) == [0]
    assert sorted(sweep(range(5), found, hides, TrackingRules(patience=None, may_return=True))) == [0, 3, 4]
    assert sorted(sweep(range(5), found, hides, TrackingRules(patience=2, may_return=True))) == [0]


def test_the_frame_that_a_track_began_on_is_always_remembered() -> None:
    asked: list[list[int]] = []

    def noted(n: int, track: int, past: Sequence[PastMask]) -> PackedMask:
        asked.append([one.n for one in past])
        return past[0].mask

    sweep(range(6), {0: [FoundMask(block(4), 0.9)]}, noted, TrackingRules(patience=None, memory=3))
    assert asked == [[0], [1, 0], [2, 1, 0], [3, 2, 0], [4, 3, 0]]


def test_only_frames_that_some_track_remembers_are_named() -> None:
    way = Sweep(stays, TrackingRules(patience=None, memory=2))
    for n in range(4):
        way.advance(n, [FoundMask(block(4), 0.9)] if n == 1 else [])
    assert way.remembered == {1, 3}


def test_rules_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="match and stop IoU are 2"):
        TrackingRules(match_iou=2)
    with pytest.raises(InputError, match=r"same IoU and inside share are 0 and 0\.7"):
        TrackingRules(same_iou=0)
    with pytest.raises(InputError, match=r"growth, memory and patience are 3\.0, 1 and 3"):
        TrackingRules(memory=1)


def test_a_track_takes_up_the_clearest_object_where_it_was_not_found() -> None:
    found = {
        0: [FoundMask(block(0, 4), 0.9)],
        1: [FoundMask(block(8, 4), 0.6), FoundMask(block(14, 4), 0.8)],
        2: [FoundMask(block(14, 4), 0.9)],
    }
    steps = sweep(range(3), found, stays, TrackingRules(takes_up=True, patience=None))
    assert [(step.track, step.found) for step in steps[1]] == [(0, 1), (1, 0)]  # the other begins a track of its own
    assert (0, 0) in [(step.track, step.found) for step in steps[2]]
    assert steps[1][0].followed is None  # what was followed lies elsewhere and has no vote


def test_a_lost_track_takes_up_what_is_found_later() -> None:
    def lost(n: int, track: int, past: Sequence[PastMask]) -> PackedMask:
        return PackedMask.of(np.zeros((SIDE, SIDE), dtype=np.bool_)) if n else past[0].mask

    found = {0: [FoundMask(block(0, 4), 0.9)], 2: [FoundMask(block(14, 4), 0.8)]}
    rules = TrackingRules(takes_up=True, may_return=True, patience=None)
    steps = sweep(range(3), found, lost, rules)
    assert 1 not in steps
    assert [(step.track, step.found) for step in steps[2]] == [(0, 0)]


@pytest.mark.parametrize(
    ("found", "is_followed"),
    [
        ([FoundMask(block(5), 0.9)], False),  # 1 column on: an overlap of 5/7
        ([FoundMask(block(5), 0.4)], True),  # not found surely
        ([FoundMask(block(9), 0.9)], True),  # 1/11
        ([FoundMask(block(4), 0.9), FoundMask(block(5), 0.9)], True),  # either may be it
        ([], True),
    ],
)
def test_nothing_is_followed_where_what_was_found_leaves_no_question(found: list[FoundMask], is_followed: bool) -> None:
    asked = []

    def noted(n: int, track: int, past: Sequence[PastMask]) -> PackedMask:
        asked.append(n)
        return past[0].mask

    steps = sweep(range(2), {0: [FoundMask(block(4), 0.9)], 1: found}, noted, TrackingRules(clear_iou=0.5))
    assert asked == ([1] if is_followed else [])
    if not is_followed:
        assert [(step.track, step.found) for step in steps[1]] == [(0, 0)]
