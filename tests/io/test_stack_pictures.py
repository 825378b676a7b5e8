"""Montage, three planes and overlay video: sizes and colours at known places."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from medsam3.errors import InputError
from medsam3.geometry import affine_from_directions
from medsam3.image import Image, Masks
from medsam3.io import read, write
from medsam3.io.stack_pictures import write_montage, write_overlay_mp4, write_three_planes


def volume() -> Image:
    """30 slices 4 mm apart, 40 rows of 2 mm, 64 columns of 1 mm, all black."""
    affine = affine_from_directions([0, 0, 0], [0, 0, 4], [0, 2, 0], [1, 0, 0])
    return Image(np.zeros((30, 40, 64, 1), dtype=np.uint8), kind="volume", affine=affine)


def block() -> Masks:
    dense = np.zeros((1, 30, 40, 64), dtype=np.bool_)
    dense[0, 5:10, 10:30, 20:40] = True
    return Masks.from_dense(dense, [0.9], concept="")


def test_a_montage_holds_the_slices_with_something_in_true_proportion(tmp_path: Path) -> None:
    write_montage([block()], volume(), tmp_path / "m.png")
    sheet = np.asarray(PIL.Image.open(tmp_path / "m.png"))
    # Five slices in 3 columns and 2 rows; 80 mm by 64 mm make tiles of 256 by 205 pixels, 4 pixels apart.
    assert sheet.shape == (2 * 256 + 4, 3 * 205 + 2 * 4, 3)
    assert sheet[128, 102].any() and not sheet[5, 5].any()
    assert not sheet[260 + 128, 2 * 209 + 102].any()  # the sixth place is empty


def test_a_montage_has_at_most_twenty_slices(tmp_path: Path) -> None:
    write_montage([Masks((30, 40, 64))], volume(), tmp_path / "m.png")
    assert PIL.Image.open(tmp_path / "m.png").size == (5 * 205 + 4 * 4, 4 * 256 + 3 * 4)


def test_three_planes_go_through_the_middle_of_what_was_found(tmp_path: Path) -> None:
    write_three_planes([block()], volume(), tmp_path / "p.png")
    sheet = np.asarray(PIL.Image.open(tmp_path / "p.png"))
    # Axial 80 x 64 mm: 256 x 205; coronal 120 x 64 mm: 256 x 137; sagittal 120 x 80 mm: 256 x 171.
    assert sheet.shape == (256, 205 + 137 + 171 + 8, 3)
    # The block's middle lies at row 40 of 80 mm, column 30 of 64 mm, slice 30 of 120 mm.
    for y, x in ((128, 98), (64, 209 + 65), (64, 350 + 86)):
        assert sheet[y, x].any(), (y, x)
    assert not sheet[200, 209 + 65].any()


def test_a_volume_becomes_a_video_of_ten_slices_a_second(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs PyAV, of the extra video")
    write_overlay_mp4([block()], volume(), tmp_path / "o.mp4")
    stack = read(tmp_path / "o.mp4")
    assert (stack.shape, stack.fps) == ((30, 80, 64), 10.0)  # rows are twice as high as columns are wide
    assert stack.pixels(7)[40, 30].max() > 40 and stack.pixels(20)[40, 30].max() < 20


@pytest.mark.parametrize("name", ["montage", "planes", "csv", "mp4"])
def test_masks_of_another_shape_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be the same"):
        write(Masks((3, 40, 64)), tmp_path / "x", volume(), format=name)
    assert list(tmp_path.iterdir()) == []
