"""How far an object reaches from a click on it, to each side: a guess that the detector is then asked with as a box.

A small network over what the frozen levels and the pixels show at the click, and over how alike to that the places on
rings around it are. It knows no files and no sessions.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

RADII = (0.02, 0.04, 0.08, 0.14, 0.22, 0.34)
"""Of the rings around a click, as shares of the square's side."""
DIRECTIONS = 16
LOW, HIGH = 3, 12
"""Of the sorted values on a ring, those that stand for its least and its greatest part."""
BINS = 20
NEAREST, FURTHEST = 0.006, 0.9
"""Centres of the first and the last bin of a reach, as shares of the square's side; between them even in its log."""
HIDDEN = 64
DROPOUT = 0.3
RING_VALUES = 3


class ExtentHead(nn.Module):
    """What is seen at clicks to how far the objects reach to the left, upwards, to the right and downwards."""

    mean: Tensor
    spread: Tensor

    def __init__(self, level_width: int) -> None:
        super().__init__()
        count = 2 * (level_width + RING_VALUES * len(RADII)) + 3 + RING_VALUES * len(RADII)
        self.register_buffer("mean", torch.zeros(count))
        self.register_buffer("spread", torch.ones(count))
        self.first = nn.Linear(count, HIDDEN)
        self.last = nn.Linear(HIDDEN, 4 * BINS)

    def forward(self, seen: Tensor) -> Tensor:
        """Values (P, F) of `seen_at` to logits (P, 4, `BINS`)."""
        x = F.dropout((seen - self.mean) / self.spread, DROPOUT, self.training)
        x = F.dropout(F.relu(self.first(x)), DROPOUT, self.training)
        logits: Tensor = self.last(x)
        return logits.view(-1, 4, BINS)

    def reach(self, seen: Tensor) -> Tensor:
        """Give the median of each reach (P, 4), in shares of the square's side."""
        summed = self(seen).softmax(dim=-1).cumsum(dim=-1)
        middle: Tensor = bin_centres()[(summed < 0.5).sum(dim=-1).clamp(max=BINS - 1)]
        return middle.exp()


def bin_centres() -> Tensor:
    """Centres of the bins (BINS,), as logs of shares of the square's side."""
    return torch.linspace(np.log(NEAREST), np.log(FURTHEST), BINS)


def seen_at(middle: Tensor, coarse: Tensor, pixels: Tensor, at: tuple[float, float]) -> Tensor:
    """Describe what a click shows (F,).

    Args:
        middle: (C, 64, 64) a level over the square.
        coarse: (C, 32, 32) another.
        pixels: (3, S, S) in 0..1, the square.
        at: x and y of the click, in shares of the square's side.
    """
    angles = torch.arange(DIRECTIONS) * (2 * torch.pi / DIRECTIONS)
    around = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor(RADII)[:, None, None]
    places = torch.cat([torch.zeros(1, 2), around.flatten(0, 1)]) + torch.tensor(at)
    inside = ((places >= 0) & (places <= 1)).all(dim=1)[1:].view(len(RADII), DIRECTIONS)
    found: list[Tensor] = []
    for level in (middle, coarse):
        values = _values_at(level, places)
        directions = F.normalize(values, dim=1)
        alike = (directions @ directions[0])[1:].view(len(RADII), DIRECTIONS) * inside
        ranked = alike.sort(dim=1).values
        found += [values[0], alike.mean(dim=1), ranked[:, LOW], ranked[:, HIGH]]
    values = _values_at(pixels, places)
    odd = (values - values[0]).abs().mean(dim=1)[1:].view(len(RADII), DIRECTIONS).where(inside, torch.ones(()))
    return torch.cat([*found, values[0], odd.mean(dim=1), odd.sort(dim=1).values[:, LOW], inside.float().mean(dim=1)])


def _values_at(maps: Tensor, places: Tensor) -> Tensor:
    """Sample maps (C, H, W) at places (P, 2), as (P, C)."""
    grid = (places * 2 - 1)[None, :, None]
    return F.grid_sample(maps[None], grid, align_corners=False, padding_mode="border")[0, :, :, 0].T
