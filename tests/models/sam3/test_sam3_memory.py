"""SAM 3's tracker over a stack of four slices, with a small random network, in both directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medsam3.image import Image
from medsam3.models.sam3.memory import Sam3Tracker, without_small_parts
from medsam3.models.sam3.segmenter import Sam3Options, Sam3Segmenter
from medsam3.models.tracker import Past
from medsam3.prompts import Box, Prompt
from medsam3.segmentation.options import Options
from medsam3.segmentation.run import segment, tracker_for
from medsam3.segmentation.sweep import TrackingRules
from sam3_small import small_network


@pytest.fixture(scope="module")
def segmenter() -> Sam3Segmenter:
    torch.set_num_threads(1)
    return Sam3Segmenter(small_network(), None, Sam3Options())


def noise_stack() -> Image:
    pixels = np.random.default_rng(3).integers(0, 256, (4, 60, 80, 3), dtype=np.uint8)
    return Image(pixels, "video")


def test_sam3_has_a_tracker_of_its_own(segmenter: Sam3Segmenter) -> None:
    assert isinstance(tracker_for(segmenter), Sam3Tracker)


def test_a_box_on_slice_one_is_followed_in_both_directions(segmenter: Sam3Segmenter) -> None:
    rules = TrackingRules(stop_iou=0.0, largest_growth=1e9)  # random weights do not hold on to anything
    box = Prompt(boxes=(Box(10, 10, 50, 40),))
    (result,) = segment(noise_stack(), [box], segmenter, Options(at=1, tracking=rules))
    (item,) = result.objects
    assert item.crop.any(axis=(1, 2)).tolist() == [True] * 4
    assert result.shape == (4, 60, 80)


def test_what_is_followed_depends_on_the_mask_that_is_remembered(segmenter: Sam3Segmenter) -> None:
    tracker = Sam3Tracker(segmenter)
    stack = noise_stack()
    kept = {n: tracker.keep(segmenter.encode(stack.pixels(n))) for n in range(4)}
    left, right = np.zeros((2, 60, 80), dtype=np.bool_)
    left[10:50, 5:35] = True
    right[10:50, 45:75] = True
    answers = [tracker.follow(1, [Past(0, mask)], kept.__getitem__) for mask in (left, right)]
    assert (answers[0] != answers[1]).any()


def test_the_same_step_gives_the_same_mask(segmenter: Sam3Segmenter) -> None:
    tracker = Sam3Tracker(segmenter)
    stack = noise_stack()
    kept = {n: tracker.keep(segmenter.encode(stack.pixels(n))) for n in range(4)}
    mask = np.zeros((60, 80), dtype=np.bool_)
    mask[10:50, 5:35] = True
    past = [Past(2, mask), Past(3, mask)]
    first, second = (tracker.follow(1, past, kept.__getitem__) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_small_holes_are_filled_and_sprinkles_removed() -> None:
    mask = np.zeros((40, 40), dtype=np.bool_)
    mask[5:25, 5:25] = True
    mask[10:14, 10:14] = False  # 16 pixels
    mask[16:21, 16:21] = False  # 25 pixels
    mask[35, 35] = True
    cleaned = without_small_parts(mask, 16)
    assert cleaned[11, 11] and not cleaned[18, 18] and not cleaned[35, 35]
    assert cleaned.sum() == 400 - 25


def test_a_mask_of_sprinkles_only_is_kept() -> None:
    mask = np.zeros((10, 10), dtype=np.bool_)
    mask[3, 3] = True
    np.testing.assert_array_equal(without_small_parts(mask, 16), mask)
