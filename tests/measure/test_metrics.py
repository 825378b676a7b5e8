from __future__ import annotations

import math

import numpy as np
import pytest

from medsam3.errors import InputError
from medsam3.geometry import BoolArray, FloatArray
from medsam3.measure.outline import boundary_distances, dice, iou


def rectangle(shape: tuple[int, ...], *spans: tuple[int, int]) -> BoolArray:
    mask = np.zeros(shape, dtype=np.bool_)
    mask[tuple(slice(first, stop) for first, stop in spans)] = True
    return mask


def test_dice_and_iou_of_shifted_rectangles() -> None:
    # 3 x 4 pixels each, shifted by one column: 9 shared, 12 + 12 in all, 15 in the union
    reference, predicted = rectangle((5, 8), (1, 4), (1, 5)), rectangle((5, 8), (1, 4), (2, 6))
    assert dice(reference, predicted) == pytest.approx(18 / 24)
    assert iou(reference, predicted) == pytest.approx(9 / 15)


def test_overlap_is_nan_where_both_are_empty_and_0_where_one_is() -> None:
    empty, some = rectangle((3, 4)) & False, rectangle((3, 4), (0, 1), (0, 2))
    assert math.isnan(dice(empty, empty)) and math.isnan(iou(empty, empty))
    assert dice(some, empty) == dice(empty, some) == iou(some, empty) == 0


def test_distances_of_a_square_shifted_by_one_pixel() -> None:
    # 4 x 4 pixels, x 0..4 against 1..5. Of the reference's 16 edges: left 1 1 1 1; right .5 1 1 .5 (the outer two are
    # nearer to the shifted square's top and bottom); top and bottom .5 0 0 0 each. Sum 8; the other way the same.
    reference, predicted = rectangle((6, 9), (1, 5), (2, 6)), rectangle((6, 9), (1, 5), (3, 7))
    found = boundary_distances(reference, predicted)
    assert sorted(found.from_reference) == [0] * 6 + [0.5] * 4 + [1] * 6
    assert found.assd() == pytest.approx(16 / 32)
    assert found.nsd(0.5) == pytest.approx(10 / 16)
    assert found.nsd(0) == pytest.approx(6 / 16)
    assert found.nsd(1) == 1
    assert found.hausdorff() == 1
    assert found.hausdorff(50) == 0.5  # 10 of 16 edges lie within .5


def test_edges_count_by_their_length_where_spacing_is_anisotropic() -> None:
    # Rows 3 mm, columns 0.5 mm apart; one row of 2 pixels against the first of them. Reference: top and bottom 2 edges
    # of 0.5 mm each, left and right 3 mm: 8 mm. Predicted: 4 x ... top and bottom 0.5 mm, left and right 3 mm: 7 mm.
    reference, predicted = rectangle((3, 5), (1, 2), (1, 3)), rectangle((3, 5), (1, 2), (1, 2))
    found = boundary_distances(reference, predicted, (3.0, 0.5))
    assert found.reference_sizes.sum() == pytest.approx(8)
    assert found.predicted_sizes.sum() == pytest.approx(7)
    # Reference: left 0, right 0.5 (the predicted right side is one column nearer), the outer top and bottom edges have
    # their centre 0.25 mm from the predicted corner: 3 x 0.5 + 2 x 0.5 x 0.25 = 1.75. Predicted: the right side's
    # centre is 0.5 mm from the reference's right side, further from its top: 3 x 0.5 = 1.5.
    assert found.assd() == pytest.approx((1.75 + 1.5) / 15)
    assert found.hausdorff() == pytest.approx(0.5)
    # within 0.3 mm: all but the two right sides of 3 mm
    assert found.nsd(0.3) == pytest.approx((15 - 6) / 15)


def test_distances_of_boxes_in_a_volume_of_unequal_spacing() -> None:
    # One voxel of 2 x 3 x 5 mm against its neighbour along n: 6 faces. Its far n face is 2 mm from the other voxel, its
    # near n face 0; the sides' centres are 1 mm away. Areas: n 15 each, row 10 each, column 6 each.
    reference, predicted = rectangle((4, 3, 5), (1, 2), (1, 2), (2, 3)), rectangle((4, 3, 5), (2, 3), (1, 2), (2, 3))
    found = boundary_distances(reference, predicted, (2, 3, 5))
    assert found.reference_sizes.sum() == 62
    assert found.assd() == pytest.approx((15 * 2 + 15 * 0 + 32 * 1) / 62)
    assert found.hausdorff() == 2
    assert found.nsd(1) == pytest.approx(47 / 62)


