from __future__ import annotations

import json
from typing import Any

import pytest

from medsam3.agent.tools import TOOLS
from medsam3.agent.values import ToolError


def read(tool: str, text: str) -> dict[str, Any]:
    return TOOLS[tool].parse(text).model_dump(exclude_unset=True)


SEGMENT = {"phrase": "polyp", "region": [1, 2.5, 30, 40]}


@pytest.mark.parametrize(
    ("tool", "text", "meant"),
    [
        ("segment", json.dumps(SEGMENT), SEGMENT),
        ("next_slice", "", {}),
        ("next_slice", "null", {}),
        ("segment", json.dumps(json.dumps(SEGMENT)), SEGMENT),  # encoded twice
        ("segment", '{"phrase": "polyp", "also": null, "region": null, "tiles": null}', {"phrase": "polyp"}),
        ("segment", '{"phrase": "polyp", "also": "growth"}', {"phrase": "polyp", "also": ["growth"]}),
        ("segment", '{"phrase": "polyp", "tiles": "true"}', {"phrase": "polyp", "tiles": True}),
        ("measure", '{"mask": 1.0}', {"mask": 1}),
        ("measure", '{"mask": "1"}', {"mask": 1}),
        ("merge", '{"masks": [1.0, "2"]}', {"masks": [1, 2]}),
        ("merge", '{"masks": "[1, 2]"}', {"masks": [1, 2]}),  # a list encoded by itself
        ("merge", '{"masks": 3}', {"masks": [3]}),
        ("segment_box", '{"boxes": [1, 2, 3, 4]}', {"boxes": [[1, 2, 3, 4]]}),
        ("segment_box", '{"boxes": [["1", "2", 3, 4.0]]}', {"boxes": [[1, 2, 3, 4]]}),
        ("refine", '{"mask": 1, "points": [5, 6, true]}', None),
        ("refine", '{"mask": 1, "points": [5, 6, 1]}', {"mask": 1, "points": [[5, 6, 1]]}),
    ],
)
def test_arguments_that_can_mean_one_thing_only_are_understood(tool: str, text: str, meant: dict[str, Any]) -> None:
    if meant is None:
        with pytest.raises(ToolError, match="must be a number"):
            read(tool, text)
    else:
        assert read(tool, text) == meant


@pytest.mark.parametrize(
    ("tool", "text", "says"),
    [
        ("segment", '{"phrase": "polyp"', "not JSON"),
        ("segment", '["polyp"]', "should be a valid dictionary"),
        ("segment", "{}", "phrase is missing; known are phrase, also, region"),
        ("segment", '{"phrase": null}', "phrase is missing"),
        ("segment", '{"phrase": 3}', "phrase is 3: input should be a valid string"),
        ("segment", '{"phrase": "a", "colour": 1}', "colour is not known; known are phrase"),
        ("segment", '{"phrase": "a", "tiles": "many"}', "tiles is .many.: input should be a valid boolean"),
        ("segment_box", '{"boxes": [[1, 2, 3]]}', r"boxes\[0\] is .*at least 4 items"),
        ("segment_box", '{"boxes": [[1, 2, 3, NaN]]}', r"boxes\[0\]\[3\] is NaN"),
        ("segment_box", '{"boxes": [[1, 2, 3, 1001]]}', "less than or equal to 1000"),
        ("accept", '{"masks": [true], "reason": "r"}', "it must be a number"),
        ("accept", '{"masks": [1.5], "reason": "r"}', r"masks\[0\] is 1.5"),
        ("accept", '{"masks": [], "reason": "r"}', "at least 1 item"),
        ("look", '{"window": "x-ray eyes"}', "input should be .soft tissue."),
        ("segment", "[" * 19_000, "not JSON"),
        ("segment", "9" * 20_001, "20001 characters"),
    ],
)
def test_each_mistake_says_what_is_allowed(tool: str, text: str, says: str) -> None:
    with pytest.raises(ToolError, match=says) as raised:
        read(tool, text)
    assert "\n" not in str(raised.value)


def test_the_schemas_are_plain_enough_for_every_provider() -> None:
    said = json.dumps([tool.spec.parameters for tool in TOOLS.values()])
    for word in ("title", "default", "anyOf", "$ref", "null"):
        assert f'"{word}"' not in said
    assert TOOLS["segment"].spec.parameters["required"] == ["phrase"]
