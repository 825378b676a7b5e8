"""A folder of pictures in, as the frames of one video, in the order of the numbers in their names."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from medsam3.errors import InputError
from medsam3.image import Image, LazyFrames, Pixels
from medsam3.io.files import RASTER_SUFFIXES, check_size
from medsam3.io.raster import read_raster


@dataclass(frozen=True)
class _Pictures:
    """Reads pictures as frames."""

    paths: tuple[Path, ...]

    def __call__(self, n: int) -> Pixels:
        try:
            return read_raster(self.paths[n], frame=0).pixels(0)
        except InputError as error:
            raise InputError(f"{self.paths[n].name}: {error}") from error


def open_frame_folder(folder: Path) -> Image:
    """Open the pictures of a folder, not of those below it, as a video; `frame2.png` comes before `frame10.png`.

    Raises:
        InputError: No pictures, or, when a frame is asked for, one of another size.
    """
    paths = frame_files(folder)
    if not paths:
        raise InputError("the folder holds neither a DICOM series nor pictures: give one that does")
    read = _Pictures(tuple(paths))
    height, width, channels = read(0).shape
    check_size(len(paths), height, width)
    return Image(
        LazyFrames((len(paths), height, width, channels), read),
        kind="video" if len(paths) > 1 else "picture",
        source=tuple(paths),
        metadata={"format": "folder of pictures"},
    )


def frame_files(folder: Path) -> list[Path]:
    """Pictures of a folder in the order of the frames."""
    paths = [path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(RASTER_SUFFIXES)]
    return sorted((path for path in paths if not path.name.startswith(".")), key=lambda path: _order(path.name))


def _order(name: str) -> list[tuple[int, int, str]]:
    """Runs of digits compare as numbers, the rest as text."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
