"""A session: what a person draws changes what it is about and no more, can be taken back, and replays."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import medsam3
from box_segmenter import BoxSegmenter
from made_stacks import blocks, stack_from
from medsam3.errors import InputError
from medsam3.geometry import affine_from_directions
from medsam3.image import Image
from medsam3.segmentation.session import Session
from threshold_segmenter import ThresholdSegmenter

STILL = (1.5, 15.5, 6.5, 20.5)
"""Around the still block of 5 x 5 pixels at rows 16 to 20 and columns 2 to 6."""


def picture() -> Image:
    """Two bright blocks, of 6 x 8 pixels at row 4, column 6 and of 5 x 5 at row 16, column 2."""
    return Image(blocks(5)[2][None, ..., None])


def session_of_picture() -> Session:
    session = Session(picture(), BoxSegmenter())
    session.segment("bright")
    return session


def sizes(session: Session) -> list[int]:
    return [one.trail.to_object().voxels if one.trail.to_object() else 0 for one in session.objects]  # type: ignore[union-attr]


def test_a_phrase_gives_what_segment_gives_side_by_side() -> None:
    session = session_of_picture()
    (found,) = medsam3.segment(picture(), "bright", BoxSegmenter())
    np.testing.assert_array_equal(session.masks.union(), found.union())
    assert sizes(session) == [48, 25]
    assert (session.masks.concept, session.masks.presence, session.current) == ("bright", found.presence, 0)


def test_a_phrase_that_joins_concepts_gives_objects_of_each() -> None:
    session = Session(picture(), BoxSegmenter())
    session.segment("liver and kidney")
    assert [one.concept for one in session.objects] == ["liver", "liver", "kidney", "kidney"]
    assert sizes(session) == [48, 25, 48, 25] and session.current == 0
    with pytest.raises(InputError, match="no liver"):
        session.segment("no liver")


def test_a_click_is_right_afterwards_and_leaves_the_other_object_alone() -> None:
    session = session_of_picture()
    session.click(7, 5, positive=False)
    assert not session.masks.union()[0, 5, 7] and session.object_masks(1).union().sum() == 25
    session.click(20, 12)
    assert session.object_masks(0).union()[0, 12, 20]
    assert not session.masks.union()[0, 5, 7]


def test_a_negative_click_is_about_the_object_that_holds_it() -> None:
    session = session_of_picture()
    session.click(3, 17, positive=False)
    assert session.current == 1 and session.object_masks(0).union().sum() == 48
    assert not session.object_masks(1).union()[0, 17, 3]


def test_a_frame_is_encoded_once_however_much_is_asked() -> None:
    model = BoxSegmenter()
    session = Session(picture(), model)
    session.segment("bright")
    session.click(20, 12)
    session.box(*STILL)
    session.segment("bright spot")
    assert len(model.encoded) == 1


def test_a_box_begins_an_object_and_a_box_on_one_takes_its_place() -> None:
    session = Session(picture(), BoxSegmenter())
    session.box(*STILL)
    session.click(20, 3, positive=False)  # off it already: a hint, and nothing else
    assert sizes(session) == [25]
    session.box(5.5, 3.5, 13.5, 9.5, object=0)
    assert sizes(session) == [48]


def test_a_scribble_holds_for_all_of_its_pixels() -> None:
    session = session_of_picture()
    session.scribble([(15, 12), (25, 12)])
    assert session.object_masks(0).union()[0, 12, 15:26].all()
    session.scribble([(3, 16), (3, 20)], positive=False, object=1)
    assert not session.object_masks(1).union()[0, 16:21, 3].any()


def test_undo_and_redo_go_through_the_same_states() -> None:
    session = session_of_picture()
    states = [session.masks]
    states.append(session.click(20, 12))
    states.append(session.box(*STILL))
    states.append(session.remove(1))
    for before in reversed(states[:-1]):
        assert session.undo() == before
    for after in states[1:]:
        assert session.redo() == after
    session.undo()
    session.click(0, 22)
    with pytest.raises(InputError, match="nothing to redo"):
        session.redo()


def test_after_a_reset_the_answer_does_not_depend_on_what_was_asked_before() -> None:
    session = session_of_picture()
    session.click(20, 12)
    session.reset()
    assert session.objects == () and len(session.masks) == 0
    session.segment("bright")
    session.click(7, 5, positive=False)
    fresh = session_of_picture()
    fresh.click(7, 5, positive=False)
    assert session.masks == fresh.masks


def test_an_accepted_object_stays_and_the_next_click_begins_another() -> None:
    session = session_of_picture()
    session.accept()
    with pytest.raises(InputError, match="object 0 was accepted"):
        session.click(7, 5, positive=False, object=0)
    session.click(20, 12)
    assert session.current == 2 and sizes(session)[:2] == [48, 25]


def test_a_session_replays_from_json_and_not_on_another_image_or_model() -> None:
    session = session_of_picture()
    session.click(20, 12)
    session.scribble([(3, 16), (3, 20)], positive=False)
    session.undo()
    session.box(*STILL)
    text = session.to_json()
    assert Session.from_json(text, picture(), BoxSegmenter()).masks == session.masks
    other = picture().array().copy()
    other[0, 23, 31] = 1
    with pytest.raises(InputError, match="of another image"):
        Session.from_json(text, Image(other), BoxSegmenter())
    with pytest.raises(InputError, match="made with model boxes, this is threshold"):
        Session.from_json(text, picture(), ThresholdSegmenter())
    for broken in ("{", "[]", json.dumps({**json.loads(text), "format": 9})):
        with pytest.raises(InputError, match=r"the form that|in format 9"):
            Session.from_json(broken, picture(), BoxSegmenter())
    with pytest.raises(InputError, match="step that is not known"):
        Session.from_json(json.dumps({**json.loads(text), "steps": [{"do": "fly"}]}), picture(), BoxSegmenter())


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda s: s.click(32, 5), "outside the image of 32 x 24"),
        (lambda s: s.click(float("nan"), 5), "not finite"),
        (lambda s: (s.click(20, 12), s.click(20.3, 11.8, positive=False, object=0)), "pixel 20,12 was said to be on"),
        (lambda s: [s.click(k % 32, k // 32 + 1) for k in range(500)], "would have 101 clicks, allowed are 100"),
        (lambda s: s.scribble([]), "the stroke is empty"),
        (lambda s: s.click(1, 1, frame=1), "frame 1 was asked for, allowed is 0 to 0"),
        (lambda s: s.click(1, 1, object=7), "no object 7, known are 0, 1"),
        (lambda s: s.box(0, 0, 0, 5), "inverted or empty"),
        (lambda s: s.box(25, 12, 30, 14), "nothing was found in the box"),
        (lambda s: (s.reset(), s.click(1, 1, positive=False)), "no object that a negative click"),
        (lambda s: (s.reset(), s.accept()), "there is no object None, known are none yet"),
        (lambda s: s.propagate(), "nothing was drawn or corrected"),
        (lambda s: s.segment("  "), "phrase is empty"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(step: Callable[[Session], object], message: str) -> None:
    session = session_of_picture()
    with pytest.raises(InputError, match=message):
        step(session)
    before = session.masks
    session.select(None)
    session.undo()
    assert session.masks == before


def volume_with_one_block() -> Session:
    """The moving block alone is known; the still one, of 5 x 5 pixels in slices 2 to 7, is not."""
    session = Session(stack_from(blocks(10)), BoxSegmenter())
    session.box(7.5, 3.5, 15.5, 9.5, frame=4)
    session.propagate()
    return session


def test_what_was_drawn_on_a_slice_is_followed_both_ways_and_no_further() -> None:
    session = volume_with_one_block()
    assert session.touched == (2, 3, 4, 5, 6, 7) and session.masks.union().sum() == 6 * 48
    session.box(*STILL, frame=5)
    assert list(session.touched) == [5]
    session.propagate()
    assert list(session.touched) == [2, 3, 4, 5, 6, 7]
    assert sorted(item.voxels for item in session.masks.objects) == [150, 288]


def test_a_correction_that_changes_nothing_asks_only_its_neighbours_again() -> None:
    session = volume_with_one_block()
    session.box(*STILL, frame=5)
    session.propagate()
    before, model = session.masks.union(), session.model
    assert isinstance(model, BoxSegmenter)
    session.box(*STILL, frame=3, object=1)
    model.encoded.clear()
    session.propagate()
    assert session.touched == (3,) and set(model.encoded) <= {2, 3, 4}
    np.testing.assert_array_equal(session.masks.union(), before)


def test_slices_corrected_by_hand_are_not_overwritten() -> None:
    session = volume_with_one_block()
    session.box(*STILL, frame=5)
    session.propagate()
    # Another object is put in its place from slice 4 on: it does not pass slice 5.
    session.box(7.5, 3.5, 15.5, 9.5, frame=4, object=1)
    session.propagate()
    assert session.touched == (2, 3, 4)
    assert session.object_masks(1).union()[5, 16:21, 2:7].all()


def test_a_correction_reaches_halfway_to_the_next_one() -> None:
    session = volume_with_one_block()
    session.box(*STILL, frame=3)
    session.propagate()
    still = session.object_masks(1).union()[:5].copy()
    session.box(10.5, 3.5, 18.5, 9.5, frame=7, object=1)  # the moving block, three pixels further than on slice 4
    session.propagate()
    assert session.touched == (5, 6, 7)  # slice 5 is as near to one correction as to the other
    np.testing.assert_array_equal(session.object_masks(1).union()[:5], still)


def test_an_object_ends_where_a_slice_of_it_was_cleared() -> None:
    session = volume_with_one_block()
    session.box(*STILL, frame=4)
    session.propagate()
    shown = np.flatnonzero(session.object_masks(1).union().any(axis=(1, 2))).tolist()
    first, last = shown[0], shown[-1]
    assert (first, last) == (2, 7)
    session.paint([(3, 18), (8, 18)], radius=12, adding=False, frame=6, object=1)
    session.propagate()
    assert session.touched == (6, 7)
    assert np.flatnonzero(session.object_masks(1).union().any(axis=(1, 2))).tolist() == [2, 3, 4, 5]
    with pytest.raises(InputError, match="there is nothing new"):
        session.propagate()


def test_a_slice_must_be_named_in_a_volume_and_a_session_may_name_it_for_all_steps() -> None:
    stack = stack_from(blocks(10))
    with pytest.raises(InputError, match="on one slice: say which, 0 to 9"):
        Session(stack, BoxSegmenter()).click(3, 17)
    session = Session(stack, BoxSegmenter(), frame=3)
    session.segment("bright")
    assert np.flatnonzero(session.masks.union().any(axis=(1, 2))).tolist() == [3]
    session.click(20, 12)
    assert session.masks.union()[3, 12, 20]
    with pytest.raises(InputError, match="frame 10 was asked for"):
        Session(stack, BoxSegmenter(), frame=10)


def test_clicks_lie_where_the_file_has_them_in_a_turned_volume_of_uneven_pixels() -> None:
    """Rows of 2 mm run up and columns of 1 mm to the right: the view is turned by 180 degrees and stretched."""
    affine = affine_from_directions([0, 0, 0], [0, 0, 4], [0, -2, 0], [-1, 0, 0])
    stack = stack_from(blocks(6), affine=affine)
    session = Session(stack, BoxSegmenter())
    session.click(25, 13, frame=3)
    session.scribble([(25, 15), (28, 15)], frame=3)
    mask = session.masks.union()
    assert mask[3, 13, 25] and mask[3, 15, 25:29].all()
    session.click(25, 14, positive=False, frame=3)
    assert not session.masks.union()[3, 14, 25] and session.masks.union()[3, 13, 25]


def test_a_video_is_corrected_on_a_frame_and_followed() -> None:
    session = Session(stack_from(blocks(6, last=5), kind="video"), BoxSegmenter(), frame=3)
    session.box(6.5, 3.5, 14.5, 9.5)
    session.propagate()
    assert session.touched == (2, 3, 4, 5)


def test_concepts_stand_side_by_side_and_one_without_objects_is_told() -> None:
    session = Session(picture(), ThresholdSegmenter())
    session.segment("polyp")
    session.segment("absent")
    assert [(one.concept, len(one), one.is_present) for one in session.masks_by_concept] == [
        ("polyp", 1, True),
        ("absent", 0, False),
    ]
    assert session.masks.concept == ""


def brush(points: list[tuple[float, float]], radius: float, shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre is within a radius of a line, each asked by itself."""
    mask = np.zeros(shape, dtype=bool)
    for row, column in np.ndindex(*shape):
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[-1:], strict=True):
            length = (x1 - x0) ** 2 + (y1 - y0) ** 2
            t = ((column - x0) * (x1 - x0) + (row - y0) * (y1 - y0)) / length if length else 0.0
            t = min(max(t, 0.0), 1.0)
            mask[row, column] |= (column - x0 - t * (x1 - x0)) ** 2 + (row - y0 - t * (y1 - y0)) ** 2 <= radius**2
    return mask


