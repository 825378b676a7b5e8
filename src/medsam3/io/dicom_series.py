"""A folder of DICOM files in, as one volume: choose the series, check it, put its slices in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from medsam3.errors import InputError
from medsam3.image import Image, LazyFrames, Pixels
from medsam3.io.dicom import (
    DICOM_ERRORS,
    check_is_image,
    decode,
    frame_count,
    open_dataset,
    open_dicom,
    quiet_pydicom,
)
from medsam3.io.dicom_geometry import Placed, plane_of, stack_planes
from medsam3.io.files import ALLOWED, DICOM_SUFFIXES, check_size

_SHORT_UID = 8
_HEADER = [
    "SOPClassUID",
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


@dataclass(frozen=True)
class _SeriesSlices:
    """Decodes slices, each a file of its own."""

    paths: tuple[Path, ...]

    def __call__(self, n: int) -> Pixels:
        with quiet_pydicom():
            dataset = open_dataset(self.paths[n])
            check_is_image(dataset)
            try:
                pixels: Pixels = decode(dataset, self.paths[n])[0]
            except InputError:
                raise
            except DICOM_ERRORS as error:
                raise InputError(f"the pixels of {self.paths[n].name} cannot be decoded: replace the file") from error
            return pixels


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
    frames = LazyFrames((len(paths), *first.shape[1:], first.channels), _SeriesSlices(paths))
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


def holds_dicom(folder: Path) -> bool:
    """Whether a folder, not what lies below it, holds any DICOM file."""
    return bool(_dicom_files(folder, "*"))


def _headers(folder: Path) -> list[_Header]:
    found = list(_headers_of(_dicom_files(folder, "*") or _dicom_files(folder, "**/*")))
    if not found:
        raise InputError(f"the folder holds no DICOM images; {ALLOWED}")
    return found


def _dicom_files(folder: Path, pattern: str) -> list[Path]:
    try:
        paths = sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"the folder cannot be read ({error.strerror})") from error
    return [path for path in paths if _looks_like_dicom(path)]


def _headers_of(paths: Sequence[Path]) -> Iterator[_Header]:
    for path in paths:
        dataset = open_dataset(path, has_pixels=False, tags=_HEADER)
        # Pixels were not read: what has rows and columns and is no segmentation is an image.
        if dataset.get("Rows") is None or dataset.get("Modality") == "SEG":
            continue
        number = dataset.get("SeriesNumber")
        uid = str(dataset.get("SeriesInstanceUID") or "")
        yield _Header(path, dataset, uid, "" if number is None else str(number))


def _looks_like_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except OSError as error:
        raise InputError(f"{path.name} in the folder cannot be read ({error.strerror})") from error
    return head[128:] == b"DICM" or (path.name.lower().endswith(DICOM_SUFFIXES) and len(head) == 132)


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
