"""DICOM files in: one file as a picture, a volume or a video. pydicom is used here and in the other `dicom_` modules.

Grey values come in the file's own units after its modality transform (CT: HU), with high values bright: MONOCHROME1 is
turned over. Colour, of whatever form, comes as 8-bit RGB. Nothing that tells who the patient is is kept or logged.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError, require
from medsam3.image import Image, Kind, LazyFrames, Pixels, Window
from medsam3.io.dicom_geometry import (
    Placed,
    macro,
    pixel_spacing_mm,
    plane_of,
    planes_of_frames,
    planes_of_offsets,
    stack_planes,
)
from medsam3.io.dicom_window import stored_padding, stored_window
from medsam3.io.files import check_size

# What pydicom and its decoders raise for broken files; it has no error class of its own for them.
DICOM_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
_SEGMENTATION_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.5", "1.2.840.10008.5.1.4.1.1.66.7")
_DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_MOVING = ("US", "IVUS", "XA", "RF", "ES", "GM", "XC", "OP", "EPS")


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """pydicom's warnings quote header values, which may be a patient's: keep them out of the log."""
    logger = logging.getLogger("pydicom")
    was_disabled = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled


def open_dicom(path: Path, *, frame: int | None = None) -> Image:
    """Open one DICOM file; its frames are decoded when they are asked for.

    One frame is a picture; several are a volume where they are told to lie in an even stack, a video where the file
    tells a frame time or its kind moves (ultrasound, angiography, endoscopy), else a volume without position.

    Args:
        path: The file.
        frame: One frame of several, from 0; None takes all.

    Raises:
        InputError: Not DICOM, no image in it, no such frame, frames that make no even stack; of pixels that cannot be
            decoded, when the frame is asked for.
    """
    with quiet_pydicom():
        dataset = open_dataset(path, has_pixels=False)
        _check_has_pixels(dataset, path)
        try:
            check_size(frame_count(dataset), int(dataset.Rows), int(dataset.Columns))
            return _image(dataset, path, frame)
        except InputError:
            raise
        except DICOM_ERRORS as error:
            raise _undecodable(error, dataset) from error


def _image(dataset: Any, path: Path, frame: int | None) -> Image:
    count = frame_count(dataset)
    if frame is not None and not 0 <= frame < count:
        raise InputError(f"frame {frame} was asked for, allowed is 0 to {count - 1}")
    placed = frame_places(dataset, count) if frame is None else _frame_place(dataset, count, frame)
    order = (np.arange(count) if frame is None else np.array([frame])) if placed is None else placed.order
    kind, fps = ("volume", None) if placed and len(order) > 1 else _kind(dataset, len(order))
    about = describe(dataset, has_position=placed is not None)
    shown, window = _shown(dataset), stored_window(dataset)
    if window is not None:
        about["stored_window"] = f"{window.low:g} {window.high:g}"
    shape = (len(order), int(dataset.Rows), int(dataset.Columns), shown.channels)
    frames = LazyFrames(shape, _FileFrames(path, order))
    return Image(
        frames if len(order) > 1 else frames[0][None],  # a picture that cannot be decoded is said to be so at once
        kind=kind,
        affine=placed.affine if placed else None,
        fps=fps,
        window=shown.window,
        padding=shown.padding,
        source=(path,),
        metadata=about if frame is None else about | {"frame": str(frame)},
    )


class _FileFrames:
    """Decodes frames of one file; `order` tells for each frame of the image that of the file."""

    def __init__(self, path: Path, order: NDArray[np.intp]) -> None:
        self._path, self._order = path, order
        self._header: Any = None

    def __call__(self, n: int) -> Pixels:
        with quiet_pydicom():
            if self._header is None:
                self._header = open_dataset(self._path, has_pixels=False)
            try:
                pixels: Pixels = decode(self._header, self._path, index=int(self._order[n]))[0]
            except InputError:
                raise
            except DICOM_ERRORS as error:
                raise _undecodable(error, self._header) from error
            return pixels

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_order": self._order, "_header": None}


def open_dataset(path: Path, *, has_pixels: bool = True, tags: list[str] | None = None) -> Any:
    """The data set of a file, with or without the usual preamble and file header.

    Raises:
        InputError: Not a DICOM file.
    """
    pydicom = require("pydicom", extra="dicom")
    try:
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=not has_pixels, specific_tags=tags)
        is_dicom = any(name in dataset for name in ("SOPClassUID", "Rows", "Modality", "PatientID", "StudyInstanceUID"))
        is_dicom = is_dicom or dataset.preamble is not None
        _guess_transfer_syntax(dataset)
    except DICOM_ERRORS as error:
        raise InputError("the file cannot be read as DICOM, it may be cut short") from error
    if not is_dicom:
        raise InputError("the file is not a DICOM file, nor of another known format")
    return dataset


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


def decode(dataset: Any, path: Path, *, index: int | None = None) -> Pixels:
    """Decode all frames (N, H, W, C), in the file's units or as RGB; or only the one at `index`.

    Raises:
        InputError: Too large. Broken data raise one of `DICOM_ERRORS`.
    """
    check_size(frame_count(dataset), int(dataset.Rows), int(dataset.Columns))
    stored = _stored_pixels(dataset, path) if index is None else _stored_frame(dataset, path, index)
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        pixels = require("pydicom.pixels", extra="dicom").apply_color_lut(stored, dataset)
        return _shaped(_to_8_bit(pixels, 8 * pixels.dtype.itemsize), 3)
    if int(dataset.get("SamplesPerPixel", 1)) == 3:
        return _shaped(_to_8_bit(stored, int(dataset.BitsStored)), 3)
    frames = _shaped(stored, 1)
    if int(dataset.get("BitsAllocated", 16)) == 1:
        frames = frames * np.uint8(255)
    if photometric == "MONOCHROME1":
        return _turned_over(frames, dataset, first=index or 0)
    return _in_units(frames, dataset, first=index or 0)


def _check_has_pixels(dataset: Any, path: Path) -> None:
    """`check_is_image` for a data set whose pixels were not read: these are looked for by their length alone."""
    if not any(name in dataset for name in _PIXELS) and "Rows" in dataset and "Columns" in dataset:
        whole = open_dataset(path, tags=["SOPClassUID", "Modality", "Rows", "Columns", *_PIXELS])
        check_is_image(whole)
        return
    check_is_image(dataset)


SHARED_MODALITIES = frozenset({"CT", "MR", "PT", "NM"})
"""Kinds of image that come as often in other containers, which have no window: theirs in DICOM is left aside."""


class _Shown(NamedTuple):
    """How a file's frames are to be shown, in the units that `decode` gives."""

    channels: int
    window: Window | None = None
    padding: tuple[float, float] | None = None


