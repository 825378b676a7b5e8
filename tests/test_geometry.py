import math

import numpy as np
import pytest
import SimpleITK
from nibabel.affines import apply_affine

from medsam3.errors import InputError
from medsam3.geometry import (
    affine_from_directions,
    box_iou,
    box_of_mask,
    check_affine,
    coco_xywh_from_xyxy,
    index_from_world,
    lps_from_nifti,
    nifti_from_lps,
    normalised_cxcywh_from_xyxy,
    spacing_mm,
    world_from_index,
    xyxy_from_normalised_cxcywh,
)

# Slices 4 mm apart along z, rows 0.6 mm apart along a line tipped by atan(4/3) in the x-y plane, columns 0.5 mm apart.
OBLIQUE = affine_from_directions([10, -20, 30], [0, 0, 4], [-0.48, 0.36, 0], [0.3, 0.4, 0])


def test_world_is_the_origin_plus_steps_along_each_axis() -> None:
    # x: 10 - 2 x .48 + 3 x .3; y: -20 + 2 x .36 + 3 x .4; z: 30 + 4
    np.testing.assert_allclose(world_from_index(OBLIQUE, (1, 2, 3)), [9.94, -18.08, 34.0])
    np.testing.assert_allclose(world_from_index(OBLIQUE, [(0, 0, 0), (0.5, 0, 0)]), [[10, -20, 30], [10, -20, 32]])


def test_index_from_world_inverts_for_one_many_and_fractions() -> None:
    indices = np.array([[0, 0, 0], [1, 2, 3], [2.5, -1.25, 7.75]])
    many = index_from_world(OBLIQUE, world_from_index(OBLIQUE, indices))
    np.testing.assert_allclose(many, indices, atol=1e-12)
    for position, index in zip(world_from_index(OBLIQUE, indices), indices, strict=True):
        np.testing.assert_allclose(index_from_world(OBLIQUE, position), index, atol=1e-12)
    assert index_from_world(OBLIQUE, np.empty((0, 3))).shape == (0, 3)


def test_spacing_is_by_axis_n_row_col() -> None:
    np.testing.assert_allclose(spacing_mm(OBLIQUE), [4.0, 0.6, 0.5])


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (np.eye(3), r"shape \(3, 3\)"),
        (np.full((4, 4), np.nan), "NaN or infinity"),
        (np.diag([1, 1, 1, 2]), "last row is"),
        (np.diag([1, 0, 1, 1]), "singular"),
        ([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "singular"),
        ([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "singular"),
    ],
)
def test_bad_affines_are_refused(affine: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_affine(affine)  # type: ignore[arg-type]


def test_microscope_and_metre_sized_voxels_are_not_singular() -> None:
    assert check_affine(np.diag([1e-6, 1e-6, 1e-6, 1])).shape == (4, 4)
    assert check_affine(np.diag([1e4, 1e-3, 1e-3, 1])).shape == (4, 4)


def test_nifti_axes_and_ras_become_n_row_col_and_lps() -> None:
    ras = np.array([[2, 0, 0, 5], [0, 3, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
    # (i, j, k) = (1, 10, 100): RAS (7, 36, 407), so LPS (-7, -36, 407); as an index it is (n, row, col) = (100, 10, 1)
    np.testing.assert_allclose(world_from_index(lps_from_nifti(ras), (100, 10, 1)), [-7, -36, 407])


def test_nifti_conversion_inverts_and_agrees_with_nibabel() -> None:
    ras = nifti_from_lps(OBLIQUE)
    np.testing.assert_allclose(lps_from_nifti(ras), OBLIQUE)
    position = apply_affine(ras, [3, 2, 1])  # (col, row, n)
    np.testing.assert_allclose(position * [-1, -1, 1], world_from_index(OBLIQUE, (1, 2, 3)))


def test_simpleitk_agrees_on_an_oblique_affine() -> None:
    image = SimpleITK.GetImageFromArray(np.zeros((2, 3, 4)))  # (n, row, col)
    image.SetOrigin([10, -20, 30])
    image.SetSpacing([0.5, 0.6, 4])
    image.SetDirection([0.6, -0.8, 0, 0.8, 0.6, 0, 0, 0, 1])  # columns: along col, row, n
    np.testing.assert_allclose(image.TransformIndexToPhysicalPoint((3, 2, 1)), world_from_index(OBLIQUE, (1, 2, 3)))


def test_normalised_boxes_span_the_full_extent_edge_to_edge() -> None:
    whole = xyxy_from_normalised_cxcywh([0.5, 0.5, 1, 1], height=10, width=20)
    np.testing.assert_allclose(whole, [-0.5, -0.5, 19.5, 9.5])
    # the left quarter: edges 0 to 5 of 20, so centres -0.5 to 4.5
    np.testing.assert_allclose(xyxy_from_normalised_cxcywh([0.125, 0.5, 0.25, 1], 10, 20), [-0.5, -0.5, 4.5, 9.5])
    boxes = np.array([[0.3, 0.4, 0.2, 0.1], [0.5, 0.5, 1.0, 1.0]])
    back = normalised_cxcywh_from_xyxy(xyxy_from_normalised_cxcywh(boxes, 10, 20), 10, 20)
    np.testing.assert_allclose(back, boxes)
    assert xyxy_from_normalised_cxcywh(np.empty((0, 4)), 10, 20).shape == (0, 4)


def test_a_masks_box_holds_its_outer_edges() -> None:
    mask = np.zeros((6, 8), dtype=bool)
    assert box_of_mask(mask) is None
    mask[2, 3] = True
    assert box_of_mask(mask) == (2.5, 1.5, 3.5, 2.5)
    mask[4, 7] = True
    assert box_of_mask(mask) == (2.5, 1.5, 7.5, 4.5)


def test_coco_boxes_begin_at_pixel_edges() -> None:
    assert coco_xywh_from_xyxy((2.5, 1.5, 7.5, 4.5)) == (3.0, 2.0, 5.0, 3.0)


def test_box_iou_of_every_pair() -> None:
    first = [[0, 0, 4, 2], [0, 0, 1, 1]]
    second = [[2, 0, 6, 2], [0, 0, 4, 2], [9, 9, 10, 10]]
    # 2 x 2 of 8 + 8 - 4; the same; apart. 1 x 1 in 4 x 2
    np.testing.assert_allclose(box_iou(first, second), [[4 / 12, 1, 0], [0, 1 / 8, 0]])
    assert box_iou(np.empty((0, 4)), second).shape == (0, 3)
    assert not math.isnan(box_iou([[1, 1, 1, 1]], [[1, 1, 1, 1]])[0, 0])
