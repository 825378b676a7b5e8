"""What can be said of a mask in numbers: size, place, brightness against its surroundings. Knows no model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.agent.values import Mark
from medsam3.geometry import BoolArray
from medsam3.image import Image

_RING_PX = 8


def measures_text(mark: Mark, image: Image, rgb: NDArray[np.uint8]) -> tuple[str, dict[str, Any]]:
    """Measures of a mark in words and as JSON values; millimetres only where the file tells the spacing."""
    mask = plane_of(mark, image.shape[1:])
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
    spacing = image.spacing_mm
    if spacing is not None:
        facts["area_mm2"] = round(facts["area_px"] * spacing[1] * spacing[2], 2)
        facts["width_mm"] = round((right - left) * spacing[2], 2)
        facts["height_mm"] = round((bottom - top) * spacing[1], 2)
    return f"mask {mark.number}: " + ", ".join(f"{name} {value}" for name, value in facts.items()), facts


def plane_of(mark: Mark, shape: tuple[int, int]) -> BoolArray:
    """The mark's first plane as (H, W) bool."""
    mask = np.zeros(shape, dtype=np.bool_)
    row, column = mark.mask.start[1:]
    crop = mark.mask.crop[0]
    mask[row : row + crop.shape[0], column : column + crop.shape[1]] = crop
    return mask


def overlap(first: BoolArray, second: BoolArray) -> float:
    """Intersection over union of two masks; 0 where both are empty."""
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 0.0
