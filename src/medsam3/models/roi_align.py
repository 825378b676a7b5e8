"""RoIAlign in plain torch, for SAM 3's geometry encoder where torchvision is not installed.

Source: He et al., Mask R-CNN, ICCV 2017; the sampling is that of torchvision's `roi_align` with `aligned=False` and an
adaptive number of samples a bin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace

import torch
import transformers.models.sam3.modeling_sam3 as sam3  # by its full name: the lazy package may give a dummy
from torch import Tensor


def roi_align(features: Tensor, boxes: Sequence[Tensor], output_size: int) -> Tensor:
    """Mean of bilinear samples in each of `output_size`**2 bins of every box.

    Args:
        features: (B, D, H, W).
        boxes: For each of the B items (n, 4) xyxy, where x = 0 is the centre of the first column.
        output_size: Bins along each side.

    Returns:
        (sum of n, D, output_size, output_size), the items' boxes one after another.
    """
    pooled = [
        _pool_box(item.float(), box.float(), output_size)
        for item, item_boxes in zip(features, boxes, strict=True)
        for box in item_boxes
    ]
    if not pooled:
        return features.new_zeros(0, features.shape[1], output_size, output_size)
    return torch.stack(pooled).to(features.dtype)


def _pool_box(features: Tensor, box: Tensor, bins: int) -> Tensor:
    """One box's bins, (D, bins, bins)."""
    left, top, right, bottom = box
    width, height = (right - left).clamp(min=1.0), (bottom - top).clamp(min=1.0)
    rows = _sample_positions(top, height, bins)
    columns = _sample_positions(left, width, bins)
    sampled = _interpolate(_interpolate(features, rows.flatten(), axis=1), columns.flatten(), axis=2)
    depth = features.shape[0]
    return sampled.view(depth, *rows.shape, *columns.shape).mean(dim=(2, 4))  # (D, bins, bins)


def _sample_positions(start: Tensor, length: Tensor, bins: int) -> Tensor:
    """Positions along one axis, (bins, samples): ceil(length / bins) of them, evenly spread in each bin."""
    samples = max(1, math.ceil(length.item() / bins))
    offsets = (torch.arange(bins * samples, device=start.device) + 0.5) / samples
    return (start + offsets * length / bins).view(bins, samples)


def _interpolate(features: Tensor, positions: Tensor, *, axis: int) -> Tensor:
    """Linear samples along one axis; 0 where a position lies more than one step outside."""
    size = features.shape[axis]
    inside = (positions >= -1.0) & (positions <= size)
    clamped = positions.clamp(0, size - 1)
    low = clamped.floor().long().clamp(max=max(size - 2, 0))
    high = (low + 1).clamp(max=size - 1)
    shape = [1, 1, 1]
    shape[axis] = -1
    weight = (clamped - low).view(shape)
    mixed = features.index_select(axis, low) * (1 - weight) + features.index_select(axis, high) * weight
    return mixed * inside.view(shape).to(features.dtype)


def use_plain_roi_align() -> None:
    """Let transformers' SAM 3 call `roi_align` of this module where torchvision is missing."""
    if not hasattr(sam3, "torchvision"):
        sam3.torchvision = SimpleNamespace(ops=SimpleNamespace(roi_align=roi_align))
