from __future__ import annotations

import numpy as np
import pytest

from medsam3.agent.offline import Wish, read_instruction
from medsam3.agent.values import Mark
from medsam3.errors import InputError
from medsam3.image import ObjectMask


@pytest.mark.parametrize(
    ("text", "wish"),
    [
        ("polyp", Wish("polyp")),
        ("left lung", Wish("left lung")),  # a concept of the table, not a lung on the left
        ("Segment the left lung.", Wish("left lung")),
        ("the larger of the two nodules, not the vessel", Wish("nodules", "size", 1, excluded="vessel")),
        ("the largest polyp", Wish("polyp", "size", 1)),
        ("the two largest polyps", Wish("polyps", "size", 2)),
        ("second largest polyp", Wish("polyp", "size", 1, skip=1)),
        ("smallest polyp please", Wish("polyp please", "-size", 1)),  # what is not understood stays in the phrase
        ("the polyp on the right side", Wish("polyp", "x", 1)),
        ("uppermost vertebra", Wish("vertebra", "-y", 1)),
        ("all polyps", Wish("polyps")),
        ("find the liver without the tumor", Wish("liver", excluded="tumor")),
        ("one polyp", Wish("polyp", "score", 1)),
        ("ground glass opacity", Wish("ground glass opacity")),
    ],
)
def test_instructions_are_read(text: str, wish: Wish) -> None:
    assert read_instruction(text) == wish


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no liver", "not understood"),
        ("liver and kidney", "ask each by itself"),
        ("find everything but the liver", "not"),
    ],
)
def test_instructions_that_deny_or_join_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_instruction(text)


def _mark(number: int, x: int, size: int, score: float) -> Mark:
    return Mark(number, ObjectMask((0, 5, x), np.ones((1, size, size), dtype=np.bool_), score), "", None, None, "")


MARKS = [_mark(1, 30, 4, 0.9), _mark(2, 2, 8, 0.5), _mark(3, 60, 2, 0.7)]  # areas 16, 64, 4


@pytest.mark.parametrize(
    ("wish", "numbers"),
    [
        (Wish("x"), [1, 2, 3]),
        (Wish("x", "size", 1), [2]),
        (Wish("x", "size", 1, skip=1), [1]),
        (Wish("x", "-size", 2), [3, 1]),
        (Wish("x", "-x", 1), [2]),
        (Wish("x", "x", 1), [3]),
        (Wish("x", "score", 1), [1]),
        (Wish("x", "size", 1, skip=5), []),
    ],
)
def test_marks_are_chosen(wish: Wish, numbers: list[int]) -> None:
    assert [mark.number for mark in wish.chosen(MARKS)] == numbers
