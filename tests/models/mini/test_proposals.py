"""What clicks may mean, with a detector that knows two objects, one in the other, and a third beside them."""

from __future__ import annotations

import numpy as np
import pytest

from medsam3.geometry import BoolArray
from medsam3.models.mini.proposals import (
    Probability,
    agrees,
    changed_at,
    corrected,
    guessed,
    is_wrong_part,
    part_under,
    proposals,
    questions,
)
from medsam3.prompts import Box, Point
from medsam3.view.crops import Crop

SHAPE = (200, 240)


def disc(x: float, y: float, radius: float) -> BoolArray:
    rows, columns = np.ogrid[: SHAPE[0], : SHAPE[1]]
    mask: BoolArray = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return mask


CUP, DISC, BESIDE = disc(80, 90, 12), disc(80, 90, 30), disc(190, 90, 30)
OBJECTS = (CUP, DISC, BESIDE)


class Detector:
    """Finds the object whose size is nearest to the box's, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Crop | None, Box]] = []

    def __call__(self, window: Crop | None, box: Box) -> Probability:
        self.asked.append((window, box))
        side = max(box.x1 - box.x0, box.y1 - box.y0)
        found = CUP if abs(side - 25) < abs(side - 61) else DISC | BESIDE
        shown = np.zeros(SHAPE, dtype=np.float32)
        if window is None:
            shown[:] = found
        else:
            window.cut(shown)[:] = window.cut(found)
        return 0.02 + 0.96 * shown


def test_a_click_means_the_part_it_lies_in_of_the_object_that_fills_its_box() -> None:
    found = proposals(Detector(), (Point(80, 90),), SHAPE, None)
    assert {tuple(one.mask.nonzero()[0]) == tuple(DISC.nonzero()[0]) for one in found} == {True, False}  # both sizes
    for one in found:
        assert (one.mask == CUP).all() or (one.mask == DISC).all()  # never the disc beside
    assert found[0].score > 0.9 and (found[0].mask == DISC).all()  # the first box is 58 pixels wide, the disc 61


def test_a_negative_click_leaves_what_it_does_not_lie_in() -> None:
    found = corrected(Detector(), None, (Point(80, 90), Point(80, 112, is_positive=False)), SHAPE)
    assert (found == CUP).all()


def test_a_second_click_far_off_says_that_the_mask_is_of_something_else() -> None:
    clicks = (Point(80, 90), Point(80, 112))  # 10 pixels off the cup, whose radius is 12
    assert (corrected(Detector(), CUP, clicks, SHAPE) == DISC).all()


def test_a_click_changes_only_what_is_connected_to_it() -> None:
    small = disc(190, 90, 9)
    clicks = (Point(80, 90), Point(80, 111))  # the detector would answer with the disc alone
    assert (corrected(Detector(), CUP | small, clicks, SHAPE) == DISC | small).all()
    rim = (Point(80, 90), Point(80, 119))  # 1.5 pixels from the disc's rim, whose growth would be 9 pixels deep
    assert not corrected(Detector(), CUP | small, rim, SHAPE)[90, 55]
    gone = changed_at(CUP | BESIDE, [DISC], Point(190, 90))
    assert gone is not None and (gone == CUP).all()
    assert changed_at(CUP, [DISC], Point(80, 90)) is None  # both have the pixel: nothing was wrong there
    assert changed_at(BESIDE, [CUP, BESIDE | DISC], Point(80, 112)) is None  # off the cup, and near the disc's rim


def test_a_click_far_from_the_mask_adds_what_is_there() -> None:
    detector, clicks = Detector(), (Point(190, 90), Point(80, 90))  # 80 pixels beside the other disc, of radius 30
    assert (corrected(detector, BESIDE, clicks, SHAPE) == BESIDE | DISC).all()
    assert all(box.x1 < 180 for window, box in detector.asked)  # asked about the new part alone
    off = (Point(80, 112, is_positive=False), *clicks)
    assert (corrected(Detector(), BESIDE, off, SHAPE) == BESIDE | CUP).all()


def test_a_guess_saves_the_boxes_of_other_sizes() -> None:
    detector = Detector()
    sizes: list[Point] = []

    def guess(click: Point) -> Box:
        sizes.append(click)
        return Box(68, 78, 92, 102)  # the cup's, about

    found = corrected(detector, None, (Point(80, 90),), SHAPE, guess=guess)
    assert (found == CUP).all() and sizes == [Point(80, 90)]
    assert len(detector.asked) == 2  # with the guess, and in a window around what was found
    three = guessed(Detector(), (Point(80, 90), Point(80, 118), Point(80, 62)), guess)  # the box is widened to them
    assert three and (three[0].mask == DISC).all()
    none = (Point(20, 180),)  # nothing is found there with the guess, nor with other sizes
    assert agrees(corrected(Detector(), None, none, SHAPE, guess=guess), none)


def test_a_part_that_was_clicked_on_is_not_taken_away_whole() -> None:
    off, on = Point(190, 90, is_positive=False), Point(178, 90)
    assert is_wrong_part(BESIDE, off, (off,)) and is_wrong_part(BESIDE | CUP, off, (Point(80, 90), off))
    assert not is_wrong_part(BESIDE, off, (on, off))
    assert not is_wrong_part(BESIDE, Point(181, 90, is_positive=False), ())  # 21.5 pixels deep of 30.5


def test_a_click_near_the_outline_changes_the_mask_near_it_alone() -> None:
    detector, mask = Detector(), DISC & ~disc(110, 90, 5)
    found = corrected(detector, mask, (Point(108, 90),), SHAPE)
    assert found[90, 108]
    far = disc(80, 90, 20)
    assert (found[far] == mask[far]).all()
    assert len(detector.asked) <= 10  # boxes of six sizes around the click, the mask's own, and looks at what fits


def test_a_negative_click_in_the_middle_of_a_part_takes_it_away_and_a_positive_one_begins_anew() -> None:
    off = Point(190, 90, is_positive=False)  # the middle of the wrong disc
    left = corrected(Detector(), BESIDE, (off,), SHAPE)
    assert not left.any()
    assert (corrected(Detector(), None, (off, Point(80, 90)), SHAPE) == DISC).all()
    kept = corrected(Detector(), CUP | BESIDE, (off,), SHAPE)
    assert kept[CUP].all() and not kept[BESIDE].any()


def test_a_mask_that_holds_with_all_clicks_stays_and_nothing_is_asked() -> None:
    detector = Detector()
    assert corrected(detector, DISC, (Point(80, 90), Point(5, 5, is_positive=False)), SHAPE) is DISC
    assert not detector.asked


def test_a_click_holds_even_if_the_detector_finds_nothing_there() -> None:
    clicks = (Point(20, 180),)
    found = corrected(Detector(), None, clicks, SHAPE)
    assert agrees(found, clicks) and not (found & (DISC | BESIDE)).any()
    off = (Point(80, 90, is_positive=False),)
    assert not corrected(Detector(), DISC, off, SHAPE)[90, 80]


def test_boxes_lie_in_the_frame_and_small_ones_are_asked_of_a_window() -> None:
    asked = questions((Point(2, 3), Point(100, 100, is_positive=False)), SHAPE)
    assert len(asked) == 6 and sum(window is None for window, _ in asked) == 3
    for window, box in asked:
        assert box.x0 >= -0.5 and box.y0 >= -0.5 and box.x0 < 2 < box.x1 and box.y0 < 3 < box.y1
        if window is not None:
            assert window.left <= 2 < window.right and window.top <= 3 < window.bottom
    assert questions((Point(2, 3, is_positive=False),), SHAPE) == []


@pytest.mark.parametrize("clicks", [(), (Point(80, 90, is_positive=False),)])
def test_without_a_positive_click_the_largest_part_is_meant(clicks: tuple[Point, ...]) -> None:
    assert (part_under(CUP | BESIDE, clicks) == BESIDE).all()
    nothing = np.zeros(SHAPE, dtype=np.bool_)
    assert not part_under(nothing, clicks).any()
