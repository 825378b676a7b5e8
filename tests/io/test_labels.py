"""Label maps over their image, in whatever order of axes they keep their voxels."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray

from made_dicom import ramp, series
from medsam3.errors import InputError
from medsam3.image import Image
from medsam3.io import read
from medsam3.io.labels import label_stack, label_values, on_grid
from medsam3.io.read_masks import read_masks

ORDERS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


def mask() -> NDArray[np.uint8]:
    """(4, 5, 6): an L that no flip or exchange of axes maps to itself."""
    labels = np.zeros((4, 5, 6), dtype=np.uint8)
    labels[1, 1:4, 2] = 1
    labels[1:4, 3, 2:5] = 2
    return labels


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return read(series(tmp_path / "ct"))


def as_nifti(image: Image, path: Path) -> Path:
    """The mask as NIfTI in the image's own order, written by SimpleITK."""
    assert image.affine is not None
    made = SimpleITK.GetImageFromArray(mask())
    sizes = np.linalg.norm(image.affine[:3, :3], axis=0)
    made.SetSpacing(sizes[::-1].tolist())
    made.SetOrigin(image.affine[:3, 3].tolist())
    made.SetDirection((image.affine[:3, :3] / sizes)[:, ::-1].reshape(-1).tolist())
    SimpleITK.WriteImage(made, str(path))
    return path


@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_voxels_comes_to_the_images(
    order: tuple[tuple[int, ...], tuple[int, ...]], image: Image, tmp_path: Path
) -> None:
    own = nibabel.load(as_nifti(image, tmp_path / "own.nii"))
    turned = own.as_reoriented(np.stack(order, axis=1))
    nibabel.save(turned, tmp_path / "turned.nii")
    stack = label_stack(tmp_path / "turned.nii", image)
    np.testing.assert_array_equal(np.stack([label_values(stack, n) for n in range(4)]), mask())
    masks, _ = read_masks(tmp_path / "turned.nii", image)
    np.testing.assert_array_equal(sum(found.union() * (k + 1) for k, found in enumerate(masks)), mask())


def test_a_block_cut_out_of_the_image_is_put_back_and_is_no_truth(image: Image, tmp_path: Path) -> None:
    whole = SimpleITK.ReadImage(str(as_nifti(image, tmp_path / "own.nii")))
    SimpleITK.WriteImage(whole[2:5, 1:4, 1:4], str(tmp_path / "block.nrrd"))
    np.testing.assert_array_equal(on_grid(read(tmp_path / "block.nrrd"), image).array()[..., 0], mask())
    with pytest.raises(InputError, match="covers other voxels than the image"):  # the rest is not known
        label_stack(tmp_path / "block.nrrd", image)


def test_labels_outside_the_image_are_refused(image: Image, tmp_path: Path) -> None:
    whole = SimpleITK.ReadImage(str(as_nifti(image, tmp_path / "own.nii")))
    whole.SetOrigin(whole.TransformIndexToPhysicalPoint((3, 0, 0)))
    SimpleITK.WriteImage(whole, str(tmp_path / "off.nii"))
    with pytest.raises(InputError, match=r"holds labels outside the image: labels .* \(convert --resample\)"):
        label_stack(tmp_path / "off.nii", image)
    own = SimpleITK.ReadImage(str(tmp_path / "own.nii"))
    back = SimpleITK.Resample(whole, own, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
    kept = on_grid(read(tmp_path / "off.nii"), image, is_resampled=True).array()[..., 0]
    np.testing.assert_array_equal(kept, SimpleITK.GetArrayFromImage(back))
    assert kept.any()


def test_another_grid_is_refused_with_both_geometries_and_resampled_when_asked(image: Image, tmp_path: Path) -> None:
    own = SimpleITK.ReadImage(str(as_nifti(image, tmp_path / "own.nii")))
    fine = SimpleITK.Image([12, 5, 4], SimpleITK.sitkUInt8)
    fine.CopyInformation(SimpleITK.Image(fine))
    fine.SetOrigin(own.GetOrigin())
    fine.SetDirection(own.GetDirection())
    fine.SetSpacing((0.27, 0.75, 2.5))
    resampled = SimpleITK.Resample(own, fine, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
    SimpleITK.WriteImage(resampled, str(tmp_path / "fine.nii"))
    labels = read(tmp_path / "fine.nii")
    with pytest.raises(InputError, match=r"\(4, 5, 12\) voxels of 2.5 x 0.75 x 0.27 mm .*\(4, 5, 6\) voxels of 2.5 x"):
        on_grid(labels, image)
    back = SimpleITK.Resample(resampled, own, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor)
    np.testing.assert_array_equal(
        on_grid(labels, image, is_resampled=True).array()[..., 0], SimpleITK.GetArrayFromImage(back)
    )
    assert SimpleITK.GetArrayFromImage(back).any()


def test_without_a_position_the_shape_must_be_the_images(image: Image) -> None:
    flat = Image(np.zeros((1, 5, 6, 1), dtype=np.uint8))
    with pytest.raises(InputError, match=r"the label map is \(1, 5, 6\), the image \(4, 5, 6\)"):
        on_grid(flat, image)
    assert on_grid(Image(ramp()[..., None], kind="volume"), image).affine is None