def test_the_nearest_point_of_an_edge_may_be_its_end() -> None:
    # Pixels (0, 0) and (2, 2). From the first one's right side, centre at row 0, column .5, the nearest point is the
    # other's corner at row 1.5, column 1.5; the centres of its edges are further. The same from the lower side.
    reference, predicted = rectangle((4, 5), (0, 1), (0, 1)), rectangle((4, 5), (2, 3), (2, 3))
    nearest = math.hypot(1.5, 1)
    assert sorted(boundary_distances(reference, predicted).from_reference)[:2] == pytest.approx([nearest, nearest])


def test_equal_masks_are_at_no_distance_also_at_the_images_border() -> None:
    mask = rectangle((3, 4), (0, 2), (1, 4))
    found = boundary_distances(mask, mask.copy(), (0.7, 1.9))
    assert (found.assd(), found.hausdorff(), found.nsd(0)) == (0, 0, 1)


def test_a_missed_or_invented_object_counts_as_the_images_diagonal() -> None:
    empty, some = np.zeros((3, 4), dtype=np.bool_), rectangle((3, 4), (0, 1), (0, 2))
    for reference, predicted in ((some, empty), (empty, some)):
        found = boundary_distances(reference, predicted, (2.0, 2.0))  # 6 x 8 mm
        assert found.is_one_sided
        assert (found.hausdorff(), found.assd(), found.nsd(100)) == (10, 10, 0)


def test_two_empty_masks_have_no_distance() -> None:
    empty = np.zeros((3, 4), dtype=np.bool_)
    found = boundary_distances(empty, empty)
    assert not found.is_one_sided
    assert all(math.isnan(value) for value in (found.hausdorff(), found.assd(), found.nsd(1)))


def test_distances_agree_with_all_pairs_of_finely_sampled_edges() -> None:
    rng = np.random.default_rng(4)
    spacing = np.array([0.8, 1.7])
    reference, predicted = rng.random((6, 9)) < 0.4, rng.random((6, 9)) < 0.3
    found = boundary_distances(reference, predicted, tuple(spacing))
    samples = _sampled_boundary(predicted, spacing)
    centres = _sampled_boundary(reference, spacing, parts=1)
    nearest = np.linalg.norm(centres[:, None] - samples[None], axis=-1).min(axis=1)
    np.testing.assert_allclose(np.sort(found.from_reference), np.sort(nearest), atol=0.005)


def _sampled_boundary(mask: BoolArray, spacing: FloatArray, parts: int = 401) -> FloatArray:
    """Points along each pixel edge between inside and outside, `parts` an edge; 1 gives centres."""
    offsets = np.linspace(-0.5, 0.5, parts) if parts > 1 else np.zeros(1)
    padded = np.pad(mask, 1)
    points = []
    for row in range(mask.shape[0] + 1):
        for column in range(mask.shape[1] + 2):
            if padded[row, column] != padded[row + 1, column]:
                points += [(row + 0.5, column + offset) for offset in offsets]
    for row in range(mask.shape[0] + 2):
        for column in range(mask.shape[1] + 1):
            if padded[row, column] != padded[row, column + 1]:
                points += [(row + offset, column + 0.5) for offset in offsets]
    sampled: FloatArray = np.array(points) * spacing
    return sampled


def test_a_tolerance_equal_to_a_rounded_distance_is_within_it() -> None:
    reference, predicted = rectangle((3, 9), (0, 3), (1, 2)), rectangle((3, 9), (0, 3), (1, 5))
    assert boundary_distances(reference, predicted, (0.1, 0.1)).nsd(0.3) == 1


@pytest.mark.parametrize(
    ("spacing", "message"),
    [((1.0,), "allowed are 2 positive lengths"), ((1.0, 0.0), "spacing is"), ((1.0, math.nan), "spacing is")],
)
def test_a_spacing_that_does_not_fit_is_refused(spacing: tuple[float, ...], message: str) -> None:
    mask = rectangle((3, 4), (0, 1), (0, 1))
    with pytest.raises(InputError, match=message):
        boundary_distances(mask, mask, spacing)


def test_masks_that_do_not_pair_and_negative_tolerances_are_refused() -> None:
    mask = rectangle((3, 4), (0, 1), (0, 1))
    with pytest.raises(InputError, match="they must be the same"):
        dice(mask, mask.T)
    with pytest.raises(InputError, match="allowed is bool"):
        iou(mask, mask.astype(np.uint8))
    with pytest.raises(InputError, match="have 1 axes"):
        boundary_distances(mask[0], mask[0])
    with pytest.raises(InputError, match="tolerance is -1"):
        boundary_distances(mask, mask).nsd(-1)
