"""Masks and images that one process hands to another are the same there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medsam3.errors import InputError
from medsam3.image import Image, Masks, ObjectMask, Window
from medsam3.io.handed import ABOUT, FRAMES, is_handed, open_handed, write_handed
from medsam3.io.packed_masks import dumped, loaded


def test_masks_come_back_with_all_that_was_said_of_them() -> None:
    crop = np.array([[[True, False, True]], [[False, True, True]]])
    objects = (ObjectMask((1, 2, 3), crop, 0.75), ObjectMask((0, 0, 0), np.ones((1, 1, 1), dtype=np.bool_), 0.5))
    masks = [
        Masks((4, 5, 6), objects, "polyp", 0.4, True, is_sure=False, found_as="cyst"),
        Masks((4, 5, 6), concept="", is_present=None),
    ]
    assert loaded(dumped(masks)) == masks
    assert loaded(dumped([])) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "masks": [{}]}', "\0"])
def test_what_is_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not in the form"):
        loaded(text)


def test_masks_of_a_later_format_are_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="format 2, allowed is 1: update"):
        loaded(json.dumps({"format": 2, "masks": []}))
    broken = json.loads(dumped([Masks((1, 2, 2), (ObjectMask((0, 0, 0), np.ones((1, 1, 1), dtype=np.bool_), 1.0),))]))
    broken["masks"][0]["objects"][0]["start"] = [0, 9, 0]
    with pytest.raises(InputError, match="outside the image"):
        loaded(json.dumps(broken))


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ([1, 100_000, 100_000], "the crop has 10000000000 voxels"),
        ([1, 20_000, 20_000], "400000000 voxels, 8 are there"),
        ([1, 0, 1], "the crop has 0 voxels"),
        ([1, 1e309, 1], "cannot convert float infinity"),
    ],
)
def test_a_crop_that_is_not_there_takes_no_memory(shape: list[float], said: str) -> None:
    content = json.loads(dumped([Masks((1, 2, 2), (ObjectMask((0, 0, 0), np.ones((1, 1, 1), dtype=np.bool_), 1.0),))]))
    content["masks"][0]["objects"][0]["shape"] = shape
    with pytest.raises(InputError, match=said):
        loaded(json.dumps(content))


def test_an_image_is_handed_over_with_all_but_its_files(tmp_path: Path) -> None:
    affine = np.array([[0, 0, -0.7, 5], [0, 2.5, 0, 6], [4, 0, 0, 7], [0, 0, 0, 1.0]])
    frames = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4, 1)
    for image in (
        Image(frames, "volume", affine, window=Window(0.5, 9), padding=(-5, -5), metadata={"modality": "CT"}),
        Image(np.zeros((2, 3, 4, 3), dtype=np.uint8), "video", fps=12.5),
        Image(np.full((1, 3, 4, 1), 0.25), source=(tmp_path / "x",)),
    ):
        write_handed(image, tmp_path)
        assert is_handed(tmp_path)
        assert open_handed(tmp_path) == image and open_handed(tmp_path).source == ()


def test_an_image_that_is_cut_or_lies_is_refused(tmp_path: Path) -> None:
    write_handed(Image(np.zeros((1, 3, 4, 1), dtype=np.uint8)), tmp_path)
    whole = (tmp_path / FRAMES).read_bytes()
    for frames, about in ((whole[:-3], "{}"), (whole, "[]"), (whole, '{"kind": "picture"}'), (b"", "{}")):
        (tmp_path / FRAMES).write_bytes(frames)
        (tmp_path / ABOUT).write_text(about)
        with pytest.raises(InputError, match="not handed over whole"):
            open_handed(tmp_path)
