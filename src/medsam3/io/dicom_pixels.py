"""Pixels of DICOM files: a data set opened, and its frames decoded in the file's own units.

Grey values come after the modality transform (CT: HU), with high values bright: MONOCHROME1 and presentation LUTs of
the shape INVERSE are turned over. Colour, of whatever form, comes as 8-bit RGB. pydicom is used here and in the other
`dicom_` modules.
"""

from __future__ import annotations

import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError, require
from medsam3.image import Pixels, Window
from medsam3.io.apart import run_apart
from medsam3.io.dicom_geometry import macro
from medsam3.io.files import check_bytes, check_size

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
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_DECODED_HERE = frozenset(f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".1.98", ".1.99", ".2", ".5"))
"""Uncompressed and deflated transfer syntaxes and RLE, which run no native decoder."""
_MOST_BYTES = 6
"""A pixel: three colours of 16 bits."""
_HEAD_BYTES = 1024
_LUT_ENDS = (0.01, 0.99)
_BLOCK_BYTES = 1 << 20
_DEFLATED = b"1.2.840.10008.1.2.1.99"


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom's warnings, which quote header values, out of the log, and turn its errors into one line.

    Raises:
        InputError: In place of what pydicom raises for a value of a damaged header, when that is looked at.
    """
    logger = logging.getLogger("pydicom")
    was_disabled = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (InputError, OSError):
        raise
    except (*DICOM_ERRORS, require("pydicom.errors", extra="dicom").BytesLengthException) as error:
        raise InputError(
            "the DICOM header holds values that cannot be read: the file is damaged, copy it again"
        ) from error
    finally:
        logger.disabled = was_disabled


def open_dataset(path: Path, *, has_pixels: bool = True, tags: list[str] | None = None) -> Any:
    """The data set of a file, with or without the usual preamble and file header.

    Raises:
        InputError: Not a DICOM file.
    """
    pydicom = require("pydicom", extra="dicom")
    _check_deflated(path)
    try:
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=not has_pixels, specific_tags=tags)
        is_dicom = any(name in dataset for name in ("SOPClassUID", "Rows", "Modality", "PatientID", "StudyInstanceUID"))
        is_dicom = is_dicom or dataset.preamble is not None
        _guess_transfer_syntax(dataset)
    except DICOM_ERRORS as error:
        raise InputError("the file cannot be read as DICOM, it may be cut short: copy it again") from error
    if not is_dicom:
        raise InputError("the file is not a DICOM file, nor of another known format")
    return dataset


def _check_deflated(path: Path) -> None:
    """Count the bytes of a deflated data set before pydicom unpacks it whole.

    Raises:
        InputError: More than allowed.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
        if head[128:132] != b"DICM" or _DEFLATED not in head or head[132:136] != b"\x02\0\0\0":
            return
        stream.seek(144 + int.from_bytes(head[140:144], "little"))
        decoder, count = zlib.decompressobj(-zlib.MAX_WBITS), 0
        with suppress(zlib.error):  # pydicom says what is damaged
            while not decoder.eof and (block := decoder.unconsumed_tail or stream.read(_BLOCK_BYTES)):
                count += len(decoder.decompress(block, _BLOCK_BYTES))
                check_bytes(count)


def frame_count(dataset: Any) -> int:
    """How many frames the header tells of; 1 where it tells nothing."""
    return int(dataset.get("NumberOfFrames") or 1)


def decode(dataset: Any, path: Path, *, index: int | None = None) -> Pixels:
    """Decode all frames (N, H, W, C), in the file's units or as RGB; or only the one at `index`.

    Raises:
        InputError: Too large. Broken data raise one of `DICOM_ERRORS`.
    """
    check_size(frame_count(dataset), int(dataset.Rows), int(dataset.Columns))
    stored = _stored(dataset, path, index)
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        pixels = require("pydicom.pixels", extra="dicom").apply_color_lut(stored, dataset)
        return _shaped(_to_8_bit(pixels, 8 * pixels.dtype.itemsize), 3)
    if int(dataset.get("SamplesPerPixel", 1)) == 3:
        return _shaped(_to_8_bit(stored, int(dataset.BitsStored)), 3)
    frames = _shaped(stored, 1)
    if int(dataset.get("BitsAllocated", 16)) == 1:
        frames = frames * np.uint8(255)
    if _is_inverse(dataset):
        return _turned_over(frames, dataset, first=index or 0)
    return _in_units(frames, dataset, first=index or 0)


