"""A folder of DICOM files in, as one volume: choose the series, check it, put its slices in order."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from medsam3.errors import InputError, first_few, printable
from medsam3.image import Image, LazyFrames
from medsam3.io.dicom import DicomFrames, open_dicom
from medsam3.io.dicom_geometry import Placed, plane_of, stack_planes
from medsam3.io.dicom_pixels import DICOM_ERRORS, frame_count, open_dataset, quiet_pydicom
from medsam3.io.files import ALLOWED, check_size, is_dicom

_log = logging.getLogger(__name__)

_SHORT_UID = 8
_HEADER = [
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "SeriesInstanceUID",
    "SeriesNumber",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
]


class _Header(NamedTuple):
    """One image file of the folder."""

    path: Path
    dataset: Any
    uid: str
    number: str


def open_series(folder: Path, *, series: str | None = None) -> Image:
    """Open the one series of a folder and what lies below it; slices are decoded when they are asked for.

    Args:
        folder: The folder; files that are no DICOM images are passed over.
        series: Which one, where there are several: its number, or the last 8 or more characters of its UID.

    Returns:
        A volume in the order of positions along the slices' normal, `source` in the same order. A series of one file
        is what `open_dicom` makes of it.

    Raises:
        InputError: No DICOM images, several series and none chosen, slices that differ in size, orientation or
            spacing, that lie at the same place, or with gaps; of pixels that cannot be decoded, when the slice is
            asked for.
    """
    with quiet_pydicom():
        try:
            chosen = _choose(_headers(folder), series)
            if len(chosen) == 1:
                return open_dicom(chosen[0].path)
            placed = _place(chosen)
            paths = tuple(chosen[k].path for k in placed.order)
            first = open_dicom(paths[0])
        except InputError:
            raise
        except DICOM_ERRORS as error:
            raise InputError("the series has a header that cannot be read: check its files one by one") from error
    frames = LazyFrames((len(paths), *first.shape[1:], first.channels), DicomFrames(paths))
    return replace(first, frames=frames, kind="volume", affine=placed.affine, source=paths)


def holds_series(folder: Path) -> bool:
    """Whether some files of a folder, not of those below it, are slices of one series, so that they belong together."""
    placed: set[str] = set()
    with quiet_pydicom():
        try:
            for header in _headers_of(_dicom_files(folder, "*")):
                if "ImagePositionPatient" in header.dataset and header.uid in placed:
                    return True
                if "ImagePositionPatient" in header.dataset:
                    placed.add(header.uid)
        except InputError:
            return False
    return False


def holds_images(folder: Path) -> bool:
    """Whether a folder, or what lies below it, holds any DICOM image; tables of contents and masks are none."""
    with quiet_pydicom():
        try:
            return next(_headers_of(_dicom_files(folder, "**/*")), None) is not None
        except InputError:
            return True  # reading it says what is wrong


def is_dicom_image(path: Path) -> bool:
    """Whether a file is DICOM and holds an image, not a table of contents, masks, structures or a report."""
    if not is_dicom(path):
        return False
    with quiet_pydicom():
        try:
            dataset = open_dataset(path, has_pixels=False, tags=_HEADER)
        except InputError:
            return True  # reading it says what is wrong
    tells_kind = bool(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID"))
    return not tells_kind or _has_image(dataset) or _is_cut(dataset)


def _has_image(dataset: Any) -> bool:
    """Pixels were not read: what has rows and is no segmentation is an image."""
    return dataset.get("Rows") is not None and dataset.get("Modality") != "SEG"


def _is_cut(dataset: Any) -> bool:
    """Whether a file is of a kind that has an image, and ends before its size."""
    sop_class = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    return dataset.get("Rows") is None and sop_class is not None and str(sop_class.name).endswith("Image Storage")


def _headers(folder: Path) -> list[_Header]:
    """Read the headers of a folder's images, and of those below it that belong to the same series or if it has none."""
    own = _dicom_files(folder, "*")
    found = list(_headers_of(own))
    others = sorted({path.name for path in own} - {header.path.name for header in found})
    below = _dicom_files(folder, "*/**/*")
    if not found:
        found = list(_headers_of(below))
    else:
        found += _of_series(below, {header.uid for header in found})
    if not found:
        raise InputError(f"the folder holds no DICOM images; {ALLOWED}")
    if others:
        _log.warning("%d DICOM files without an image are passed over (%s)", len(others), printable(first_few(others)))
    return _each_once(found)


