"""Which part of an input is read: a series of a folder, some frames or slices of a stack."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from medsam3.errors import InputError

if TYPE_CHECKING:
    from medsam3.cli.inputs import Input
    from medsam3.image import Image

_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


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
    """What `--frame` was given, empty for all frames.

    Raises:
        InputError: Not of the form N or A-B, or B below A.
    """
    return tuple(_frame_range(text) for text in texts or ())


def read_chosen(item: Input, ranges: Sequence[FrameRange]) -> Chosen:
    """Read an input and say which of its frames are meant.

    A file whose frames make no one stack (time points of a 4-D NIfTI, pages or frames of different sizes) is read at
    the one frame that is asked for; its slices are then all meant.

    Raises:
        InputError: As `medsam3.read`, and a frame that does not exist.
    """
    from medsam3.io import read  # noqa: PLC0415  no reader is needed for what is done

    try:
        image = read(item.path, series=item.series)
    except InputError:
        single = ranges[0].first if len(ranges) == 1 and ranges[0].first == ranges[0].last else None
        if single is None or item.path.is_dir():
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
        if one.last >= count:
            raise InputError(f"frame {one.last} was asked for, allowed is 0 to {count - 1}")
    return tuple(sorted({n for one in ranges for n in range(one.first, one.last + 1)})) or None
