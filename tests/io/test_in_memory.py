"""Images of other libraries come in where they lie, and masks go back there, checked by those libraries."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import pydicom
import pytest
import SimpleITK
import torch

import medsam3
from made_dicom import COLUMN_DIRECTION, NORMAL, ORIGIN_MM, ROW_DIRECTION, SPACING_MM, write_oblique_series
from medsam3.errors import InputError
from medsam3.geometry import affine_from_directions, nifti_from_lps, world_from_index
from medsam3.image import Image, Masks
from threshold_segmenter import ThresholdSegmenter

SHAPE = (4, 5, 6)
VOXELS = np.arange(120, dtype=np.int16).reshape(SHAPE)
SKEW = affine_from_directions([1, 2, 3], [0, 0.5, 4], [-0.48, 0.36, 0], [0.3, 0.4, 0])


def oblique_sitk() -> Any:
    file = SimpleITK.GetImageFromArray(VOXELS)
    file.SetSpacing(SPACING_MM[::-1])
    file.SetOrigin(ORIGIN_MM.tolist())
    file.SetDirection(np.stack([ROW_DIRECTION, COLUMN_DIRECTION, NORMAL], axis=1).reshape(-1).tolist())
    return file


def marked(image: Image) -> Masks:
    """Two objects: the voxel (n 3, row 1, column 2), and two voxels in the first slice."""
    dense = np.zeros((2, *image.shape), dtype=bool)
    dense[0, 3, 1, 2] = True
    dense[1, 0, 4, 4:6] = True
    return Masks.from_dense(dense, [0.9, 0.8], concept="liver", image=image)


@pytest.mark.parametrize(
    ("array", "shape", "kind", "channels"),
    [
        (np.zeros((5, 6)), (1, 5, 6), "picture", 1),
        (np.zeros((5, 6, 3), np.uint8), (1, 5, 6), "picture", 3),
        (np.zeros((4, 5, 6), np.int16), (4, 5, 6), "volume", 1),
        (np.zeros((4, 5, 6, 3), np.uint8), (4, 5, 6), "volume", 3),
        (torch.zeros(3, 5, 6), (1, 5, 6), "picture", 3),
        (torch.zeros(1, 5, 6, dtype=torch.bfloat16, requires_grad=True), (1, 5, 6), "picture", 1),
        (torch.zeros(5, 6, dtype=torch.uint8), (1, 5, 6), "picture", 1),
    ],
)
def test_arrays_and_tensors_come_in_by_their_axes(array: Any, shape: tuple[int, ...], kind: str, channels: int) -> None:
    image = medsam3.as_image(array)
    assert (image.shape, image.kind, image.channels, image.affine) == (shape, kind, channels, None)


def test_an_array_takes_its_place_from_spacing_or_affine() -> None:
    assert medsam3.as_image(VOXELS, spacing_mm=(4, 0.7, 0.6)).spacing_mm == pytest.approx((4, 0.7, 0.6))
    picture = medsam3.as_image(VOXELS[0], spacing_mm=(0.7, 0.6))
    assert (picture.spacing_mm, picture.pixel_size_mm) == (None, (0.7, 0.6))
    assert np.allclose(np.asarray(medsam3.as_image(VOXELS, affine=SKEW).affine, float), SKEW)
    assert medsam3.as_image(torch.from_numpy(VOXELS[:3].copy()), spacing_mm=(4, 1, 1)).kind == "volume"
    (found,) = medsam3.segment(VOXELS, "liver", ThresholdSegmenter(), spacing_mm=(4, 0.7, 0.6))
    assert found.image is not None and found.image.spacing_mm == pytest.approx((4, 0.7, 0.6))


@pytest.mark.parametrize(
    ("value", "place", "message"),
    [
        (np.zeros((5, 6, 4)), {}, r"fourth channel: leave alpha out by array\[\.\.\., :3\]"),
        (np.zeros(5), {}, r"the array is \(5,\), allowed are \(H, W\)"),
        (np.zeros((5, 6), complex), {}, "complex128"),
        (VOXELS, {"spacing_mm": (1, 1, 1), "affine": SKEW}, "both given"),
        (VOXELS, {"spacing_mm": (1, 0, 1)}, "above 0, in mm"),
        (VOXELS, {"spacing_mm": (1, 1)}, "of a stack of 4"),
        (PIL.Image.new("L", (6, 5)), {"spacing_mm": (1, 1)}, "brings its own"),
        ({"a": 1}, {}, "the image is a dict, allowed are an Image, a path, a NumPy array"),
        (nibabel.Nifti1Image(np.zeros((2, 3, 4, 2)), np.eye(4)), {}, "2 time points"),
        (pydicom.Dataset(), {}, "holds no pixels"),
    ],
)
def test_what_is_no_image_is_refused(value: Any, place: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        medsam3.as_image(value, **place)


def test_a_wrong_argument_by_name_is_told() -> None:
    with pytest.raises(TypeError, match="segment\\(\\) got spacing, allowed are threshold, frames, spacing_mm, affine"):
        medsam3.segment(VOXELS, "liver", ThresholdSegmenter(), spacing=(1, 1, 1))  # type: ignore[call-arg]


def test_a_pil_picture_is_what_its_file_is(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    for picture in (PIL.Image.fromarray(colours), PIL.Image.fromarray(colours[..., 0]).convert("1")):
        picture.save(tmp_path / "a.png")
        np.testing.assert_array_equal(medsam3.as_image(picture).array(), medsam3.read(tmp_path / "a.png").array())
    stream = io.BytesIO((tmp_path / "a.png").read_bytes())
    assert medsam3.as_image(PIL.Image.open(stream)).shape == (1, 5, 6)


def test_images_of_nibabel_and_simpleitk_are_what_their_files_are(tmp_path: Path) -> None:
    file = oblique_sitk()
    SimpleITK.WriteImage(file, str(tmp_path / "a.nii.gz"))
    SimpleITK.WriteImage(file, str(tmp_path / "a.nrrd"))
    for value in (file, nibabel.load(tmp_path / "a.nii.gz"), medsam3.read(tmp_path / "a.nrrd")):
        image, read = medsam3.as_image(value), medsam3.read(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(image.array(), read.array())
        assert image.affine is not None and read.affine is not None and image.kind == "volume"
        np.testing.assert_allclose(image.affine, read.affine, atol=1e-4)
        x, y, z = file.TransformIndexToPhysicalPoint((2, 1, 3))
        np.testing.assert_allclose(world_from_index(image.affine, [3, 1, 2]), [x, y, z], atol=1e-4)


def test_a_dataset_of_pydicom_is_what_its_file_is(tmp_path: Path) -> None:
    write_oblique_series(tmp_path / "s", VOXELS, "CT")
    path = sorted((tmp_path / "s").iterdir())[1]
    image, read = medsam3.as_image(pydicom.dcmread(path)), medsam3.read(path)
    np.testing.assert_array_equal(image.array(), read.array())
    assert (
        image.affine is not None and read.affine is not None and image.metadata == read.metadata and image.source == ()
    )
    np.testing.assert_allclose(image.affine, read.affine)


def test_masks_go_to_simpleitk_and_nibabel_at_their_place_in_the_world() -> None:
    masks = marked(medsam3.as_image(oblique_sitk()))
    file, reference = masks.to_sitk(), oblique_sitk()
    labels = SimpleITK.GetArrayFromImage(file)
    assert labels[3, 1, 2] == 1 and labels[0, 4, 4:6].tolist() == [2, 2] and (labels > 0).sum() == 3
    for index in ((2, 1, 3), (5, 4, 0)):
        expected = reference.TransformIndexToPhysicalPoint(index)
        assert file.TransformIndexToPhysicalPoint(index) == pytest.approx(expected, abs=1e-6)
        ras = masks.to_nibabel().affine @ [*index, 1]
        assert (-ras[0], -ras[1], ras[2]) == pytest.approx(expected, abs=1e-4)
    assert np.asarray(masks.to_nibabel().dataobj)[2, 1, 3] == 1


def test_axes_that_are_not_at_right_angles_stay_as_they_are() -> None:
    sheared = affine_from_directions([0, 0, 0], [1, 0, 4], [0, 1, 0], [1, 0, 0])
    masks = marked(medsam3.as_image(VOXELS, affine=sheared))
    np.testing.assert_allclose(masks.to_nibabel().affine, nifti_from_lps(sheared))
    x, y, n = 2, 3, 4  # x + n, y, 4 n in mm
    assert masks.to_sitk().TransformIndexToPhysicalPoint((x, y, n)) == pytest.approx((6, 3, 16))
    back = medsam3.as_image(masks.to_sitk()).affine
    assert back is not None and np.allclose(back, sheared, atol=1e-12)


def test_masks_without_an_image_lie_at_the_origin_in_pixels() -> None:
    masks = Masks.from_dense(np.ones((1, 4, 5, 6), bool), [0.5])
    assert masks.to_sitk().GetSpacing() == (1.0, 1.0, 1.0)
    assert masks.to_nibabel().shape == (6, 5, 4)
