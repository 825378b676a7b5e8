from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from blocks_segmenter import BlocksSegmenter
from scripted import call, two_blocks

from medsam3.agent.bench import Bench
from medsam3.agent.chat import ShownPicture
from medsam3.agent.toolbox import TOOLS
from medsam3.agent.tools import Session
from medsam3.agent.values import Observation
from medsam3.image import Image


class Table:
    """Runs calls one after the other."""

    def __init__(self, image: Image | None = None, *, has_pictures: bool = False) -> None:
        self.segmenter = BlocksSegmenter()
        self.session = Session(Bench(image or two_blocks(), self.segmenter), has_pictures=has_pictures)

    def __call__(self, tool: str, **values: Any) -> Observation:
        return self.session.run(call(1, tool, values), TOOLS)


@pytest.fixture
def table() -> Table:
    return Table()


def size(picture: ShownPicture) -> tuple[int, int]:
    return PIL.Image.open(io.BytesIO(picture.png)).size


def test_segment_numbers_each_object_and_tells_presence(table: Table) -> None:
    seen = table("segment", phrase="nodule")
    assert [(mark.number, mark.mask.voxels, mark.phrase) for mark in seen.marks] == [
        (1, 80, "nodule"),
        (2, 24, "nodule"),
    ]
    assert seen.facts["presence"] == 0.9 and seen.facts["is_present"] is True
    assert "mask 2: score 0.70, box [40, 20, 46, 24]" in seen.text


def test_numbers_are_never_given_twice(table: Table) -> None:
    table("segment", phrase="nodule")
    assert [mark.number for mark in table("segment", phrase="lesion").marks] == [3, 4]


def test_an_absent_concept_is_said_to_be_absent(table: Table) -> None:
    seen = table("segment", phrase="absent")
    assert seen.marks == () and "absent" in seen.text and not seen.is_mistake


def test_phrasings_are_averaged_and_vote(table: Table) -> None:
    seen = table("segment", phrase="nodule", also=["lesion", "absent"])
    assert seen.facts["votes"] == [True, True, False]
    assert seen.facts["presence"] == pytest.approx((0.9 + 0.9 + 0.1) / 3)
    assert [mark.mask.voxels for mark in seen.marks] == [80, 24]  # two of three say so: 0.67 > 0.5


def test_a_region_is_encoded_by_itself(table: Table) -> None:
    seen = table("segment", phrase="nodule", region=[0, 0, 30, 40])
    assert table.segmenter.encoded == 2
    assert [mark.mask.voxels for mark in seen.marks] == [80, 24]


def test_tiles_find_the_same_objects_once(table: Table) -> None:
    seen = table("segment", phrase="nodule", tiles=True)
    assert sorted(mark.mask.voxels for mark in seen.marks) == [24, 80] and table.segmenter.encoded == 5


def test_a_frame_is_encoded_once(table: Table) -> None:
    for phrase in ("a", "b", "c"):
        table("segment", phrase=phrase)
    assert table.segmenter.encoded == 1


def test_a_box_becomes_a_mask(table: Table) -> None:
    seen = table("segment_box", boxes=[[3.5, 4.5, 9.5, 7.5]])
    assert [(mark.mask.voxels, mark.origin) for mark in seen.marks] == [(18, "segment_box")]  # 6 x 3


def test_masks_are_merged_and_subtracted(table: Table) -> None:
    table("segment", phrase="nodule")  # 1: 8 x 10, 2: 4 x 6
    table("segment", phrase="vessel")  # 3: the left third, 20 columns of 40 rows, covers mask 1
    assert table("merge", masks=[1, 2]).marks[0].mask.voxels == 104
    assert table("subtract", mask=3, without=1).marks[0].mask.voxels == 800 - 80
    assert "nothing would be left" in table("subtract", mask=1, without=3).text


def test_two_masks_are_compared(table: Table) -> None:
    table("segment", phrase="nodule")
    table("segment", phrase="vessel")
    facts = table("compare", a=1, b=3).facts
    assert facts == {"iou": 0.1, "share_of_a_in_b": 1.0, "share_of_b_in_a": 0.1, "area_ratio_a_to_b": 0.1}


