"""Tasks of the reading process: unpack and open what was uploaded, show frames, write results. No model, no torch.

What the paths hold is not trusted: limits are checked on what headers say, before pixels are decoded.
"""

from __future__ import annotations

import io
import pickle
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from medsam3.errors import InputError, check_frame
from medsam3.image import Image, Masks, Pixels, Window
from medsam3.io import FORMATS, read, write, write_format
from medsam3.io.files import HEADERS, natural_key
from medsam3.io.handed import ABOUT, FRAMES, is_handed, open_handed
from medsam3.io.labels import concept_numbers, orientation
from medsam3.io.nifti import write_slices
from medsam3.io.packed_masks import LOSSLESS, dumped
from medsam3.io.read_masks import read_masks
from medsam3.prompts import Box, Point, Prompt
from medsam3.server.schemas import Display, ImageAnswer, Source, WindowAsked
from medsam3.server.settings import Limits
from medsam3.view.grey import SOFT_TISSUE_HU, WINDOWS, window_named
from medsam3.view.view import View, view_of

THUMBNAIL_PIXELS = 160
_CHUNK_BYTES = 2**20
_MOST_RATIO = 1000
"""Zeros of a mask deflate about a thousandfold; more than that is made to fill disks."""


def open_upload(
    folder: Path, name: str, limits: Limits, frame: int | None = None, series: str | None = None
) -> tuple[Source, ImageAnswer]:
    """Open the files of an upload as one image: a zip is unpacked, several files are a series.

    Raises:
        InputError: What `medsam3.read` refuses, or more than the limits allow; file names of the server are not told.
    """
    try:
        source = Source(_place_of(folder, limits), frame, series)
        return source, describe(source, name, limits)
    except InputError as error:
        raise InputError(_without_folder(str(error), folder, name)) from error


def describe(source: Source, name: str, limits: Limits) -> ImageAnswer:
    """Tell what an image is, and how it is shown.

    Raises:
        InputError: As `open_upload`.
    """
    image = opened(source)
    frames, height, width = image.shape
    if frames > limits.frames or height * width > limits.frame_pixels:
        raise InputError(
            f"the image has {frames} frames of {width} x {height} pixels, allowed are {limits.frames} frames of "
            f"{limits.frame_pixels} pixels: cut it into parts"
        )
    view = shown(source, None)
    is_ct = image.metadata.get("modality") == "CT" or view.window == SOFT_TISSUE_HU
    return ImageAnswer(
        id="",
        name=name,
        kind=image.kind,
        frames=frames,
        height=height,
        width=width,
        channels=image.channels,
        spacing_mm=image.spacing_mm,
        modality=image.metadata.get("modality"),
        fps=image.fps,
        windows={name: (one.low, one.high) for name, one in WINDOWS.items()} if is_ct else {},
        display=_display(view),
    )


@lru_cache(4)
def opened(source: Source) -> Image:
    """Open an image, or take it from those that were opened last."""
    if source.path.is_dir() and is_handed(source.path):
        return open_handed(source.path)
    return read(source.path, frame=source.frame, series=source.series)


@lru_cache(8)
def shown(source: Source, window: WindowAsked | None) -> View:
    """Show an image's own slices, in a window that was asked for or in the automatic one, which looks at all of it."""
    return view_of(opened(source), window=window_of(window), keeps_slices=True)


def window_of(asked: WindowAsked | None) -> Window | None:
    """Read a window that was asked for by name, by centre and width, or by its two ends.

    Raises:
        InputError: There is none of that name, or its ends are not in order.
    """
    if asked is None or isinstance(asked, str):
        return None if asked is None else window_named(asked)
    return Window(*asked)


def png_of(source: Source, frame: int, window: str | None, longest: int | None = None) -> bytes:
    """Give a frame as PNG, as it is shown, at most `longest` pixels wide and high.

    Raises:
        InputError: No such frame or window, a frame that cannot be decoded.
    """
    view = shown(source, window)
    picture = PIL.Image.fromarray(view.rgb(view.number(check_frame(frame, view.count))))
    if longest is not None:
        picture.thumbnail((longest, longest))
    stream = io.BytesIO()
    picture.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def npy_of(source: Source, frame: int) -> bytes:
    """Give a frame as a .npy file: its values as the file means them, (H, W) or (H, W, 3), in the file's own rows.

    Raises:
        InputError: No such frame, or one that cannot be decoded.
    """
    image = opened(source)
    stream = io.BytesIO()
    np.save(stream, _plain(image.pixels(check_frame(frame, image.shape[0]))), allow_pickle=False)
    return stream.getvalue()


