import gzip
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
from nibabel.affines import apply_affine
from numpy.typing import NDArray

from made_dicom import ORIGIN_MM, series, world
from medsam3.errors import InputError
from medsam3.geometry import world_from_index
from medsam3.image import Image, Masks
from medsam3.io import read, write
from medsam3.io.read_masks import read_masks

# Index (i, j, k) to RAS mm: a turn by atan(3/4) about x, then spacing (0.5, 0.75, 2.5).
RAS = np.array([[0.5, 0, 0, -10], [0, 0.6, -1.5, 20], [0, 0.45, 2.0, -30], [0, 0, 0, 1]])
VOXELS = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4) - 7  # (i, j, k)


def saved(voxels: NDArray[Any], path: Path, affine: NDArray[np.float64] | None = RAS, **header: Any) -> Path:
    file = nibabel.Nifti1Image(voxels, affine)
    for name, value in header.items():
        file.header[name] = value
    nibabel.save(file, path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_volume_has_slices_rows_and_columns_at_their_places(tmp_path: Path, suffix: str) -> None:
    path = saved(VOXELS, tmp_path / f"a{suffix}")
    image = read(path)
    assert (image.kind, image.shape) == ("volume", (4, 5, 6)) and image.array().dtype == np.int16
    assert image.array()[3, 1, 5, 0] == VOXELS[5, 1, 3]
    assert image.affine is not None
    # (n, row, col) = (3, 1, 5) is (i, j, k) = (5, 1, 3): RAS (-7.5, 16.1, -23.55), so LPS (7.5, -16.1, -23.55)
    np.testing.assert_allclose(world_from_index(image.affine, (3, 1, 5)), [7.5, -16.1, -23.55], atol=1e-5)
    other = SimpleITK.ReadImage(str(path))
    for n, row, col in [(0, 0, 0), (3, 4, 5), (1, 2, 0)]:
        expected = other.TransformIndexToPhysicalPoint((col, row, n))
        np.testing.assert_allclose(world_from_index(image.affine, (n, row, col)), expected, atol=1e-3)


def test_rescale_factors_are_applied(tmp_path: Path) -> None:
    file = nibabel.Nifti1Image(VOXELS, RAS)
    file.header.set_slope_inter(2.0, -1000.0)
    nibabel.save(file, tmp_path / "a.nii")
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = np.array([2.0, -1000.0], dtype="<f4").tobytes()  # scl_slope and scl_inter, over the stored values
    (tmp_path / "a.nii").write_bytes(raw)
    stored = np.asanyarray(nibabel.load(tmp_path / "a.nii").dataobj.get_unscaled())
    image = read(tmp_path / "a.nii")
    assert image.array().dtype == np.float32
    assert np.array_equal(image.array()[..., 0], stored.transpose(2, 1, 0) * 2 - 1000)


def test_real_values_become_32_bit(tmp_path: Path) -> None:
    image = read(saved(VOXELS / 4, tmp_path / "a.nii"))
    assert image.array().dtype == np.float32 and image.array()[0, 0, 1, 0] == (20 - 7) / 4


def test_two_dimensions_are_a_picture_in_its_place(tmp_path: Path) -> None:
    image = read(saved(VOXELS[:, :, 0], tmp_path / "a.nii"))
    assert (image.kind, image.shape) == ("picture", (1, 5, 6)) and image.affine is not None
    np.testing.assert_allclose(image.affine[:3, 3], [10, -20, -30])


def test_a_time_point_of_four_dimensions_is_chosen(tmp_path: Path) -> None:
    series_4d = np.stack([VOXELS, VOXELS + 1000], axis=-1)
    path = saved(series_4d, tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match="2 time points: choose one with frame=, from 0 to 1"):
        read(path)
    assert np.array_equal(read(path, frame=1).array()[..., 0], VOXELS.transpose(2, 1, 0) + 1000)
    with pytest.raises(InputError, match="frame 2 was asked for"):
        read(path, frame=2)
    assert read(saved(VOXELS[..., None], tmp_path / "b.nii")).shape == (4, 5, 6)


def test_rgb_voxels_become_three_channels(tmp_path: Path) -> None:
    rgb = np.zeros((6, 5, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["R"], rgb["B"][5, 1, 3] = 9, 200
    image = read(saved(rgb, tmp_path / "a.nii"))
    assert image.array().shape == (4, 5, 6, 3) and image.array()[3, 1, 5].tolist() == [9, 0, 200]


def test_without_codes_only_the_spacing_counts(tmp_path: Path) -> None:
    path = saved(VOXELS, tmp_path / "a.nii", None, qform_code=0, sform_code=0, pixdim=[1, 0.5, 0.75, 2.5, 1, 1, 1, 1])
    assert read(path).spacing_mm == (2.5, 0.75, 0.5)


def test_a_mask_lies_over_its_image_for_itk_and_nibabel_whatever_the_codes(tmp_path: Path) -> None:
    for codes in ((0, 0), (1, 0), (0, 1), (1, 2)):
        path = saved(VOXELS, tmp_path / "a.nii", RAS, pixdim=[1, 0.5, 0.75, 2.5, 1, 1, 1, 1])
        raw = bytearray(path.read_bytes())
        raw[252:256] = np.array(codes, dtype="<i2").tobytes()  # qform_code, sform_code
        raw[256:280] = np.array([0, 0, 0.6, 3, -4, 5], dtype="<f4").tobytes()  # another turn and place than the sform's
        path.write_bytes(raw)
        image = read(path)
        write(objects_in(image), tmp_path / "mask.nii.gz", image)
        of_itk = [SimpleITK.ReadImage(str(tmp_path / name)) for name in ("a.nii", "mask.nii.gz")]
        assert [one.GetOrigin() for one in of_itk[:1]] == [one.GetOrigin() for one in of_itk[1:]], codes
        assert of_itk[0].GetDirection() == of_itk[1].GetDirection() and of_itk[0].GetSpacing() == of_itk[1].GetSpacing()
        of_nibabel = [nibabel.load(tmp_path / name).affine for name in ("a.nii", "mask.nii.gz")]
        np.testing.assert_array_equal(of_nibabel[0], of_nibabel[1])


def test_a_sform_of_zeros_gives_way_to_the_qform_and_a_disagreement_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = nibabel.Nifti1Image(VOXELS, RAS)
    file.set_qform(RAS, code=1)
    nibabel.save(file, tmp_path / "a.nii")
    right = read(tmp_path / "a.nii").affine
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[280:328] = bytes(48)  # srow_x, srow_y, srow_z
    (tmp_path / "a.nii").write_bytes(raw)
    found = read(tmp_path / "a.nii").affine
    assert right is not None and found is not None
    np.testing.assert_allclose(found, right, atol=1e-4)
    assert caplog.messages == []
    raw[280:328] = np.array([[0.5, 0, 0, -10], [0, 0.6, -1.5, 27], [0, 0.45, 2.0, -30]], dtype="<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    read(tmp_path / "a.nii")
    assert caplog.messages == ["the NIfTI header's sform and qform differ by 7 mm: the sform is used"]


def test_the_content_decides_not_the_name(tmp_path: Path) -> None:
    plain = saved(VOXELS, tmp_path / "plain.nii").read_bytes()
    packed = gzip.compress(plain)
    cases = {
        "not_packed.nii.gz": plain,
        "packed.nii": packed,
        "no_ending": packed,
        "T1.nii (1).gz": packed,
        "members.nii.gz": gzip.compress(plain[:400]) + gzip.compress(plain[400:]),
    }
    zero = bytearray(plain)
    zero[108:112] = bytes(4)  # vox_offset
    cases["offset_0.nii"] = bytes(zero)
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(read(tmp_path / name).array()[..., 0], VOXELS.transpose(2, 1, 0), err_msg=name)


def test_a_pair_of_header_and_voxels_is_read(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Pair(VOXELS, RAS), tmp_path / "a.hdr")
    image = read(tmp_path / "a.hdr")
    np.testing.assert_array_equal(image.array()[..., 0], VOXELS.transpose(2, 1, 0))
    np.testing.assert_array_equal(read(tmp_path / "a.img").array(), image.array())
    single = read(saved(VOXELS, tmp_path / "b.nii")).affine
    assert image.affine is not None and single is not None
    np.testing.assert_allclose(image.affine, single)
    (tmp_path / "a.img").unlink()
    with pytest.raises(InputError, match=r"a\.img, are not beside it"):
        read(tmp_path / "a.hdr")


def test_an_analyze_header_is_refused_as_such(tmp_path: Path) -> None:
    for order in "<>":
        header = nibabel.AnalyzeHeader(endianness=order)
        nibabel.save(nibabel.AnalyzeImage(VOXELS, None, header), tmp_path / "a.img")
        with pytest.raises(InputError, match=r"Analyze 7\.5's, which does not tell left from right"):
            read(tmp_path / "a.img")


def test_what_is_packed_and_no_nifti_is_refused_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.dcm.gz").write_bytes(gzip.compress(b"DICM" * 99))
    with pytest.raises(InputError, match="packed and holds no NIfTI"):
        read(tmp_path / "a.dcm.gz")


@pytest.mark.parametrize("at", [60, 100, -3])
def test_a_flipped_bit_of_packed_voxels_is_found(at: int, tmp_path: Path) -> None:
    voxels = np.random.default_rng(5).integers(0, 99, (6, 5, 4)).astype(np.int16)
    content = bytearray(saved(voxels, tmp_path / "a.nii.gz").read_bytes())
    content[at] ^= 4
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(InputError):
        read(tmp_path / "a.nii.gz")


def test_what_unpacks_to_far_more_than_the_header_tells_of_is_refused(tmp_path: Path) -> None:
    plain = saved(VOXELS, tmp_path / "a.nii").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(plain + bytes(20_000_000)))
    with pytest.raises(InputError, match="unpacks to more than the 592 bytes"):
        read(tmp_path / "a.nii.gz")


def test_micrometres_become_millimetres(tmp_path: Path) -> None:
    file = nibabel.Nifti1Image(VOXELS, RAS)
    file.header.set_xyzt_units("micron")
    nibabel.save(file, tmp_path / "a.nii")
    assert read(tmp_path / "a.nii").spacing_mm == pytest.approx((0.0025, 0.00075, 0.0005))


def test_bad_affines_and_voxels_are_refused(tmp_path: Path) -> None:
    path = saved(VOXELS, tmp_path / "a.nii")
    for value, message in ((np.nan, "NaN or infinity"), (0.0, "singular")):
        raw = bytearray(path.read_bytes())
        raw[280:296] = np.full(4, value, dtype="<f4").tobytes()  # srow_x
        path.write_bytes(raw)
        with pytest.raises(InputError, match=message):
            read(path)
    with pytest.raises(InputError, match="slice 0 holds NaN"):
        read(saved(np.full((3, 2, 2), np.nan), tmp_path / "b.nii"))
    with pytest.raises(InputError, match="complex"):
        read(saved(np.ones((3, 2, 2), dtype=np.complex64), tmp_path / "c.nii"))
    with pytest.raises(InputError, match="allowed are two to four dimensions"):
        read(saved(np.ones((3, 2, 2, 1, 3), dtype=np.float32), tmp_path / "d.nii"))


def test_cut_and_false_files_are_refused_in_one_line(tmp_path: Path) -> None:
    whole, packed = saved(VOXELS, tmp_path / "a.nii").read_bytes(), saved(VOXELS, tmp_path / "a.nii.gz").read_bytes()
    cases = {
        "cut.nii": whole[:-50],
        "cut.nii.gz": packed[:-50],
        "head.nii": whole[:300],
        "text.nii": b"a text file",
        "text.nii.gz": gzip.compress(b"a text file"),
        "false.nii.gz": b"a text file",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError) as caught:
            read(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name)) and "\n" not in str(caught.value)


def test_a_header_that_claims_too_much_is_refused_before_reading(tmp_path: Path) -> None:
    path = saved(VOXELS, tmp_path / "a.nii", dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])
    raw = bytearray(path.read_bytes())
    raw[40:56] = np.array([3, 30000, 30000, 30000, 1, 1, 1, 1], dtype="<i2").tobytes()
    path.write_bytes(raw)
    with pytest.raises(InputError, match="allowed are 134,217,728"):
        read(path)


def objects_in(image: Image) -> Masks:
    dense = np.zeros((2, *image.shape), dtype=bool)
    dense[0, 1, 2, 3:5], dense[0, 3, 4, 0] = True, True
    dense[1, 0, 0, 5] = True
    return Masks.from_dense(dense, [0.9, 0.5], concept="liver")


@pytest.mark.parametrize("name", ["mask.nii", "mask.nii.gz"])
def test_masks_come_back_at_the_images_own_places(tmp_path: Path, name: str) -> None:
    image = read(saved(VOXELS, tmp_path / "a.nii"))
    write(objects_in(image), tmp_path / name, image)
    back = read(tmp_path / name)
    assert image.affine is not None and back.affine is not None
    assert np.array_equal(back.array()[..., 0], objects_in(image).label_map())
    corners = [(0, 0, 0), (3, 4, 5)]
    np.testing.assert_allclose(
        world_from_index(back.affine, corners), world_from_index(image.affine, corners), atol=1e-3
    )


def test_nibabel_and_simpleitk_see_masks_of_an_oblique_dicom_series_in_place(tmp_path: Path) -> None:
    image = read(series(tmp_path / "ct"))
    write(objects_in(image), tmp_path / "mask.nii.gz", image)
    places = np.array([world(0, 0, 5)])
    other = SimpleITK.ReadImage(str(tmp_path / "mask.nii.gz"))
    col, row, n = (int(value) for value in np.argwhere(SimpleITK.GetArrayFromImage(other) == 2)[0][::-1])
    np.testing.assert_allclose(other.TransformIndexToPhysicalPoint((col, row, n)), places[0], atol=1e-3)
    file = nibabel.load(tmp_path / "mask.nii.gz")
    index = np.argwhere(np.asanyarray(file.dataobj) == 2)[0]
    np.testing.assert_allclose(apply_affine(file.affine, index) * [-1, -1, 1], places[0], atol=1e-3)
    np.testing.assert_allclose(file.get_qform(), file.get_sform(), atol=1e-4)
    assert json.loads(file.header.extensions[0].get_content())[1] == {"value": 2, "concept": "liver", "score": 0.5}


def test_a_sheared_volume_keeps_its_shear(tmp_path: Path) -> None:
    affine = np.array([[0, 0, 1, 0], [0.7, 1, 0, 0], [3, 0, 0, 0], [0, 0, 0, 1.0]])  # slices shift by 0.7 mm
    affine[:3, 3] = ORIGIN_MM
    image = Image(np.zeros((4, 5, 6, 1), dtype=np.int16), kind="volume", affine=affine)
    write(objects_in(image), tmp_path / "mask.nii", image)
    back = read(tmp_path / "mask.nii")
    assert back.affine is not None
    np.testing.assert_allclose(back.affine, affine, atol=1e-5)


def test_pictures_without_position_say_so(tmp_path: Path) -> None:
    image = Image(np.zeros((1, 5, 6, 3), dtype=np.uint8))
    write(Masks(image.shape), tmp_path / "mask.nii", image)
    file = nibabel.load(tmp_path / "mask.nii")
    assert file.shape == (6, 5, 1) and file.header.get_zooms() == (1, 1, 1)
    assert (
        b"no position, 1 is one pixel" in bytes(file.header["descrip"]) and file.header.get_xyzt_units()[0] == "unknown"
    )
    sized = Image(np.zeros((1, 5, 6, 1), dtype=np.uint8), metadata={"pixel_spacing_mm": "0.2 0.1"})
    write(Masks(image.shape), tmp_path / "mask.nii", sized)
    np.testing.assert_allclose(nibabel.load(tmp_path / "mask.nii").header.get_zooms(), (0.1, 0.2, 1), rtol=1e-6)


def test_a_label_map_may_hold_extensions_of_any_kind(tmp_path: Path) -> None:
    file = nibabel.Nifti1Image((VOXELS > 0).astype(np.uint8), RAS)
    for code in (22, 2, 6):  # one that nibabel cannot take apart, DICOM, a comment of others
        file.header.extensions.append(nibabel.nifti1.Nifti1Extension(code, b"made by hand"))
    nibabel.save(file, tmp_path / "a.nii.gz")
    masks, _ = read_masks(tmp_path / "a.nii.gz")
    assert [(found.concept, found.objects[0].voxels) for found in masks] == [("label 1", int((VOXELS > 0).sum()))]
