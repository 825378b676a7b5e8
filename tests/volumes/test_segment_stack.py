"""Whole stacks with a model without weights: identities, gaps, hysteresis, boxes, key slices, resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from box_segmenter import BoxSegmenter
from made_stacks import HEIGHT, WIDTH, blocks, jumping, stack_from

from medsam3.concepts import CONCEPTS
from medsam3.errors import InputError
from medsam3.geometry import affine_from_directions
from medsam3.prompts import Box, Point, Prompt
from medsam3.volumes import recognise
from medsam3.volumes.options import StackOptions
from medsam3.volumes.packed import PackedMask
from medsam3.volumes.recognise import recognised
from medsam3.volumes.run import segment_stack
from medsam3.volumes.sweep import Found

BRIGHT = Prompt(text="bright")


def test_objects_keep_their_identity_through_the_stack() -> None:
    pixels = blocks(10)
    (result,) = segment_stack(stack_from(pixels), [BRIGHT], BoxSegmenter())
    masks = result.masks()
    assert len(masks) == 2
    # 6 x 8 and 5 x 5 pixels in the six slices 2 to 7.
    assert sorted(item.voxels for item in masks.objects) == [6 * 25, 6 * 48]
    np.testing.assert_array_equal(masks.union()[:, 1:], pixels[:, 1:] > 128)


def test_without_propagation_each_slice_stands_for_itself_and_identities_are_kept() -> None:
    pixels = blocks(10)
    (result,) = segment_stack(stack_from(pixels), [BRIGHT], BoxSegmenter(), StackOptions(is_propagated=False))
    assert len(result.trails) == 2
    np.testing.assert_array_equal(result.masks().union()[:, 1:], pixels[:, 1:] > 128)


def test_a_slice_on_which_nothing_was_found_is_filled_from_both_sides() -> None:
    pixels = blocks(10, hidden=(5,))
    alone, followed = (
        segment_stack(stack_from(pixels), [BRIGHT], BoxSegmenter(), StackOptions(is_propagated=way))[0].masks()
        for way in (False, True)
    )
    assert not alone.union()[5].any()
    np.testing.assert_array_equal(followed.union()[:, 1:], pixels[:, 1:] > 128)
    assert len(followed) == 2


def test_beyond_the_last_slice_that_holds_the_concept_nothing_is_followed_alone() -> None:
    pixels = blocks(10, hidden=(6, 7))
    (result,) = segment_stack(stack_from(pixels), [BRIGHT], BoxSegmenter())
    assert not result.masks().union()[6:].any()


def test_a_box_on_one_slice_is_followed_both_ways() -> None:
    pixels = blocks(10)
    box = Prompt(boxes=(Box(7.5, 3.5, 15.5, 9.5),))
    (result,) = segment_stack(stack_from(pixels), [box], BoxSegmenter(), StackOptions(at=4))
    (item,) = result.masks().objects
    assert (item.start, item.voxels) == ((2, 4, 6), 6 * 48)


def test_key_slices_are_joined_by_following() -> None:
    pixels = blocks(11, first=0, last=10)
    model = BoxSegmenter()
    (result,) = segment_stack(stack_from(pixels), [BRIGHT], model, StackOptions(key_every=5))
    np.testing.assert_array_equal(result.masks().union()[:, 1:], pixels[:, 1:] > 128)
    assert [value is not None for value in result.presence] == [n in (0, 5, 10) for n in range(11)]


def test_a_slice_is_encoded_once_for_all_concepts() -> None:
    model = BoxSegmenter()
    prompts = [Prompt(text=name) for name in ("bright", "light", "shiny")]
    segment_stack(stack_from(blocks(6, first=1, last=4)), prompts, model)
    assert model.encoded == [0, 1, 2, 3, 4, 5]


def test_frames_that_were_let_go_are_encoded_again_with_the_same_result() -> None:
    stack = stack_from(blocks(8))
    model, small = BoxSegmenter(), BoxSegmenter()
    (kept,) = segment_stack(stack, [BRIGHT], model)
    (let_go,) = segment_stack(stack, [BRIGHT], small, StackOptions(memory_bytes=0, disk_bytes=0))
    assert len(small.encoded) > len(model.encoded) == 8
    np.testing.assert_array_equal(let_go.masks().label_map(), kept.masks().label_map())


@pytest.mark.parametrize("encoded_before", [1, 4, 7])
def test_a_broken_run_is_taken_up_with_the_result_of_an_unbroken_one(encoded_before: int, tmp_path: Path) -> None:
    stack, options = stack_from(blocks(8)), StackOptions(journal=tmp_path / "run.journal")
    whole = segment_stack(stack, [BRIGHT], BoxSegmenter())[0].masks()
    broken = BoxSegmenter()
    broken.stop_after = encoded_before
    with pytest.raises(RuntimeError, match="killed"):
        segment_stack(stack, [BRIGHT], broken, options)
    resumed = BoxSegmenter()
    (result,) = segment_stack(stack, [BRIGHT], resumed, options)
    np.testing.assert_array_equal(result.masks().label_map(), whole.label_map())
    assert result.masks().scores == whole.scores
    again = BoxSegmenter()
    segment_stack(stack, [BRIGHT], again, options)
    assert again.encoded == []


def test_a_journal_of_another_prompt_is_begun_anew(tmp_path: Path) -> None:
    stack, options = stack_from(blocks(6, first=1)), StackOptions(journal=tmp_path / "run.journal")
    segment_stack(stack, [Prompt(text="light")], BoxSegmenter(), options)
    model = BoxSegmenter()
    segment_stack(stack, [BRIGHT], model, options)
    assert len(model.encoded) == 6


def test_slices_are_seen_with_square_pixels_and_masks_come_back_at_the_files_size() -> None:
    affine = affine_from_directions([0, 0, 0], [0, 0, 3], [0, 2, 0], [1, 0, 0])
    pixels = blocks(8)
    (result,) = segment_stack(stack_from(pixels, affine=affine), [BRIGHT], BoxSegmenter())
    union = result.masks().union()
    assert union.shape == (8, HEIGHT, WIDTH)
    # Enlarging twice and coming back may move an edge by a row, never more.
    assert (union[:, 1:] ^ (pixels[:, 1:] > 128)).sum() <= 2 * (8 + 5) * 4


def test_progress_ends_at_the_number_of_steps() -> None:
    told: list[tuple[int, int]] = []
    segment_stack(
        stack_from(blocks(5)), [BRIGHT], BoxSegmenter(), progress=lambda done, count: told.append((done, count))
    )
    assert told[0] == (0, 15) and told[-1] == (15, 15)


def test_nothing_found_is_an_empty_result() -> None:
    (result,) = segment_stack(stack_from(np.zeros((4, 24, 32), dtype=np.uint8)), [BRIGHT], BoxSegmenter())
    masks = result.masks()
    assert (len(masks), masks.is_present, masks.shape) == (0, False, (4, 24, 32))


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], StackOptions(), "no prompt was given"),
        ([Prompt(boxes=(Box(1, 1, 5, 5),))], StackOptions(), "on one slice of a volume: say which, 0 to 3"),
        ([Prompt(boxes=(Box(1, 1, 5, 5),))], StackOptions(at=4), "slice 4 was named for the boxes, allowed is 0 to 3"),
        ([Prompt(points=(Point(90, 3),))], StackOptions(at=0), "outside the image"),
        ([BRIGHT], StackOptions(plane="axial"), "plane 'axial' needs a volume with a position"),
    ],
)
def test_what_does_not_fit_the_stack_is_refused(prompts: list[Prompt], options: StackOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        segment_stack(stack_from(blocks(4)), prompts, BoxSegmenter(), options)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="key frames are every 0"):
        StackOptions(key_every=0)
    with pytest.raises(InputError, match="weak_score is 2"):
        StackOptions(weak_score=2)
    with pytest.raises(InputError, match="key frames need propagation"):
        StackOptions(key_every=2, is_propagated=False)


def test_a_box_on_a_videos_frame_is_recognised_and_found_again_where_following_loses_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = stack_from(jumping(), kind="video", fps=10.0)
    box = Prompt(boxes=(Box(3.5, 3.5, 11.5, 9.5),))
    (lost,) = segment_stack(stack, [box], BoxSegmenter())
    assert lost.recognised == ""
    assert not lost.masks().union()[3:].any()
    monkeypatch.setattr(recognise, "RECOGNISING", frozenset({"boxes"}))
    (found,) = segment_stack(stack, [box], BoxSegmenter())
    assert found.recognised == CONCEPTS[0].name  # the model without weights finds what is bright by any name
    assert len(found.trails) == 1
    np.testing.assert_array_equal(found.masks().union(), jumping() > 128)
    assert found.masks().presence is None
    (off,) = segment_stack(stack, [box], BoxSegmenter(), StackOptions(is_recognised=False))
    assert not off.masks().union()[3:].any()


def test_a_box_in_a_volume_is_not_looked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recognise, "RECOGNISING", frozenset({"boxes"}))
    box = Prompt(boxes=(Box(3.5, 3.5, 11.5, 9.5),))
    (result,) = segment_stack(stack_from(jumping()), [box], BoxSegmenter(), StackOptions(at=0))
    assert result.recognised == ""
    assert not result.masks().union()[3:].any()


def test_what_no_name_fits_is_only_followed() -> None:
    features = jumping()[0]
    assert recognised(BoxSegmenter(), features, [Found(PackedMask.of(features == 0), 0.9)]) == ""
    assert recognised(BoxSegmenter(), features, []) == ""
    assert recognised(BoxSegmenter(), features, [Found(PackedMask.of(features > 128), 0.9)], "bright") == "bright"
