"""Pictures of a frame for whoever decides: raw, with numbered marks, enlarged. Text burnt into borders is hidden.

Every picture has a longer side of 512 to 1024 pixels, so that numbers can be read in it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medsam3.agent.chat import ShownPicture
from medsam3.agent.measuring import plane_of
from medsam3.agent.redact import hide_burnt_in_text
from medsam3.agent.values import Mark
from medsam3.image import Masks
from medsam3.view.crops import Crop
from medsam3.view.draw import number_marks, overlay

RGB = NDArray[np.uint8]
LEAST_SIDE = 512
MOST_SIDE = 1024


def picture(rgb: RGB, caption: str, n: int = 0, window: Crop | None = None, marks: Sequence[Mark] = ()) -> ShownPicture:
    """A frame (H, W, 3), or a window of it, with marks of that frame drawn and numbered; none leaves it raw.

    Args:
        rgb: The frame; what is burnt into its borders is hidden here.
        caption: Says what is seen.
        n: Which frame it is.
        window: The part to be shown enlarged; None shows all.
        marks: To draw, each under its own number.
    """
    shown, _ = hide_burnt_in_text(rgb)
    masks = [plane_of(mark, (rgb.shape[0], rgb.shape[1]), n) for mark in marks]
    if window is not None:
        shown, masks = window.cut(shown), [window.cut(mask) for mask in masks]
    factor = _factor(shown.shape[:2])
    if factor != 1:
        size = (max(1, round(shown.shape[1] * factor)), max(1, round(shown.shape[0] * factor)))
        shown = np.asarray(PIL.Image.fromarray(shown).resize(size, PIL.Image.Resampling.LANCZOS))
        masks = [np.asarray(PIL.Image.fromarray(mask).resize(size, PIL.Image.Resampling.NEAREST)) for mask in masks]
    kept = [(mark, mask) for mark, mask in zip(marks, masks, strict=True) if mask.any()]
    if kept:
        # `overlay` and `number_marks` take objects best score first, which is not the order of the numbers here.
        each = [Masks.from_dense(mask[None, None], [mark.mask.score], concept=f"{mark.number}") for mark, mask in kept]
        shown = number_marks(overlay(shown, each), each, numbers=[mark.number for mark, _ in kept])
    return ShownPicture(png(shown), caption)


def png(rgb: RGB) -> bytes:
    """A picture (H, W, 3) uint8 as a PNG file without any metadata."""
    stream = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(rgb)).save(stream, "PNG")
    return stream.getvalue()


def _factor(shape: tuple[int, int]) -> float:
    longest = max(shape)
    return LEAST_SIDE / longest if longest < LEAST_SIDE else min(1.0, MOST_SIDE / longest)
