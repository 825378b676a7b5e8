from pathlib import Path

import numpy as np
import PIL.Image
import pydicom
import pytest
import SimpleITK

from made_dicom import SPACING_MM, dataset, placed, ramp, save, series, world
from medsam3.errors import InputError
from medsam3.geometry import world_from_index
from medsam3.io import info, is_series, read
from medsam3.io.dicom_series import is_dicom_image

CORNER = (3, 4, 5)  # the last voxel of a stack of 4 x 5 x 6


def test_slices_are_sorted_by_position_not_by_name(tmp_path: Path) -> None:
    image = read(series(tmp_path))
    assert image.kind == "volume"
    assert np.array_equal(image.array()[..., 0], ramp())
    assert [path.name for path in image.source] == ["s3_004.dcm", "s3_003.dcm", "s3_002.dcm", "s3_001.dcm"]


def test_world_positions_of_an_oblique_series_follow_the_standard(tmp_path: Path) -> None:
    image = read(series(tmp_path))
    assert image.affine is not None
    for index in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), CORNER]:
        np.testing.assert_allclose(world_from_index(image.affine, index), world(*index), atol=1e-6)
    assert image.spacing_mm == pytest.approx(SPACING_MM)


def test_simpleitk_finds_every_voxel_at_the_same_place(tmp_path: Path) -> None:
    image = read(series(tmp_path))
    other = SimpleITK.ReadImage([str(path) for path in image.source])
    assert np.array_equal(SimpleITK.GetArrayFromImage(other), image.array()[..., 0])
    assert image.affine is not None
    for n, row, col in [(0, 0, 0), (2, 1, 3), CORNER]:
        expected = other.TransformIndexToPhysicalPoint((col, row, n))
        np.testing.assert_allclose(world_from_index(image.affine, (n, row, col)), expected, atol=1e-3)


def test_a_sheared_stack_keeps_its_shear(tmp_path: Path) -> None:
    for n in range(3):
        made = placed(ramp()[n], n, SeriesInstanceUID="1.2.9")
        made.ImagePositionPatient = [0.0, 0.7 * n, 3.0 * n]  # a tilted gantry: 0.7 mm sideways at every slice
        made.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        save(made, tmp_path / f"{n}.dcm")
    affine = read(tmp_path).affine
    assert affine is not None
    np.testing.assert_allclose(affine[:3, 0], [0.0, 0.7, 3.0])


def test_a_folder_of_folders_is_read_when_only_the_lower_one_holds_files(tmp_path: Path) -> None:
    series(tmp_path / "study" / "series")
    assert read(tmp_path).shape == (4, 5, 6)


def test_a_series_of_one_file_is_a_picture_and_other_files_are_passed_over(tmp_path: Path) -> None:
    save(placed(ramp()[0], 0), tmp_path / "a.dcm")
    (tmp_path / "notes.txt").write_text("not an image")
    assert read(tmp_path).kind == "picture"


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path: Path) -> None:
    series(tmp_path, number=3)
    series(tmp_path, [0.0, 1.0], number=12)
    with pytest.raises(InputError, match=r"2 series: 12 \(\.\.\.\w{8}, 2 files\), 3 \(.*series=") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)
    assert read(tmp_path, series=12).shape == (2, 5, 6)
    uid = pydicom.dcmread(tmp_path / "s3_001.dcm").SeriesInstanceUID
    assert read(tmp_path, series=uid[-8:]).shape == (4, 5, 6)
    with pytest.raises(InputError, match="fits 0 of the folder's series"):
        read(tmp_path, series=4)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([0, 1, 2, 4, 5], r"1 slices are missing, the first after slice 2 \(slices lie 2.500 mm apart\)"),
        ([0, 1, 1, 2], "1 slices lie at the same place as another"),
        ([0, 1, 2, 3.4], "unevenly, 2.500 to 3.500 mm apart"),
        ([0, 0, 0], "2 slices lie at the same place as another"),
    ],
)
def test_uneven_stacks_are_refused(tmp_path: Path, places: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(series(tmp_path, places))


def test_rounded_positions_are_no_gap(tmp_path: Path) -> None:
    # 2 % of a slice distance, as where positions were rounded to 0.05 mm
    assert read(series(tmp_path, [0, 1.02, 1.98, 3])).shape == (4, 5, 6)


def test_slices_that_differ_are_refused(tmp_path: Path) -> None:
    def with_second(second: pydicom.FileDataset) -> Path:
        save(placed(ramp()[0], 0, SeriesInstanceUID="1.2.9"), tmp_path / "a.dcm")
        save(second, tmp_path / "b.dcm")
        return tmp_path

    turned = placed(ramp()[1], 1, SeriesInstanceUID="1.2.9")
    turned.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    with pytest.raises(InputError, match="differ in orientation"):
        read(with_second(turned))
    coarser = placed(ramp()[1], 1, SeriesInstanceUID="1.2.9", PixelSpacing=[1, 1])
    coarser.PixelSpacing = [1, 1]
    with pytest.raises(InputError, match="differ in pixel spacing"):
        read(with_second(coarser))
    with pytest.raises(InputError, match=r"differ in size: \[\(5, 6, 1\), \(7, 6, 1\)\]"):
        read(with_second(placed(ramp(1, 7)[0], 1, SeriesInstanceUID="1.2.9")))
    with pytest.raises(InputError, match="1 of 2 files tell no position"):
        read(with_second(dataset(ramp()[1], SeriesInstanceUID="1.2.9")))


def test_a_cut_slice_is_named(tmp_path: Path) -> None:
    folder = series(tmp_path)
    cut = folder / "s3_002.dcm"
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"pixels of s3_002\.dcm .* cannot be decoded"):
        read(folder).array()


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match="holds no DICOM images; allowed are"):
        read(tmp_path)
    with pytest.raises(InputError, match="frame= does not apply to a folder"):
        read(tmp_path, frame=1)


