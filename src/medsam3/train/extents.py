"""The training of the guess at an object's extent: clicks on annotated objects of cached pictures, and a short fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medsam3.data.samples import Instances, Sample
from medsam3.geometry import BoolArray, FloatArray, box_of_mask
from medsam3.models.mini.click_extent import NEAREST, ExtentHead, bin_centres, seen_at
from medsam3.models.mini.click_window import ClickWindow
from medsam3.models.mini.proposals import part_under
from medsam3.models.refiner import depth_in
from medsam3.train.cache import Features

MOST_OBJECTS = 4
"""Objects of a concept of a picture."""
CLICKS = 4
"""On each object: one in its middle, the others anywhere that is half as deep at least."""
LEAST_PX = 30
STEPS, BATCH, WARMUP = 600, 256, 50
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.1
NOISE = 0.3
"""Standard deviation of what is added to the values, which are of unit spread."""
BLUR = 0.8
"""Width of what is right around a reach, in bins."""


@dataclass(frozen=True)
class ClickedExtents:
    """Clicks on objects: what was seen (P, F), the true reaches (P, 4) in shares of the square, and their weights."""

    seen: Tensor
    reach: Tensor
    weights: Tensor


def clicked_extents(samples: Sequence[Sample], features: Features, seed: int) -> ClickedExtents:
    """Click on objects of pictures; each data set's concept weighs the less, the more of its clicks there are."""
    seen, reach, names = list[Tensor](), list[FloatArray](), list[str]()
    for number, sample in enumerate(samples):
        values, rgb = features.get(sample.name, 0), sample.load_rgb()
        longest = max(rgb.shape[:2])
        pixels = ClickWindow(0.0, 0.0, float(longest), longest).pixels(rgb)
        middle, coarse = (torch.from_numpy(values[name][0].astype(np.float32)) for name in ("middle", "coarse"))
        rng = np.random.default_rng([seed, number])
        for target in sample.targets:
            for part in _parts(target.load(), rng) if target.is_present else ():
                for row, column in _clicks_in(part, rng):
                    at = (column + 0.5) / longest, (row + 0.5) / longest
                    seen.append(seen_at(middle, coarse, pixels, at))
                    reach.append(reach_from(part, row, column) / longest)
                    names.append(f"{sample.dataset}/{target.concept}")
    _, which, counts = np.unique(names, return_inverse=True, return_counts=True)
    weights = torch.from_numpy(1 / np.sqrt(counts[which]))
    return ClickedExtents(torch.stack(seen), torch.from_numpy(np.stack(reach)).float(), weights)


def _parts(labels: Instances, rng: np.random.Generator) -> Iterator[BoolArray]:
    """The largest connected parts of a few objects."""
    numbers = np.flatnonzero(np.bincount(labels.ravel())[1:] >= LEAST_PX) + 1
    for number in rng.permutation(numbers)[:MOST_OBJECTS]:
        part = part_under(labels == number, ())
        if np.count_nonzero(part) >= LEAST_PX:
            yield part


def _clicks_in(part: BoolArray, rng: np.random.Generator) -> list[tuple[int, int]]:
    depth = depth_in(part)
    middle = np.unravel_index(int(depth.argmax()), depth.shape)
    deep = np.argwhere(depth >= 0.5 * depth.max())
    further = deep[rng.integers(len(deep), size=CLICKS - 1)]
    return [(int(row), int(column)) for row, column in (middle, *further)]


def reach_from(part: BoolArray, row: int, column: int) -> FloatArray:
    """How far a part (H, W) reaches from one of its pixels to the left, upwards, to the right and downwards (4,)."""
    edges = box_of_mask(part)
    assert edges is not None, "a part has pixels"
    return np.array([column - edges[0], row - edges[1], edges[2] - column, edges[3] - row])


def fit_extents(clicked: ClickedExtents, level_width: int, seed: int) -> ExtentHead:
    """Train the network that guesses; the same clicks and seed give the same weights."""
    torch.manual_seed(seed)
    head = ExtentHead(level_width).train()
    head.mean.copy_(clicked.seen.mean(dim=0))
    head.spread.copy_(clicked.seen.std(dim=0) + 1e-3)
    right = bins_of(clicked.reach)
    optimizer = torch.optim.AdamW(head.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for step in range(STEPS):
        share = min(1.0, (step + 1) / WARMUP) * (1 + np.cos(np.pi * step / STEPS)) / 2
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * share
        chosen = torch.multinomial(clicked.weights, BATCH, replacement=True)
        seen = clicked.seen[chosen]
        logits = head(seen + NOISE * head.spread * torch.randn_like(seen))
        loss = -(right[chosen] * F.log_softmax(logits, dim=-1)).sum(dim=-1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return head.eval().requires_grad_(False)


def bins_of(reach: Tensor) -> Tensor:
    """Spread reaches (P, 4) over the bins around them, (P, 4, B) that sum to 1."""
    centres = bin_centres()
    width = BLUR * (centres[1] - centres[0])
    near = torch.exp(-(((reach.clamp(min=NEAREST).log()[..., None] - centres) / width) ** 2) / 2)
    return near / near.sum(dim=-1, keepdim=True)
