"""Masks as a person sees them in Python: a picture with the objects drawn in, and a table, for notebooks.

All text is escaped: a phrase may hold anything.
"""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.image import Image, Masks
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
    if n is not None and not 0 <= n < shown.shape[0]:
        raise InputError(f"frame {n} was asked for, allowed is 0 to {shown.shape[0] - 1}")
    view = view_of(shown, keeps_slices=n is not None)
    over_views = view.masks_forth(masks)
    at = fullest_frame([over_views], view.count) if n is None else view.number(n)
    return overlay(view.rgb(at), [over_views], at)


def png_of(masks: Masks) -> bytes | None:
    """Draw masks as a PNG; None if their image is not at hand."""
    try:
        picture = PIL.Image.fromarray(drawn(masks))
    except InputError:
        return None
    picture.thumbnail((LONGEST_SIDE_PX, LONGEST_SIDE_PX))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def html_of(masks: Masks) -> str:
    """Show masks as HTML: what was asked and how sure the answer is, the picture, a row for each object."""
    presence = "" if masks.presence is None else f"presence {masks.presence:.2f}, {masks.verdict or ''}"
    head = ", ".join(filter(None, [escape(masks.concept or "object"), presence, f"{len(masks)} objects"]))
    png = png_of(masks)
    picture = "" if png is None else f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="masks">'
    rows = "".join(_row(masks, k) for k in range(min(len(masks), MOST_ROWS)))
    more = f"<p>and {len(masks) - MOST_ROWS} more</p>" if len(masks) > MOST_ROWS else ""
    unit = _unit(masks)[1]
    table = f"<table><tr><th>object</th><th>score</th><th>size ({unit})</th></tr>{rows}</table>" if rows else ""
    return f"<div><p><b>{head}</b></p>{picture}{table}{more}</div>"


def _row(masks: Masks, k: int) -> str:
    item = masks.objects[k]
    return f"<tr><td>{k + 1}</td><td>{item.score:.2f}</td><td>{item.voxels * _unit(masks)[0]:.4g}</td></tr>"


def _unit(masks: Masks) -> tuple[float, str]:
    """What one voxel counts, and its unit."""
    image = masks.image
    if image is not None and image.kind == "volume" and image.spacing_mm is not None:
        return float(np.prod(image.spacing_mm)), "mm³"
    if image is not None and image.kind == "picture" and image.pixel_size_mm is not None:
        return float(np.prod(image.pixel_size_mm)), "mm²"
    return 1.0, "pixels"