SHARED_MODALITIES = frozenset({"CT", "MR", "PT", "NM"})
"""Kinds of image that come as often in other containers, which have no window: theirs in DICOM is left aside."""


class Rendering(NamedTuple):
    """How a file's frames are to be shown, in the units that `decode` gives."""

    channels: int
    window: Window | None = None
    padding: tuple[float, float] | None = None


def shown_by(dataset: Any) -> Rendering:
    """Read from a header how a file's frames are to be shown."""
    photometric = str(dataset.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR" or int(dataset.get("SamplesPerPixel", 1)) == 3:
        return Rendering(3)
    window = None if dataset.get("Modality") in SHARED_MODALITIES else stored_window(dataset)
    padding = stored_padding(dataset)
    if dataset.get("ModalityLUTSequence"):  # of values, which only a frame tells
        return Rendering(1, None if _is_inverse(dataset) else window)
    if _is_inverse(dataset):
        low, high = _ends_in_units(dataset)
        window = window and Window(low + high - window.high, low + high - window.low)
        turn = float(_stored_ends(dataset).sum())
        padding = padding and (turn - padding[1], turn - padding[0])
    if padding is not None:
        ends = np.array(padding).reshape(1, 1, 2, 1)
        scaled = _in_units(ends.astype(np.int64), dataset).reshape(-1).tolist()
        padding = (float(min(scaled)), float(max(scaled)))
    return Rendering(1, window, padding)


def _is_inverse(dataset: Any) -> bool:
    """Whether high values are dark, as the samples or the presentation LUT's shape say (DICOM PS3.3 C.11.6)."""
    return (
        str(dataset.get("PhotometricInterpretation", "MONOCHROME2")) == "MONOCHROME1"
        or dataset.get("PresentationLUTShape") == "INVERSE"
    )


class _Coded(NamedTuple):
    """Samples in a file: which frame of how many, None for all, and what its header tells of how to decode them."""

    path: Path
    frame: int | None
    frames: int
    is_twelve_bit_jpeg: bool
    has_preamble: bool


def _stored(dataset: Any, path: Path, index: int | None) -> Pixels:
    """Samples as they are stored, YBR as RGB: (H, W), (N, H, W), (H, W, 3) or (N, H, W, 3).

    What is compressed is decoded in a process apart, as native decoders end theirs if a file is damaged.
    """
    syntax, frames = dataset.file_meta.get("TransferSyntaxUID"), frame_count(dataset)
    is_twelve_bit = syntax == _JPEG_EXTENDED and int(dataset.BitsStored) > 8
    coded = _Coded(path, index, frames, is_twelve_bit, dataset.preamble is not None)
    if syntax in (None, *_DECODED_HERE) and (unused := _unused_low_bits(dataset)) > 0:
        return _shifted(coded, unused)
    if syntax is None or syntax in _DECODED_HERE:
        return _native(_pixel_array()(dataset)) if index is None else _decoded(coded)
    voxels = int(dataset.Rows) * int(dataset.Columns) * (frames if index is None else 1)
    return run_apart(_decoded, coded, data_bytes=voxels * _MOST_BYTES)


def _decoded(coded: _Coded) -> Pixels:
    """Read and decode one frame, without reading the others where the file has its usual header, or all."""
    path, index = coded.path, coded.frame
    if coded.is_twelve_bit_jpeg:
        frames = _twelve_bit_jpeg(path)
        return frames if index is None else frames[index]
    pixel_array = _pixel_array()
    if index is None or coded.frames == 1:
        return _native(pixel_array(open_dataset(path)))
    try:
        return _native(pixel_array(path if coded.has_preamble else open_dataset(path), index=index))
    except DICOM_ERRORS:  # what the library cannot do from the file, such as inflate, it can from all of the data set
        return _native(pixel_array(open_dataset(path), index=index))


def _unused_low_bits(dataset: Any) -> int:
    """Count the bits below the stored ones, which old files may leave: newer ones store from the lowest bit on."""
    bits = int(dataset.get("BitsStored") or 0)
    return int(dataset.get("HighBit") or bits - 1) + 1 - bits if bits else 0


def _shifted(coded: _Coded, unused: int) -> Pixels:
    """Read samples that stand above unused bits. Source: DICOM PS3.5 8.1.1, in editions before 2014."""
    dataset = open_dataset(coded.path)
    dataset.BitsStored = int(dataset.HighBit) + 1  # else the library masks from the lowest bit on
    pixels: Pixels = _native(_pixel_array()(dataset, index=coded.frame)) >> unused
    return pixels


def _pixel_array() -> Any:
    return require("pydicom.pixels", extra="dicom").pixel_array


def _native(pixels: Pixels) -> Pixels:
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _twelve_bit_jpeg(path: Path) -> Pixels:
    """Decode lossy JPEG of 12 bits (N, H, W) by GDCM itself, as pydicom has no plugin for it."""
    gdcm = require("gdcm", extra="dicom")
    gdcm.Trace.WarningOff()
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    buffer = reader.GetImage().GetBuffer() if reader.Read() else None
    if buffer is None:
        raise InputError("the 12-bit JPEG in the DICOM file cannot be decoded: convert it to another transfer syntax")
    flat = np.frombuffer(buffer.encode("utf-8", "surrogateescape"), dtype=np.uint16)
    dataset = open_dataset(path, has_pixels=False)
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
    return float(slope or 1), float(intercept or 0)  # a slope of 0 stands for none


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


def stored_window(dataset: Any) -> Window | None:
    """The first window of a data set, or of an enhanced multi-frame's first frame; None where there is none of use.

    A VOI LUT, where no window stands beside it, is given as the window between the inputs at which it has risen by
    1 % and by 99 %: its course between them is not kept.
    """
    source = macro(dataset, 0, "FrameVOILUTSequence") or dataset
    centre, width = _first(source.get("WindowCenter")), _first(source.get("WindowWidth"))
    if centre is not None and width is not None:
        return _linear(centre, width, str(source.get("VOILUTFunction") or "LINEAR"))
    tables = source.get("VOILUTSequence")
    return _of_table(tables[0]) if tables else None


def stored_padding(dataset: Any) -> tuple[float, float] | None:
    """Lowest and highest stored value that stand for nothing imaged; None where the file names none.

    Source: DICOM PS3.3 C.7.5.1.1.2. Files give the value of a signed image also as the unsigned one of the same bits.
    """
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return None
    last = dataset.get("PixelPaddingRangeLimit", first)
    bits, is_signed = int(dataset.get("BitsAllocated", 16)), int(dataset.get("PixelRepresentation", 0)) == 1
    values = [float(value) for value in (first, first if last is None else last)]
    if is_signed:
        values = [value - 2.0**bits if value >= 2.0 ** (bits - 1) else value for value in values]
    elif min(values) < 0:
        values = [value + 2.0**bits if value < 0 else value for value in values]
    return min(values), max(values)


def _first(value: Any) -> float | None:
    values = [value] if isinstance(value, int | float | str) else list(value or [])
    if not values or values[0] in (None, ""):
        return None
    number = float(values[0])
    return number if math.isfinite(number) else None


def _linear(centre: float, width: float, function: str) -> Window | None:
    if width <= 0:
        return None
    if function == "LINEAR":
        if width < 1:
            return None
        half = max(width - 1.0, 1e-3) / 2.0  # a width of 1 is a threshold
        return Window(centre - 0.5 - half, centre - 0.5 + half)
    return Window(centre - width / 2.0, centre + width / 2.0)


def _of_table(table: Any) -> Window | None:
    descriptor, data = table.get("LUTDescriptor"), table.get("LUTData")
    if not descriptor or not data:
        return None
    if isinstance(data, bytes):
        data = np.frombuffer(data, dtype="<u2")
    values = np.asarray(data, dtype=np.float64)
    span = values.max() - values.min()
    if span <= 0 or values[-1] < values[0]:
        return None
    risen = (values - values.min()) / span
    low, high = (int(np.argmax(risen >= end)) for end in _LUT_ENDS)
    first = int(descriptor[1])
    return Window(first + low, first + high) if low < high else None
