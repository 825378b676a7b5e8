"""RoIAlign: values worked out by hand on ramps, where bilinear sampling is exact."""

from __future__ import annotations

import torch

from medsam3.models.roi_align import roi_align


def ramp(height: int = 9, width: int = 13) -> torch.Tensor:
    """Features (1, 2, H, W): the column number and the row number."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows]).float()[None]


def test_a_bin_of_a_ramp_is_the_value_at_its_centre() -> None:
    # x from 2 to 8 in two bins of 3: centres 3.5 and 6.5; y from 1 to 5 in two bins of 2: centres 2 and 4
    pooled = roi_align(ramp(), [torch.tensor([[2.0, 1.0, 8.0, 5.0]])], 2)
    assert pooled.shape == (1, 2, 2, 2)
    assert torch.allclose(pooled[0, 0], torch.tensor([[3.5, 6.5], [3.5, 6.5]]))
    assert torch.allclose(pooled[0, 1], torch.tensor([[2.0, 2.0], [4.0, 4.0]]))


def test_a_box_below_one_pixel_is_taken_as_one_pixel_from_its_corner() -> None:
    pooled = roi_align(ramp(), [torch.tensor([[4.0, 3.0, 4.2, 3.1]])], 1)  # x 4 to 5, y 3 to 4
    assert torch.allclose(pooled.flatten(), torch.tensor([4.5, 3.5]))


def test_no_box_gives_no_bins() -> None:
    assert roi_align(ramp(), [torch.zeros(0, 4)], 7).shape == (0, 2, 7, 7)


def test_many_boxes_of_many_images_are_each_as_alone() -> None:
    features = torch.cat([ramp(), 2 * ramp()])
    boxes = [torch.tensor([[1.0, 1.0, 6.0, 4.0], [0.0, 2.0, 3.0, 7.0]]), torch.tensor([[2.0, 2.0, 9.0, 5.0]])]
    together = roi_align(features, boxes, 3)
    alone = [roi_align(features[:1], [boxes[0][:1]], 3), roi_align(features[:1], [boxes[0][1:]], 3)]
    alone.append(roi_align(features[1:], [boxes[1]], 3))
    assert torch.equal(together, torch.cat(alone))


def test_half_precision_is_given_back_in_its_own_format() -> None:
    pooled = roi_align(ramp().half(), [torch.tensor([[2.0, 1.0, 8.0, 5.0]]).half()], 2)
    assert pooled.dtype == torch.float16
    assert torch.allclose(pooled[0, 0, 0].float(), torch.tensor([3.5, 6.5]))
