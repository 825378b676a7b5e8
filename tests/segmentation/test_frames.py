"""`segment` over frames and prompts, with a segmenter that only compares with a threshold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from medsam3.errors import InputError
from medsam3.image import Image, Masks, ObjectMask, Pixels
from medsam3.prompts import Box, Point, Prompt
from medsam3.segmentation.options import Options
from medsam3.segmentation.run import as_prompts, segment, stack_frames
from threshold_segmenter import SCORE, ThresholdSegmenter


def _stack() -> Image:
    """Three slices of 4 x 5: dark, one bright pixel at (row 1, column 2), two at (3, 0) and (3, 1)."""
    pixels: Pixels = np.zeros((3, 4, 5, 1), dtype=np.uint8)
    pixels[1, 1, 2] = 255
    pixels[2, 3, :2] = 255
    return Image(pixels, kind="volume")


def test_a_picture_and_a_phrase_give_one_mask_at_the_same_place() -> None:
    [masks] = segment(_stack().frame(1), "polyp", ThresholdSegmenter())
    assert masks.shape == (1, 4, 5)
    assert masks.concept == "polyp"
    assert np.argwhere(masks.union()).tolist() == [[0, 1, 2]]
    assert (masks.presence, masks.is_present, masks.scores) == (0.9, True, (SCORE,))


def test_a_frame_is_encoded_once_for_all_prompts() -> None:
    segmenter = ThresholdSegmenter()
    prompts: list[str | Prompt] = ["polyp", Prompt(text="absent"), Prompt(boxes=(Box(0, 0, 2, 2),))]
    found = segment(_stack(), prompts, segmenter, Options(is_followed=False))
    assert (segmenter.encoded, segmenter.decoded) == (3, 9)
    assert [masks.concept for masks in found] == ["polyp", "absent", ""]
    assert [masks.presence for masks in found] == [0.9, 0.1, None]
    assert [masks.is_present for masks in found] == [True, False, None]


def test_many_prompts_are_the_same_as_one_by_one() -> None:
    together = segment(_stack(), ["polyp", "absent"], ThresholdSegmenter())
    alone = [segment(_stack(), phrase, ThresholdSegmenter())[0] for phrase in ("polyp", "absent")]
    for first, second in zip(together, alone, strict=True):
        assert np.array_equal(first.union(), second.union())
        assert first.presence == second.presence


def test_objects_of_a_stack_lie_in_their_own_frames() -> None:
    [masks] = segment(_stack(), "polyp", ThresholdSegmenter())
    assert masks.shape == (3, 4, 5)
    assert np.argwhere(masks.union()).tolist() == [[1, 1, 2], [2, 3, 0], [2, 3, 1]]
    assert len(masks) == 2


def test_only_chosen_frames_are_segmented() -> None:
    segmenter = ThresholdSegmenter()
    [masks] = segment(_stack(), "polyp", segmenter, frames=[2, 2])
    assert segmenter.encoded == 1
    assert masks.shape == (3, 4, 5)
    assert np.argwhere(masks.union()).tolist() == [[2, 3, 0], [2, 3, 1]]


def test_a_threshold_above_the_score_leaves_nothing() -> None:
    [masks] = segment(_stack(), "polyp", ThresholdSegmenter(), threshold=0.8)
    assert len(masks) == 0


def test_progress_tells_the_frames_that_are_done() -> None:
    told: list[tuple[int, int]] = []
    alone = Options(is_followed=False)
    segment(_stack(), "polyp", ThresholdSegmenter(), alone, progress=lambda done, count: told.append((done, count)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_path_is_read_first(tmp_path: Path) -> None:
    PIL.Image.fromarray(np.full((3, 4), 200, dtype=np.uint8)).save(tmp_path / "bright.png")
    [masks] = segment(tmp_path / "bright.png", "polyp", ThresholdSegmenter())
    assert masks.shape == (1, 3, 4)
    assert masks.union().all()


def test_a_stack_has_the_presence_and_the_order_of_its_best_frame() -> None:
    crop = np.ones((1, 1, 1), dtype=np.bool_)
    weak = Masks((1, 2, 2), (ObjectMask((0, 1, 0), crop, 0.2),), "polyp", presence=0.3, is_present=False)
    strong = Masks((1, 2, 2), (ObjectMask((0, 0, 1), crop, 0.9),), "polyp", presence=0.8, is_present=True)
    stacked = stack_frames((7, 2, 2), [1, 5], [weak, strong])
    assert (stacked.presence, stacked.is_present, stacked.verdict) == (0.8, True, "yes")
    unsure = stack_frames((7, 2, 2), [1, 5], [weak, replace(strong, is_sure=False)])
    assert unsure.verdict == "not sure" and stack_frames((7, 2, 2), [1, 2], [weak, weak]).verdict == "no"
    assert [found.start for found in stacked.objects] == [(5, 0, 1), (1, 1, 0)]


def test_prompts_are_made_of_phrases() -> None:
    prompt = Prompt(points=(Point(1, 1),))
    assert as_prompts("polyp") == [Prompt(text="polyp")]
    assert as_prompts(prompt) == [prompt]
    assert as_prompts(["polyp", prompt]) == [Prompt(text="polyp"), prompt]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompt was given"),
        ("", {}, "the phrase is empty"),
        ("x" * 10_000, {}, "the phrase has 10000 characters"),
        (Prompt(boxes=(Box(5, 0, 9, 3),)), {}, "box .* is outside the image of 5 x 4 pixels"),
        (Prompt(points=(Point(1, 4),)), {}, "point 1,4 is outside the image of 5 x 4 pixels"),
        ("polyp", {"frames": [3]}, "frame 3 was asked for, allowed is 0 to 2"),
        ("polyp", {"frames": [-1]}, "frame -1 was asked for"),
        ("polyp", {"frames": []}, "no frame was chosen"),
        ("polyp", {"threshold": 1.5}, "threshold is 1.5, allowed is 0 to 1"),
        ("polyp", {"threshold": float("nan")}, "threshold is nan"),
    ],
)
def test_bad_input_is_refused_before_anything_is_encoded(
    prompts: str | Prompt | list[str | Prompt], options: dict[str, object], message: str
) -> None:
    segmenter = ThresholdSegmenter()
    with pytest.raises(InputError, match=message):
        segment(_stack(), prompts, segmenter, **options)  # type: ignore[arg-type]
    assert segmenter.encoded == 0
