"""Masks as a notebook shows them: the picture, a row for each object, and nothing that runs."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import PIL.Image
import pytest

import medsam3
from medsam3.errors import InputError
from medsam3.image import Image, Masks
from threshold_segmenter import ThresholdSegmenter


def found(phrase: str = "polyp") -> Masks:
    pixels = np.zeros((1, 40, 60, 1), dtype=np.uint8)
    pixels[0, 5:15, 10:30] = 200
    image = Image(pixels, metadata={"pixel_spacing_mm": "0.5 0.2"})
    return medsam3.segment(image, phrase, ThresholdSegmenter())[0]


def test_the_overlay_is_the_picture_with_the_object_in_colour() -> None:
    drawn = found().overlay()
    assert drawn.shape == (100, 60, 3)  # pixels of 0.5 x 0.2 mm, shown square
    assert drawn[25, 20].tolist() != [200, 200, 200] and drawn[90, 50].tolist() == [0, 0, 0]


def test_the_page_holds_picture_and_sizes_and_escapes_the_phrase() -> None:
    page = found("<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "data:image/png;base64," in page and "presence 0.90, yes" in page
    assert "<td>20</td>" in page and "mm²" in page  # 10 x 20 pixels of 0.5 x 0.2 mm
    png = found()._repr_png_()
    assert png is not None and PIL.Image.open(io.BytesIO(png)).size == (60, 100)


def test_nothing_found_and_no_image_show_as_text() -> None:
    assert "presence 0.10, no, 0 objects" in found("absent")._repr_html_()
    bare = Masks.from_dense(np.ones((1, 1, 4, 5), bool), [0.5])
    assert bare._repr_png_() is None and "20</td>" in bare._repr_html_()
    with pytest.raises(InputError, match="do not know their image"):
        bare.overlay()
    with pytest.raises(InputError, match="frame 3 was asked for, allowed is 0 to 0"):
        found().overlay(3)


def test_pickles_keep_the_place_and_leave_the_pixels_behind() -> None:
    masks = found()
    again = pickle.loads(pickle.dumps(masks))
    assert again == masks and again.image.pixel_size_mm == (0.5, 0.2)
    assert again._repr_png_() is None
    with pytest.raises(InputError, match="pixels are not at hand"):
        again.overlay()
    np.testing.assert_array_equal(again.overlay(image=masks.image), masks.overlay())
    assert copy.copy(masks) is masks and copy.deepcopy(masks) is masks
    assert masks.array.shape == (1, 1, 40, 60) and masks.array.sum() == 200
    assert found("absent").array.shape == (0, 1, 40, 60)
