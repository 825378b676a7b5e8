"""What can be said of a mask in numbers: size, place, brightness against its surroundings. Knows no model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.agent.values import Mark
from medsam3.geometry import BoolArray

_RING_PX = 8


def measures_text(
    mark: Mark, rgb: NDArray[np.uint8], spacing_mm: tuple[float, float, float] | None
) -> tuple[str, dict[str, Any]]:
    """Measures of a mark in words and as JSON values, of an object through several slices those on its fullest one.

    Args:
        mark: The mark.
        rgb: The mark's fullest frame.
        spacing_mm: Along (n, row, col); None gives no millimetres.
    """
    mask = plane_of(mark, (rgb.shape[0], rgb.shape[1]))
    rows, columns = np.nonzero(mask)
    grey = rgb.mean(axis=2)
    ring = np.asarray(ndimage.binary_dilation(mask, iterations=_RING_PX)) & ~mask
    left, top, right, bottom = mark.mask.box
    facts: dict[str, Any] = {
        "area_px": int(mask.sum()),
        "share_of_frame": round(float(mask.mean()), 5),
        "centre_xy": [round(float(columns.mean()), 1), round(float(rows.mean()), 1)],
        "width_px": round(right - left),
        "height_px": round(bottom - top),
        "touches_border": bool(mask[[0, -1]].any() or mask[:, [0, -1]].any()),
        "mean_grey": round(float(grey[mask].mean()), 1),
        "mean_grey_around": round(float(grey[ring].mean()), 1) if ring.any() else None,
    }
    if len(mark.mask.crop) > 1:
        facts["slices"] = [mark.mask.start[0], mark.mask.start[0] + len(mark.mask.crop) - 1]
        facts["voxels"] = mark.mask.voxels
    if spacing_mm is not None:
        facts["area_mm2"] = round(facts["area_px"] * spacing_mm[1] * spacing_mm[2], 2)
        facts["width_mm"] = round((right - left) * spacing_mm[2], 2)
        facts["height_mm"] = round((bottom - top) * spacing_mm[1], 2)
        if "voxels" in facts:
            facts["volume_ml"] = round(facts["voxels"] * float(np.prod(spacing_mm)) / 1000, 3)
    return f"mask {mark.number}: " + ", ".join(f"{name} {value}" for name, value in facts.items()), facts


def fullest_frame(mark: Mark) -> int:
    """The frame that holds most of the mark."""
    return mark.mask.start[0] + int(mark.mask.crop.sum(axis=(1, 2)).argmax())


def plane_of(mark: Mark, shape: tuple[int, int], n: int | None = None) -> BoolArray:
    """The mark on frame n as (H, W) bool, empty if it is not there; None takes its fullest frame."""
    return mark.mask.plane(fullest_frame(mark) if n is None else n, shape)


def overlap(first: BoolArray, second: BoolArray) -> float:
    """Intersection over union of two masks; 0 where both are empty."""
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 0.0