def test_is_series_is_true_for_slices_and_false_for_single_pictures(tmp_path: Path) -> None:
    assert is_series(series(tmp_path / "ct"))
    for name in "ab":
        save(dataset(ramp()[0]), tmp_path / "cr" / f"{name}.dcm")
    assert not is_series(tmp_path / "cr")
    assert not is_series(tmp_path / "missing")


def test_info_tells_technical_facts_and_no_patient(tmp_path: Path) -> None:
    facts = info(series(tmp_path))
    assert facts["kind"] == "volume" and facts["files"] == 4 and facts["modality"] == "CT"
    assert facts["spacing_mm"] == [2.5, 0.75, 0.5] and facts["value_range"] == [0, 345]
    # n leads along NORMAL = (.3, -.52, .8), row along (-.4, .69, .6), col along (.87, .5, 0)
    assert facts["orientation"] == "superior, posterior, left"
    assert facts["transfer_syntax"] == "Explicit VR Little Endian"
    assert not any(secret in str(facts) for secret in ("Made", "secret", "1970"))


def without_preamble(path: Path, *, is_implicit: bool = True) -> None:
    """Rewrite a file as old scanners and some archives leave it: the data set alone."""
    made = pydicom.dcmread(path)
    made.file_meta, made.preamble = pydicom.dataset.FileMetaDataset(), None
    pydicom.dcmwrite(path, made, implicit_vr=is_implicit, little_endian=True, enforce_file_format=False)


@pytest.mark.parametrize("is_implicit", [True, False])
@pytest.mark.parametrize("suffix", [".dcm", ".IMA", ""])
def test_slices_without_preamble_are_slices_whatever_their_name(suffix: str, is_implicit: bool, tmp_path: Path) -> None:
    for k, path in enumerate(sorted(series(tmp_path / "ct").iterdir())):
        if k > 1:  # the first two stay as they are
            without_preamble(path, is_implicit=is_implicit)
        path.rename(path.with_suffix(suffix))
    (tmp_path / "ct" / "notes").write_text("no DICOM file, whatever its name")
    assert is_series(tmp_path / "ct")
    np.testing.assert_array_equal(read(tmp_path / "ct").array()[..., 0], ramp())


def test_a_table_of_contents_and_structures_at_the_top_do_not_hide_the_series_below(tmp_path: Path) -> None:
    series(tmp_path / "study" / "ct")
    for name, uid in (("DICOMDIR", "1.2.840.10008.1.3.10"), ("rs.dcm", "1.2.840.10008.5.1.4.1.1.481.3")):
        made = dataset(ramp()[0], sop_class=uid)
        del made.PixelData, made.Rows, made.Columns
        save(made, tmp_path / "study" / name)
    assert read(tmp_path / "study").shape == (4, 5, 6)


def test_a_picture_beside_or_above_a_series_is_passed_over_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    series(tmp_path / "cd" / "ct")
    picture = PIL.Image.fromarray(np.zeros((30, 40), dtype=np.uint8))
    picture.save(tmp_path / "cd" / "icon.png")
    picture.save(tmp_path / "cd" / "ct" / "preview.jpg")
    for folder in (tmp_path / "cd", tmp_path / "cd" / "ct"):
        assert read(folder).shape == (4, 5, 6)
        said = "the DICOM series is read, and the pictures beside it are no part of it (1)"
        assert f"{folder}: {said}" in caplog.messages


def test_masks_beside_a_series_are_no_part_of_it_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = series(tmp_path / "ct")
    save(placed(ramp()[0], 0.0, Modality="SEG", SeriesInstanceUID="1.2.9"), folder / "seg\x1b.dcm")
    assert read(folder).shape == (4, 5, 6)
    assert caplog.messages == ["1 DICOM files without an image are passed over (seg\\x1b.dcm)"]


def test_slices_that_lie_a_level_deeper_are_part_of_the_series(tmp_path: Path) -> None:
    series(tmp_path / "ct")
    (tmp_path / "ct" / "more").mkdir()
    (tmp_path / "ct" / "s3_001.dcm").rename(tmp_path / "ct" / "more" / "s3_001.dcm")
    series(tmp_path / "ct" / "other", number=4)
    np.testing.assert_array_equal(read(tmp_path / "ct").array()[..., 0], ramp())


def test_copies_of_slices_are_passed_over_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    series(tmp_path)
    (tmp_path / "s3_002 (1).dcm").write_bytes((tmp_path / "s3_002.dcm").read_bytes())
    np.testing.assert_array_equal(read(tmp_path).array()[..., 0], ramp())
    assert caplog.messages == ["1 files are copies of another slice, and are passed over"]


@pytest.mark.parametrize("name", ["s3_001.dcm", "s3_003.dcm"])
def test_a_slice_that_ends_in_its_header_is_named_and_not_left_out(name: str, tmp_path: Path) -> None:
    path = series(tmp_path) / name
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=f"{name}: the file is cut short, it ends before the image"):
        read(tmp_path)
    assert is_dicom_image(path)  # so that a run over the folder's files reports it


def test_slices_that_are_named_as_pictures_are_not_counted_as_such(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in series(tmp_path).iterdir():
        path.rename(path.with_suffix(".png"))
    np.testing.assert_array_equal(read(tmp_path).array()[..., 0], ramp())
    assert caplog.messages == []
