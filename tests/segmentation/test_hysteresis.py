"""Hysteresis of presence over slices."""

from __future__ import annotations

import pytest

from medsam3.errors import InputError
from medsam3.segmentation.presence import held


def test_weak_slices_count_only_in_a_run_with_a_strong_one() -> None:
    presence = [0.1, 0.45, 0.9, 0.5, 0.1, 0.5, 0.1]
    verdicts: list[bool | None] = [False, False, True, False, False, False, False]
    # Half of the lowest yes, 0.9, is 0.45: slices 1 and 3 touch slice 2, slice 5 is weak and alone.
    assert held(presence, verdicts, weak_share=0.5).tolist() == [False, True, True, True, False, False, False]


def test_a_share_of_one_takes_the_models_verdicts() -> None:
    assert held([0.8, 0.9, 0.7], [False, True, False], weak_share=1.0).tolist() == [False, True, False]


def test_without_a_yes_nothing_counts() -> None:
    assert not held([0.4, 0.4], [False, False], weak_share=0.0).any()
    assert not held([None, None], [None, None], weak_share=0.5).any()


def test_slices_between_keys_go_with_the_keys_on_both_sides() -> None:
    presence = [0.9, None, 0.9, None, 0.1, None]
    verdicts = [True, None, True, None, False, None]
    assert held(presence, verdicts, weak_share=0.5).tolist() == [True, True, True, False, False, False]


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match=r"weak share is 1\.5"):
        held([0.5], [True], weak_share=1.5)