def _of_series(paths: Sequence[Path], uids: Collection[str]) -> Iterator[_Header]:
    """Read the headers of those files alone that belong to the series."""
    for path in paths:
        with suppress(InputError):
            yield from (header for header in _headers_of([path]) if header.uid and header.uid in uids)


def _each_once(headers: Sequence[_Header]) -> list[_Header]:
    """Leave out copies of slices, such as `slice (1).dcm`, and say so."""
    kept: dict[object, _Header] = {}
    for header in headers:
        instance = str(header.dataset.get("SOPInstanceUID") or "")
        position = str(header.dataset.get("ImagePositionPatient"))
        key = (instance, position, header.path.stat().st_size) if instance else header.path
        kept.setdefault(key, header)
    if len(kept) < len(headers):
        _log.warning("%d files are copies of another slice, and are passed over", len(headers) - len(kept))
    return list(kept.values())


def _dicom_files(folder: Path, pattern: str) -> list[Path]:
    try:
        paths = sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"the folder cannot be read ({error.strerror}): give one that you may read") from error
    return [path for path in paths if is_dicom(path)]


def _headers_of(paths: Sequence[Path]) -> Iterator[_Header]:
    for path in paths:
        try:
            dataset = open_dataset(path, has_pixels=False, tags=_HEADER)
        except InputError as error:
            raise InputError(f"{path.name}: {error}") from error
        if _is_cut(dataset):
            raise InputError(f"{path.name}: the file is cut short, it ends before the image: copy it again")
        if not _has_image(dataset):
            continue
        number = dataset.get("SeriesNumber")
        uid = str(dataset.get("SeriesInstanceUID") or "")
        yield _Header(path, dataset, uid, "" if number is None else str(number))


def _choose(headers: Sequence[_Header], series: str | None) -> list[_Header]:
    by_uid: dict[str, list[_Header]] = {}
    for header in headers:
        by_uid.setdefault(header.uid, []).append(header)
    listed = ", ".join(
        f"{group[0].number or '?'} (...{uid[-_SHORT_UID:]}, {len(group)} files)" for uid, group in by_uid.items()
    )
    if series is None:
        if len(by_uid) > 1:
            raise InputError(
                f"the folder holds {len(by_uid)} series: {listed}; choose one by series=, its number or the UID's end"
            )
        return list(headers)
    matching = [group for group in by_uid.values() if series == group[0].number]
    if not matching and len(series) >= _SHORT_UID:
        matching = [group for uid, group in by_uid.items() if uid.endswith(series)]
    if len(matching) != 1:
        raise InputError(f"series {series!r} fits {len(matching)} of the folder's series: {listed}; choose one of them")
    return matching[0]


def _place(headers: Sequence[_Header]) -> Placed:
    sizes = {
        (int(one.dataset.Rows), int(one.dataset.Columns), int(one.dataset.get("SamplesPerPixel") or 1))
        for one in headers
    }
    if len(sizes) > 1:
        raise InputError(f"the slices differ in size: {sorted(sizes)} (rows, columns, samples): separate them")
    if any(frame_count(header.dataset) > 1 for header in headers):
        raise InputError(f"the series holds {len(headers)} files, some of several frames: give one of the files")
    planes = [plane_of(header.dataset) for header in headers]
    known = [plane for plane in planes if plane is not None]
    if len(known) < len(planes):
        missing = len(planes) - len(known)
        raise InputError(
            f"{missing} of {len(planes)} files tell no position, they make no volume: give them one by one"
        )
    height, width, _ = sizes.pop()
    check_size(len(headers), height, width)
    return stack_planes(known)
