"""The simulated person of training: what is meant, how it is begun, and where is clicked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medsam3.measure.outline import dice
from medsam3.train.person import (
    LEAST_PX,
    Meant,
    PersonConfig,
    begun,
    clicked_next,
    damaged,
    objects_meant,
    part_of,
    part_of_answer,
    patch_of,
)

SIDE = 64


def square(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=np.bool_)
    mask[rows, columns] = True
    return mask


TRUTH = square(slice(20, 40), slice(10, 50))


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_a_click_without_chance_goes_to_the_middle_of_the_largest_error() -> None:
    first = clicked_next(Meant(TRUTH), None)
    ((x, y, kind),) = first.clicks
    assert kind == 1 and y in (28, 30) and 18 <= x <= 42  # as deep as 10 rows allow
    extra = TRUTH | square(slice(44, 64), slice(40, 64))
    ((x, y, kind),) = clicked_next(Meant(TRUTH, extra), None).clicks
    assert kind == 0 and y >= 44 and x >= 40


def test_nothing_is_clicked_where_nothing_is_wrong() -> None:
    assert clicked_next(Meant(TRUTH, TRUTH), rng()).clicks == ()


def test_a_click_by_chance_lies_in_the_error_all_the_same() -> None:
    chance = rng()
    for _ in range(50):
        ((x, y, kind),) = clicked_next(Meant(TRUTH), chance).clicks
        assert kind == 1 and TRUTH[int(y), int(x)]


@pytest.mark.parametrize("share", ["from_box", "from_mask"])
def test_a_person_begins_as_the_shares_say(share: str) -> None:
    nothing = PersonConfig(from_answer=0, from_box=0, from_mask=0)
    chance = rng()
    for _ in range(20):
        plain = begun(TRUTH, None, nothing, chance)
        assert plain.mask is None and plain.box is None and len(plain.clicks) == 1
        other = begun(
            TRUTH,
            None,
            replace(nothing, from_box=float(share == "from_box"), from_mask=float(share == "from_mask")),
            chance,
        )
        assert (other.mask is not None) == (share == "from_mask")
        if share == "from_box":
            assert other.box is not None and other.clicks == ()
        for x, y, kind in other.clicks:
            assert bool(kind) == TRUTH[int(y), int(x)]


def test_a_person_begins_with_the_part_of_an_answer_that_lies_on_the_object() -> None:
    answers = np.full((1, 32, 32), -3.0, dtype=np.float32)  # every second pixel of the frame
    answers[0, 11:21, 5:20] = 2.0
    answers[0, 25:31, 25:31] = 2.0  # another part
    always = PersonConfig(from_answer=1)
    found = [part_of_answer(TRUTH, answers, always, np.random.default_rng(n)) for n in range(20)]
    kept = {int((one > 0).sum()) for one in found if one is not None}
    assert kept == {150, 150 + 36}  # the part on it; sometimes all
    assert part_of_answer(TRUTH, answers, PersonConfig(from_answer=0), rng()) is None
    assert part_of_answer(TRUTH, np.full_like(answers, -1), always, rng()) is None
    start = square(slice(22, 40), slice(10, 40))
    said = begun(TRUTH, start, always, rng())
    assert said.mask is start and said.clicks


def test_a_damaged_mask_is_near_the_truth_and_not_the_truth() -> None:
    chance = rng()
    found = [dice(TRUTH, damaged(TRUTH, chance)) for _ in range(40)]
    assert 0.5 < float(np.mean(found)) < 0.95
    assert len({round(value, 3) for value in found}) > 30


def test_a_part_is_a_side_of_an_object() -> None:
    part = part_of(TRUTH, rng())
    assert 0 < part.sum() < TRUTH.sum()
    assert not (part & ~TRUTH).any()
    assert not part_of(np.zeros_like(TRUTH), rng()).any()


def test_objects_are_no_specks_and_do_not_fill_the_picture() -> None:
    labels = np.zeros((SIDE, SIDE), np.int32)
    labels[20:40, 10:50], labels[0, 0] = 1, 2  # the second is a speck
    picture = np.full((SIDE, SIDE, 3), 40, np.uint8)
    picture[20:40, 10:50] = 200
    found = objects_meant(picture, [labels], PersonConfig(objects=5), rng())
    assert 0 < len(found) <= 5
    assert all(LEAST_PX <= mask.sum() <= 0.9 * mask.size for mask in found)
    annotated = objects_meant(picture, [labels], PersonConfig(objects=5, made_up=0, part=0), rng())
    assert any(mask[20:40, 10:50].all() for mask in annotated)


def test_a_patch_is_found_in_pictures_that_are_not_square() -> None:
    picture = np.full((40, 90, 3), 20, np.uint8)
    picture[5:30, 60:85] = 220
    assert {patch_of(picture, np.random.default_rng(n)).shape for n in range(20)} == {(40, 90)}


def test_a_patch_is_of_one_brightness() -> None:
    picture = np.full((SIDE, SIDE, 3), 20, np.uint8)
    picture[20:40, 10:50] = 220
    patches = [patch for patch in (patch_of(picture, np.random.default_rng(n)) for n in range(30)) if patch.any()]
    assert max(dice(TRUTH, patch) for patch in patches) > 0.9
    assert all(patch.mean() < 0.4 for patch in patches)  # the dark rest is too large
