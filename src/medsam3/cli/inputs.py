"""From what stands on the command line (files, folders, patterns) to the images to read. Opens no pixels."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsam3.errors import InputError, printable

_log = logging.getLogger(__name__)

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".nii.gz", ".nii"),
    *(".nrrd", ".nhdr", ".mha", ".mhd", ".mp4", ".mov", ".avi", ".mkv", ".gif"),
)


@dataclass(frozen=True)
class Input:
    """An image to read: a file, or a folder whose DICOM slices are one series.

    Attributes:
        path: The file or folder.
        series: Which series of the folder: its number, or the end of its UID; None where it holds one.
    """

    path: Path
    series: str | None = None

    @property
    def source(self) -> str:
        """What tells it from every other input."""
        place = str(self.path.resolve())
        return place if self.series is None else f"{place} series {self.series}"

    @property
    def label(self) -> str:
        """As it was named, for tables and messages."""
        return str(self.path) if self.series is None else f"{self.path} (series {self.series})"

    @property
    def stem(self) -> str:
        """The name without what tells its format, and with the series where one was chosen."""
        name = self.path.resolve().name
        if self.series is not None:
            return f"{name}_series-{self.series}"
        lower = name.lower()
        suffix = next((suffix for suffix in SUFFIXES if lower.endswith(suffix)), "")
        return name[: len(name) - len(suffix)] or name

    def fingerprint(self) -> str:
        """Changes when a file of the image does: its newest time of change and its size.

        Raises:
            InputError: It does not exist, or is empty.
        """
        if not self.path.exists():
            raise InputError(f"{self.path} does not exist: correct the path")
        try:
            # A series may lie below its folder.
            files = [self.path] if self.path.is_file() else _files_in(self.path, "**/*")
            states = [file.stat() for file in files]
        except OSError as error:
            raise InputError(f"{self.path} cannot be read ({error.strerror}): give what you may read") from error
        size = sum(state.st_size for state in states)
        if size == 0:
            raise InputError(f"{self.path} is empty: copy it again")
        return f"{max(state.st_mtime_ns for state in states)}:{size}:{len(states)}"


def find_inputs(arguments: Sequence[str], *, leave_out: Path | None = None, series: Sequence[str] = ()) -> list[Input]:
    """The images that the arguments name, each once, in the order of the arguments and by name within each.

    A file that is named is taken as it is, also where it does not exist: reading it will say so. Of a folder, every
    image file below it is taken; a folder that holds a DICOM series is taken as one. Hidden files are not.

    Args:
        arguments: Files, folders, or patterns such as `scans/*.png` (`**` goes through folders).
        leave_out: A folder that is not looked into: that of the results.
        series: Numbers or ends of UIDs of DICOM series; every argument is then a folder, and these series of it are
            taken and nothing else.

    Raises:
        InputError: A pattern that matches nothing, a folder without images, a file where a series is chosen.
    """
    skipped = None if leave_out is None else leave_out.resolve()
    found: dict[str, Input] = {}
    for argument in arguments:
        for path in _expand(argument):
            for item in _series_at(path, series) if series else _inputs_at(path, skipped):
                found.setdefault(item.source, item)
    return list(found.values())


def _expand(argument: str) -> list[Path]:
    if not argument.strip():
        raise InputError("a file name is empty: name a file, a folder or a pattern")
    path = Path(argument)
    if path.exists() or not glob.has_magic(argument):
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]  # noqa: PTH207  absolute patterns
    if not matches:
        raise InputError(f"pattern {argument!r} matches no file: correct it, or name a folder")
    # What a pattern matches beside images is passed over as in a folder, unless it matches nothing else.
    return [match for match in matches if match.is_dir() or is_image_name(match)] or matches


def _inputs_at(path: Path, skipped: Path | None) -> list[Input]:
    if not path.is_dir():
        return [Input(path)]
    try:
        found = list(_walk(path, skipped))
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read ({error.strerror}): leave it out") from error
    if not found:
        raise InputError(f"folder {path} holds no images: allowed are {', '.join(SUFFIXES)} and DICOM files")
    return found


def _series_at(path: Path, series: Sequence[str]) -> list[Input]:
    if path.is_file():
        raise InputError(f"{path} is a file, --series chooses from a folder of DICOM files: name its folder")
    if not all(one.strip() for one in series):
        raise InputError("--series is empty: give a series' number, or the last 8 or more characters of its UID")
    return [Input(path, one.strip()) for one in series]


def _walk(folder: Path, skipped: Path | None) -> Iterator[Input]:
    from medsam3.io import is_series  # noqa: PLC0415  the command line starts without numpy
    from medsam3.io.dicom_series import is_dicom_image  # noqa: PLC0415
    from medsam3.io.files import is_dicom  # noqa: PLC0415

    ours = _results_in(folder)
    files = [file for file in _files_in(folder) if file.name not in ours]
    slices = [file for file in files if is_dicom(file)]
    holds_series = len(slices) > 1 and is_series(folder)
    if holds_series:
        yield Input(folder)
    others = [] if holds_series else [file for file in slices if not is_dicom_image(file)]
    if others or ours:
        names = ", ".join(printable(file.name) for file in others[:3])
        parts = [f"{len(others)} DICOM files without an image ({names})"] if others else []
        parts += [f"{len(ours)} results of an earlier run"] if ours else []
        _log.warning("%s: passed over: %s", printable(str(folder)), ", ".join(parts))
    passed_over = {*others, *(slices if holds_series else [])}
    images = [file for file in files if file in slices or is_image_name(file)]
    yield from (Input(file) for file in images if file not in passed_over)
    for below in _visible(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
        if below.resolve() != skipped:
            yield from _walk(below, skipped)


def _results_in(folder: Path) -> set[str]:
    """Names of files in a folder that a run wrote there, by its list of results."""
    from medsam3.cli.outputs import LIST_NAME  # noqa: PLC0415
    from medsam3.store import read_lines  # noqa: PLC0415

    place = folder / LIST_NAME
    if not place.is_file():
        return set()
    with place.open("rb") as stream:
        records, _ = read_lines(stream)
    claimed = [name for record in records for name in record.get("claims") or [] if isinstance(name, str)]
    return {name for name in claimed if (folder / name).is_file()}


def is_image_name(path: Path) -> bool:
    """The name ends as that of an image does."""
    return path.name.lower().endswith(SUFFIXES)


def _files_in(folder: Path, pattern: str = "*") -> list[Path]:
    return _visible(path for path in folder.glob(pattern) if path.is_file())


def _visible(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if not path.name.startswith("."))
