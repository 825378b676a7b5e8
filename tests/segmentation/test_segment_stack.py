"""Whole stacks with a model without weights: identities, gaps, hysteresis, boxes, key slices, resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from box_segmenter import BoxSegmenter, NamingSegmenter
from made_stacks import HEIGHT, WIDTH, blocks, jumping, stack_from
from medsam3.concepts import CONCEPTS
from medsam3.errors import InputError
from medsam3.geometry import affine_from_directions
from medsam3.prompts import Box, Point, Prompt
from medsam3.segmentation.options import Options
from medsam3.segmentation.packed import PackedMask
from medsam3.segmentation.recognise import recognised
from medsam3.segmentation.run import segment
from medsam3.segmentation.sweep import FoundMask

BRIGHT = Prompt(text="bright")
FOLLOWED = Options(is_followed=True)


def test_objects_keep_their_identity_through_the_stack() -> None:
    pixels = blocks(10)
    (masks,) = segment(stack_from(pixels), [BRIGHT], BoxSegmenter(), FOLLOWED)
    assert len(masks) == 2
    # 6 x 8 and 5 x 5 pixels in the six slices 2 to 7.
    assert sorted(item.voxels for item in masks.objects) == [6 * 25, 6 * 48]
    np.testing.assert_array_equal(masks.union()[:, 1:], pixels[:, 1:] > 128)


def test_without_propagation_each_slice_stands_for_itself_and_identities_are_kept() -> None:
    pixels = blocks(10)
    (result,) = segment(stack_from(pixels), [BRIGHT], BoxSegmenter(), Options(is_followed=False))
    assert len(result) == 2
    np.testing.assert_array_equal(result.union()[:, 1:], pixels[:, 1:] > 128)


def test_a_slice_on_which_nothing_was_found_is_filled_from_both_sides() -> None:
    pixels = blocks(10, hidden=(5,))
    alone, followed = (
        segment(stack_from(pixels), [BRIGHT], BoxSegmenter(), Options(is_followed=way))[0] for way in (False, True)
    )
    assert not alone.union()[5].any()
    np.testing.assert_array_equal(followed.union()[:, 1:], pixels[:, 1:] > 128)
    assert len(followed) == 2


def test_beyond_the_last_slice_that_holds_the_concept_nothing_is_followed_alone() -> None:
    pixels = blocks(10, hidden=(6, 7))
    (result,) = segment(stack_from(pixels), [BRIGHT], BoxSegmenter(), FOLLOWED)
    assert not result.union()[6:].any()


def test_by_itself_a_phrase_is_asked_slice_by_slice_in_a_volume_and_followed_in_a_video() -> None:
    pixels = blocks(10, hidden=(5,))
    (volume,) = segment(stack_from(pixels), [BRIGHT], BoxSegmenter())
    (video,) = segment(stack_from(pixels, kind="video"), [BRIGHT], BoxSegmenter())
    assert not volume.union()[5].any() and video.union()[5].any()


def test_a_phrase_gives_the_same_beside_a_box() -> None:
    box = Prompt(boxes=(Box(7.5, 3.5, 15.5, 9.5),))
    stack = stack_from(blocks(10, hidden=(5,)))
    alone = [segment(stack, [prompt], BoxSegmenter(), Options(at=4))[0] for prompt in (BRIGHT, box)]
    together = segment(stack, [BRIGHT, box], BoxSegmenter(), Options(at=4))
    assert together == alone


def test_chosen_slices_are_asked_and_no_others() -> None:
    model = BoxSegmenter()
    (found,) = segment(stack_from(blocks(10)), [BRIGHT], model, frames=[2, 3, 7])
    assert model.encoded == [2, 3, 7]
    assert np.flatnonzero(found.union().any(axis=(1, 2))).tolist() == [2, 3, 7]
    (alone,) = segment(stack_from(blocks(10)).frame(7), [BRIGHT], BoxSegmenter())
    np.testing.assert_array_equal(found.union()[7], alone.union()[0])


def test_a_box_on_one_slice_is_followed_both_ways() -> None:
    pixels = blocks(10)
    box = Prompt(boxes=(Box(7.5, 3.5, 15.5, 9.5),))
    (result,) = segment(stack_from(pixels), [box], BoxSegmenter(), Options(at=4))
    (item,) = result.objects
    assert (item.start, item.voxels) == ((2, 4, 6), 6 * 48)


def test_key_slices_are_joined_by_following() -> None:
    pixels = blocks(11, first=0, last=10)
    model = BoxSegmenter()
    (result,) = segment(stack_from(pixels), [BRIGHT], model, Options(key_every=5))
    np.testing.assert_array_equal(result.union()[:, 1:], pixels[:, 1:] > 128)
    assert model.phrases == [0, 5, 10]


def test_a_slice_is_encoded_once_for_all_concepts() -> None:
    model = BoxSegmenter()
    prompts = [Prompt(text=name) for name in ("bright", "light", "shiny")]
    segment(stack_from(blocks(6, first=1, last=4)), prompts, model)
    assert model.encoded == [0, 1, 2, 3, 4, 5]


def test_frames_that_were_let_go_are_encoded_again_with_the_same_result() -> None:
    stack = stack_from(blocks(8))
    model, small = BoxSegmenter(), BoxSegmenter()
    (kept,) = segment(stack, [BRIGHT], model, FOLLOWED)
    (let_go,) = segment(stack, [BRIGHT], small, replace(FOLLOWED, memory_bytes=0, disk_bytes=0))
    assert len(small.encoded) > len(model.encoded) == 8
    np.testing.assert_array_equal(let_go.label_map(), kept.label_map())


@pytest.mark.parametrize("encoded_before", [1, 4, 7])
def test_a_broken_run_is_taken_up_with_the_result_of_an_unbroken_one(encoded_before: int, tmp_path: Path) -> None:
    stack, options = stack_from(blocks(8)), replace(FOLLOWED, journal=tmp_path / "run.journal")
    whole = segment(stack, [BRIGHT], BoxSegmenter(), FOLLOWED)[0]
    broken = BoxSegmenter()
    broken.stop_after = encoded_before
    with pytest.raises(RuntimeError, match="killed"):
        segment(stack, [BRIGHT], broken, options)
    resumed = BoxSegmenter()
    (result,) = segment(stack, [BRIGHT], resumed, options)
    np.testing.assert_array_equal(result.label_map(), whole.label_map())
    assert result.scores == whole.scores
    again = BoxSegmenter()
    segment(stack, [BRIGHT], again, options)
    assert again.encoded == []


def test_a_journal_of_another_prompt_is_begun_anew(tmp_path: Path) -> None:
    stack, options = stack_from(blocks(6, first=1)), Options(journal=tmp_path / "run.journal")
    segment(stack, [Prompt(text="light")], BoxSegmenter(), options)
    model = BoxSegmenter()
    segment(stack, [BRIGHT], model, options)
    assert len(model.encoded) == 6


def test_slices_are_seen_with_square_pixels_and_masks_come_back_at_the_files_size() -> None:
    affine = affine_from_directions([0, 0, 0], [0, 0, 3], [0, 2, 0], [1, 0, 0])
    pixels = blocks(8)
    (result,) = segment(stack_from(pixels, affine=affine), [BRIGHT], BoxSegmenter())
    union = result.union()
    assert union.shape == (8, HEIGHT, WIDTH)
    # Enlarging twice and coming back may move an edge by a row, never more.
    assert (union[:, 1:] ^ (pixels[:, 1:] > 128)).sum() <= 2 * (8 + 5) * 4


def test_progress_ends_at_the_number_of_steps() -> None:
    told: list[tuple[int, int]] = []
    segment(
        stack_from(blocks(5)),
        [BRIGHT],
        BoxSegmenter(),
        FOLLOWED,
        progress=lambda done, count: told.append((done, count)),
    )
    assert told[0] == (0, 15) and told[-1] == (15, 15)


def test_nothing_found_is_an_empty_result() -> None:
    (result,) = segment(stack_from(np.zeros((4, 24, 32), dtype=np.uint8)), [BRIGHT], BoxSegmenter())
    masks = result
    assert (len(masks), masks.is_present, masks.shape) == (0, False, (4, 24, 32))


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], Options(), "no prompt was given"),
        ([Prompt(boxes=(Box(1, 1, 5, 5),))], Options(), "on one slice of a volume: say which, 0 to 3"),
        ([Prompt(boxes=(Box(1, 1, 5, 5),))], Options(at=4), "slice 4 was named for the boxes, allowed is 0 to 3"),
        ([Prompt(points=(Point(90, 3),))], Options(at=0), "outside the image"),
        ([BRIGHT], Options(plane="axial"), "plane 'axial' needs a volume with a position"),
    ],
)
def test_what_does_not_fit_the_stack_is_refused(prompts: list[Prompt], options: Options, message: str) -> None:
    with pytest.raises(InputError, match=message):
        segment(stack_from(blocks(4)), prompts, BoxSegmenter(), options)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="key frames are every 0"):
        Options(key_every=0)
    with pytest.raises(InputError, match="weak_score is 2"):
        Options(weak_score=2)
    with pytest.raises(InputError, match="key frames need objects to be followed"):
        Options(key_every=2, is_followed=False)


def test_a_box_on_a_videos_frame_is_recognised_and_found_again_where_following_loses_it() -> None:
    stack = stack_from(jumping(), kind="video", fps=10.0)
    box = Prompt(boxes=(Box(3.5, 3.5, 11.5, 9.5),))
    (lost,) = segment(stack, [box], BoxSegmenter())
    assert lost.found_as == ""
    assert not lost.union()[3:].any()
    (found,) = segment(stack, [box], NamingSegmenter())
    assert found.found_as == CONCEPTS[0].name  # the model without weights finds what is bright by any name
    assert len(found) == 1
    np.testing.assert_array_equal(found.union(), jumping() > 128)
    assert found.presence is None
    (off,) = segment(stack, [box], NamingSegmenter(), Options(is_recognised=False))
    assert not off.union()[3:].any()


def test_a_box_in_a_volume_is_not_looked_for_by_name() -> None:
    box = Prompt(boxes=(Box(3.5, 3.5, 11.5, 9.5),))
    (result,) = segment(stack_from(jumping()), [box], NamingSegmenter(), Options(at=0))
    assert result.found_as == ""
    assert not result.union()[3:].any()


def test_what_no_name_fits_is_only_followed() -> None:
    features = jumping()[0]
    assert recognised(BoxSegmenter(), features, [FoundMask(PackedMask.of(features == 0), 0.9)]) == ""
    assert recognised(BoxSegmenter(), features, []) == ""
    assert recognised(BoxSegmenter(), features, [FoundMask(PackedMask.of(features > 128), 0.9)], "bright") == "bright"
