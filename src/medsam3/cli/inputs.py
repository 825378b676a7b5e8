"""From what stands on the command line (files, folders, patterns, series, frames) to the images that are read."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medsam3.errors import InputError, check_frame, printable

if TYPE_CHECKING:
    from medsam3.cli.archive import ArchiveInput
    from medsam3.image import Image
    from medsam3.io.files import SlidePart

_log = logging.getLogger(__name__)
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".nii.gz", ".nii"),
    *(".nrrd", ".nhdr", ".mha", ".mhd", ".mp4", ".mov", ".avi", ".mkv", ".gif", ".m4v", ".webm", ".mpg", ".mpeg"),
    *(".ts", ".m2ts", ".mts", ".wmv", ".avif", ".heic", ".heif", ".svs", ".scn", ".bif"),
)
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


@dataclass(frozen=True)
class Input:
    """An image to read: a file, or a folder whose DICOM slices are one series.

    Attributes:
        path: The file or folder.
        series: Which series of the folder: its number, or the end of its UID; None where it holds one.
        part: Of a whole slide, which level and region; None where it was not told.
    """

    path: Path
    series: str | None = None
    part: SlidePart | None = None

    @property
    def source(self) -> str:
        """The name that tells it from every other input."""
        place = str(self.path.resolve())
        if self.part is not None:
            return f"{place} part {self._part_name}"
        return place if self.series is None else f"{place} series {self.series}"

    @property
    def _part_name(self) -> str:
        """Level and region, as they may stand in a file's name."""
        if self.part is None:
            return ""
        level = "" if self.part.level is None else f"level-{self.part.level}"
        return "_".join(filter(None, (level, "-".join(str(value) for value in self.part.region or ()))))

    @property
    def label(self) -> str:
        """The name that it was given, for tables and messages."""
        return str(self.path) if self.series is None else f"{self.path} (series {self.series})"

    @property
    def stem(self) -> str:
        """The name without what tells its format, and with the series where one was chosen.

        A backslash becomes a dash, as it parts folders on other systems.
        """
        name = self.path.resolve().name.replace("\\", "-")
        if self.series is not None:
            return f"{name}_series-{self.series}"
        lower = name.lower()
        suffix = next((suffix for suffix in SUFFIXES if lower.endswith(suffix)), "")
        return "_".join(filter(None, (name[: len(name) - len(suffix)] or name, self._part_name)))

    def fingerprint(self) -> str:
        """Changes when a file of the image does: its newest time of change and its size.

        Raises:
            InputError: It does not exist, or is empty.
        """
        if not self.path.exists():
            raise InputError(f"{self.path} does not exist: correct the path")
        try:
            files = files_at(self.path)
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


def find_stacks(arguments: Sequence[str], *, leave_out: Path, series: Sequence[str]) -> list[Input]:
    """Find the images as `find_inputs` does, but take a folder of pictures as one video.

    Raises:
        InputError: As `find_inputs`.
    """
    from medsam3.io.dicom_series import holds_images  # noqa: PLC0415
    from medsam3.io.raster import frame_files  # noqa: PLC0415

    found: list[Input] = []
    for argument in arguments:
        path = Path(argument)
        is_video = not series and path.is_dir() and len(frame_files(path)) > 1 and not holds_images(path)
        found.extend([Input(path)] if is_video else find_inputs([argument], leave_out=leave_out, series=series))
    return list({item.source: item for item in found}.values())


def _expand(argument: str) -> list[Path]:
    if not argument.strip():
        raise InputError("a file name is empty: name a file, a folder or a pattern")
    path = Path(argument)
    if path.exists() or not glob.has_magic(argument):
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]  # noqa: PTH207  absolute patterns
    if not matches:
        raise InputError(f"pattern {argument!r} matches no file: correct it, or name a folder")
    # What a pattern matches beside images is passed over as in a folder, unless it matches nothing else; and what lies
    # in a folder that it matches as well, such as a slice of a series, is found there.
    folders = {match for match in matches if match.is_dir()}
    outer = [match for match in matches if folders.isdisjoint(match.parents)]
    return [match for match in outer if match in folders or is_image_name(match)] or outer


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
    claims = [record["claims"] for record in records if isinstance(record.get("claims"), list)]
    there = {path.name for path in folder.iterdir() if path.is_file()}
    return {name for names in claims for name in names if isinstance(name, str)} & there


def is_image_name(path: Path) -> bool:
    """The name ends as that of an image does."""
    return path.name.lower().endswith(SUFFIXES)


def files_at(place: Path) -> list[Path]:
    """Name the file at a place, or all files in a folder and below it, as a series may lie below its folder."""
    return [place] if place.is_file() else _files_in(place, "**/*")


def _files_in(folder: Path, pattern: str = "*") -> list[Path]:
    return _visible(path for path in folder.glob(pattern) if path.is_file())


def _visible(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if not path.name.startswith("."))


@dataclass(frozen=True)
class FrameRange:
    """Frames or slices from `first` to `last`, both included, counted from 0."""

    first: int
    last: int


@dataclass(frozen=True)
class Chosen:
    """An image that was read, and which of its frames are meant; None for all."""

    image: Image
    frames: tuple[int, ...] | None


def frame_ranges(texts: Sequence[str] | None) -> tuple[FrameRange, ...]:
    """Read what `--frame` was given, empty for all frames.

    Raises:
        InputError: Not of the form N or A-B, or B below A.
    """
    return tuple(_frame_range(text) for text in texts or ())


def read_chosen(item: Input | ArchiveInput, ranges: Sequence[FrameRange]) -> Chosen:
    """Read an input and say which of its frames are meant.

    A file whose frames make no one stack (time points of a 4-D NIfTI, pages or frames of different sizes) is read at
    the one frame that is asked for; its slices are then all meant.

    Raises:
        InputError: As `medsam3.read`, and a frame that does not exist.
    """
    from medsam3.io import read  # noqa: PLC0415  no reader is needed for what is done

    try:
        image = read(item.path, series=item.series, part=item.part)
    except InputError:
        single = ranges[0].first if len(ranges) == 1 and ranges[0].first == ranges[0].last else None
        if single is None or item.path.is_dir() or item.part is not None:
            raise
        return Chosen(read(item.path, frame=single), None)
    return Chosen(image, _frames_within(ranges, image.shape[0]))


def part(chosen: Chosen) -> Image:
    """The chosen frames alone; their position is kept where they follow each other."""
    from medsam3.image import LazyFrames  # noqa: PLC0415

    if chosen.frames is None:
        return chosen.image
    image, frames = chosen.image, chosen.frames
    if len(frames) == 1:
        return image.frame(frames[0])
    is_run = frames == tuple(range(frames[0], frames[-1] + 1))
    source = tuple(image.source[n] for n in frames) if len(image.source) == image.shape[0] else image.source
    affine = image.frame(frames[0]).affine if is_run else None
    shape = (len(frames), *image.shape[1:], image.channels)
    return replace(image, frames=LazyFrames(shape, lambda n: image.pixels(frames[n])), affine=affine, source=source)


def _frame_range(text: str) -> FrameRange:
    match = _RANGE.fullmatch(text.strip())
    if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
        raise InputError(f"--frame is {text!r}, allowed is N or A-B with A not above B, counted from 0")
    return FrameRange(int(match[1]), int(match[2] or match[1]))


def _frames_within(ranges: Sequence[FrameRange], count: int) -> tuple[int, ...] | None:
    for one in ranges:
        check_frame(one.last, count)
    return tuple(sorted({n for one in ranges for n in range(one.first, one.last + 1)})) or None
