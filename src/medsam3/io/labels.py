"""Label maps: many masks as one number a voxel for all formats, and one read back over the grid of its image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.geometry import Affine, FloatArray, affine_from_directions, spacing_mm
from medsam3.image import Image, Masks
from medsam3.io import read


class LegendEntry(TypedDict):
    """What one number of a label map stands for."""

    value: int
    concept: str
    score: float


Legend = list[LegendEntry]

SAME_PLACE_VOXELS = 0.05
"""How far the corners of a label map may lie from the image's voxels and still be taken for them."""
_DIRECTIONS = (("left", "right"), ("posterior", "anterior"), ("superior", "inferior"))


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
        raise InputError(f"{total} objects do not fit a 16-bit label map: raise the threshold, or use the format coco")
    labels = np.zeros(shape, dtype=np.uint8 if total <= np.iinfo(np.uint8).max else np.uint16)
    firsts = np.cumsum([0, *(len(found) for found in masks)])
    sizes = [sum(item.voxels for item in found.objects) for found in masks]
    for m in sorted(range(len(masks)), key=lambda m: -sizes[m]):
        for k in reversed(range(len(masks[m]))):
            item = masks[m].objects[k]
            labels[item.block][item.crop] = firsts[m] + k + 1
    legend: Legend = [
        {"value": int(firsts[m]) + k + 1, "concept": found.concept, "score": round(item.score, 6)}
        for m, found in enumerate(masks)
        for k, item in enumerate(found.objects)
    ]
    return labels, legend


def concept_numbers(masks: Sequence[Masks], names: Sequence[str], shape: tuple[int, int, int]) -> NDArray[Any]:
    """Number each voxel by its concept's place in `names`, from 1: (N, H, W) uint8, uint16 from 256 names on.

    Of two overlapping concepts the smaller one is kept.

    Raises:
        InputError: As `combined_labels`.
    """
    labels, legend = combined_labels(masks, shape)
    table = np.zeros(len(legend) + 1, dtype=np.uint8 if len(names) <= np.iinfo(np.uint8).max else np.uint16)
    for entry in legend:
        table[entry["value"]] = names.index(entry["concept"]) + 1
    numbers: NDArray[Any] = table[labels]
    return numbers


def label_stack(path: Path, image: Image) -> Image:
    """Open a label map that labels all of its image, in whatever order of axes it keeps its voxels.

    Raises:
        InputError: Unreadable, or of other voxels than the image: those that it left out would count as background.
    """
    try:
        labels = read(path)
        placed = on_grid(labels, image)
        if sorted(labels.shape) != sorted(image.shape):
            raise InputError(f"the label map covers other voxels than the image: {_both(labels, image)}")
        return placed
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def label_values(labels: Image, n: int) -> FloatArray:
    """Read slice n (H, W) of a label map, in whole numbers."""
    values: FloatArray = np.rint(labels.pixels(n)[..., 0].astype(np.float64))
    return values


def on_grid(labels: Image, image: Image, *, is_resampled: bool = False) -> Image:
    """Bring a label map to the grid of its image, by the world positions of both.

    A grid with the same voxels in another order of axes, or a block cut out of it, is mapped exactly. Files without
    position must have the image's shape.

    Args:
        labels: The label map.
        image: The image that it is over; its pixels are not read.
        is_resampled: Take the nearest label if the grids differ, and leave out what lies outside the image, in place of
            refusing them.

    Raises:
        InputError: Colours, or another grid, with both geometries.
    """
    if labels.channels != 1:
        raise InputError("a label map has one number a voxel, this file has colours: give a label map")
    if labels.affine is None or image.affine is None:
        if labels.shape != image.shape:
            raise InputError(
                f"the label map is {labels.shape}, the image {image.shape} (N, H, W), and without a position in both "
                "they must be the same: give the image that it is over"
            )
        return labels
    step = np.linalg.solve(image.affine, labels.affine)  # from label index to image index
    whole, shift = np.rint(step[:3, :3]), np.rint(step[:3, 3])
    ends = np.array(np.meshgrid(*((0, size - 1) for size in labels.shape))).reshape(3, -1)
    error = np.abs(step[:3, :3] @ ends + step[:3, 3:] - (whole @ ends + shift[:, None])).max()
    is_permuted = (np.abs(whole).sum(axis=0) == 1).all() and (np.abs(whole).sum(axis=1) == 1).all()
    if is_permuted and error < SAME_PLACE_VOXELS:
        if (whole == np.eye(3)).all() and not shift.any() and labels.shape == image.shape:
            return labels
        frames = _reordered(labels, whole, shift, image, may_leave_out=is_resampled)
    elif is_resampled:
        frames = _nearest(labels, np.linalg.inv(step), image.shape)
    else:
        raise InputError(f"the label map lies on another grid than the image: {_both(labels, image)}")
    return replace(labels, frames=frames[..., None], affine=image.affine, kind=image.kind)


