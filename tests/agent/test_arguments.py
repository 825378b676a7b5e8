from __future__ import annotations

from typing import Any

import pytest

from medsam3.agent.arguments import parse
from medsam3.agent.toolbox import TOOLS
from medsam3.agent.values import ToolError

SEGMENT = TOOLS["segment"].spec.parameters
BOXES = TOOLS["segment_box"].spec.parameters
ACCEPT = TOOLS["accept"].spec.parameters


def test_good_arguments_come_through() -> None:
    assert parse('{"phrase": "polyp", "region": [1, 2.5, 30, 40]}', SEGMENT) == {
        "phrase": "polyp",
        "region": [1, 2.5, 30, 40],
    }
    assert parse("", TOOLS["next_slice"].spec.parameters) == {}


@pytest.mark.parametrize(
    ("text", "schema", "says"),
    [
        ('{"phrase": "polyp"', SEGMENT, "not JSON"),
        ('["polyp"]', SEGMENT, "must be of type object"),
        ("{}", SEGMENT, "lack phrase"),
        ('{"phrase": 3}', SEGMENT, "phrase is 3, it must be of type string"),
        ('{"phrase": "a", "colour": 1}', SEGMENT, "unknown"),
        ('{"phrase": "a", "tiles": 1}', SEGMENT, "must be of type boolean"),
        ('{"boxes": [[1, 2, 3]]}', BOXES, "has 3 entries, allowed are 4 to 4"),
        ('{"boxes": [[1, 2, 3, NaN]]}', BOXES, "must be finite"),
        ('{"masks": [true], "reason": "r"}', ACCEPT, "must be of type integer"),
        ('{"masks": [], "reason": "r"}', ACCEPT, "has 0 entries"),
        ('{"window": "x-ray eyes"}', TOOLS["look"].spec.parameters, "allowed are soft tissue"),
        ("[" * 19_000, SEGMENT, "not JSON"),
        ("9" * 20_001, SEGMENT, "20001 characters"),
    ],
)
def test_each_mistake_says_what_is_allowed(text: str, schema: dict[str, Any], says: str) -> None:
    with pytest.raises(ToolError, match=says):
        parse(text, schema)