def test_a_brush_adds_and_erases_exactly_and_asks_no_model() -> None:
    model = BoxSegmenter()
    session = Session(picture(), model)
    session.segment("bright")
    asked, shape = model.decoded, session.image.shape[1:]
    before = session.object_masks(0).union()[0]
    line = [(8.0, 6.0), (17.0, 13.0), (12.0, 18.0)]
    session.paint(line, radius=2.5)
    painted = session.object_masks(0).union()[0]
    np.testing.assert_array_equal(painted, before | brush(line, 2.5, shape))
    session.paint([(8.0, 6.0)], radius=3.0, adding=False)
    erased = session.object_masks(0).union()[0]
    np.testing.assert_array_equal(erased, painted & ~brush([(8.0, 6.0)], 3.0, shape))
    assert model.decoded == asked and session.object_masks(1).union().sum() == 25
    session.undo()
    np.testing.assert_array_equal(session.object_masks(0).union()[0], painted)
    session.redo()
    replayed = Session.from_json(session.to_json(), picture(), BoxSegmenter())
    np.testing.assert_array_equal(replayed.masks.union(), session.masks.union())


def test_a_brush_without_a_current_object_begins_one_and_may_leave_the_image() -> None:
    session = Session(picture(), BoxSegmenter())
    session.paint([(0, 0), (-1, -1)], radius=1.5)
    assert session.masks.union()[0].sum() == 4 and session.current == 0  # (1, 1) is 1.41 away, (2, 0) 2
    assert session.objects[0].score == 1.0
    session.paint([(0.4, 0.4)], radius=0.1, adding=False)
    assert session.masks.union()[0].sum() == 3


