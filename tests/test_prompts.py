import json

import pytest

from medsam3.errors import InputError
from medsam3.prompts import MAX_PHRASE_CHARACTERS, Box, Point, Prompt, check_phrase, prompt_from_json

BOX, OFF = Box(1, 2, 30, 40), Point(3, 4, is_positive=False)


def test_modes_are_those_of_the_paper() -> None:
    assert Prompt(text="polyp").mode == "T"
    assert Prompt(boxes=(BOX,)).mode == Prompt(points=(Point(1, 1),)).mode == Prompt(exemplars=(BOX,)).mode == "I"
    assert Prompt(text="polyp", boxes=(BOX,)).mode == Prompt(text="polyp", exemplars=(BOX,)).mode == "T+I"


def test_white_space_in_a_phrase_is_made_single() -> None:
    assert Prompt(text="  optic \t disc\n").text == "optic disc"
    assert check_phrase("Läsion 病変") == "Läsion 病変"


@pytest.mark.parametrize(
    ("phrase", "message"),
    [
        ("", "the phrase is empty"),
        (" \n\t ", "the phrase is empty"),
        ("x" * 10_000, "the phrase has 10000 characters, allowed are 300"),
        ("pol\0yp", "cannot be printed"),
        ("pol\x1b[31myp", "cannot be printed"),
    ],
)
def test_bad_phrases_are_refused_in_one_line(phrase: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Prompt(text=phrase)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_the_longest_phrase_is_allowed() -> None:
    assert Prompt(text="x" * MAX_PHRASE_CHARACTERS).mode == "T"


@pytest.mark.parametrize("corners", [(5, 0, 5, 9), (6, 0, 5, 9), (0, 9, 5, 9), (0, 10, 5, 9)])
def test_inverted_and_empty_boxes_are_refused(corners: tuple[float, float, float, float]) -> None:
    with pytest.raises(InputError, match="inverted or empty"):
        Box(*corners)


def test_positions_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="holds NaN or infinity"):
        Box(float("nan"), 0, 1, 1)
    with pytest.raises(InputError, match="is not finite"):
        Point(0, float("inf"))


def test_prompts_that_ask_for_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        Prompt()
    with pytest.raises(InputError, match="all points are negative"):
        Prompt(points=(OFF,))
    assert Prompt(boxes=(BOX,), points=(OFF,)).mode == "I"  # the box says where, the point what not


@pytest.mark.parametrize(
    "box", [Box(-9, 0, -0.5, 5), Box(19.5, 0, 25, 5), Box(0, -9, 5, -0.5), Box(0, 9.5, 5, 12)], ids=str
)
def test_boxes_beside_the_image_are_refused(box: Box) -> None:
    for prompt in (Prompt(boxes=(box,)), Prompt(exemplars=(box,))):
        with pytest.raises(InputError, match=r"outside the image of 20 x 10 pixels"):
            prompt.check_inside(height=10, width=20)


def test_boxes_that_touch_the_image_and_points_on_its_edge_are_allowed() -> None:
    Prompt(boxes=(Box(-9, -9, 0, 0), Box(19, 9, 99, 99))).check_inside(10, 20)
    Prompt(points=(Point(-0.5, -0.5), Point(19.5, 9.5))).check_inside(10, 20)
    for point in (Point(-0.6, 0), Point(0, 9.6)):
        with pytest.raises(InputError, match=r"point .* is outside the image of 20 x 10"):
            Prompt(points=(point,)).check_inside(10, 20)


def test_json_comes_back_equal() -> None:
    full = Prompt("optic disc", (BOX,), (Point(1.5, 2), OFF), (Box(0, 0, 9, 9, is_positive=False),))
    for prompt in (full, Prompt(text="polyp"), Prompt(boxes=(BOX, BOX))):
        assert prompt_from_json(prompt.to_json()) == prompt
    assert json.loads(full.to_json())["boxes"][0] == {"x0": 1, "y0": 2, "x1": 30, "y1": 40, "is_positive": True}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "3",
        '{"txt": "polyp"}',
        '{"boxes": [{"x0": 1}]}',
        '{"boxes": [3]}',
        '{"points": 7}',
        '{"text": 5}',
    ],
)
def test_other_json_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(InputError) as caught:
        prompt_from_json(text)
    assert "\n" not in str(caught.value)
