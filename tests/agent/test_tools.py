from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from scripted import call, two_blocks

from blocks_segmenter import BlocksSegmenter
from medsam3.agent.chat import ShownPicture
from medsam3.agent.frames import QueriedImage, relative_box, relative_crop, whole_frame
from medsam3.agent.session import ToolSession
from medsam3.agent.tools import TOOLS
from medsam3.agent.values import Observation
from medsam3.image import Image, Masks
from medsam3.models.phrase_reader import PhraseReader
from medsam3.prompts import Prompt
from medsam3.view.crops import Crop


class Table:
    """Runs calls one after the other."""

    def __init__(self, image: Image | None = None, *, has_pictures: bool = False) -> None:
        self.segmenter = BlocksSegmenter()
        self.session = ToolSession(QueriedImage(image or two_blocks(), self.segmenter), has_pictures=has_pictures)

    def __call__(self, tool: str, **values: Any) -> Observation:
        return self.session.run(call(1, tool, values), TOOLS)


@pytest.fixture
def table() -> Table:
    return Table()


def size(picture: ShownPicture) -> tuple[int, int]:
    """By Pillow, which must agree with the picture's own word."""
    found = PIL.Image.open(io.BytesIO(picture.png)).size
    assert picture.size == found and f"{found[0]} x {found[1]} pixels" in picture.caption
    return found


def test_segment_numbers_each_object_and_tells_presence(table: Table) -> None:
    seen = table("segment", phrase="nodule")
    assert [(mark.number, mark.mask.voxels, mark.phrase) for mark in seen.marks] == [
        (1, 80, "nodule"),
        (2, 24, "nodule"),
    ]
    assert seen.facts["presence"] == 0.9 and seen.facts["is_present"] is True
    assert "mask 2: score 0.70, box [666.7, 500.0, 766.7, 600.0]" in seen.text


class UnsureSegmenter(BlocksSegmenter):
    """Finds what it finds without being sure."""

    def decode(self, features: NDArray[np.uint8], prompt: Prompt, *, threshold: float | None = None) -> Masks:
        return replace(super().decode(features, prompt, threshold=threshold), presence=0.6, is_sure=False)


def test_segment_tells_when_the_model_is_not_sure() -> None:
    session = ToolSession(QueriedImage(two_blocks(), UnsureSegmenter()))
    seen = session.run(call(1, "segment", {"phrase": "nodule"}), TOOLS)
    assert "presence 0.60, the model says not sure, it may be present; 2 masks" in seen.text


class TaughtSegmenter(BlocksSegmenter):
    """Was taught polyps and livers alone."""

    @property
    def reader(self) -> PhraseReader:
        return PhraseReader(("polyp", "liver"))


def test_segment_tells_what_a_phrase_is_read_as_and_refuses_what_denies_or_joins(table: Table) -> None:
    table.session.queried.segmenter = TaughtSegmenter()
    assert table("segment", phrase="polypp").text.startswith("'polypp' (read as polyp): presence 0.90")
    assert table("segment", phrase="spleen").text.startswith("'spleen' (not taught to the model, a guess): presence")
    for phrase, also, message in [
        ("no polyp", [], "not understood"),
        ("polyp", ["absence of polyp"], "not understood"),
        ("polyp and liver", [], "ask each by itself ('polyp', 'liver')"),
        ("polyp without liver", [], "ask for 'polyp' alone"),
    ]:
        seen = table("segment", phrase=phrase, also=also)
        assert seen.is_mistake and seen.marks == () and message in seen.text


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
    seen = table("segment", phrase="nodule", region=[0, 0, 500, 1000])
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
    seen = table("segment_box", boxes=[[100, 100, 200, 200]])  # of 60 x 40 pixels: columns 6 to 12, rows 4 to 8
    assert [(mark.mask.start, mark.mask.crop.shape) for mark in seen.marks] == [((0, 4, 6), (1, 4, 6))]
    assert seen.marks[0].origin == "segment_box" and seen.facts["boxes_px"] == [[5.5, 3.5, 11.5, 7.5]]


