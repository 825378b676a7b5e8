"""DICOM files in: one file as a picture, a volume, a video or a whole slide.

Nothing that tells who the patient is is kept or logged.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError, check_frame
from medsam3.image import Image, Kind, LazyFrames, Pixels
from medsam3.io.dicom_geometry import (
    Placed,
    Plane,
    pixel_spacing_mm,
    plane_of,
    planes_of_frames,
    planes_of_offsets,
    stack_of_slices,
    stack_planes,
    tile_corners,
)
from medsam3.io.dicom_pixels import (
    DICOM_ERRORS,
    decode,
    frame_count,
    open_dataset,
    quiet_pydicom,
    shown_by,
    stored_window,
)
from medsam3.io.files import SLIDE_PLACE, SlidePart, check_size

_SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.5", "1.2.840.10008.5.1.4.1.1.66.7")
_DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_MOVING = ("US", "IVUS", "XA", "RF", "ES", "GM", "XC", "OP", "EPS")


def open_dicom(path: Path, *, frame: int | None = None, part: SlidePart | None = None) -> Image:
    """Open one DICOM file; its frames are decoded when they are asked for.

    One frame is a picture; several are a volume where they are told to lie in an even stack, a video where the file
    tells a frame time or its kind moves (ultrasound, angiography, endoscopy), else a volume without position.

    Args:
        path: The file.
        frame: One frame of several, from 0; None takes all.
        part: Of a whole slide, which region; its levels are files of their own.

    Raises:
        InputError: Not DICOM, no image in it, no such frame, frames that make no even stack; of pixels that cannot be
            decoded, when the frame is asked for.
    """
    with quiet_pydicom():
        dataset = open_dataset(path, has_pixels=False)
        _check_has_pixels(dataset, path)
        try:
            check_size(frame_count(dataset), int(dataset.Rows), int(dataset.Columns))
            return _image(dataset, path, frame) if part is None else _slide_image(dataset, path, part)
        except InputError:
            raise
        except DICOM_ERRORS as error:
            raise _undecodable(error, dataset) from error


def _image(dataset: Any, path: Path, frame: int | None) -> Image:
    count = frame_count(dataset)
    if frame is not None:
        check_frame(frame, count)
    elif count > 1 and _is_slide(dataset):
        return _slide_image(dataset, path, SlidePart())
    placed = frame_places(dataset, count) if frame is None else _frame_place(dataset, count, frame)
    order = (np.arange(count) if frame is None else np.array([frame])) if placed is None else placed.order
    read = DicomFrames((path,), order.tolist())
    about = describe(dataset, has_position=placed is not None)
    shown, window = shown_by(dataset), stored_window(dataset)
    if window is not None:
        about["stored_window"] = f"{window.low:g} {window.high:g}"
    frames = LazyFrames((len(order), int(dataset.Rows), int(dataset.Columns), shown.channels), read)
    kind, fps = ("volume", None) if placed and len(order) > 1 else _kind(dataset, frames.shape[0])
    return Image(
        frames if frames.shape[0] > 1 else frames[0][None],  # a picture that cannot be decoded is said to be so at once
        kind=kind,
        affine=placed.affine if placed else None,
        fps=fps,
        window=shown.window,
        padding=shown.padding,
        source=(path,),
        metadata=about if frame is None else about | {"frame": str(frame)},
    )


def _slide_image(dataset: Any, path: Path, part: SlidePart) -> Image:
    """Put the tiles of a whole slide, or of a region of it, together to one picture.

    Raises:
        InputError: No slide, a region outside it, too many pixels, or a level, which is another file.
    """
    if not _is_slide(dataset):
        raise InputError("a level or region is of a whole slide, this DICOM file is none: leave it out")
    if part.level is not None:
        raise InputError("the levels of a DICOM slide are files of their own: give the file of the level that is meant")
    height, width = int(dataset.TotalPixelMatrixRows), int(dataset.TotalPixelMatrixColumns)
    x, y, columns, rows = part.region_of(width, height)
    try:
        check_size(1, rows, columns)  # before as many places are counted
    except InputError as error:
        raise InputError(f"{error}; of a slide, give a smaller level's file, or a part of it by region=") from error
    count, shown = frame_count(dataset), shown_by(dataset)
    read = DicomFrames((path,), list(range(count)))
    about = describe(dataset, has_position=False) | {"tiles": str(count)}
    if part.region is not None:
        about[SLIDE_PLACE] = f"{x} {y} 1"
    put = _Slide(read, tile_corners(dataset, count) - np.array([y, x]), (int(dataset.Rows), int(dataset.Columns)))
    pixels = put((rows, columns, shown.channels))
    return Image(pixels[None], window=shown.window, padding=shown.padding, source=(path,), metadata=about)


def _is_slide(dataset: Any) -> bool:
    return bool(dataset.get("TotalPixelMatrixRows") and dataset.get("TotalPixelMatrixColumns"))


class DicomFrames:
    """Decodes frames: each of a file of its own, or all of one file, `order` telling which frame of it."""

    def __init__(self, paths: Sequence[Path], order: Sequence[int] | None = None) -> None:
        self._paths, self._order = tuple(paths), order

    def __call__(self, n: int) -> Pixels:
        """Decode frame n as (H, W, C)."""
        path, index = (self._paths[n], None) if self._order is None else (self._paths[0], self._order[n])
        with quiet_pydicom():
            dataset = open_dataset(path) if index is None else self._header
            if index is None:
                check_is_image(dataset)
            try:
                pixels: Pixels = decode(dataset, path, index=index)[0]
            except InputError as error:
                raise InputError(f"{path.name}: {error}" if index is None else str(error)) from error
            except DICOM_ERRORS as error:
                raise _undecodable(error, dataset, path.name if index is None else "") from error
            return pixels

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths, "_order": self._order}

    @cached_property
    def _header(self) -> Any:
        return open_dataset(self._paths[0], has_pixels=False)


class _Slide:
    """Puts the tiles of a whole-slide image together; what no tile covers is white, as glass is."""

    def __init__(self, read: DicomFrames, corners: NDArray[np.int64], tile: tuple[int, int]) -> None:
        self._read, self._corners, self._tile = read, corners, tile

    def __call__(self, shape: tuple[int, int, int]) -> Pixels:
        """Read the tiles that touch the first `shape` rows and columns."""
        reach = np.array(self._tile)
        touched = ((self._corners < shape[:2]) & (self._corners + reach > 0)).all(axis=1)
        whole: Pixels | None = None
        for k in np.flatnonzero(touched).tolist():
            tile = self._read(k)
            if whole is None:
                whole = np.full(shape, 255, dtype=tile.dtype)
            (top, left), (rows, columns) = self._corners[k].tolist(), tile.shape[:2]
            held = whole[max(0, top) : max(0, top + rows), max(0, left) : max(0, left + columns)]
            inner = tile[max(0, -top) :, max(0, -left) :]
            held[...] = inner[: held.shape[0], : held.shape[1]]
        return np.full(shape, 255, dtype=np.uint8) if whole is None else whole


def check_is_image(dataset: Any) -> None:
    """Refuse data sets that hold no picture, or a segmentation in place of one.

    Raises:
        InputError: With what the file is.
    """
    class_uid = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", ""))
    if class_uid == _DICOMDIR_CLASS:
        raise InputError("the file is a DICOMDIR, a table of contents: give the folder of a series, or an image file")
    if class_uid in _SEGMENTATION_CLASSES or dataset.get("Modality") == "SEG":
        raise InputError("the file is a DICOM segmentation, masks and not an image: give the image that it refers to")
    if not any(name in dataset for name in _PIXELS) or any(name not in dataset for name in ("Rows", "Columns")):
        raise InputError(f"the file is DICOM without pixels ({_class_name(dataset)}): give an image file")


def _check_has_pixels(dataset: Any, path: Path) -> None:
    """`check_is_image` for a data set whose pixels were not read: these are looked for by their length alone."""
    if not any(name in dataset for name in _PIXELS) and "Rows" in dataset and "Columns" in dataset:
        whole = open_dataset(path, tags=["SOPClassUID", "Modality", "Rows", "Columns", *_PIXELS])
        check_is_image(whole)
        return
    check_is_image(dataset)


def frame_places(dataset: Any, count: int) -> Placed | None:
    """Order and affine of a file's frames; None where the file tells no position.

    Raises:
        InputError: The frames make no even stack.
    """
    planes = _planes(dataset, count)
    try:
        return stack_of_slices(dataset, count) if planes is None else stack_planes(planes)
    except InputError as error:
        if count == 1:
            raise
        raise InputError(f"{error}; or choose one frame with frame=, from 0 to {count - 1}") from error


def _planes(dataset: Any, count: int) -> list[Plane] | None:
    """The place of each frame; None where the file tells none."""
    planes = planes_of_frames(dataset) or (planes_of_offsets(dataset) if count > 1 else None)
    if planes is None and count == 1:
        single = plane_of(dataset)
        planes = None if single is None else [single]
    return planes if planes is not None and len(planes) == count else None


def describe(dataset: Any, *, has_position: bool) -> dict[str, str]:
    """Technical facts of a data set for `Image.metadata`; no names, dates or identifiers."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    about = {
        "format": "DICOM",
        "modality": str(dataset.get("Modality") or ""),
        "sop_class": _class_name(dataset),
        "transfer_syntax": syntax.name if syntax is not None else "",
        "photometric": str(dataset.get("PhotometricInterpretation") or ""),
        "bits_stored": str(dataset.get("BitsStored") or ""),
    }
    spacing = None if has_position else pixel_spacing_mm(dataset)
    if spacing is not None:
        about["pixel_spacing_mm"] = f"{spacing[0]:.9g} {spacing[1]:.9g}"
    return {name: value for name, value in about.items() if value}


