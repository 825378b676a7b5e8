"""Where a label map lies whose image may tell no position."""

from __future__ import annotations

from typing import NamedTuple

from medsam3.geometry import Affine, affine_from_directions
from medsam3.image import Image


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