def write_volume(source: Source, path: Path, limits: Limits) -> Path:
    """Write an image as NIfTI for a viewer, in the values and on the grid of its file; one that is there is kept.

    Raises:
        InputError: Larger than is allowed, a slice that cannot be decoded.
    """
    image = opened(source)
    pixels = image.pixels(0)
    size = pixels.nbytes * image.shape[0]
    if size > limits.volume_bytes:
        raise InputError(
            f"the volume has {size} bytes of voxels, allowed at once are {limits.volume_bytes}: ask for its frames"
        )
    if not path.exists():
        write_slices(image, lambda n: _plain(image.pixels(n)), path)
    return path


def _plain(pixels: Pixels) -> Pixels:
    """Pixels (H, W) of grey ones, (H, W, 3) of colours."""
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def save_masks(masks: Sequence[Masks], path: Path) -> None:
    """Keep masks for `write_result`, in the server's own folder that nobody else can write to."""
    path.write_bytes(pickle.dumps([replace(one, image=None) for one in masks], pickle.HIGHEST_PROTOCOL))


def write_result(source: Source, masks: Path, form: str, stem: str, window: WindowAsked | None) -> Path:
    """Write kept masks in a format, as the command line does, and name the file.

    Raises:
        InputError: A format that is not known, or does not take this image or these masks.
    """
    image = opened(source)
    if window is not None:
        image = replace(image, window=window_of(window))
    kept: list[Masks] = pickle.loads(masks.read_bytes())
    if form == LOSSLESS:
        path = masks.parent / f"{stem}.masks.json"
        path.write_text(dumped(kept), encoding="ascii")
        return path
    try:
        return write_format(form, kept, image, masks.parent, stem)
    except InputError as error:
        raise InputError(_without_folder(str(error), masks.parent, stem)) from error


def write_numbers(source: Source, masks: Path, names: Sequence[str], ending: str, is_packed: bool) -> Path:
    """Write kept masks as one number a voxel, the place of its concept in `names` from 1, and name the file.

    Raises:
        InputError: The file cannot be written.
    """
    from medsam3.io.itk import write_numbers as write  # noqa: PLC0415  SimpleITK

    image = opened(source)
    kept: list[Masks] = pickle.loads(masks.read_bytes())
    path = masks.parent / f"labels{ending}"
    write(concept_numbers(kept, names, image.shape), image, path, is_packed=is_packed)
    return path


