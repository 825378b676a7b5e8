"""Where a person would click next: the standard simulation that interactive decoders are trained and measured with.

Source: the next click at the centre of the largest error, as by Sofiiuk et al., ICIP 2022; which error is the largest
is told by how far its middle lies from its rim.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medsam3.geometry import BoolArray, FloatArray
from medsam3.prompts import Point


def depth(mask: BoolArray) -> FloatArray:
    """Distance of each pixel of (H, W) to what is not in the mask, in pixels; the frame's rim is outside it."""
    inside: FloatArray = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return inside


def next_click(reference: BoolArray, predicted: BoolArray) -> Point | None:
    """Find the pixel that lies deepest in what is missed, or in what is too much; None if the masks (H, W) agree."""
    missed, extra = depth(reference & ~predicted), depth(predicted & ~reference)
    is_positive = bool(missed.max() >= extra.max())
    chosen = missed if is_positive else extra
    if chosen.max() <= 0:
        return None
    row, column = np.unravel_index(int(chosen.argmax()), chosen.shape)
    return Point(float(column), float(row), is_positive=is_positive)
