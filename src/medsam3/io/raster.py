"""PNG, JPEG, TIFF and BMP pictures in; label maps and overlays out as PNG.

Grey stays grey in its own depth (1 bit becomes 0 and 255); every colour form becomes 8-bit RGB. Transparent pixels are
laid over black. EXIF orientation is applied, so that rows and columns are those that a viewer shows.
"""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin

from medsam3.errors import InputError
from medsam3.image import Image, Masks, Pixels
from medsam3.io.files import MAX_PICTURE_PIXELS, check_size, first_line
from medsam3.io.labels import combined_labels
from medsam3.store import replacing
from medsam3.view.draw import fullest_frame, overlay
from medsam3.view.view import view_of

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "MPO")
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, KeyError, TypeError, struct.error, zlib.error)
LEGEND_KEY = "medsam3"


def read_raster(path: Path, *, frame: int | None = None) -> Image:
    """Read a picture; a TIFF of several pages of one size is a volume without position.

    Args:
        path: The file.
        frame: One page of a TIFF, from 0; None takes all.

    Raises:
        InputError: Not decodable, too large, pages that differ, or no such page.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size warning; the limit is checked below
            # By a stream: Pillow maps files that it opens by name, and then scrambles TIFFs that are to be turned.
            with path.open("rb") as stream, PIL.Image.open(stream, formats=_FORMATS) as picture:
                return _image(picture, path, frame)
    except PIL.Image.DecompressionBombError as error:
        message = (
            f"the picture has more than the {MAX_PICTURE_PIXELS:,} pixels that are allowed: crop it or scale it down"
        )
        raise InputError(message) from error
    except InputError:
        raise
    except _DECODE_ERRORS as error:
        raise InputError(f"the picture cannot be decoded, it may be cut short ({_reason(error)})") from error


def write_label_png(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write one PNG whose value is the object's number, 0 for background; 16 bit from 256 objects on.

    Objects are numbered through all concepts in the order given; the legend (number, concept, score) is in the file's
    text chunk `medsam3` as JSON. Where concepts overlap, the smaller one is shown (COCO and SEG keep both).

    Raises:
        InputError: More than one frame, or the file cannot be written.
    """
    if image.shape[0] != 1:
        raise InputError(f"a label-map PNG holds one frame, this image has {image.shape[0]}: use the format nifti")
    labels, legend = combined_labels(masks, image.shape)
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text(LEGEND_KEY, json.dumps(legend))
    with replacing(path, ".png") as temporary:
        PIL.Image.fromarray(labels[0]).save(temporary, pnginfo=text)


def write_overlay_png(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write the picture as a model sees it with its masks drawn over it; of a stack, the frame that holds most of them.

    Raises:
        InputError: The file cannot be written.
    """
    view = view_of(image)
    shown = [view.masks_forth(found) for found in masks]
    n = fullest_frame(shown, view.count)
    drawn = overlay(view.rgb(n), shown, n)
    with replacing(path, ".png") as temporary:
        PIL.Image.fromarray(drawn).save(temporary)


def image_of_picture(picture: PIL.Image.Image) -> Image:
    """Take over the page that an opened picture stands at.

    Raises:
        InputError: It is too large, or cannot be decoded.
    """
    check_size(1, picture.height, picture.width)
    try:
        return Image(_page_pixels(picture)[None], metadata={"format": picture.format or "PIL"})
    except _DECODE_ERRORS as error:
        raise InputError(f"the picture cannot be decoded, it may be cut short ({_reason(error)})") from error


def _image(picture: PIL.Image.Image, path: Path, frame: int | None) -> Image:
    file_format = picture.format or ""
    # Only TIFF pages are a stack: a JPEG's or PNG's further frames are previews or animations.
    pages = getattr(picture, "n_frames", 1) if file_format == "TIFF" else 1
    wanted = range(pages) if frame is None else [frame]
    if frame is not None and not 0 <= frame < pages:
        raise InputError(f"frame {frame} was asked for, allowed is 0 to {pages - 1}")
    stack: list[Pixels] = []
    for page in wanted:
        if pages > 1:
            picture.seek(page)
        check_size(len(wanted), picture.height, picture.width)
        pixels = _page_pixels(picture)
        if stack and (pixels.shape != stack[0].shape or pixels.dtype != stack[0].dtype):
            raise InputError(
                f"page {page} is {pixels.shape} {pixels.dtype} but page 0 is {stack[0].shape} {stack[0].dtype} "
                "(rows, columns, channels): choose one page with frame="
            )
        stack.append(pixels)
    bits = "1" if picture.mode == "1" else str(8 * stack[0].dtype.itemsize)
    about = {"format": "JPEG" if file_format == "MPO" else file_format, "bits_stored": bits}
    return Image(np.stack(stack), kind="picture" if len(stack) == 1 else "volume", source=(path,), metadata=about)


def _page_pixels(picture: PIL.Image.Image) -> Pixels:
    """(H, W, C) of the page that the picture stands at."""
    picture.load()
    upright = PIL.ImageOps.exif_transpose(picture)
    mode, is_transparent = upright.mode, "transparency" in upright.info
    if mode.startswith("I") or mode == "F":
        return _native(np.asarray(upright))[..., None]
    if mode in ("LA", "La") or (mode == "L" and is_transparent):
        return np.asarray(_over_black(upright).convert("L"))[..., None]
    if mode in ("1", "L"):
        return np.asarray(upright.convert("L"))[..., None]
    if mode in ("RGBA", "RGBa", "PA") or is_transparent:
        return np.asarray(_over_black(upright))
    return np.asarray(upright.convert("RGB"))


def _over_black(picture: PIL.Image.Image) -> PIL.Image.Image:
    colours = picture.convert("RGBA")
    background = PIL.Image.new("RGBA", colours.size, (0, 0, 0, 255))
    return PIL.Image.alpha_composite(background, colours).convert("RGB")


def _native(pixels: Pixels) -> Pixels:
    """In this machine's byte order; 16-bit grey that Pillow opened as 32-bit integers gets its depth back."""
    if pixels.dtype.kind == "u":
        return pixels.astype(np.uint16)
    if pixels.dtype == np.int32 and pixels.min() >= 0 and pixels.max() <= np.iinfo(np.uint16).max:
        return pixels.astype(np.uint16)
    return pixels


def _reason(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not a picture that Pillow knows"
    return first_line(error)
