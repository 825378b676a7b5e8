"""Outlines along pixel edges and back."""

from __future__ import annotations

import numpy as np
import pytest

from medsam3.io.contours import filled, outlines


def test_one_pixel_has_its_four_corners() -> None:
    mask = np.zeros((5, 6), dtype=np.bool_)
    mask[3, 1] = True
    (outline,) = outlines(mask)
    assert sorted(outline.tolist()) == [[0.5, 2.5], [0.5, 3.5], [1.5, 2.5], [1.5, 3.5]]


def test_nothing_has_no_outline() -> None:
    assert outlines(np.zeros((5, 6), dtype=np.bool_)) == []


def test_pixels_that_touch_by_a_corner_have_an_outline_each() -> None:
    assert len(outlines(np.eye(3, dtype=np.bool_))) == 3


def test_a_ring_is_one_outline_with_a_keyhole() -> None:
    ring = np.ones((5, 7), dtype=np.bool_)
    ring[1:3, 2:5] = False
    (outline,) = outlines(ring)
    x, y = outline.T
    area = abs(float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2)
    assert area == 35 - 6
    np.testing.assert_array_equal(filled([outline], 5, 7), ring)


@pytest.mark.parametrize("seed", range(20))
def test_any_mask_comes_back_as_it_was(seed: int) -> None:
    mask = np.random.default_rng(seed).random((17, 23)) > 0.1 + 0.04 * seed
    np.testing.assert_array_equal(filled(outlines(mask), 17, 23), mask)


def test_an_island_in_a_hole_comes_back() -> None:
    mask = np.ones((9, 11), dtype=np.bool_)
    mask[2:7, 2:9] = False
    mask[4, 4:6] = True
    assert len(outlines(mask)) == 2
    np.testing.assert_array_equal(filled(outlines(mask), 9, 11), mask)
