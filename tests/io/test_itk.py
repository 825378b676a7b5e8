"""NRRD and MetaImage as ITK, 3D Slicer and pynrrd write them; SimpleITK tells what they hold."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from made_dicom import ramp
from medsam3.errors import InputError
from medsam3.geometry import world_from_index
from medsam3.image import Masks
from medsam3.io import read, write
from medsam3.io.read_masks import read_masks


def nrrd(path: Path, values: NDArray[Any], *lines: str, kind: str = "uchar") -> Path:
    """A raw NRRD of values (slowest axis first) with these header lines."""
    sizes = " ".join(str(size) for size in values.shape[::-1])
    head = ["NRRD0004", f"type: {kind}", f"dimension: {values.ndim}", f"sizes: {sizes}", "endian: little", *lines]
    path.write_bytes(("\n".join([*head, "encoding: raw"]) + "\n\n").encode() + values.tobytes())
    return path


def test_directions_without_an_origin_begin_at_zero(tmp_path: Path) -> None:
    lines = ("space: left-posterior-superior", "space directions: (0.5,0,0) (0,0.7,0) (0,0,3)")
    image = read(nrrd(tmp_path / "a.nrrd", ramp(), *lines, kind="short"))
    assert image.spacing_mm == (3.0, 0.7, 0.5) and image.affine is not None
    # (n, row, col) = (2, 1, 4) lies at x = 4 * 0.5, y = 1 * 0.7, z = 2 * 3
    np.testing.assert_allclose(world_from_index(image.affine, (2, 1, 4)), (2.0, 0.7, 6.0))


@pytest.mark.parametrize("name", ["flat.nrrd", "flat.mha"])
def test_two_dimensions_are_a_picture_with_its_pixel_size(name: str, tmp_path: Path) -> None:
    flat = SimpleITK.GetImageFromArray(ramp()[0])
    flat.SetSpacing((0.5, 0.7))
    flat.SetOrigin((3, 4))
    SimpleITK.WriteImage(flat, str(tmp_path / name))
    image = read(tmp_path / name)
    assert (image.kind, image.shape, image.pixel_size_mm) == ("picture", (1, 5, 6), (0.7, 0.5))
    assert image.affine is not None and image.affine[:3, 3].tolist() == [3.0, 4.0, 0.0]
    np.testing.assert_array_equal(image.array()[0, ..., 0], ramp()[0])


@pytest.mark.parametrize("place", ["first", "last"])
def test_the_kinds_of_the_axes_tell_colours_wherever_they_stand(place: str, tmp_path: Path) -> None:
    colours = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    if place == "first":
        path = nrrd(tmp_path / "a.nrrd", colours, "kinds: RGB-color domain domain")
    else:
        path = nrrd(tmp_path / "a.nrrd", np.moveaxis(colours, 2, 0).copy(), "kinds: domain domain RGB-color")
    image = read(path)
    assert (image.kind, image.affine) == ("picture", None)
    np.testing.assert_array_equal(image.array()[0], colours)


def test_three_layers_are_labels_and_no_colour(tmp_path: Path) -> None:
    layers = np.zeros((4, 5, 6, 3), dtype=np.uint8)  # (n, row, col, layer)
    layers[1:3, 1:4, 2:5, 0] = 1
    layers[2, 2:4, 2:5, 1] = 1  # within the first
    layers[0, 0, 0, 2] = 2
    names = ("Segment0_Name:=liver", "Segment0_LabelValue:=1", "Segment0_Layer:=0", "Segment2_Name:=cyst")
    path = nrrd(
        tmp_path / "a.seg.nrrd",
        layers,
        "kinds: list domain domain domain",
        "space: left-posterior-superior",
        "space directions: none (1,0,0) (0,1.5,0) (0,0,3)",
        "space origin: (0,0,0)",
        *names,
        "Segment2_LabelValue:=2",
        "Segment2_Layer:=2",
    )
    image = read(path)
    assert (image.channels, image.shape, image.metadata["layers"]) == (1, (4, 5, 6), "3")
    masks, _ = read_masks(path)
    assert [found.concept for found in masks] == ["liver", "label 2", "cyst"]
    for k, found in enumerate(masks):
        np.testing.assert_array_equal(found.union(), layers[..., k] > 0)


@pytest.mark.parametrize("name", ["time.nrrd", "time.mha"])
def test_a_time_point_of_four_dimensions_is_chosen(name: str, tmp_path: Path) -> None:
    both = np.stack([ramp(), ramp() + 1000])
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(both, isVector=False), str(tmp_path / name))
    with pytest.raises(InputError, match="2 time points: choose one with frame=, from 0 to 1"):
        read(tmp_path / name)
    np.testing.assert_array_equal(read(tmp_path / name, frame=1).array()[..., 0], both[1])


def test_one_slice_of_a_volume_is_chosen(tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(ramp()), str(tmp_path / "a.mha"))
    np.testing.assert_array_equal(read(tmp_path / "a.mha", frame=2).array()[0, ..., 0], ramp()[2])
    with pytest.raises(InputError, match="frame 4 was asked for, allowed is 0 to 3"):
        read(tmp_path / "a.mha", frame=4)


def test_headers_with_several_data_files_are_read_as_itk_reads_them(tmp_path: Path) -> None:
    for n, plane in enumerate(ramp()):
        (tmp_path / f"s{n}.raw").write_bytes(plane.tobytes())
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 6 5 4\nendian: little\nencoding: raw\n"
    (tmp_path / "pattern.nhdr").write_text(f"{head}data file: s%d.raw 0 3 1\n")
    (tmp_path / "list.nhdr").write_text(f"{head}data file: LIST\n" + "".join(f"s{n}.raw\n" for n in range(4)))
    for name in ("pattern.nhdr", "list.nhdr"):
        np.testing.assert_array_equal(read(tmp_path / name).array()[..., 0], ramp())
    (tmp_path / "out.nhdr").write_text(f"{head}data file: LIST\n../s0.raw\n")
    with pytest.raises(InputError, match="outside its own folder"):
        read(tmp_path / "out.nhdr")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nii.gz"])
def test_the_same_masks_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(ramp()), str(tmp_path / "image.nii"))
    image = read(tmp_path / "image.nii")
    found = Masks.from_dense(np.ones((1, 4, 5, 6), dtype=bool), [0.5], concept="liver")
    written = []
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        write(found, tmp_path / folder / name, image)
        written.append((tmp_path / folder / name).read_bytes())
    assert written[0] == written[1]


def test_what_unpacks_to_more_than_is_allowed_is_refused_before(tmp_path: Path) -> None:
    head = b"NRRD0005\ntype: double\ndimension: 3\nsizes: 1024 1024 512\nendian: little\nencoding: gzip\n\n"
    (tmp_path / "big.nrrd").write_bytes(head + gzip.compress(bytes(1000)))
    with pytest.raises(InputError, match="unpacks to 4,294,967,296 bytes, allowed are 2,147,483,647"):
        read(tmp_path / "big.nrrd")


@pytest.mark.parametrize("change", ["more", "less", "flipped"])
def test_compressed_voxels_that_do_not_fit_the_header_are_refused(change: str, tmp_path: Path) -> None:
    packed = bytearray(zlib.compress(bytes(9 if change == "more" else 7 if change == "less" else 8)))
    packed[-1] ^= change == "flipped"  # in the checksum
    head = b"ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nCompressedData = True\n"
    (tmp_path / "a.mha").write_bytes(head + b"ElementDataFile = LOCAL\n" + packed)
    with pytest.raises(InputError, match=r"unpack to more|cut short|damaged"):
        read(tmp_path / "a.mha")
    (tmp_path / "a.mha").write_bytes(head + b"ElementDataFile = LOCAL\n" + zlib.compress(bytes(range(8))))
    assert read(tmp_path / "a.mha").array().reshape(-1).tolist() == list(range(8))


@pytest.mark.parametrize("field", ["Offset", "Position", "Origin"])
def test_a_metaimage_with_an_origin_alone_has_voxels_of_one_mm(field: str, tmp_path: Path) -> None:
    head = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\n{field} = 3 4 5\nDimSize = 6 5 4\nElementType = MET_SHORT\n"
    )
    content = head.format(field=field).encode() + b"ElementDataFile = LOCAL\n" + ramp().tobytes()
    (tmp_path / "a.mha").write_bytes(content)
    image, other = read(tmp_path / "a.mha"), SimpleITK.ReadImage(str(tmp_path / "a.mha"))
    assert image.affine is not None
    expected = other.TransformIndexToPhysicalPoint((4, 1, 2))
    np.testing.assert_allclose(world_from_index(image.affine, (2, 1, 4)), expected)
    np.testing.assert_allclose(expected, (7, 5, 7))


def test_a_form_that_itk_does_not_read_is_not_called_damaged(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", ramp(), kind="short")
    path.write_bytes(path.read_bytes().replace(b"encoding: raw", b"encoding: bzip2"))
    with pytest.raises(
        InputError, match=r"the form of the NRRD voxels is not read here \(Sorry, bzip2 encoding not available"
    ):
        read(path)