def test_later_answers_do_not_change_what_was_painted_and_a_later_click_does() -> None:
    session = session_of_picture()
    session.click(9, 6)
    session.paint([(9, 6)], radius=1, adding=False)
    assert not session.object_masks(0).union()[0, 5:8, 9].any()
    session.click(20, 12)
    assert not session.object_masks(0).union()[0, 5:8, 9].any()
    session.click(9, 6)
    held = session.object_masks(0).union()[0]
    assert held[6, 9] and not held[5, 9] and not held[7, 9]


def test_a_brush_is_exact_where_the_model_is_shown_stretched_and_turned_slices() -> None:
    affine = affine_from_directions([5.0, 6.0, 7.0], [0.0, 0.0, 4.0], [0.0, -2.5, 0.0], [0.7, 0.0, 0.0])
    image = stack_from(np.zeros((4, 14, 23), dtype=np.uint8), affine=affine)
    session = Session(image, BoxSegmenter())
    session.paint([(3.0, 2.0), (15.2, 9.7)], radius=2.2, frame=1)
    masks = session.masks.union()
    np.testing.assert_array_equal(masks[1], brush([(3.0, 2.0), (15.2, 9.7)], 2.2, (14, 23)))
    assert not masks[[0, 2, 3]].any() and session.touched == (1,)


