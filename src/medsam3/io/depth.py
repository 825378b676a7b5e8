"""The type that rescaled pixel values are kept in."""

from __future__ import annotations

import numpy as np

from medsam3.image import Pixels


def narrowed(pixels: Pixels) -> Pixels:
    """Rescaled values in the smallest usual type that holds them: whole numbers as int16 or int32, else float32."""
    low, high = float(pixels.min()), float(pixels.max())
    for whole in (np.int16, np.int32):
        if np.iinfo(whole).min <= low and high <= np.iinfo(whole).max and (pixels == np.rint(pixels)).all():
            return pixels.astype(whole)
    return pixels.astype(np.float32)
