"""Masks as a person sees them in Python: a picture with the objects drawn in, and a table, for notebooks.

All text is escaped: a phrase may hold anything.
"""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medsam3.errors import InputError, check_frame
from medsam3.image import Image, Masks
from medsam3.page import data_url, render
from medsam3.view.draw import fullest_frame, overlay
from medsam3.view.view import view_of

MOST_ROWS = 20
LONGEST_SIDE_PX = 800
"""A larger picture is scaled down for the page."""


def drawn(masks: Masks, n: int | None = None, image: Image | None = None) -> NDArray[np.uint8]:
    """Draw masks over a frame of their image, (H, W, 3); see `Masks.overlay`."""
    shown = image or masks.image
    if shown is None:
        raise InputError("these masks do not know their image: give it, masks.overlay(image=...)")
    view = view_of(shown, keeps_slices=n is not None)
    over_views = view.masks_forth(masks)
    at = fullest_frame([over_views], view.count) if n is None else view.number(check_frame(n, view.count))
    return overlay(view.rgb(at), [over_views], at)


def png_of(masks: Masks) -> bytes | None:
    """Draw masks as a PNG; None if their image is not at hand."""
    picture = _thumbnail(masks)
    if picture is None:
        return None
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _thumbnail(masks: Masks) -> PIL.Image.Image | None:
    try:
        picture = PIL.Image.fromarray(drawn(masks))
    except InputError:
        return None
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX))
    return picture


def html_of(masks: Masks) -> str:
    """Show masks as HTML: what was asked and how sure the answer is, the picture, a row for each object."""
    presence = "" if masks.presence is None else f"presence {masks.presence:.2f}, {masks.verdict or ''}"
    shown = _thumbnail(masks)
    size, unit = _unit(masks)
    return render(
        "view/notebook.html.jinja",
        head=", ".join(filter(None, [masks.concept or "object", presence, f"{len(masks)} objects"])),
        picture="" if shown is None else data_url(shown),
        rows=[
            (k, f"{item.score:.2f}", f"{item.voxels * size:.4g}")
            for k, item in enumerate(masks.objects[:MOST_ROWS], start=1)
        ],
        unit=unit,
        more=len(masks) - MOST_ROWS,
    )


def _unit(masks: Masks) -> tuple[float, str]:
    """Tell what one voxel counts, and its unit."""
    image = masks.image
    if image is not None and image.kind == "volume" and image.spacing_mm is not None:
        return float(np.prod(image.spacing_mm)), "mm³"
    if image is not None and image.kind == "picture" and image.pixel_size_mm is not None:
        return float(np.prod(image.pixel_size_mm)), "mm²"
    return 1.0, "pixels"