def keep_label(source: Source, label: Path, names: Mapping[int, str], target: Path) -> None:
    """Check a label map that a client sends back, and keep it over its image, with the names of the numbers.

    Args:
        source: The image.
        label: A file of masks; one that ends in .bin holds a byte a voxel of the image and nothing else.
        names: What the numbers mean, as far as the file does not tell.
        target: Where it is kept, as NIfTI or, with .dcm at its end, DICOM SEG; it is replaced in one step.

    Raises:
        InputError: Not masks, or over another image.
    """
    image = opened(source)
    try:
        found = _raw_masks(label, image) if label.suffix == ".bin" else read_masks(label, image)[0]
    except InputError as error:
        raise InputError(_without_folder(str(error), label.parent, "the label")) from error
    known = {f"label {number}": name for number, name in names.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    write([replace(one, concept=known.get(one.concept, one.concept)) for one in found], target, image)


def _raw_masks(label: Path, image: Image) -> list[Masks]:
    """Masks of a file that holds one byte a voxel, in the order of the image's own voxels."""
    held = np.fromfile(label, dtype=np.uint8)
    if held.size != np.prod(image.shape):
        raise InputError(f"the label has {held.size} voxels, the image has {np.prod(image.shape)}: send one for each")
    labels = held.reshape(image.shape)
    values = [int(value) for value in np.unique(labels) if value]
    found = [Masks.from_dense((labels == value)[None], [1.0], concept=f"label {value}") for value in values]
    return found or [Masks(image.shape)]


def formats() -> list[str]:
    """Name the formats that results can be had in."""
    return [*FORMATS, LOSSLESS]


def _place_of(folder: Path, limits: Limits) -> Path:
    """Find what `medsam3.read` is to be given: the file, the header of several, or the folder."""
    files = _files(folder)
    if len(files) == 1 and zipfile.is_zipfile(files[0]) and not _is_office(files[0]):
        archive = files[0].rename(folder.parent / "upload.zip")
        try:
            _unpack(archive, folder, limits)
        finally:
            archive.unlink()
        files = _files(folder)
    if not files:
        raise InputError("the upload holds no files: choose an image, a DICOM series or a zip of one")
    headers = [path for path in files if path.suffix.lower() in HEADERS]
    if len(headers) == 1:
        return headers[0]
    return files[0] if len(files) == 1 else folder


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _is_office(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return "[Content_Types].xml" in archive.namelist()


def _unpack(archive: Path, folder: Path, limits: Limits) -> None:
    """Unpack the files of a zip under numbers, so that no name of it leads anywhere."""
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = [entry for entry in packed.infolist() if _is_wanted(entry)]
            _check_entries(entries, limits)
            entries.sort(key=lambda entry: natural_key(entry.filename))
            left = limits.upload_bytes
            for number, entry in enumerate(entries):
                left -= _unpack_one(packed, entry, folder / stored_name(number, entry.filename), left)
    except InputError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise InputError(
            f"the zip cannot be unpacked ({type(error).__name__}): pack it again without a password"
        ) from error


def _is_wanted(entry: zipfile.ZipInfo) -> bool:
    parts = entry.filename.replace("\\", "/").split("/")
    is_link = (entry.external_attr >> 16) & 0o170000 == 0o120000
    return not (entry.is_dir() or is_link or parts[-1].startswith(".") or "__MACOSX" in parts)


def _check_entries(entries: Sequence[zipfile.ZipInfo], limits: Limits) -> None:
    if len(entries) > limits.upload_files:
        raise InputError(f"the zip holds {len(entries)} files, allowed are {limits.upload_files}: split it")
    if sum(entry.file_size for entry in entries) > limits.upload_bytes:
        raise InputError(
            f"the zip unpacks to more than {limits.upload_bytes} bytes, which is what is allowed: split it"
        )
    for entry in entries:
        if entry.file_size > _MOST_RATIO * max(entry.compress_size, 1) + _CHUNK_BYTES:
            raise InputError("the zip holds a file that grows more than a thousandfold: pack it again")


def _unpack_one(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, left: int) -> int:
    size = 0
    with packed.open(entry) as source, path.open("wb") as target:
        while piece := source.read(_CHUNK_BYTES):
            size += len(piece)
            if size > left:
                raise InputError("the zip unpacks to more than its list says: pack it again")
            target.write(piece)
    return size


def stored_name(number: int, name: str) -> str:
    """Name an uploaded file on disk: a number, and its ending; headers and their data keep a plain name."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    lower = base.lower()
    if base in (FRAMES, ABOUT):  # `medsam3.Client` hands an image in memory over by them
        return base
    if lower.endswith((*HEADERS, ".raw", ".zraw", ".img", ".img.gz", ".raw.gz")) and is_plain(base):
        return base
    ending = ".nii.gz" if lower.endswith(".nii.gz") else Path(lower).suffix
    return f"{number:06d}{ending if is_plain(ending) else ''}"


def stem_of(name: str) -> str:
    """Give the name of a file without its ending, which may be double as in .nii.gz."""
    return Path(name[:-3] if name.lower().endswith(".gz") else name).stem


def is_plain(name: str) -> bool:
    """Tell whether a name holds nothing but ASCII letters, digits, dots, dashes and underscores."""
    return (
        0 < len(name) <= 100
        and ".." not in name
        and all(one.isalnum() or one in "._-" for one in name)
        and (name.isascii())
    )


def _without_folder(message: str, folder: Path, name: str) -> str:
    """Give a message with the names of the user in place of those on the server's disk."""
    for path in sorted((str(path) for path in folder.rglob("*")), key=len, reverse=True):
        message = message.replace(path, name)
    return message.replace(str(folder), name)


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it."""
    shutil.rmtree(folder, ignore_errors=True)


def _display(view: View) -> Display:
    height, width = view.size
    spacing = view.spacing_mm
    return Display(
        width=width,
        height=height,
        to_file=_to_file(view),
        letters=_letters(view),
        pixel_mm=None if spacing is None else spacing[2],
        window=None if view.window is None else (view.window.low, view.window.high),
    )


def _to_file(view: View) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Invert how the view moves points, which is the same for every frame."""
    _, height, width = view.image.shape
    corners = [(0.0, 0.0), (float(max(width - 1, 1)), 0.0), (0.0, float(max(height - 1, 1)))]
    asked = Prompt(boxes=(Box(0, 0, 1, 1),), points=tuple(Point(x, y) for x, y in corners))
    moved = np.array([(point.x, point.y, 1.0) for point in view.prompt(asked).points])
    rows: Any = np.linalg.solve(moved, np.array(corners)).T  # (2, 3)
    first, second = ((float(row[0]), float(row[1]), float(row[2])) for row in rows)
    return first, second


def _letters(view: View) -> tuple[str, str, str, str] | None:
    """Name the directions of the body at the left, right, upper and lower edge; None if they are not known."""
    affine = view.cut.affine
    if affine is None or view.image.kind == "video":
        return None
    opposite = {"L": "R", "R": "L", "A": "P", "P": "A", "S": "I", "I": "S"}
    _, down, right = (name[0].upper() for name in orientation(affine))
    return opposite[right], right, opposite[down], down
