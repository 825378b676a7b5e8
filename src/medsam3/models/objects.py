"""From a map of probabilities to single objects: connected parts without specks, round ones told apart, with scores.

It knows no model: what an agent averages is taken apart as a model's own map is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.image import ObjectMask

LEAST_SHARE = 0.0001
"""Parts smaller than this share of the frame are noise, unless nothing larger was found."""
WAIST = 0.98
"""Two round objects touch where the part between them is narrower than this share of the smaller one's width.

Chosen by panoptic quality on 33 validation images of nuclei, among .6 to .98; see docs/experiments.md.
"""
SMOOTHING_PX = 1.0


def split_objects(probability: NDArray[np.float32], threshold: float, *, is_round: bool = False) -> list[ObjectMask]:
    """The 8-connected parts of (H, W) where the probability exceeds the threshold, scored by its mean inside each.

    They lie over one frame, (1, H, W), as crops: a section may hold hundreds of nuclei.

    Args:
        probability: Of the concept at each pixel.
        threshold: Above which a pixel belongs to it.
        is_round: Its objects are round, so parts are cut at their waists.
    """
    labels, count = ndimage.label(probability > threshold, structure=np.ones((3, 3)))
    if count == 0:
        return []
    if is_round:
        labels, count = cut_at_waists(labels)
    numbers = np.arange(1, count + 1)
    sizes = ndimage.sum_labels(np.ones_like(labels), labels, numbers)
    means = ndimage.mean(probability, labels, numbers)
    least = min(max(4.0, LEAST_SHARE * probability.size), float(sizes.max()))
    return [
        ObjectMask((0, rows.start, columns.start), (labels[rows, columns] == number)[None], float(mean))
        for number, size, mean, (rows, columns) in zip(numbers, sizes, means, ndimage.find_objects(labels), strict=True)
        if size >= least
    ]


def cut_at_waists(labels: NDArray[np.int32]) -> tuple[NDArray[np.int32], int]:
    """Cut numbered parts (H, W) where they are narrow between two wide places, and number the pieces anew from 1.

    Source: Meyer's watershed of the distance to the edge, on a scale on which a step is a ratio of widths.
    """
    import SimpleITK as sitk  # noqa: PLC0415, N813  takes a while, and few concepts need it

    inside = labels > 0
    depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(inside), SMOOTHING_PX)
    height = np.where(inside, -np.log(np.maximum(depth, 1e-3)), 10.0).astype(np.float32)
    basins = sitk.GetArrayFromImage(
        sitk.MorphologicalWatershed(
            sitk.GetImageFromArray(height), level=-float(np.log(WAIST)), markWatershedLine=False, fullyConnected=True
        )
    )
    pieces = np.zeros_like(labels)
    pairs, own = np.unique(np.stack([labels[inside], basins[inside]]), axis=1, return_inverse=True)
    pieces[inside] = own.ravel() + 1
    return pieces, pairs.shape[1]
