"""Measures of masks: volume in mL, longest diameter in mm, range of slices. Out as CSV and as JSON.

A diameter is the longest straight line within one slice between outer pixel corners of the object (as RECIST 1.1
measures, in the plane of the slices), so that one pixel of 1 x 1 mm has a diameter of 1.41 mm. Without a spacing the
columns in mm and mL are left empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from scipy.spatial import ConvexHull, distance

from medsam3.geometry import BoolArray, FloatArray
from medsam3.image import Image, Masks, ObjectMask
from medsam3.io.labels import check_masks
from medsam3.store import csv_text, write_json, write_text


@dataclass(frozen=True)
class Measures:
    """One object, or with `object` 0 all objects of a concept together.

    Attributes:
        concept: The phrase.
        object: From 1, best score first; 0 for all together.
        score: In 0..1; of all together the best.
        presence: Probability of the concept in the stack; None where no phrase was asked.
        voxels: How many.
        volume_ml: None for a picture or video, and without spacing.
        longest_diameter_mm: None without spacing.
        diameter_slice: The slice or frame that it was measured in; None where there is nothing.
        first_slice, last_slice: From 0, both included; None where there is nothing.
        seconds: From the first frame to the end of the last one, of a video with a frame rate.
    """

    concept: str
    object: int
    score: float | None
    presence: float | None
    voxels: int
    volume_ml: float | None
    longest_diameter_mm: float | None
    diameter_slice: int | None
    first_slice: int | None
    last_slice: int | None
    seconds: float | None


def measure(masks: Sequence[Masks], image: Image) -> list[Measures]:
    """A row for each concept, and one for each of its objects where there are several.

    Raises:
        InputError: Masks of another shape.
    """
    check_masks(masks, image.shape)
    rows: list[Measures] = []
    for found in masks:
        if len(found) <= 1:
            rows.append(_row(found, 1 if found.objects else 0, found.objects[0] if found.objects else None, image))
            continue
        union = ObjectMask.from_dense(found.union(), found.scores[0])
        rows.append(_row(found, 0, union, image))
        rows.extend(_row(found, k, item, image) for k, item in enumerate(found.objects, start=1))
    return rows


def write_measures_csv(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write the rows of `measure` under their names.

    Raises:
        InputError: Masks of another shape, or the file cannot be written.
    """
    names = [field.name for field in fields(Measures)]
    text = csv_text(names, [list(asdict(row).values()) for row in measure(masks, image)])
    write_text(path, text)


def write_measures_json(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write the rows of `measure` as a list of objects.

    Raises:
        InputError: Masks of another shape, or the file cannot be written.
    """
    write_json(path, [asdict(row) for row in measure(masks, image)])


def longest_diameter(mask: BoolArray, row_mm: float, column_mm: float) -> float:
    """The longest line between outer corners of the true pixels of (H, W), in mm; 0 where there are none."""
    rows, columns = np.nonzero(mask)
    if rows.size == 0:
        return 0.0
    # Only the first and the last pixel of a row can be ends.
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    ends = np.append(starts[1:], rows.size) - 1
    corners = [
        np.stack([(rows[at] + up) * row_mm, (columns[at] + aside) * column_mm], axis=-1)
        for at, aside in ((starts, 0), (ends, 1))
        for up in (0, 1)
    ]
    points: FloatArray = np.concatenate(corners).astype(np.float64)
    hull = points[ConvexHull(points).vertices]
    return float(distance.pdist(hull).max())


def _row(found: Masks, number: int, item: ObjectMask | None, image: Image) -> Measures:
    if item is None:
        diameter = None if image.pixel_size_mm is None else 0.0
        return Measures(
            found.concept, number, None, found.presence, 0, image.volume_ml(0), diameter, None, None, None, None
        )
    first, last = item.start[0], item.start[0] + item.crop.shape[0] - 1
    volume = image.volume_ml(item.voxels)
    volume = None if volume is None else round(volume, 4)
    size = image.pixel_size_mm
    diameter, at = None, None
    if size is not None:
        lengths = [longest_diameter(plane, *size) for plane in item.crop]
        at = first + int(np.argmax(lengths))
        diameter = round(max(lengths), 3)
    seconds = round((last - first + 1) / image.fps, 3) if image.fps else None
    score = round(item.score, 6)
    return Measures(
        found.concept, number, score, found.presence, item.voxels, volume, diameter, at, first, last, seconds
    )
