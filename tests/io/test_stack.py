"""Stacks that are read as needed, and what is said of broken ones."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest

from made_dicom import US_CINE, dataset, enhanced, placed, ramp, save, series
from medsam3.errors import InputError
from medsam3.image import Image, LazyFrames, Pixels
from medsam3.io import read
from medsam3.io.dicom import open_dicom


def test_frames_are_read_one_at_a_time_and_only_when_asked() -> None:
    asked: list[int] = []

    def read_frame(n: int) -> Pixels:
        asked.append(n)
        frame: Pixels = ramp()[n][..., None]
        return frame

    stack = Image(LazyFrames((4, 5, 6, 1), read_frame), "volume")
    assert stack.frame(2).array()[0, 3, 1, 0] == 231
    assert asked == [2]


def test_a_frame_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match="frame 4 was asked for, allowed is 0 to 3"):
        Image(LazyFrames((4, 5, 6, 1), lambda n: ramp()[n][..., None]), "volume").pixels(4)


def test_a_lazy_series_is_what_the_whole_one_is(tmp_path: Path) -> None:
    whole, lazy = read(series(tmp_path)), read(tmp_path).load()
    np.testing.assert_array_equal(lazy.array(), whole.array())
    assert whole.affine is not None and lazy.affine is not None
    np.testing.assert_array_equal(lazy.affine, whole.affine)
    assert (lazy.source, dict(lazy.metadata), lazy.window) == (whole.source, dict(whole.metadata), whole.window)


def test_lazy_frames_of_an_enhanced_file_come_in_the_order_of_their_places(tmp_path: Path) -> None:
    path = save(enhanced(ramp(), [3.0, 1.0, 0.0, 2.0]), tmp_path / "enhanced.dcm")
    whole, lazy = read(path), open_dicom(path).load()
    np.testing.assert_array_equal(lazy.array(), whole.array())
    # File frame 2 lies first; its stored 200 is 2 * 200 - 1000 HU.
    assert lazy.array()[0, 0, 0, 0] == -600


def test_a_cine_is_a_video_with_its_frame_time(tmp_path: Path) -> None:
    pixels = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    path = save(dataset(pixels, sop_class=US_CINE, Modality="US", FrameTime="40"), tmp_path / "cine.dcm")
    stack = read(path)
    assert (stack.kind, stack.fps, stack.shape) == ("video", 25.0, (3, 4, 5))
    np.testing.assert_array_equal(stack.pixels(1)[..., 0], pixels[1])


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([0.0, 1.0, 3.0, 4.0], "1 slices are missing, the first after slice 1"),
        ([0.0, 1.0, 1.0, 2.0], "1 slices lie at the same place as another"),
        ([0.0, 1.0, 2.4, 3.0], "the slices lie unevenly"),
    ],
)
def test_a_series_with_a_fault_is_refused_before_any_pixel_is_read(
    places: list[float], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        read(series(tmp_path, places))


def test_mixed_orientations_are_refused(tmp_path: Path) -> None:
    series(tmp_path)
    turned = placed(ramp()[0], 5.0, SeriesInstanceUID=open_uid(tmp_path), SeriesNumber=3)
    turned.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    save(turned, tmp_path / "turned.dcm")
    with pytest.raises(InputError, match="the slices differ in orientation"):
        read(tmp_path)


def open_uid(folder: Path) -> str:
    import pydicom  # noqa: PLC0415

    return str(pydicom.dcmread(next(folder.glob("*.dcm"))).SeriesInstanceUID)


def test_two_series_in_a_folder_are_told_apart(tmp_path: Path) -> None:
    series(tmp_path, number=3)
    series(tmp_path, number=7)
    with pytest.raises(InputError, match=r"2 series: 3 .*4 files.*7 .*4 files"):
        read(tmp_path)
    assert read(tmp_path, series=7).shape == (4, 5, 6)


def test_a_segmentation_is_not_taken_as_the_image(tmp_path: Path) -> None:
    made = dataset(ramp()[0], sop_class="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG")
    with pytest.raises(InputError, match="masks and not an image"):
        read(save(made, tmp_path / "seg.dcm"))


def nifti(path: Path, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.diag([0.5, 0.75, 2.5, 1.0])), path)
    return path


@pytest.mark.parametrize("name", ["four.nii", "four.nii.gz"])
def test_a_time_point_of_a_4d_nifti_is_chosen(name: str, tmp_path: Path) -> None:
    values = np.arange(6 * 5 * 4 * 2, dtype=np.float32).reshape(6, 5, 4, 2)
    path = nifti(tmp_path / name, values)
    with pytest.raises(InputError, match="2 time points: choose one with frame="):
        read(path)
    stack = read(path, frame=1)
    assert stack.shape == (4, 5, 6)
    assert stack.pixels(2)[3, 1, 0] == values[1, 3, 2, 1]


def test_a_4d_nifti_with_nan_is_refused_for_the_time_point_that_holds_it(tmp_path: Path) -> None:
    values = np.zeros((6, 5, 4, 2), dtype=np.float32)
    values[0, 0, 2, 1] = np.nan
    path = nifti(tmp_path / "nan.nii.gz", values)
    assert read(path, frame=0).shape == (4, 5, 6)
    with pytest.raises(InputError, match="slice 2 holds NaN"):
        read(path, frame=1)


def test_slope_and_intercept_are_applied_to_each_slice(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(ramp().transpose(2, 1, 0), np.eye(4))
    image.header.set_slope_inter(2.0, -1000.0)
    nibabel.save(image, tmp_path / "scaled.nii")
    whole = np.asarray(nibabel.load(tmp_path / "scaled.nii").dataobj).transpose(2, 1, 0)
    np.testing.assert_array_equal(read(tmp_path / "scaled.nii").array()[..., 0], whole)


@pytest.mark.parametrize("name", ["cut.nii.gz", "cut.nii"])
def test_a_nifti_that_is_cut_short_is_refused(name: str, tmp_path: Path) -> None:
    path = nifti(tmp_path / name, np.random.default_rng(1).random((6, 5, 4), dtype=np.float32))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cut short"):
        read(path)


@pytest.mark.parametrize("name", ["cut.mha", "cut.nrrd"])
def test_nrrd_and_metaimage_that_are_cut_short_are_refused(name: str, tmp_path: Path) -> None:
    import SimpleITK  # noqa: PLC0415

    path = tmp_path / name
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(ramp()), str(path), useCompression=name.endswith("nrrd"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"cut short|damaged"):
        read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"NRRD0004\ntype: block\nsizes: 2 2\nencoding: raw\n\n", "NRRD header cannot be read"),
        (
            b"NRRD0004\ntype: short\ndimension: 2\nsizes: 2 2\nencoding: bzip2\nendian: little\n\n",
            "form of the NRRD voxels is not read",
        ),
        (b"NRRD0004\nsizes: 2 2\nencoding: raw\n\n", "NRRD header cannot be read"),
        (b"NDims = 3\nDimSize = 2 2 2\nElementType = MET_FOO\nElementDataFile = LOCAL\n", "MetaImage header cannot"),
        (b"ObjectType = Image\nDimSize = 2 2 2\n", "does not end with ElementDataFile"),
        (b"NDims = 3\nDimSize = 2 2\nElementType = MET_SHORT\nElementDataFile = gone.raw\n", "gone.raw"),
        (
            b"NRRD0004\ntype: uchar\ndimension: 2\nsizes: 9 9\nencoding: raw\ndata file: /etc/passwd\n",
            "outside its own",
        ),
        (b"NDims = 2\nDimSize = 9 9\nElementType = MET_CHAR\nElementDataFile = ../secret\n", "outside its own"),
    ],
)
def test_headers_that_are_not_read_are_refused(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(text.ljust(400, b" ") if b"Element" in text else text)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "bad")


def test_a_folder_of_frames_is_a_video_in_the_order_of_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        PIL.Image.fromarray(np.full((5, 6), number, dtype=np.uint8)).save(tmp_path / f"frame{number}.png")
    stack = read(tmp_path)
    assert (stack.kind, stack.shape) == ("video", (3, 5, 6))
    assert [int(stack.pixels(n)[0, 0, 0]) for n in range(3)] == [1, 2, 10]


def test_a_frame_of_another_size_is_refused_with_its_name(tmp_path: Path) -> None:
    for name, width in (("a.png", 6), ("b.png", 7)):
        PIL.Image.fromarray(np.zeros((5, width), dtype=np.uint8)).save(tmp_path / name)
    with pytest.raises(InputError, match=r"frame 1 is \(5, 7, 1\) but frame 0 is \(5, 6, 1\)"):
        read(tmp_path).pixels(1)
