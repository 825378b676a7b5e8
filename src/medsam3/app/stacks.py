"""What `medsam3 segment` does with volumes and videos as a whole: its arguments, and the way through a stack."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from medsam3.errors import InputError

if TYPE_CHECKING:
    from medsam3.app.inputs import Input
    from medsam3.app.reading import FrameRange
    from medsam3.image import Image, Masks
    from medsam3.io.stack import Stack
    from medsam3.models.segmenter import Segmenter
    from medsam3.prompts import Prompt
    from medsam3.volumes.planes import PlaneChoice

_PLANES = ("auto", "native", "axial", "coronal", "sagittal", "vote")
_DEFAULT_PLANE = "auto"


@dataclass(frozen=True)
class StackChoice:
    """How stacks are segmented as a whole.

    Attributes:
        is_asked: They are; otherwise every frame stands for itself.
        at: Slice of the boxes, points and exemplars.
        key_every: A phrase is asked on every k-th slice.
        plane: See `volumes.planes`; `vote` takes two of three.
        window: A preset's name, or CENTRE,WIDTH.
        has_neighbours: The slices before and after are the colours.
    """

    is_asked: bool = False
    at: int | None = None
    key_every: int = 1
    plane: str = _DEFAULT_PLANE
    window: str | None = None
    has_neighbours: bool = False

    def key(self) -> dict[str, Any]:
        """What changes the results; nothing where stacks are not segmented as a whole."""
        return asdict(self) if self.is_asked else {}


def add_stack_arguments(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Declare what volumes and videos take."""
    group.add_argument(
        "--propagate", action="store_true", help="follow objects through the slices or frames, both ways"
    )
    group.add_argument("--at", type=int, metavar="N", help="slice or frame of the boxes and points, from 0")
    group.add_argument(
        "--key-every", type=int, default=1, metavar="K", help="ask phrases on every K-th slice, follow in between"
    )
    group.add_argument(
        "--plane", choices=_PLANES, default=_DEFAULT_PLANE, help="how a volume is cut (%(default)s); vote: two of three"
    )
    group.add_argument(
        "--window", metavar="NAME|CENTRE,WIDTH", help="lung, bone, soft-tissue, brain, liver ...; default: automatic"
    )
    group.add_argument("--neighbours", action="store_true", help="show the slices before and after as colours")


def stack_choice(args: argparse.Namespace) -> StackChoice:
    """What the arguments say of stacks.

    Raises:
        InputError: One of the options without --propagate, or a value that is not allowed.
    """
    choice = StackChoice(args.propagate, args.at, args.key_every, args.plane, args.window, args.neighbours)
    if not choice.is_asked:
        given = [name for name in ("at", "key_every", "plane", "window", "has_neighbours") if _differs(choice, name)]
        if given:
            option = "neighbours" if given[0] == "has_neighbours" else given[0].replace("_", "-")
            raise InputError(f"--{option} is for volumes and videos as a whole: give --propagate with it")
        return choice
    if choice.key_every < 1:
        raise InputError(f"--key-every is {choice.key_every}, allowed is 1 and above")
    if choice.window is not None:
        from medsam3.volumes.presentation import window_named  # noqa: PLC0415  the command line starts without numpy

        window_named(choice.window)
    return choice


def find_stacks(arguments: Sequence[str], *, leave_out: Path, series: Sequence[str]) -> list[Input]:
    """As `inputs.find_inputs`, but a folder of pictures is one video.

    Raises:
        InputError: As `find_inputs`.
    """
    from medsam3.app.inputs import Input, find_inputs  # noqa: PLC0415
    from medsam3.io.frame_folder import frame_files  # noqa: PLC0415

    found: list[Input] = []
    for argument in arguments:
        path = Path(argument)
        is_video = not series and path.is_dir() and len(frame_files(path)) > 1
        found.extend([Input(path)] if is_video else find_inputs([argument], leave_out=leave_out, series=series))
    return list({item.source: item for item in found}.values())


def open_chosen(item: Input, ranges: Sequence[FrameRange]) -> Stack:
    """Open an input as a stack; one `--frame N` is the time point of a 4-D NIfTI.

    Raises:
        InputError: As `io.lazy.open_stack`, and other frames: a stack is followed as a whole.
    """
    from medsam3.io.lazy import open_stack  # noqa: PLC0415

    frame = None
    if ranges:
        if len(ranges) > 1 or ranges[0].first != ranges[0].last or item.path.is_dir():
            raise InputError("--frame with --propagate is the one time point of a 4-D NIfTI: leave it out, or give one")
        frame = ranges[0].first
    return open_stack(item.path, frame=frame, series=item.series)


def segment_whole(
    stack: Stack,
    prompts: Sequence[Prompt],
    segmenter: Segmenter,
    choice: StackChoice,
    *,
    threshold: float | None,
    journal: Path | None,
    progress: Callable[[int, int], None],
) -> list[Masks]:
    """Masks of each prompt, each object through all its slices.

    Raises:
        InputError: As `volumes.run.segment_stack`.
    """
    from medsam3.volumes.options import StackOptions  # noqa: PLC0415
    from medsam3.volumes.presentation import window_named  # noqa: PLC0415
    from medsam3.volumes.run import segment_stack  # noqa: PLC0415
    from medsam3.volumes.voting import segment_by_vote  # noqa: PLC0415

    is_vote = choice.plane == "vote"
    options = StackOptions(
        key_every=choice.key_every,
        at=choice.at,
        plane="auto" if is_vote else cast("PlaneChoice", choice.plane),  # argparse has checked it
        window=None if choice.window is None else window_named(choice.window),
        has_neighbours=choice.has_neighbours,
        threshold=threshold,
        journal=journal,
    )
    if is_vote:
        return segment_by_vote(stack, prompts, segmenter, options, progress=progress)
    results = segment_stack(stack, prompts, segmenter, options, progress=progress)
    for name in dict.fromkeys(found.recognised for found in results if found.recognised):
        print(
            f"medsam3: what was drawn is taken for: {name}; by this name it is found again where it is lost",
            file=sys.stderr,
        )
    return [found.masks() for found in results]


def image_for(stack: Stack, formats: Sequence[str], choice: StackChoice) -> Image:
    """The image that the writers of these formats want: with pixels, on disk, only where one of them shows it."""
    from dataclasses import replace  # noqa: PLC0415

    from medsam3.io import NEEDS_PIXELS  # noqa: PLC0415
    from medsam3.volumes.presentation import automatic_window, window_named  # noqa: PLC0415

    if not NEEDS_PIXELS.intersection(formats):
        return stack.outline()
    window = automatic_window(stack) if choice.window is None else window_named(choice.window)
    return replace(stack.on_disk(), window=window)


def _differs(choice: StackChoice, name: str) -> bool:
    return bool(getattr(choice, name) != getattr(StackChoice(), name))