def _shown(dataset: Any) -> _Shown:
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR" or int(dataset.get("SamplesPerPixel", 1)) == 3:
        return _Shown(3)
    window = None if dataset.get("Modality") in SHARED_MODALITIES else stored_window(dataset)
    padding = stored_padding(dataset)
    if dataset.get("ModalityLUTSequence"):  # of values, which only a frame tells
        return _Shown(1, None if photometric == "MONOCHROME1" else window)
    if photometric == "MONOCHROME1":
        low, high = _ends_in_units(dataset)
        window = window and Window(low + high - window.high, low + high - window.low)
        turn = float(_stored_ends(dataset).sum())
        padding = padding and (turn - padding[1], turn - padding[0])
    if padding is not None:
        ends = np.array(padding).reshape(1, 1, 2, 1)
        scaled = _in_units(ends.astype(np.int64), dataset).reshape(-1).tolist()
        padding = (float(min(scaled)), float(max(scaled)))
    return _Shown(1, window, padding)


def frame_count(dataset: Any) -> int:
    """How many frames the header tells of; 1 where it tells nothing."""
    return int(dataset.get("NumberOfFrames") or 1)


def frame_places(dataset: Any, count: int) -> Placed | None:
    """Order and affine of a file's frames; None where the file tells no position.

    Raises:
        InputError: The frames make no even stack.
    """
    planes = planes_of_frames(dataset)
    if planes is None and count > 1:
        planes = planes_of_offsets(dataset)
    if planes is None:
        single = plane_of(dataset)
        planes = [single] if single is not None and count == 1 else None
    if planes is None or len(planes) != count:
        return None
    try:
        return stack_planes(planes)
    except InputError as error:
        if count == 1:
            raise
        raise InputError(f"{error}; or choose one frame with frame=, from 0 to {count - 1}") from error


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
    planes = planes_of_frames(dataset) or planes_of_offsets(dataset)
    if planes is None and count == 1:
        single = plane_of(dataset)
        planes = None if single is None else [single]
    if planes is None or len(planes) != count:
        return None
    return Placed(np.array([frame]), stack_planes([planes[frame]]).affine)


