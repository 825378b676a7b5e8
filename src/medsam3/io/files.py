"""What every reader needs of the file system: telling formats apart, and limits of size.

Knows nothing of pixels beyond their number.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Literal

from medsam3.errors import InputError

FileFormat = Literal["raster", "nifti", "dicom", "nrrd", "metaimage", "video"]

MAX_PICTURE_PIXELS = 2**27
"""Pixels of one picture (134 million): more is refused before it is decoded, so that no file can fill the memory."""
MAX_STACK_VOXELS = 2**30
"""Voxels of one volume or video, all frames together."""

RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
NRRD_SUFFIXES = (".nrrd", ".nhdr")
METAIMAGE_SUFFIXES = (".mha", ".mhd")
VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".gif")
STACK_SUFFIXES = NIFTI_SUFFIXES + NRRD_SUFFIXES + METAIMAGE_SUFFIXES + VIDEO_SUFFIXES
ALLOWED = (
    "allowed are PNG, JPEG, TIFF, BMP, DICOM (a file or a folder with one series), NIfTI (.nii, .nii.gz), NRRD, "
    "MetaImage (.mha, .mhd) and videos (.mp4, .mov, .avi, .mkv, .gif)"
)

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
)
_METAIMAGE_STARTS = (b"ObjectType", b"NDims", b"Comment")
_NIFTI_MAGIC_AT = ((344, b"n+1\0"), (4, b"n+2\0\r\n\x1a\n"))
_HEAD_BYTES = 352


def file_format(path: Path) -> FileFormat:
    """Which reader a file needs, by its first bytes; by its name only where DICOM lacks the usual preamble.

    Raises:
        InputError: Missing, unreadable, empty, or of no known format.
    """
    head = _head(path)
    if not head:
        raise InputError(f"the file is empty; {ALLOWED}")
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(_RASTER_MAGIC):
        return "raster"
    if _is_nifti(head) or (head.startswith(b"\x1f\x8b") and _is_nifti(_unzipped_head(path))):
        return "nifti"
    other = _stack_format(head)
    if other is not None:
        return other
    name = path.name.lower()
    if name.endswith(RASTER_SUFFIXES + STACK_SUFFIXES):
        raise InputError(f"the content is not what the name says, nor another known format; {ALLOWED}")
    if name.endswith(DICOM_SUFFIXES) or not path.suffix:
        return "dicom"
    raise InputError(f"the format is not known; {ALLOWED}")


def check_size(frames: int, height: int, width: int) -> None:
    """Refuse what would not fit in memory, before it is decoded.

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


def first_line(error: Exception) -> str:
    """The first line of another library's message, for one-line errors."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(":") if lines else type(error).__name__


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(_HEAD_BYTES)
    except FileNotFoundError as error:
        raise InputError("there is no such file or folder") from error
    except OSError as error:
        raise InputError(f"the file cannot be read ({error.strerror})") from error


def _unzipped_head(path: Path) -> bytes:
    try:
        with gzip.open(path) as stream:
            return stream.read(_HEAD_BYTES)
    except (OSError, EOFError, zlib.error):
        return b""


def _stack_format(head: bytes) -> FileFormat | None:
    if head.startswith(b"NRRD000"):
        return "nrrd"
    if head.startswith(_METAIMAGE_STARTS) and b"=" in head[:64]:
        return "metaimage"
    is_video = any(head[start : start + len(magic)] == magic for start, magic in _VIDEO_MAGIC_AT)
    return "video" if is_video else None


def _is_nifti(head: bytes) -> bool:
    return any(head[start : start + len(magic)] == magic for start, magic in _NIFTI_MAGIC_AT)
