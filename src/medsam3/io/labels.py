"""Label maps: many masks as one, the same way for every format that holds one number a voxel, and one read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.geometry import FloatArray
from medsam3.image import Image, Masks
from medsam3.io import read

Legend = list[dict[str, Any]]

SAME_PLACE_MM = 1e-2
"""Largest difference of two affines that still counts as the same place."""


def check_masks(masks: Sequence[Masks], shape: tuple[int, int, int]) -> None:
    """Masks are written at the image's own size only.

    Raises:
        InputError: No masks at all, or a shape that differs from the image's.
    """
    if not masks:
        raise InputError("there are no masks to write: give at least one Masks, an empty one where nothing was found")
    for found in masks:
        if found.shape != shape:
            raise InputError(f"masks are over {found.shape} but the image is {shape} (N, H, W): they must be the same")


def combined_labels(masks: Sequence[Masks], shape: tuple[int, int, int]) -> tuple[NDArray[Any], Legend]:
    """One number a voxel, and what the numbers mean.

    Objects are numbered 1, 2, ... through all concepts in the order given. Of two overlapping objects of one concept
    the better score is kept, of two overlapping concepts the smaller one (an optic cup lies within the optic disc).

    Returns:
        (N, H, W) uint8, or uint16 from 256 objects on; and a list of {"value", "concept", "score"}.

    Raises:
        InputError: More than 65,535 objects, or masks of another shape.
    """
    check_masks(masks, shape)
    total = sum(len(found) for found in masks)
    if total > np.iinfo(np.uint16).max:
        raise InputError(f"{total} objects do not fit a 16-bit label map: raise the threshold")
    labels = np.zeros(shape, dtype=np.uint8 if total <= np.iinfo(np.uint8).max else np.uint16)
    firsts = np.cumsum([0, *(len(found) for found in masks)])
    sizes = [sum(item.voxels for item in found.objects) for found in masks]
    for m in sorted(range(len(masks)), key=lambda m: -sizes[m]):
        for k in reversed(range(len(masks[m]))):
            item = masks[m].objects[k]
            block = tuple(slice(low, low + size) for low, size in zip(item.start, item.crop.shape, strict=True))
            labels[block][item.crop] = firsts[m] + k + 1
    legend = [
        {"value": int(firsts[m]) + k + 1, "concept": found.concept, "score": round(item.score, 6)}
        for m, found in enumerate(masks)
        for k, item in enumerate(found.objects)
    ]
    return labels, legend


def label_stack(path: Path, image: Image) -> Image:
    """Open a label map in the place of its volume.

    Raises:
        InputError: Unreadable, or of another size or place than the image.
    """
    labels = read(path)
    if labels.shape != image.shape or labels.channels != 1:
        raise InputError(f"{path.name} has {labels.shape} voxels, its image has {image.shape}: they must be the same")
    if (
        labels.affine is not None
        and image.affine is not None
        and not np.allclose(labels.affine, image.affine, atol=SAME_PLACE_MM)
    ):
        raise InputError(f"{path.name} lies in another place than its image: give it the image's affine")
    return labels


def label_values(labels: Image, n: int) -> FloatArray:
    """Read slice n (H, W) of a label map, in whole numbers."""
    values: FloatArray = np.rint(labels.pixels(n)[..., 0].astype(np.float64))
    return values
