"""PNG, JPEG, TIFF, BMP, AVIF and HEIC pictures in, a folder of them as a video; label maps out as PNG.

Grey stays grey in its own depth (1 bit becomes 0 and 255); every colour form becomes 8-bit RGB. Transparent pixels are
laid over black. EXIF orientation is applied, so that rows and columns are those that a viewer shows.
"""

from __future__ import annotations

import importlib
import json
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.features
import PIL.Image
import PIL.ImageOps
import PIL.PngImagePlugin
import PIL.TiffImagePlugin

from medsam3.errors import InputError, check_frame, require
from medsam3.image import Image, LazyFrames, Masks, Pixels
from medsam3.io.files import MAX_PICTURE_PIXELS, RASTER_SUFFIXES, check_size, file_format, first_line, natural_key
from medsam3.io.labels import combined_labels
from medsam3.store import JsonObject, replacing

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_LOSSY = ("JPEG", "MPO", "AVIF", "HEIF")
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, KeyError, TypeError, struct.error, zlib.error)
LEGEND_KEY = "medsam3"
_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339  # TIFF tags
_UNDECODABLE = "the picture cannot be decoded, it may be cut short ({}): copy it again, or save it as PNG"
_SAMPLE_KINDS = {1: "unsigned", 2: "signed", 3: "real", 5: "complex", 6: "complex"}


def read_raster(path: Path, *, frame: int | None = None) -> Image:
    """Read a picture; a TIFF of several pages of one size is a volume without position.

    Args:
        path: The file.
        frame: One page of a TIFF, from 0; None takes all.

    Raises:
        InputError: Not decodable, too large, pages that differ, or no such page.
    """
    with open_picture(path) as picture:
        return _image(picture, path, frame)


def read_label_picture(path: Path) -> Image:
    """Read a picture whose values are labels: of a palette its numbers, where `read_raster` takes its colours.

    Raises:
        InputError: As `read_raster`.
    """
    with open_picture(path) as picture:
        if picture.format in _LOSSY or picture.info.get("compression") == "jpeg":
            raise InputError(
                f"{picture.format} as it is packed here cannot hold labels, its compression changes them: give a PNG, "
                "NIfTI or NRRD label map"
            )
        if picture.mode != "P":
            return _as_grey(_image(picture, path, None))
        return Image(np.asarray(picture)[None, ..., None], source=(path,), metadata={"format": picture.format or ""})


def _as_grey(labels: Image) -> Image:
    """Take one channel of grey that was saved as colours; colours are left as they are."""
    values = labels.array()
    is_grey = labels.channels == 3 and (values == values[..., :1]).all()
    return replace(labels, frames=values[..., :1]) if is_grey else labels