def test_examples_find_all_objects_anew_and_leave_what_a_person_corrected() -> None:
    session = session_of_picture()
    session.click(7, 5, positive=False)
    corrected = session.object_masks(0).union()
    session.paint([(3, 18)], radius=9, object=1)
    session.undo()
    session.exemplar(*STILL, phrase="bright")
    assert [(one.number, one.concept) for one in session.objects] == [(0, "bright"), (1, "bright")]
    np.testing.assert_array_equal(session.object_masks(0).union(), corrected)
    assert session.object_masks(1).union().sum() == 25 and session.touched == (0,)
    session.exemplar(20, 0, 22, 2, positive=False, phrase="bright")
    session.exemplar(*STILL)
    assert [one.concept for one in session.objects] == ["bright", "bright", "", ""]
    replayed = Session.from_json(session.to_json(), picture(), BoxSegmenter())
    np.testing.assert_array_equal(replayed.masks.union(), session.masks.union())


def test_examples_of_one_phrase_count_together_and_take_the_place_of_what_was_found() -> None:
    asked: list[tuple[str | None, list[tuple[tuple[float, ...], bool]]]] = []

    class LikeTheExample(BoxSegmenter):
        def decode(self, features, prompt, *, threshold=None):  # type: ignore[no-untyped-def]
            if not prompt.exemplars:
                return super().decode(features, prompt, threshold=threshold)
            asked.append((prompt.text, [(one.xyxy, one.is_positive) for one in prompt.exemplars]))
            return super().decode(features, replace(prompt, exemplars=(), boxes=prompt.exemplars[:1]))

    session = Session(picture(), LikeTheExample())
    session.segment("bright")
    session.exemplar(*STILL, phrase="bright")
    assert [(one.number, one.trail.masks[0].area) for one in session.objects] == [(1, 25)]
    session.exemplar(5, 3, 14, 10, positive=False, phrase="bright")
    assert asked[-1] == ("bright", [(STILL, True), ((5.0, 3.0, 14.0, 10.0), False)])
    session.undo()
    session.exemplar(5, 3, 14, 10, phrase="bright")
    assert asked[-1] == ("bright", [(STILL, True), ((5.0, 3.0, 14.0, 10.0), True)])