def _kind(dataset: Any, count: int) -> tuple[Kind, float | None]:
    """What frames without position are, and the frames a second of a video."""
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


def _stored_pixels(dataset: Any, path: Path) -> Pixels:
    """Decompressed samples, YBR as RGB: (H, W), (N, H, W), (H, W, 3) or (N, H, W, 3)."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax == _JPEG_EXTENDED and int(dataset.BitsStored) > 8:
        return _twelve_bit_jpeg(dataset, path)
    pixels: Pixels = require("pydicom.pixels", extra="dicom").pixel_array(dataset)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _stored_frame(dataset: Any, path: Path, index: int) -> Pixels:
    """As `_stored_pixels`, of one frame, and without reading the others where the file has its usual header."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    if syntax == _JPEG_EXTENDED and int(dataset.BitsStored) > 8:
        frame: Pixels = _twelve_bit_jpeg(dataset, path)[index]
        return frame
    if frame_count(dataset) == 1:
        return _stored_pixels(open_dataset(path), path)
    decode_frame = require("pydicom.pixels", extra="dicom").pixel_array
    try:
        pixels: Pixels = decode_frame(path if dataset.preamble is not None else open_dataset(path), index=index)
    except DICOM_ERRORS:  # what the library cannot do from the file, such as inflate, it can from all of the data set
        pixels = decode_frame(open_dataset(path), index=index)
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _twelve_bit_jpeg(dataset: Any, path: Path) -> Pixels:
    """Lossy JPEG of 12 bits, which pydicom leaves to no plugin that is installed here: read by GDCM itself."""
    gdcm = require("gdcm", extra="dicom")
    gdcm.Trace.WarningOff()
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    buffer = reader.GetImage().GetBuffer() if reader.Read() else None
    if buffer is None:
        raise InputError("the 12-bit JPEG in the DICOM file cannot be decoded: convert it to another transfer syntax")
    flat = np.frombuffer(buffer.encode("utf-8", "surrogateescape"), dtype=np.uint16)
    return flat.reshape(frame_count(dataset), int(dataset.Rows), int(dataset.Columns))


def _shaped(pixels: Pixels, channels: int) -> Pixels:
    height, width = pixels.shape[-3:-1] if channels == 3 else pixels.shape[-2:]
    return np.ascontiguousarray(pixels.reshape(-1, height, width, channels))


def _to_8_bit(colours: Pixels, bits: int) -> Pixels:
    if colours.dtype == np.uint8:
        return colours
    return (colours >> max(0, bits - 8)).astype(np.uint8)


