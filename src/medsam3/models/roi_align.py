"""RoIAlign in plain torch, for the detector's geometry encoder, so that torchvision is not needed.

Source: He et al., Mask R-CNN, ICCV 2017; the sampling is that of torchvision's `roi_align` with `aligned=False` and an
adaptive number of samples a bin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
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
    with torch.autocast(features.device.type, enabled=False):
        return _pooled(features, boxes, output_size)


def _pooled(features: Tensor, boxes: Sequence[Tensor], bins: int) -> Tensor:
    """All boxes' bins at once, in full precision."""
    items = [number for number, own in enumerate(boxes) for _ in own]
    if not items:
        return features.new_zeros(0, features.shape[1], bins, bins)
    together = torch.cat(list(boxes)).float()
    left, top, right, bottom = together.unbind(1)
    lengths = torch.stack([bottom - top, right - left]).clamp(min=1.0)
    most = max(1, math.ceil(lengths.max().item() / bins))  # one look at the values for all boxes
    rows = _bin_weights(top, lengths[0], bins, most, features.shape[2])
    columns = _bin_weights(left, lengths[1], bins, most, features.shape[3])
    taken = features.float()
    if items != list(range(len(features))):
        taken = taken.index_select(0, torch.tensor(items, device=features.device))
    return (rows[:, None] @ taken @ columns[:, None].transpose(-1, -2)).to(features.dtype)


def _bin_weights(start: Tensor, length: Tensor, bins: int, most: int, size: int) -> Tensor:
    """How much each of `size` pixels along one axis counts in each bin of n boxes, (n, bins, size).

    A bin is the mean of ceil(length / bins) samples, at most `most`, that are evenly spread in it. A sample lies
    between two pixels; one that lies more than one step outside is 0.
    """
    samples = (length / bins).ceil().clamp(1, most)[:, None, None]
    number = torch.arange(most, device=start.device)
    bin_ = torch.arange(bins, device=start.device)[:, None]
    within = (bin_ + (number + 0.5) / samples).flatten(1)  # (n, bins * most)
    positions = start[:, None] + within * (length / bins)[:, None]
    inside = (positions >= -1.0) & (positions <= size)
    distance = positions.clamp(0, size - 1)[..., None] - torch.arange(size, device=start.device)
    near = (1 - distance.abs()).clamp(min=0) * inside[..., None]
    weights = near.view(len(start), bins, most, size) * (number < samples)[..., None]
    return weights.sum(2) / samples