def _frame_place(dataset: Any, count: int, frame: int) -> Placed | None:
    """Place of one frame of a file, whether or not its frames make an even stack; None where it tells none."""
    planes = _planes(dataset, count)
    if planes is not None:
        return Placed(np.array([frame]), stack_planes([planes[frame]]).affine)
    return stack_of_slices(dataset, count, frame=frame)


def _kind(dataset: Any, count: int) -> tuple[Kind, float | None]:
    """Tell what frames without position are, and the frames a second of a video."""
    if count == 1:
        return "picture", None
    rate = dataset.get("RecommendedDisplayFrameRate") or dataset.get("CineRate")
    time_ms = float(dataset.get("FrameTime") or 0)
    times_ms = dataset.get("FrameTimeVector")
    if not time_ms and times_ms is not None and len(times_ms) > 1:
        time_ms = float(np.mean([float(value) for value in times_ms[1:]]))
    if time_ms > 0:
        return "video", 1000.0 / time_ms
    if rate and float(rate) > 0:
        return "video", float(rate)
    return ("video" if dataset.get("Modality") in _MOVING else "volume"), None


def _class_name(dataset: Any) -> str:
    class_uid = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    name = str(class_uid.name) if class_uid else ""
    return name or str(dataset.get("Modality") or "of unknown kind")


def _undecodable(error: Exception, dataset: Any, file: str = "") -> InputError:
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    name = syntax.name if syntax is not None else "unknown transfer syntax"
    what = f"the pixels of {file} ({name})" if file else f"the DICOM pixels ({name})"
    is_missing = importlib.util.find_spec("gdcm") is None
    if is_missing and ("plugin" in str(error) or "dependencies" in str(error)):
        return InputError(f"{what} need a decoder: pip install 'medsam3[dicom]'")
    if isinstance(error, NotImplementedError) or "missing dependencies" in str(error):
        return InputError(f"{what} are in a form that is not read here: convert them to Explicit VR Little Endian")
    # The library's own message may quote the header, so it is only chained.
    return InputError(f"{what} cannot be decoded: the file is damaged or cut short, replace it")
