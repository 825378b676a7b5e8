"""The guess at an object's extent: what is clicked on, and a fit that learns how large bright squares are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medsam3.data.samples import Sample, Target
from medsam3.models.mini.click_extent import BINS, bin_centres, seen_at
from medsam3.train.click_cache import click_features
from medsam3.train.extents import CLICKS, bins_of, clicked_extents, fit_extents, reach_from

WIDTH = 4
SHAPE = (96, 128)


def square_of(number: int) -> NDArray[np.bool_]:
    """A square in the frame's middle, of half the side 6, 12, 24 and so on in turn."""
    half = 6 * 2 ** (number % 3)
    mask = np.zeros(SHAPE, dtype=np.bool_)
    mask[48 - half : 48 + half + 1, 64 - half : 64 + half + 1] = True
    return mask


def a_sample(number: int) -> Sample:
    mask = square_of(number)
    rgb = np.where(mask[..., None], np.uint8(200), np.uint8(40)).repeat(3, axis=2)
    targets = (Target("polyp", True, lambda: mask.astype(np.int32)), Target("wound", False, lambda: mask * 0))
    return Sample(f"made/{number}.png", Path(), "made", str(number), "train", targets, lambda: rgb)


class FlatFeatures:
    """Levels that say nothing."""

    def views(self, name: str) -> tuple[int, ...]:
        return (0,)

    def get(self, name: str, view: int) -> NDArray[Any]:
        values = np.zeros((1,), dtype=click_features(WIDTH))
        values["middle"], values["coarse"] = 1, 1
        return values


def test_a_reach_is_counted_from_the_click_to_each_side() -> None:
    assert reach_from(square_of(0), 48, 64).tolist() == [6.5, 6.5, 6.5, 6.5]  # 13 pixels
    assert reach_from(square_of(0), 45, 69).tolist() == [11.5, 3.5, 1.5, 9.5]  # left, up, right, down


def test_a_reach_is_spread_over_the_bins_around_it() -> None:
    centres = bin_centres()
    spread = bins_of(torch.tensor([[float(centres[7].exp()), 1e-5, 2.0, 0.1]]))
    assert spread.shape == (1, 4, BINS) and torch.allclose(spread.sum(dim=-1), torch.ones(1, 4))
    assert spread.argmax(dim=-1)[0, :3].tolist() == [7, 0, BINS - 1]


def test_clicks_lie_on_the_objects_that_are_there() -> None:
    clicked = clicked_extents([a_sample(0), a_sample(1)], FlatFeatures(), seed=0)
    assert clicked.seen.shape[0] == 2 * CLICKS  # the wound is absent
    sides = (clicked.reach[:, :2] + clicked.reach[:, 2:]) * 128
    assert torch.allclose(sides, torch.tensor([13.0] * CLICKS + [25.0] * CLICKS)[:, None].expand(-1, 2))
    assert clicked.reach.min() > 0
    again = clicked_extents([a_sample(0), a_sample(1)], FlatFeatures(), seed=0)
    assert torch.equal(clicked.seen, again.seen)


def test_what_is_seen_tells_the_ring_at_which_the_object_ends() -> None:
    pixels = torch.zeros(3, 64, 64)
    pixels[:, 16:48, 16:48] = 1  # reaches .25 of the side
    level = torch.ones(WIDTH, 32, 32)
    seen = seen_at(level, level, pixels, (0.5, 0.5))
    odd = seen[-18:-12]  # mean difference on the rings of .02, .04, .08, .14, .22 and .34
    assert odd[:4].max() < 0.01 and odd[5] == pytest.approx(12 / 16)  # its four diagonal places are still inside
    assert seen[-6:].tolist() == [1.0] * 6  # all rings lie in the square
    assert seen_at(level, level, pixels, (0.0, 0.0))[-6:].max() < 0.5


def test_the_fit_learns_the_size_of_bright_squares() -> None:
    samples = [a_sample(number) for number in range(3)]
    clicked = clicked_extents(samples, FlatFeatures(), seed=0)
    head = fit_extents(clicked, WIDTH, seed=0)
    reach = head.reach(clicked.seen[::CLICKS]) * 128  # of the clicks in the middle
    assert reach.mean(dim=1).tolist() == pytest.approx([6.5, 12.5, 24.5], rel=0.35)
    assert torch.equal(head.last.weight, fit_extents(clicked, WIDTH, seed=0).last.weight)