@contextmanager
def open_picture(path: Path, *, also: Sequence[str] = ()) -> Iterator[PIL.Image.Image]:
    """Open a picture with Pillow, of the formats that are read here and of `also`: others would start programs.

    Raises:
        InputError: Not such a picture, too large, or not decodable, also within the block.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own size warning; the limit is checked below
            # By a stream: Pillow maps files that it opens by name, and then scrambles TIFFs that are to be turned.
            with (
                path.open("rb") as stream,
                PIL.Image.open(stream, formats=[*_FORMATS, *also, *_container_formats(path)]) as picture,
            ):
                yield picture
    except PIL.Image.DecompressionBombError as error:
        message = (
            f"the picture has more than the {MAX_PICTURE_PIXELS:,} pixels that are allowed: crop it or scale it down"
        )
        raise InputError(message) from error
    except (InputError, FileNotFoundError):
        raise
    except _DECODE_ERRORS as error:
        kind = _kind_of_tiff(path)
        if kind and isinstance(error, PIL.UnidentifiedImageError | KeyError):
            raise InputError(
                f"{kind}, which is not read here: save it as 8 or 16-bit, or 32-bit real numbers"
            ) from error
        held = _held_by(path) if isinstance(error, PIL.UnidentifiedImageError) else "raster"
        if held not in ("raster", "video"):
            raise InputError(f"the file is {held}, a picture is wanted: save it as PNG") from error
        raise InputError(_UNDECODABLE.format(_reason(error))) from error


def _held_by(path: Path) -> str:
    """Name what a file is by its content."""
    try:
        return file_format(path)
    except InputError:
        return "of no known form"


def _container_formats(path: Path) -> list[str]:
    """Name Pillow's format of AVIF and HEIC pictures, which come in the container of MP4; [] for other files.

    Raises:
        InputError: It is one, and what reads it is missing.
    """
    with path.open("rb") as stream:
        head = stream.read(64)
    if head[4:8] != b"ftyp":
        return []
    if b"avif" not in head[8:]:
        require("pi_heif", extra="heic").register_heif_opener()
        return ["HEIF"]
    if not PIL.features.check("avif"):
        raise InputError("the file is an AVIF picture, which this Pillow cannot read: pip install 'pillow>=11.3'")
    importlib.import_module("PIL.AvifImagePlugin")
    return ["AVIF"]


def _kind_of_tiff(path: Path) -> str:
    """Tell which samples a TIFF holds, for messages; empty if it is none, or damaged."""
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
            if head[:4] not in (b"II*\0", b"MM\0*"):
                return ""
            tags = PIL.TiffImagePlugin.ImageFileDirectory_v2(head)
            stream.seek(tags.next)
            tags.load(stream)
            bits, kind = tags.get(_BITS_PER_SAMPLE, (1,)), tags.get(_SAMPLE_FORMAT, (1,))[0]
    except _DECODE_ERRORS:
        return ""
    return f"the TIFF holds {len(bits)} {bits[0]}-bit {_SAMPLE_KINDS.get(kind, 'unknown')} samples a pixel"


def open_frame_folder(folder: Path) -> Image:
    """Open the pictures of a folder, not of those below it, as a video; `frame2.png` comes before `frame10.png`.

    Raises:
        InputError: No pictures, or, when a frame is asked for, one of another size.
    """
    paths = frame_files(folder)
    if not paths:
        raise InputError("the folder holds neither a DICOM series nor pictures: give one that does")
    read = _Pictures(tuple(paths))
    height, width, channels = read(0).shape
    check_size(len(paths), height, width)
    return Image(
        LazyFrames((len(paths), height, width, channels), read),
        kind="video" if len(paths) > 1 else "picture",
        source=tuple(paths),
        metadata={"format": "folder of pictures"},
    )


def frame_files(folder: Path) -> list[Path]:
    """Pictures of a folder in the order of the frames."""
    paths = [path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(RASTER_SUFFIXES)]
    return sorted((path for path in paths if not path.name.startswith(".")), key=lambda path: natural_key(path.name))


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


def raster_legend(path: Path) -> list[JsonObject]:
    """Read what the numbers of a label map mean, by the legend of `write_label_png`; empty in pictures of others."""
    with open_picture(path) as picture:
        legend: list[JsonObject] = json.loads(picture.info.get(LEGEND_KEY, "[]"))
    return legend


def image_of_picture(picture: PIL.Image.Image) -> Image:
    """Take over the page that an opened picture stands at.

    Raises:
        InputError: It is too large, or cannot be decoded.
    """
    check_size(1, picture.height, picture.width)
    try:
        return Image(_page_pixels(picture)[None], metadata={"format": picture.format or "PIL"})
    except _DECODE_ERRORS as error:
        raise InputError(_UNDECODABLE.format(_reason(error))) from error


def _image(picture: PIL.Image.Image, path: Path, frame: int | None) -> Image:
    form = picture.format or ""
    # Only TIFF pages are a stack: a JPEG's or PNG's further frames are previews or animations.
    pages = getattr(picture, "n_frames", 1) if form == "TIFF" else 1
    wanted = range(pages) if frame is None else [check_frame(frame, pages)]
    first: tuple[Any, ...] = ()
    for page in wanted:
        if pages > 1:
            picture.seek(page)
        check_size(len(wanted), picture.height, picture.width)
        shape = (picture.height, picture.width, picture.mode)
        first = first or shape
        if shape != first:
            raise InputError(
                f"page {page} is {shape} but page 0 is {first} (rows, columns, mode): choose one page with frame="
            )
    if pages > 1:
        picture.seek(wanted[0])
    pixels = _page_pixels(picture)
    bits = "1" if picture.mode == "1" else str(8 * pixels.dtype.itemsize)
    about = {"format": "JPEG" if form == "MPO" else form, "bits_stored": bits}
    if len(wanted) == 1:
        return Image(pixels[None], source=(path,), metadata=about)
    frames = LazyFrames((len(wanted), *pixels.shape), _Pages(path))
    return Image(frames, kind="volume", source=(path,), metadata=about)


@dataclass(frozen=True)
class _Pages:
    """Reads pages of a TIFF."""

    path: Path

    def __call__(self, n: int) -> Pixels:
        with open_picture(self.path) as picture:
            picture.seek(n)
            return _page_pixels(picture)


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
    """Put samples into this machine's byte order; 16-bit grey opened as 32-bit integers gets its depth back."""
    if pixels.dtype.kind == "u":
        return pixels.astype(np.uint16)
    if pixels.dtype == np.int32 and pixels.min() >= 0 and pixels.max() <= np.iinfo(np.uint16).max:
        return pixels.astype(np.uint16)
    return pixels


def _reason(error: Exception) -> str:
    if isinstance(error, PIL.UnidentifiedImageError):
        return "not a picture that Pillow knows"
    return first_line(error)


@dataclass(frozen=True)
class _Pictures:
    """Reads pictures as frames."""

    paths: tuple[Path, ...]

    def __call__(self, n: int) -> Pixels:
        try:
            return read_raster(self.paths[n], frame=0).pixels(0)
        except InputError as error:
            raise InputError(f"{self.paths[n].name}: {error}") from error