def test_an_example_in_a_volume_changes_its_slice_alone() -> None:
    session = Session(stack_from(blocks(5)), BoxSegmenter())
    session.segment("bright")
    before = session.masks.union()
    session.exemplar(*STILL, phrase="bright", frame=2)
    np.testing.assert_array_equal(session.masks.union(), before)
    assert len(session.objects) == 2 and session.touched == (2,)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.paint([(90, 2)]), "stroke at 90,2 is outside the image"),
        (lambda s: s.paint([(4, 2)], radius=0), "radius of the brush is 0, allowed is above 0 to 500"),
        (lambda s: s.paint([]), "the stroke is empty"),
        (lambda s: s.paint([(4, 2)], adding=False), "no object that a negative click"),
        (lambda s: s.exemplar(*STILL, positive=False), "a look-alike alone says not what is meant"),
        (lambda s: s.exemplar(90, 0, 99, 4), "is outside the image"),
    ],
)
def test_what_cannot_be_painted_or_shown_is_refused_and_changes_nothing(
    ask: Callable[[Session], object], message: str
) -> None:
    session = Session(picture(), BoxSegmenter())
    with pytest.raises(InputError, match=re.escape(message)):
        ask(session)
    assert session.objects == () and json.loads(session.to_json())["steps"] == []


def test_a_stroke_that_covers_too_many_pixels_is_refused() -> None:
    session = Session(Image(np.zeros((1, 700, 700, 1), dtype=np.uint8)), BoxSegmenter())
    with pytest.raises(InputError, match="1100 points with a brush of 400 pixels: draw it in parts"):
        session.paint([(4, 2)] * 1100, radius=400)  # 1100 x 490,000 pixels are above 500 million
