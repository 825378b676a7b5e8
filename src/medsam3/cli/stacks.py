"""What `medsam3 segment` takes of volumes and videos: its arguments, and the settings that they make."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from medsam3.errors import InputError

if TYPE_CHECKING:
    from medsam3.cli.inputs import Input
    from medsam3.segmentation.options import Options
    from medsam3.view.planes import PlaneChoice

_PLANES = ("auto", "native", "axial", "coronal", "sagittal", "vote")


@dataclass(frozen=True)
class StackChoice:
    """How volumes and videos are segmented.

    Attributes:
        way: `each` lets every slice or frame stand for itself, `follow` follows objects through them; None takes what
            is best.
        at: Slice of the boxes, points and exemplars.
        key_every: A phrase is asked on every k-th slice.
        plane: See `view.planes`; `vote` takes two of three.
        window: A preset's name, or CENTRE,WIDTH.
        has_neighbours: The slices before and after are the colours.
    """

    way: str | None = None
    at: int | None = None
    key_every: int = 1
    plane: str = "auto"
    window: str | None = None
    has_neighbours: bool = False

    def key(self) -> dict[str, Any]:
        """What changes the results, in a form for JSON."""
        return asdict(self)

    def options(self) -> Options:
        """The settings for `medsam3.segment`."""
        from medsam3.segmentation.options import Options  # noqa: PLC0415  the command line starts without numpy
        from medsam3.view.grey import window_named  # noqa: PLC0415

        return Options(
            is_followed=None if self.way is None else self.way == "follow",
            at=self.at,
            key_every=self.key_every,
            plane=cast("PlaneChoice", self.plane),  # argparse has checked it
            window=None if self.window is None else window_named(self.window),
            has_neighbours=self.has_neighbours,
        )


def add_stack_arguments(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Declare what volumes and videos take."""
    way = group.add_mutually_exclusive_group()
    way.add_argument(
        "--propagate",
        action="store_true",
        help="follow objects through slices or frames, both ways: the default for videos, and for what is drawn; a "
        "folder of pictures is then one video",
    )
    way.add_argument(
        "--each-slice",
        action="store_true",
        help="let every slice or frame stand for itself: the default for a phrase in a volume",
    )
    group.add_argument("--at", type=int, metavar="N", help="slice or frame of the boxes and points, from 0")
    group.add_argument(
        "--key-every", type=int, default=1, metavar="K", help="ask phrases on every K-th slice, follow in between"
    )
    group.add_argument(
        "--plane", choices=_PLANES, default="auto", help="how a volume is cut (%(default)s); vote: two of three"
    )
    group.add_argument(
        "--window", metavar="NAME|CENTRE,WIDTH", help="lung, bone, soft-tissue, brain, liver ...; default: automatic"
    )
    group.add_argument("--neighbours", action="store_true", help="show the slices before and after as colours")


def stack_choice(args: argparse.Namespace) -> StackChoice:
    """What the arguments say of volumes and videos.

    Raises:
        InputError: A value that is not allowed.
    """
    if args.key_every < 1:
        raise InputError(f"--key-every is {args.key_every}, allowed is 1 and above")
    way = "follow" if args.propagate else "each" if args.each_slice else None
    choice = StackChoice(way, args.at, args.key_every, args.plane, args.window, args.neighbours)
    if choice.window is not None or choice.key_every > 1:
        choice.options()  # says what is wrong before any file is looked at
    return choice


def find_stacks(arguments: Sequence[str], *, leave_out: Path, series: Sequence[str]) -> list[Input]:
    """As `inputs.find_inputs`, but a folder of pictures is one video.

    Raises:
        InputError: As `find_inputs`.
    """
    from medsam3.cli.inputs import Input, find_inputs  # noqa: PLC0415
    from medsam3.io.dicom_series import holds_images  # noqa: PLC0415
    from medsam3.io.raster import frame_files  # noqa: PLC0415

    found: list[Input] = []
    for argument in arguments:
        path = Path(argument)
        is_video = not series and path.is_dir() and len(frame_files(path)) > 1 and not holds_images(path)
        found.extend([Input(path)] if is_video else find_inputs([argument], leave_out=leave_out, series=series))
    return list({item.source: item for item in found}.values())
