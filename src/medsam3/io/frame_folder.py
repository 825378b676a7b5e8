"""A folder of pictures in, as the frames of one video, in the order of the numbers in their names."""

from __future__ import annotations

import re
from pathlib import Path

from medsam3.errors import InputError
from medsam3.image import Pixels
from medsam3.io.files import RASTER_SUFFIXES, check_size
from medsam3.io.raster import read_raster
from medsam3.io.stack import Stack


def open_frame_folder(folder: Path) -> Stack:
    """The pictures of a folder, not of those below it; `frame2.png` comes before `frame10.png`.

    Raises:
        InputError: No pictures, or, when a frame is asked for, one of another size.
    """
    paths = frame_files(folder)
    if not paths:
        raise InputError("the folder holds neither a DICOM series nor pictures: give one that does")
    first = _read(paths[0])
    height, width, channels = first.shape
    check_size(len(paths), height, width)
    return Stack(
        (len(paths), height, width),
        channels,
        lambda n: _read(paths[n]),
        kind="video" if len(paths) > 1 else "picture",
        source=tuple(paths),
        metadata={"format": "folder of pictures"},
    )


def frame_files(folder: Path) -> list[Path]:
    """Pictures of a folder in the order of the frames."""
    paths = [path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(RASTER_SUFFIXES)]
    return sorted((path for path in paths if not path.name.startswith(".")), key=lambda path: _order(path.name))


def _read(path: Path) -> Pixels:
    try:
        pixels: Pixels = read_raster(path, frame=0).pixels[0]
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error
    return pixels


def _order(name: str) -> list[tuple[int, int, str]]:
    """Runs of digits compare as numbers, the rest as text."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
