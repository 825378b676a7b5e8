"""Drawings over a frame: coloured masks with a legend, numbered marks. numpy and Pillow only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.errors import InputError
from medsam3.geometry import BoolArray
from medsam3.image import Masks

RGB = NDArray[np.uint8]
Colour = tuple[int, int, int]

COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
    (255, 255, 255),
)
"""Distinct to colour-blind readers. Source: Okabe and Ito, Color Universal Design, 2008, with white for black."""

FILL_OPACITY = 0.35
MAX_LEGEND_LINES = 6


class _Entry(NamedTuple):
    """One object in a frame."""

    mask: BoolArray
    colour: Colour
    concept: str
    score: float


def overlay(rgb: RGB, masks: Sequence[Masks], n: int = 0) -> RGB:
    """The picture with coloured fills, outlines and a legend (phrase, score), (H, W, 3) uint8 of the same size.

    Objects of a single concept have a colour each; of several concepts, each concept has one.
    """
    entries = _entries(masks, n, rgb.shape)
    drawn = rgb.astype(np.float32)
    for entry in entries:
        drawn[entry.mask] += FILL_OPACITY * (np.array(entry.colour, dtype=np.float32) - drawn[entry.mask])
    shown = drawn.round().astype(np.uint8)
    thickness = 2 if min(rgb.shape[:2]) >= 400 else 1
    for entry in entries:
        shown[entry.mask & ~_eroded(entry.mask, thickness)] = entry.colour
    return _with_legend(shown, _legend_lines(masks, entries), _union(entries, rgb.shape))


def number_marks(rgb: RGB, masks: Sequence[Masks], n: int = 0, numbers: Sequence[int] | None = None) -> RGB:
    """The picture with 1, 2, ... written on the objects, through all masks in the order given; same size.

    Numbers stand where the object is widest, in its colour on a dark disc. `numbers` (one an object) are written in
    place of 1, 2, ...
    """
    entries = _entries(masks, n, rgb.shape)
    picture = PIL.Image.fromarray(rgb)
    draw = PIL.ImageDraw.Draw(picture)
    size = _font_size(rgb.shape)
    font = PIL.ImageFont.load_default(size)
    for number, entry in zip(numbers or range(1, len(entries) + 1), entries, strict=True):
        if not entry.mask.any():
            continue
        x, y = _widest_place(entry.mask)
        text = str(number)
        radius = max(size * 0.7, draw.textlength(text, font) / 2 + 3)
        x = float(np.clip(x, radius, max(radius, rgb.shape[1] - 1 - radius)))
        y = float(np.clip(y, radius, max(radius, rgb.shape[0] - 1 - radius)))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(0, 0, 0), outline=entry.colour, width=2)
        draw.text((x, y), text, fill=(255, 255, 255), font=font, anchor="mm")
    return np.asarray(picture)


def fullest_frame(masks: Sequence[Masks], count: int) -> int:
    """Find the frame that holds most of the objects; the middle one if there are none."""
    sizes = np.zeros(count, dtype=np.int64)
    for found in masks:
        for item in found.objects:
            sizes[item.start[0] : item.start[0] + len(item.crop)] += item.crop.sum(axis=(1, 2))
    return int(sizes.argmax()) if sizes.any() else count // 2


def _entries(masks: Sequence[Masks], n: int, shape: tuple[int, ...]) -> list[_Entry]:
    """All objects, empty in this frame or not, so that numbers and colours stay the same through a stack."""
    entries: list[_Entry] = []
    for m, found in enumerate(masks):
        if found.shape[1:] != shape[:2] or not 0 <= n < found.shape[0]:
            raise InputError(f"masks are over {found.shape} (N, H, W), the picture is frame {n} of {shape[:2]} (H, W)")
        for k, item in enumerate(found.objects):
            colour = COLOURS[(m if len(masks) > 1 else k) % len(COLOURS)]
            entries.append(_Entry(item.plane(n, shape[:2]), colour, found.concept, item.score))
    return entries


def _union(entries: Sequence[_Entry], shape: tuple[int, ...]) -> BoolArray:
    union = np.zeros(shape[:2], dtype=np.bool_)
    for entry in entries:
        union |= entry.mask
    return union


def _eroded(mask: BoolArray, thickness: int) -> BoolArray:
    eroded: BoolArray = ndimage.binary_erosion(mask, iterations=thickness)
    return eroded


def _widest_place(mask: BoolArray) -> tuple[float, float]:
    """(x, y) of the pixel that lies deepest within the object."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = rows[0], columns[0]
    crop = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    row, column = np.unravel_index(ndimage.distance_transform_edt(crop).argmax(), crop.shape)
    return float(column - 1 + left), float(row - 1 + top)


def _font_size(shape: tuple[int, ...]) -> int:
    return max(12, min(shape[:2]) // 30)


def _legend_lines(masks: Sequence[Masks], entries: Sequence[_Entry]) -> list[tuple[str, Colour]]:
    """A line for each object where they are few, else one for each concept."""
    lines: list[tuple[str, Colour]] = []
    is_listed = 0 < len(entries) <= MAX_LEGEND_LINES
    for m, found in enumerate(masks):
        colour = COLOURS[m % len(COLOURS)] if len(masks) > 1 else COLOURS[0]
        name = found.concept or "object"
        if not found.objects:
            lines.append((f"{name}: not found", colour))
        elif not is_listed:
            lines.append((f"{name}: {len(found)} objects, best {found.scores[0]:.2f}", colour))
    if is_listed:
        lines = [(f"{entry.concept or 'object'} {entry.score:.2f}", entry.colour) for entry in entries] + lines
    if len(lines) > MAX_LEGEND_LINES:
        rest = len(lines) - MAX_LEGEND_LINES + 1
        lines = [*lines[: MAX_LEGEND_LINES - 1], (f"and {rest} more", (255, 255, 255))]
    return lines


def _with_legend(rgb: RGB, lines: Sequence[tuple[str, Colour]], covered: BoolArray) -> RGB:
    """Write the lines into the corner that hides least of the masks; a picture too small for text stays as it is."""
    height, width = rgb.shape[:2]
    size = _font_size(rgb.shape)
    font = PIL.ImageFont.load_default(size)
    pad, step = size // 3, round(size * 1.3)
    texts = [(_shortened(text, font, width - 3 * pad - size), colour) for text, colour in lines]
    box_width = round(max((font.getlength(text) for text, _ in texts), default=0.0)) + 3 * pad + size
    box_height = step * len(texts) + pad
    if not texts or box_width > width or box_height > height / 2 or not any(text for text, _ in texts):
        return rgb
    corners = [(x, y) for y in (0, height - box_height) for x in (0, width - box_width)]
    left, top = min(corners, key=lambda at: covered[at[1] : at[1] + box_height, at[0] : at[0] + box_width].sum())
    shown = rgb.copy()
    shown[top : top + box_height, left : left + box_width] //= 4
    picture = PIL.Image.fromarray(shown)
    draw = PIL.ImageDraw.Draw(picture)
    for number, (text, colour) in enumerate(texts):
        y = top + pad // 2 + number * step
        draw.rectangle(
            (left + pad, y + step // 2 - size // 2, left + pad + size - 2, y + step // 2 + size // 2 - 2), colour
        )
        draw.text((left + 2 * pad + size, y + step // 2), text, fill=(255, 255, 255), font=font, anchor="lm")
    return np.asarray(picture)


def _shortened(text: str, font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..." if text else ""
