"""The file system for readers: telling formats apart, limits of size, and unpacking within them.

Knows nothing of pixels beyond their number and whether they are finite.
"""

from __future__ import annotations

import gzip
import re
import struct
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.image import Frames
from medsam3.store import scratch_folder

SLIDE_PLACE = "slide_place"
"""Key of `Image.metadata`: x and y of the first pixel's corner in the finest level, and its pixels for one of these."""


class SlidePart(NamedTuple):
    """What is read of a whole slide.

    Attributes:
        level: 0 is the finest; None takes the finest at which what is asked is not too large.
        region: x, y, width and height in pixels of the finest level; None takes all.
    """

    level: int | None = None
    region: tuple[int, int, int, int] | None = None

    def region_of(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Give the region as x, y, width and height, that of the whole slide if none was asked for.

        Raises:
            InputError: It is empty, or reaches beyond the slide.
        """
        x, y, columns, rows = self.region or (0, 0, width, height)
        if columns < 1 or rows < 1 or x < 0 or y < 0 or x + columns > width or y + rows > height:
            raise InputError(
                f"the region is {columns} x {rows} from ({x}, {y}), the slide {width} x {height} pixels: "
                "give one within it"
            )
        return x, y, columns, rows


FileFormat = Literal["raster", "nifti", "dicom", "nrrd", "metaimage", "video"]

MAX_PICTURE_PIXELS = 2**27
"""Pixels of one picture (134 million): more is refused before it is decoded, so that no file can fill the memory."""
MAX_STACK_VOXELS = 2**30
"""Voxels of one volume or video, all frames together."""
MAX_UNPACKED_BYTES = 2**31 - 1
"""Bytes that one file may take once it is unpacked, whatever the format: more is refused before it is unpacked."""

RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif")
NIFTI_SUFFIXES = (".nii", ".nii.gz", ".hdr")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
METAIMAGE_SUFFIXES = (".mha", ".mhd")
HEADERS = (".mhd", ".nhdr", ".hdr")
"""Headers of volumes whose voxels lie in another file beside them, of the same name but for the ending."""
VIDEO_SUFFIXES = (
    *(".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".gif"),
    *(".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv"),
)
SLIDE_SUFFIXES = (".svs", ".scn", ".bif")
STACK_SUFFIXES = NIFTI_SUFFIXES + NRRD_SUFFIXES + METAIMAGE_SUFFIXES + VIDEO_SUFFIXES
ALLOWED = (
    "allowed are PNG, JPEG, TIFF, BMP, AVIF, HEIC, DICOM (a file or a folder with one series), NIfTI (.nii, .nii.gz), "
    "NRRD, MetaImage (.mha, .mhd) and videos (.mp4, .mov, .avi, .mkv, .gif, .mpg, .ts, .wmv)"
)

GZIP_MAGIC = b"\x1f\x8b"
_RASTER_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM")
_VIDEO_MAGIC_AT = (
    (4, b"ftyp"),
    (4, b"moov"),
    (4, b"mdat"),
    (4, b"wide"),
    (8, b"AVI "),
    (0, b"\x1aE\xdf\xa3"),
    (0, b"GIF87a"),
    (0, b"GIF89a"),
    (0, b"\0\0\1\xba"),  # MPEG program stream
    (0, b"0&\xb2u\x8ef\xcf\x11"),  # ASF: WMV
)
_TS_SYNC_AT = ((0, 188), (4, 196))
"""Where two packets of an MPEG transport stream begin, plain or with times before them (M2TS)."""
_STILL_BRANDS = frozenset((b"avif", b"heic", b"heix", b"heim", b"heis", b"mif1"))
_SEQUENCE_BRANDS = {b"avis": "AVIF", b"msf1": "HEIF", b"hevc": "HEIF"}
_METAIMAGE_STARTS = (b"ObjectType", b"NDims", b"Comment")
_NIFTI_MAGIC_AT = ((344, b"n+1\0"), (344, b"ni1\0"), (4, b"n+2\0\r\n\x1a\n"), (4, b"ni2\0\r\n\x1a\n"))
_ANALYZE_SIZE = (348).to_bytes(4, "little")
_HEAD_BYTES = 352
_BLOCK_BYTES = 1 << 20
_SLACK_BYTES = 1 << 24
_SPILLED_BYTES = 1 << 26
_DICOM_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT OB OF OW PN SH SL SQ SS ST TM UI UL UN US UT".split())
_LONG_VRS = frozenset(b"OB OF OW SQ UN UT".split())


def file_format(path: Path) -> FileFormat:
    """Tell which reader a file needs, by its content alone.

    Raises:
        InputError: Missing, unreadable, empty, or of no known format.
    """
    head = _head(path)
    if not head:
        raise InputError(f"the file is empty; {ALLOWED}")
    if looks_like_dicom(head):
        return "dicom"
    if head.startswith(_RASTER_MAGIC):
        return "raster"
    if _is_nifti(head) or (head.startswith(GZIP_MAGIC) and _is_nifti(_unzipped_head(path))):
        return "nifti"
    other = _stack_format(head)
    if other is not None:
        return other
    name = path.name.lower()
    if name.endswith(".hdr") and _ANALYZE_SIZE in (head[:4], head[3::-1]):
        raise InputError("the header is Analyze 7.5's, which does not tell left from right: convert it to NIfTI")
    if head.startswith(GZIP_MAGIC):
        raise InputError("the file is packed and holds no NIfTI, which alone is read so: unpack it")
    if name.endswith(RASTER_SUFFIXES + STACK_SUFFIXES):
        raise InputError(f"the content is not what the name says, nor another known format; {ALLOWED}")
    if name.endswith(DICOM_SUFFIXES) or not path.suffix:
        raise InputError(f"the file is not a DICOM file, nor of another known format; {ALLOWED}")
    raise InputError(f"the format is not known; {ALLOWED}")


def header_beside(path: Path) -> Path:
    """Give the header of a file of voxels (.img, .img.gz) if it lies beside it, else the path itself."""
    name = path.name.lower()
    if name.endswith((".img", ".img.gz")):
        header = path.with_name(path.name[: name.rindex(".img")] + ".hdr")
        return header if header.is_file() else path
    return path


def is_dicom(path: Path) -> bool:
    """Tell whether a file is DICOM, with or without the usual preamble; one that cannot be read is not."""
    try:
        with path.open("rb") as stream:
            return looks_like_dicom(stream.read(_HEAD_BYTES))
    except OSError:
        return False


def looks_like_dicom(head: bytes) -> bool:
    """Tell DICOM by a file's first bytes: its magic, or two data elements of the first groups, one after the other.

    Source: DICOM PS3.10 7.1 (preamble) and PS3.5 7.1 (data elements, explicit and implicit, either byte order).
    """
    if head[128:132] == b"DICM":
        return True
    return any(_starts_with_elements(head, order) for order in "<>")


def check_size(frames: int, height: int, width: int, *, voxel_bytes: int = 0) -> None:
    """Refuse what would not fit in memory, before it is decoded.

    Args:
        frames: Frames, slices or pages.
        height: Rows.
        width: Columns.
        voxel_bytes: Bytes a voxel of a format that is unpacked as a whole; 0 where frames are decoded one by one.

    Raises:
        InputError: Nothing to see, or more pixels than allowed.
    """
    if min(frames, height, width) < 1:
        raise InputError(f"the image is {frames} x {height} x {width} (frames, rows, columns), none may be below 1")
    if height * width > MAX_PICTURE_PIXELS:
        raise InputError(
            f"the image is {width} x {height} pixels, allowed are {MAX_PICTURE_PIXELS:,}: crop it or scale it down"
        )
    if frames * height * width > MAX_STACK_VOXELS:
        raise InputError(
            f"the stack is {frames} x {height} x {width} voxels, allowed are {MAX_STACK_VOXELS:,}: crop it, or split it"
        )
    check_bytes(frames * height * width * voxel_bytes)


def check_bytes(count: int) -> None:
    """Refuse more bytes than one file may take once it is unpacked.

    Raises:
        InputError: Too many.
    """
    if count > MAX_UNPACKED_BYTES:
        raise InputError(
            f"the file unpacks to {count:,} bytes, allowed are {MAX_UNPACKED_BYTES:,}: crop it, split it, or save it "
            "in a smaller type"
        )


def unpacked(path: Path, wanted: int) -> IO[bytes]:
    """Unpack a gzip file of one or several members to a nameless temporary file, its checksums verified.

    Args:
        path: The file.
        wanted: Bytes that the header tells of; far more is refused.

    Raises:
        InputError: Damaged, cut short, or far more bytes than wanted.
    """
    plain, count = tempfile.TemporaryFile(), 0  # noqa: SIM115  it lives as long as the array over it
    try:
        with gzip.open(path) as stream:
            while block := stream.read(_BLOCK_BYTES):
                count += len(block)
                if count > wanted + _SLACK_BYTES:
                    raise InputError(
                        f"the file unpacks to more than the {wanted:,} bytes that its header tells of: it is damaged, "
                        "copy it again"
                    )
                plain.write(block)
    except EOFError as error:
        raise InputError(f"the file is cut short after {count:,} of {wanted:,} bytes: copy it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"the packed file is damaged ({first_line(error)}): copy it again") from error
    plain.flush()
    return plain


def on_disk(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Keep a large array in a nameless temporary file, and read it from there; a small one stays as it is."""
    if array.nbytes < _SPILLED_BYTES:
        return array.copy()
    with tempfile.TemporaryFile() as stream:
        array.tofile(stream)
        stream.flush()
        return np.memmap(stream, dtype=array.dtype, mode="r", shape=array.shape)


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key by which slice 10 comes after slice 9: digits compare as numbers, the rest as lower-case text."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.lower())
    return [(0, len(part.lstrip("0")), part.lstrip("0")) if part[0] in "0123456789" else (1, 0, part) for part in parts]


@contextmanager
def utf8_path(path: Path) -> Iterator[str]:
    """Give the path as libraries take it that know UTF-8 only: another name is reached through a link."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with scratch_folder() as folder:
            link = folder / f"linked{path.suffix.encode('ascii', 'ignore').decode()}"
            link.symlink_to(path.resolve())
            yield str(link)
    else:
        yield str(path)


def check_finite(frames: Frames) -> None:
    """Look for NaN and infinity before the work begins, one slice at a time.

    Raises:
        InputError: With the first slice that holds some.
    """
    for n in range(frames.shape[0]):
        if not np.isfinite(frames[n]).all():
            raise InputError(f"slice {n} holds NaN or infinity: replace them before reading the file")


def first_line(error: Exception) -> str:
    """The first line of another library's message, for one-line errors."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(":") if lines else type(error).__name__


def _head(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise InputError("it is a pipe, a socket or a device: give a file")
        with path.open("rb") as stream:
            return stream.read(_HEAD_BYTES)
    except InputError:
        raise
    except (FileNotFoundError, ValueError) as error:  # ValueError: a null in the name
        raise InputError("there is no such file or folder: correct the path") from error
    except OSError as error:
        raise InputError(f"the file cannot be read ({error.strerror}): give one that you may read") from error


def _unzipped_head(path: Path) -> bytes:
    try:
        with gzip.open(path) as stream:
            return stream.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""


def _starts_with_elements(head: bytes, order: str) -> bool:
    """Whether two data elements follow each other, or one that is longer than the head holds."""
    start, last = 0, (0, 0)
    for _ in range(2):
        if len(head) < start + 8:
            return start > 0
        tag = struct.unpack_from(f"{order}HH", head, start)
        if tag[0] not in ((2, 8) if start == 0 else range(2, 0x21)) or tag <= last:
            return False
        vr = head[start + 4 : start + 6]
        if vr in _LONG_VRS:
            if len(head) < start + 12:
                return start > 0
            size, begin = struct.unpack_from(f"{order}I", head, start + 8)[0], start + 12
        elif vr in _DICOM_VRS:
            size, begin = struct.unpack_from(f"{order}H", head, start + 6)[0], start + 8
        else:
            size, begin = struct.unpack_from(f"{order}I", head, start + 4)[0], start + 8
        is_open = size == 0xFFFFFFFF  # a sequence of undefined length
        if is_open or size % 2 or size > 1 << 16:
            return is_open and start > 0
        start, last = begin + size, tag
    return True


def _stack_format(head: bytes) -> FileFormat | None:
    if head.startswith(b"NRRD000"):
        return "nrrd"
    if head.startswith(_METAIMAGE_STARTS) and b"=" in head[:64]:
        return "metaimage"
    if head[4:8] == b"ftyp" and head[8:12] in _SEQUENCE_BRANDS:
        name = _SEQUENCE_BRANDS[head[8:12]]
        raise InputError(f"the file is a sequence of {name} pictures, which is not read here: save it as MP4 or PNG")
    if head[4:8] == b"ftyp" and head[8:12] in _STILL_BRANDS:
        return "raster"
    is_video = any(head[start : start + len(magic)] == magic for start, magic in _VIDEO_MAGIC_AT)
    is_video = is_video or any(head[a : a + 1] == head[b : b + 1] == b"G" for a, b in _TS_SYNC_AT)
    return "video" if is_video else None


def _is_nifti(head: bytes) -> bool:
    return any(head[start : start + len(magic)] == magic for start, magic in _NIFTI_MAGIC_AT)
