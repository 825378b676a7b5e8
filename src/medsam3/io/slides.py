"""Whole slides in TIFF (SVS, SCN, BIF, generic pyramids) in: one level of them, or a region of one, as a picture.

Tiles are read by tiffslide in a process apart (`io/apart.py`); a slide is never read whole. Regions are told in pixels
of the finest level, as QuPath and OpenSlide tell them.
"""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from medsam3.errors import InputError, require
from medsam3.image import Image, Pixels
from medsam3.io.apart import run_apart
from medsam3.io.files import SLIDE_PLACE, SlidePart, check_size, first_line

_log = logging.getLogger(__name__)
MOST_PIXELS = 2**24
"""Pixels (17 million) that are read where no level is asked for: the finest level with no more is taken."""
_TILE_WIDTH = 322  # TIFF tag
_FORMAT = "slide (TIFF)"
_ERRORS = (
    *(OSError, EOFError, ValueError, TypeError, RuntimeError, ArithmeticError),
    *(LookupError, AttributeError, AssertionError, NotImplementedError, struct.error),
)


class _SlideHeader(NamedTuple):
    """What a slide's header tells: width and height of each level, the finest first, and mm of its pixels."""

    levels: tuple[tuple[int, int], ...]
    pixel_mm: tuple[float, float] | None


class _Part(NamedTuple):
    """What is read: a level, its pixels for one of the finest, where, and how many columns and rows."""

    level: int
    scale: tuple[float, float]
    corner: tuple[int, int]
    size: tuple[int, int]


def is_slide(path: Path) -> bool:
    """Tell a whole slide from other TIFFs: it is tiled, and has levels, or is larger than pictures may be."""
    try:
        with path.open("rb") as stream, PIL.Image.open(stream, formats=("TIFF",)) as picture:
            tags: Any = getattr(picture, "tag_v2", {})
            is_large = picture.width * picture.height > MOST_PIXELS
            return _TILE_WIDTH in tags and (is_large or _shrinks(picture))
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        return True
    except (*_ERRORS, SyntaxError):
        return False


def _shrinks(picture: PIL.Image.Image) -> bool:
    width, count = picture.width, getattr(picture, "n_frames", 1)
    if count < 2:
        return False
    picture.seek(count - 1 if count < 3 else 1)
    return picture.width < width


def open_slide(path: Path, asked: SlidePart) -> Image:
    """Read a level of a slide, or a region of it; of levels, the finest at which that is at most `MOST_PIXELS`.

    Args:
        path: The file.
        asked: Which level and region.

    Raises:
        InputError: tiffslide is missing, no such level, a region outside the slide, too many pixels, or damage.
    """
    require("tiffslide", extra="slides")
    slide = run_apart(_header, path)
    part = _chosen(slide, asked)
    (width, height), (x, y) = part.size, part.corner
    check_size(1, height, width)
    pixels = run_apart(_pixels, path, part, data_bytes=3 * width * height)
    about = {"format": _FORMAT, "levels": str(len(slide.levels)), "level": str(part.level)}
    if (part.level, part.corner, part.size) != (0, (0, 0), slide.levels[0]):
        about[SLIDE_PLACE] = f"{x} {y} {part.scale[0]:.9g}"
    if asked.level is None and part.level > 0:
        _log.warning(
            "level %d of 0 to %d is read, %d x %d of %d x %d pixels: choose another with level=, or a part with "
            "region=",
            *(part.level, len(slide.levels) - 1, width, height, *slide.levels[0]),
        )
    if slide.pixel_mm is not None:
        row_mm, column_mm = slide.pixel_mm[1] * part.scale[1], slide.pixel_mm[0] * part.scale[0]
        about["pixel_spacing_mm"] = f"{row_mm:.9g} {column_mm:.9g}"
    return Image(pixels[None], source=(path,), metadata=about)


def _chosen(slide: _SlideHeader, asked: SlidePart) -> _Part:
    width, height = slide.levels[0]
    level = asked.level
    x, y, columns, rows = asked.region_of(width, height)
    if level is not None and not 0 <= level < len(slide.levels):
        sizes = ", ".join(f"{k}: {w} x {h}" for k, (w, h) in enumerate(slide.levels))
        raise InputError(f"level {level} was asked for, the slide has {sizes}: choose one of them")
    parts = []
    for k, (w, h) in enumerate(slide.levels):
        scale = (width / w, height / h)
        size = max(1, round(columns / scale[0])), max(1, round(rows / scale[1]))
        parts.append(_Part(k, scale, (x, y), size))
    if level is not None:
        return parts[level]
    return next((part for part in parts if part.size[0] * part.size[1] <= MOST_PIXELS), parts[-1])


def _header(path: Path) -> _SlideHeader:
    tiffslide = require("tiffslide", extra="slides")
    try:
        with tiffslide.TiffSlide(path) as slide:
            told = [slide.properties.get(f"tiffslide.mpp-{axis}") for axis in "xy"]
            sizes = [float(value) / 1000 for value in told if value]
            pixel_mm = (sizes[0], sizes[1]) if len(sizes) == 2 and all(0 < size < 1 for size in sizes) else None
            return _SlideHeader(tuple((int(w), int(h)) for w, h in slide.level_dimensions), pixel_mm)
    except _ERRORS as error:
        raise _damaged(error) from error


def _pixels(path: Path, part: _Part) -> Pixels:
    tiffslide = require("tiffslide", extra="slides")
    try:
        with tiffslide.TiffSlide(path) as slide:
            read: Pixels = np.asarray(slide.read_region(part.corner, part.level, part.size, as_array=True))
    except _ERRORS as error:
        raise _damaged(error) from error
    if read.ndim == 2:
        read = read[..., None]
    if read.dtype != np.uint8 or read.shape[-1] not in (1, 3, 4):
        raise InputError(f"the slide holds {read.shape[-1]} values of {read.dtype} a pixel, which is not read here")
    return np.ascontiguousarray(read[..., :3] if read.shape[-1] == 4 else read)


def _damaged(error: Exception) -> InputError:
    return InputError(f"the slide cannot be read, it may be cut short or damaged ({first_line(error)}): copy it again")