def test_a_box_means_the_same_pixels_in_the_frame_and_in_an_enlarged_picture() -> None:
    pixels = np.zeros((1, 2400, 1800, 1), dtype=np.uint8)  # shown at 768 x 1024
    table = Table(Image(pixels), has_pictures=True)
    (zoomed,) = table("look", region=[500, 250, 1000, 500]).pictures  # columns 900 to 1800, rows 600 to 1200
    assert (zoomed.number, zoomed.size, zoomed.part) == (1, (900, 600), (900, 600, 1800, 1200))
    assert zoomed.caption.startswith("picture 1, 900 x 600 pixels: ")
    assert "whole frame's part 500, 250, 1000, 500" in zoomed.caption
    inside = table("segment_box", boxes=[[100, 500, 200, 750]], picture=1).marks[0].mask
    assert (inside.start, inside.crop.shape) == ((0, 900, 990), (1, 150, 90))
    whole = table("segment_box", boxes=[[550, 375, 600, 437.5]]).marks[0].mask
    assert (whole.start, whole.crop.shape) == (inside.start, inside.crop.shape)
    (again,) = table("look", region=[0, 0, 500, 500], picture=1).pictures  # a part of the part
    assert again.part == (900, 600, 1350, 900)
    assert "there is no picture 9, shown were 1 to 4" in table("look", picture=9).text


def test_coordinates_in_a_picture_of_another_slice_go_there() -> None:
    table = Table(Image(np.zeros((3, 40, 60, 1), dtype=np.int16), kind="volume"), has_pictures=True)
    table("next_slice")  # picture 1 shows slice 2
    table("previous_slice")
    seen = table("segment_box", boxes=[[100, 100, 200, 200]], picture=1)
    assert seen.marks[0].mask.start == (2, 4, 6) and table.session.frame == 2


def test_a_click_lands_on_the_pixel_that_is_meant(table: Table) -> None:
    table("segment", phrase="nodule")
    seen = table("refine", mask=1, points=[[175, 362.5, 1]])  # of 60 x 40: column 10.5 and row 14.5 from the edges
    assert seen.facts["points_px"] == [[10.0, 14.0, 1]]


@pytest.mark.parametrize("shape", [(352, 352), (40, 60), (1080, 1920), (8000, 6000), (33, 7)])
def test_pixels_come_back_from_relative_coordinates(shape: tuple[int, int]) -> None:
    rows, columns = shape
    crop = Crop(rows // 3, rows - 1, columns // 5, columns)
    assert whole_frame(0, shape).crop(relative_crop(crop, shape)) == crop
    box = (0.25, 0.5, columns - 1.75, rows - 2.5)
    assert whole_frame(0, shape).box(relative_box(box, shape, digits=9)).xyxy == pytest.approx(box, abs=1e-6)
    assert whole_frame(0, shape).box([0, 0, 1000, 1000]).xyxy == (-0.5, -0.5, columns - 0.5, rows - 0.5)


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
        ("segment", {"phrase": "a", "region": [10, 10, 30, 30]}, "smaller than 16 pixels"),
        ("segment", {"phrase": "a", "region": [0, 0, 500, 500], "tiles": True}, "not both"),
        ("segment_box", {"boxes": [[50, 50, 10, 10]]}, "inverted or empty"),
        ("segment_box", {"boxes": [[100, 100, 1200, 120]]}, "less than or equal to 1000"),
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
    assert seen.facts["frame"] == 2 and seen.pictures[0].caption == "picture 1, 512 x 341 pixels: slice 2"
    found = table("segment", phrase="nodule")
    assert found.marks[0].mask.start == (1, 10, 5) and found.facts["frame"] == 1
    assert table("previous_slice").facts["frame"] == 0
    assert table("next_slice").facts["frame"] == 1  # the same call from another slice is no repetition
    assert table("look", window="lung").pictures[0].caption.endswith(": the frame in the lung window")


def test_pictures_are_large_enough_to_read_the_numbers() -> None:
    table = Table(has_pictures=True)
    [drawn] = table("segment", phrase="nodule").pictures
    assert size(drawn) == (512, 341)
    raw = np.asarray(PIL.Image.open(io.BytesIO(table("look", region=[0, 0, 500, 1000]).pictures[0].png)))
    assert raw.shape[:2] == (512, 384) and set(np.unique(raw[..., 0] == raw[..., 1])) == {
        True
    }  # grey: nothing is drawn
    assert [size(picture) for picture in table("examine", mask=2).pictures] == [(512, 341), (512, 512), (512, 512)]


def test_no_picture_is_made_for_who_may_see_none(table: Table) -> None:
    table("segment", phrase="nodule")
    assert table("examine", mask=1).pictures == ()
    assert table("look", region=[0, 0, 500, 1000]).is_mistake


def test_every_tool_has_a_schema_that_json_can_hold() -> None:
    for name, tool in TOOLS.items():
        assert json.loads(json.dumps(tool.spec.parameters))["type"] == "object"
        assert tool.spec.name == name and tool.spec.description
