"""A correction changes its own slice and what follows from it, no more."""

from __future__ import annotations

import numpy as np
import pytest

from box_segmenter import BoxSegmenter
from made_stacks import blocks, stack_from
from medsam3.errors import InputError
from medsam3.prompts import Box, Prompt
from medsam3.segmentation.correction import Correction
from medsam3.segmentation.options import Options
from medsam3.segmentation.run import segment

STILL = Box(1.5, 15.5, 6.5, 20.5)


def followed_block() -> Correction:
    """The moving block alone is known; the still one, of 5 x 5 pixels in slices 2 to 7, is not."""
    stack = stack_from(blocks(10))
    box = Prompt(boxes=(Box(7.5, 3.5, 15.5, 9.5),))
    (result,) = segment(stack, [box], BoxSegmenter(), Options(at=4))
    return Correction(stack, result, BoxSegmenter())


def test_a_new_object_is_followed_both_ways() -> None:
    correction = followed_block()
    correction.box(5, STILL)
    assert correction.touched == (2, 3, 4, 5, 6, 7)
    assert sorted(item.voxels for item in correction.masks.objects) == [150, 288]


def test_the_same_box_again_changes_only_its_own_slice() -> None:
    correction = followed_block()
    correction.box(5, STILL)
    before = correction.masks.union()
    correction.box(3, STILL, trail=1)
    assert correction.touched == (3,)
    np.testing.assert_array_equal(correction.masks.union(), before)


def test_slices_corrected_by_hand_are_not_overwritten() -> None:
    correction = followed_block()
    correction.box(5, STILL)
    pinned = correction.trails[1].masks[5].dense()
    # Another object is put in its place from slice 4 on: it does not pass slice 5.
    correction.box(4, Box(7.5, 3.5, 15.5, 9.5), trail=1)
    assert correction.touched == (2, 3, 4)
    np.testing.assert_array_equal(correction.trails[1].masks[5].dense(), pinned)


@pytest.mark.parametrize(
    ("n", "box", "trail", "message"),
    [
        (10, STILL, None, "slice 10 was named, allowed is 0 to 9"),
        (5, STILL, 3, "object 3 was named, allowed is 0 to 0"),
        (5, Box(90, 90, 95, 95), None, "outside the image"),
        (0, STILL, None, "nothing was found in the box"),
    ],
)
def test_corrections_that_cannot_be_are_refused(n: int, box: Box, trail: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        followed_block().box(n, box, trail=trail)
