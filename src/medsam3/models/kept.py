"""What no prompt changes, kept of an image for its next prompt, and the product that makes use of it.

It knows no detector: `models.detr` says what is kept. Training keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kept = dict[str, Tensor]
"""What is kept of an image for its next prompt, by name."""


def once(kept: Kept | None, name: str, compute: Callable[[], Tensor]) -> Tensor:
    """Compute what no prompt changes, once for an image if anything of it is kept."""
    if kept is None:
        return compute()
    if name not in kept:
        kept[name] = compute()
    return kept[name]


def is_first(kept: Kept, name: str) -> bool:
    """Tell whether this is the first time that something is asked."""
    is_new = name not in kept
    kept.setdefault(name, torch.empty(0))
    return is_new


def doubled(coarse: Tensor, weight: Tensor) -> Tensor:
    """Convolve a map (B, D, H, W), of which each cell is repeated to two by two, by a kernel (O, D, 3, 3).

    On the map as it is, each of the four cells is a convolution of 2 x 2: four products in place of nine.
    """
    taps = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # (place, coarse row, tap)
    kernels = torch.einsum("aur,bvs,oirs->aboiuv", taps, taps, weight).flatten(0, 2)
    batch, _, height, width = coarse.shape
    cells = F.conv2d(F.pad(coarse.contiguous(), (1, 1, 1, 1)), kernels.contiguous())
    cells = cells.view(batch, 2, 2, -1, height + 1, width + 1)
    fine = coarse.new_empty(batch, cells.shape[3], height, 2, width, 2)
    for row in (0, 1):
        for column in (0, 1):
            fine[:, :, :, row, :, column] = cells[:, row, column, :, row : row + height, column : column + width]
    return fine.view(batch, -1, 2 * height, 2 * width)


def convolved(conv: nn.Conv2d, level: Tensor) -> Tensor:
    """Convolve a level by itself."""
    own: Tensor = conv(level)
    return own.contiguous()