def orientation(affine: Affine) -> tuple[str, str, str]:
    """Names of the directions of the body to which (n, row, col) lead, each the nearest: left, posterior, ..."""
    names: list[str] = []
    for step in affine[:3, :3].T:
        axis = int(np.abs(step).argmax())
        names.append(_DIRECTIONS[axis][0 if step[axis] > 0 else 1])
    return names[0], names[1], names[2]


def _reordered(
    labels: Image, whole: FloatArray, shift: FloatArray, image: Image, *, may_leave_out: bool
) -> NDArray[Any]:
    """The labels (N, H, W) on the image's grid, when `whole` and `shift` take label indices to the image's."""
    axes, values = np.abs(whole).argmax(axis=1), labels.array()[..., 0]
    turned = values.transpose(axes)
    signs = whole[np.arange(3), axes]
    turned = turned[tuple(slice(None, None, int(sign)) for sign in signs)]
    first = shift + np.where(signs < 0, [1 - size for size in turned.shape], 0)
    target, source = [], []
    for low, size, held in zip(first.astype(int).tolist(), turned.shape, image.shape, strict=True):
        target.append(slice(max(0, low), max(0, min(held, low + size))))
        source.append(slice(max(0, -low), max(0, min(size, held - low))))
    dense = np.zeros(image.shape, dtype=values.dtype)
    dense[tuple(target)] = turned[tuple(source)]
    if not may_leave_out and np.count_nonzero(dense) != np.count_nonzero(values):
        raise InputError(f"the label map holds labels outside the image: {_both(labels, image)}")
    return dense


def _nearest(labels: Image, back: Affine, shape: tuple[int, int, int]) -> NDArray[Any]:
    """The nearest label of every voxel of `shape`; 0 outside the label map. `back` leads to label indices."""
    values = labels.array()[..., 0]
    rows, columns = np.meshgrid(np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    dense = np.zeros(shape, dtype=values.dtype)
    for n in range(shape[0]):
        index = np.stack([np.full_like(rows, n), rows, columns], axis=-1) @ back[:3, :3].T + back[:3, 3]
        nearest = np.floor(index + 0.5).astype(np.int64)
        is_inside = ((nearest >= 0) & (nearest < values.shape)).all(axis=-1)
        dense[n][is_inside] = values[tuple(nearest[is_inside].T)]
    return dense


def _both(labels: Image, image: Image) -> str:
    shown = []
    for one in (labels, image):
        assert one.affine is not None, "checked before"
        size = " x ".join(f"{value:.6g}" for value in spacing_mm(one.affine))
        origin = ", ".join(f"{value:.6g}" for value in one.affine[:3, 3])
        shown.append(f"{one.shape} voxels of {size} mm from ({origin}) to {', '.join(orientation(one.affine))}")
    return (
        f"labels {shown[0]}; image {shown[1]}: give the image they were made on, or resample them (convert --resample)"
    )


class LabelPlace(NamedTuple):
    """The affine to write, and whether its unit is a millimetre; otherwise 1 is one pixel."""

    affine: Affine
    is_mm: bool


def label_place(image: Image) -> LabelPlace:
    """The image's own place; without one, its origin at 0 and its pixel size where that is known, else 1."""
    if image.affine is not None:
        return LabelPlace(image.affine, True)
    row_mm, column_mm = image.pixel_size_mm or (1.0, 1.0)
    affine = affine_from_directions([0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, row_mm, 0.0], [column_mm, 0.0, 0.0])
    return LabelPlace(affine, image.pixel_size_mm is not None)