def test_a_mask_is_measured_in_millimetres_where_the_spacing_is_known() -> None:
    affine = np.array([[0, 0, 2.0, 0], [0, 2.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])  # pixels of 2 mm x 2 mm
    table = Table(replace(two_blocks(), affine=affine))
    table("segment", phrase="nodule")
    facts = table("measure", mask=2).facts
    assert (facts["area_px"], facts["area_mm2"], facts["width_mm"], facts["height_mm"]) == (24, 96.0, 12.0, 8.0)
    assert facts["mean_grey"] == 200 and facts["mean_grey_around"] == 0 and not facts["touches_border"]


@pytest.mark.parametrize(
    ("tool", "values", "says"),
    [
        ("fly", {}, "there is no tool 'fly'"),
        ("measure", {"mask": 9}, "there is no mask 9, known are 1, 2"),
        ("accept", {"masks": [1], "reason": " "}, "reason is empty"),
        ("report_absent", {"reason": ""}, "reason is empty"),
        ("segment", {"phrase": "  "}, "the phrase is empty"),
        ("segment", {"phrase": "x" * 301}, "301 characters"),
        ("segment", {"phrase": "a", "region": [1, 1, 2, 2]}, "smaller than 16 pixels"),
        ("segment", {"phrase": "a", "region": [0, 0, 30, 30], "tiles": True}, "not both"),
        ("segment_box", {"boxes": [[5, 5, 1, 1]]}, "inverted or empty"),
        ("segment_box", {"boxes": [[100, 100, 120, 120]]}, "outside the image"),
        ("refine", {"mask": 1}, "either points or a box"),
        ("next_slice", {}, "allowed are 0 to 0"),
        ("look", {"window": "lung"}, "8 bits"),
    ],
)
def test_a_callers_mistake_is_an_observation(table: Table, tool: str, values: dict[str, Any], says: str) -> None:
    table("segment", phrase="nodule")
    seen = table(tool, **values)
    assert seen.is_mistake and says in seen.text
    assert sorted(table.session.marks) == [1, 2]


def test_the_same_call_again_is_a_mistake(table: Table) -> None:
    table("segment", phrase="nodule")
    assert "before" in table("segment", phrase="nodule").text
    assert len(table.segmenter.asked) == 1


def test_our_own_error_is_none_of_the_callers(table: Table) -> None:
    with pytest.raises(RuntimeError, match="the model broke"):
        table("segment", phrase="crash")


def test_slices_are_gone_through() -> None:
    pixels = np.zeros((3, 40, 60, 1), dtype=np.int16)
    pixels[1, 10:18, 5:15] = 900
    table = Table(Image(pixels, kind="volume"), has_pictures=True)  # it begins in the middle
    seen = table("next_slice")
    assert seen.facts["frame"] == 2 and seen.pictures[0].caption == "slice 2"
    found = table("segment", phrase="nodule")
    assert found.marks[0].mask.start == (1, 10, 5) and found.facts["frame"] == 1
    assert table("previous_slice").facts["frame"] == 0
    assert table("next_slice").facts["frame"] == 1  # the same call from another slice is no repetition
    assert table("look", window="lung").pictures[0].caption == "the frame in the lung window"


def test_pictures_are_large_enough_to_read_the_numbers() -> None:
    table = Table(has_pictures=True)
    [drawn] = table("segment", phrase="nodule").pictures
    assert size(drawn) == (512, 341)
    raw = np.asarray(PIL.Image.open(io.BytesIO(table("look", region=[0, 0, 30, 40]).pictures[0].png)))
    assert raw.shape[:2] == (512, 384) and set(np.unique(raw[..., 0] == raw[..., 1])) == {
        True
    }  # grey: nothing is drawn
    assert [size(picture) for picture in table("examine", mask=2).pictures] == [(512, 341), (512, 512), (512, 512)]


def test_no_picture_is_made_for_who_may_see_none(table: Table) -> None:
    table("segment", phrase="nodule")
    assert table("examine", mask=1).pictures == ()
    assert table("look", region=[0, 0, 30, 40]).is_mistake


def test_every_tool_has_a_schema_that_json_can_hold() -> None:
    for name, tool in TOOLS.items():
        assert json.loads(json.dumps(tool.spec.parameters))["type"] == "object"
        assert tool.spec.name == name and tool.spec.description