def _in_units(frames: Pixels, dataset: Any, *, first: int = 0) -> Pixels:
    """Grey frames (N, H, W, 1), which begin at the file's frame `first`, after the modality transform."""
    if dataset.get("ModalityLUTSequence"):
        looked_up: Pixels = require("pydicom.pixels", extra="dicom").apply_modality_lut(frames, dataset)
        return looked_up
    scales = [_rescale(dataset, first + n) for n in range(frames.shape[0])]
    if all(scale == (1.0, 0.0) for scale in scales):
        return frames
    slopes, intercepts = (np.asarray(values).reshape(-1, 1, 1, 1) for values in zip(*scales, strict=True))
    if len(set(scales)) == 1:
        slopes, intercepts = slopes[:1], intercepts[:1]
    is_whole = all(float(value).is_integer() for scale in scales for value in scale)
    wide = np.int64 if is_whole and frames.dtype.kind in "iu" else np.float64
    return _narrowed(frames * slopes.astype(wide) + intercepts.astype(wide))


def _rescale(dataset: Any, frame: int) -> tuple[float, float]:
    item = macro(dataset, frame, "PixelValueTransformationSequence") or dataset
    slope, intercept = item.get("RescaleSlope"), item.get("RescaleIntercept")
    if slope is None and dataset.get("DoseGridScaling"):
        slope = dataset.DoseGridScaling
    return float(1 if slope is None else slope), float(intercept or 0)


def _narrowed(pixels: Pixels) -> Pixels:
    """Rescaled values in the smallest usual type that holds them: whole numbers as int16 or int32, else float32."""
    low, high = float(pixels.min()), float(pixels.max())
    for whole in (np.int16, np.int32):
        if np.iinfo(whole).min <= low and high <= np.iinfo(whole).max and (pixels == np.rint(pixels)).all():
            return pixels.astype(whole)
    return pixels.astype(np.float32)


def _turned_over(frames: Pixels, dataset: Any, *, first: int = 0) -> Pixels:
    """MONOCHROME1 as MONOCHROME2: v becomes low + high - v over the range that the stored bits can hold."""
    if dataset.get("ModalityLUTSequence"):
        values = _in_units(frames, dataset, first=first).astype(np.int64)
        return _narrowed(values.max() + values.min() - values)
    ends = _stored_ends(dataset)
    stored = (ends.sum() - frames.astype(np.int64)).astype(_holding(frames, ends))
    return _in_units(stored, dataset, first=first)


def _stored_ends(dataset: Any) -> NDArray[np.int64]:
    """Lowest and highest value that the stored bits can hold."""
    bits, is_signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation", 0)) == 1
    return np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if is_signed else [0, 2**bits - 1], dtype=np.int64)


def _ends_in_units(dataset: Any) -> tuple[float, float]:
    low, high = (float(value) for value in _in_units(_stored_ends(dataset).reshape(1, 1, 2, 1), dataset).reshape(-1))
    return low, high


def _holding(frames: Pixels, ends: Pixels) -> Any:
    """The stored type, which holds the turned values too unless samples lie outside the stored bits."""
    is_inside = frames.min() >= ends[0] and frames.max() <= ends[1]
    return frames.dtype if is_inside else np.int64


def _guess_transfer_syntax(dataset: Any) -> None:
    """Files without a header are read by trial; decoding needs to be told what was found."""
    if dataset.file_meta.get("TransferSyntaxUID") is not None:
        return
    is_implicit, is_little = dataset.original_encoding
    uid = require("pydicom.uid", extra="dicom")
    plain = uid.ImplicitVRLittleEndian if is_implicit else uid.ExplicitVRLittleEndian
    dataset.file_meta.TransferSyntaxUID = plain if is_little else uid.ExplicitVRBigEndian


def _class_name(dataset: Any) -> str:
    class_uid = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    name = str(class_uid.name) if class_uid else ""
    return name or str(dataset.get("Modality") or "of unknown kind")


def _undecodable(error: Exception, dataset: Any) -> InputError:
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    name = syntax.name if syntax is not None else "unknown transfer syntax"
    if "plugin" in str(error) or "dependencies" in str(error):
        return InputError(
            f"the DICOM pixels ({name}) cannot be decoded: if other such files fail too, pip install 'medsam3[dicom]'"
        )
    # The library's own message may quote the header, so it is only chained.
    return InputError(f"the DICOM pixels ({name}) cannot be decoded: the file is damaged or cut short, replace it")
