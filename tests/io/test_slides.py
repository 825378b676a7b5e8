"""Whole slides in TIFF, written by tifffile, and in DICOM: levels and regions at their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from made_dicom import dataset, save
from medsam3.errors import InputError
from medsam3.io import facts, read
from medsam3.io.files import SlidePart

WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"


def picture() -> NDArray[np.uint8]:
    row, col = np.mgrid[:300, :400]
    return np.stack([col % 256, row % 256, (row + col) % 256], axis=-1).astype(np.uint8)


def pyramid(path: Path, *, compression: str = "deflate") -> Path:
    with tifffile.TiffWriter(path) as writer:
        form = {"tile": (64, 64), "photometric": "rgb", "compression": compression}
        writer.write(picture(), resolution=(40000, 40000), resolutionunit="CENTIMETER", **form)  # 0.25 um a pixel
        writer.write(picture()[::4, ::4], subfiletype=1, **form)
    return path


def test_a_small_slide_is_read_at_its_finest_level(tmp_path: Path) -> None:
    image = read(pyramid(tmp_path / "a.tif"))
    assert np.array_equal(image.array()[0], picture())
    shown = facts(image)
    assert (shown["level"], shown["levels"], shown["pixel_spacing_mm"]) == ("0", "2", "0.00025 0.00025")
    assert "slide_place" not in image.metadata


def test_a_level_and_a_region_are_the_slides_own_pixels(tmp_path: Path) -> None:
    path = pyramid(tmp_path / "a.tif")
    coarse = read(path, part=SlidePart(1))
    assert np.array_equal(coarse.array()[0], picture()[::4, ::4])
    assert (coarse.metadata["slide_place"], coarse.metadata["pixel_spacing_mm"]) == ("0 0 4", "0.001 0.001")
    region = read(path, part=SlidePart(0, (100, 50, 33, 21)))
    assert np.array_equal(region.array()[0], picture()[50:71, 100:133])
    assert region.metadata["slide_place"] == "100 50 1"
    both = read(path, part=SlidePart(1, (100, 48, 40, 20)))
    assert np.array_equal(both.array()[0], picture()[::4, ::4][12:17, 25:35])


def test_jpeg_tiles_are_read(tmp_path: Path) -> None:
    pytest.importorskip("imagecodecs")
    found = read(pyramid(tmp_path / "a.tif", compression="jpeg")).array()[0]
    assert np.abs(found.astype(int) - picture()).mean() < 8


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (SlidePart(2), "the slide has 0: 400 x 300, 1: 100 x 75"),
        (SlidePart(None, (390, 0, 20, 20)), "give one within it"),
        (SlidePart(None, (0, 0, 0, 20)), "give one within it"),
    ],
)
def test_what_the_slide_lacks_is_refused(tmp_path: Path, part: SlidePart, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(pyramid(tmp_path / "a.tif"), part=part)


def test_a_cut_slide_is_one_line(tmp_path: Path) -> None:
    path = pyramid(tmp_path / "a.tif")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InputError) as caught:
        read(path, part=SlidePart(1))
    assert "\n" not in str(caught.value)


def tiles(path: Path) -> Path:
    """A slide of 48 x 32 pixels in six tiles of 16 x 16, by rows."""
    small = picture()[:32, :48]
    frames = np.stack([small[r : r + 16, c : c + 16] for r in (0, 16) for c in (0, 16, 32)])
    about = {"TotalPixelMatrixRows": 32, "TotalPixelMatrixColumns": 48, "Modality": "SM"}
    return save(dataset(frames, sop_class=WHOLE_SLIDE, SamplesPerPixel=3, **about), path)


def test_a_region_of_a_dicom_slide_crosses_its_tiles(tmp_path: Path) -> None:
    path = tiles(tmp_path / "a.dcm")
    assert np.array_equal(read(path).array()[0], picture()[:32, :48])
    region = read(path, part=SlidePart(None, (10, 12, 30, 9)))
    assert np.array_equal(region.array()[0], picture()[12:21, 10:40])
    assert region.metadata["slide_place"] == "10 12 1"
    for part, message in ((SlidePart(0), "files of their own"), (SlidePart(None, (40, 0, 9, 9)), "within it")):
        with pytest.raises(InputError, match=message):
            read(path, part=part)


def test_parts_of_what_is_no_slide_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture()[:20, :30])
    with pytest.raises(InputError, match="this is one picture"):
        read(tmp_path / "a.tif", part=SlidePart(0))
    with pytest.raises(InputError, match="this DICOM file is none"):
        read(save(dataset(np.zeros((4, 5), np.uint16)), tmp_path / "b.dcm"), part=SlidePart(None, (0, 0, 2, 2)))
