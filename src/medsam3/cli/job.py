"""What `medsam3 segment` is asked for: the command line's prompts and settings as checked values. Reads no image."""

from __future__ import annotations

import argparse
import hashlib
import json
from dataclasses import asdict, dataclass, field

from medsam3 import __version__
from medsam3.cli.model_choice import ModelChoice, adapter_from, vocabulary_from
from medsam3.cli.reading import FrameRange, frame_ranges
from medsam3.cli.stacks import StackChoice, stack_choice
from medsam3.errors import InputError
from medsam3.phrases import separated
from medsam3.prompts import Box, Point, Prompt, check_phrase


@dataclass(frozen=True)
class Job:
    """What is asked of every file.

    Attributes:
        prompts: Each asked of every file.
        formats: How the masks are written; None takes what suits the image.
        threshold: Least score in 0..1; None takes the weights' own.
        frames: Of a stack; empty takes all.
        model: What answers.
        stacks: How volumes and videos are segmented.
    """

    prompts: tuple[Prompt, ...]
    formats: tuple[str, ...] | None = None
    threshold: float | None = None
    frames: tuple[FrameRange, ...] = ()
    model: ModelChoice = field(default_factory=ModelChoice)
    stacks: StackChoice = field(default_factory=StackChoice)

    def key(self, prompt: Prompt) -> str:
        """Hash that changes with whatever changes the result of one prompt, the content of the weights among it.

        Where the weights lie does not change it, nor the device that they run on.
        """
        frames = [asdict(one) for one in self.frames]
        adapter = self.model.adapter
        numbers = None if adapter is None else (adapter.alpha, adapter.rank)
        asked = (
            __version__,
            prompt.to_json(),
            self.formats,
            self.threshold,
            frames,
            self.model.name if not self.model.sha256 else "",
            self.model.sha256,
            numbers,
            *(("flips",) if self.model.flips else ()),
            self.stacks.key(),
        )
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def job_from(args: argparse.Namespace) -> Job:
    """The job that the arguments ask for.

    Raises:
        InputError: A prompt, format or threshold that is not allowed.
    """
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise InputError(f"--threshold is {args.threshold}, allowed is 0 to 1")
    boxes = tuple(_box("--box", text) for text in args.box)
    points = tuple(_point(text) for text in args.point)
    exemplars = tuple(_box("--exemplar", text, has_label=True) for text in args.exemplar)
    model = ModelChoice(args.model, args.weights, adapter_from(args), vocabulary_from(args), args.device, args.flips)
    phrases: list[str | None] = [one for text in args.text for one in separated(check_phrase(text), model.taught)]
    prompts = [Prompt(phrase, boxes, points, exemplars) for phrase in phrases or [None]]
    return Job(
        prompts=tuple(dict.fromkeys(prompts)),
        formats=None if args.format is None else _formats(args.format),
        threshold=args.threshold,
        frames=frame_ranges(args.frame),
        model=model,
        stacks=stack_choice(args),
    )


def _formats(text: str) -> tuple[str, ...]:
    from medsam3.io import FORMATS  # noqa: PLC0415

    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise InputError(f"--format is {text!r}, allowed are {', '.join(FORMATS)}, joined by commas")
    return names


def _numbers(option: str, text: str, allowed: str, counts: tuple[int, ...]) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in counts:
        raise InputError(f"{option} is {text!r}, allowed is {allowed} in pixels")
    return numbers


def _box(option: str, text: str, *, has_label: bool = False) -> Box:
    allowed = "X0,Y0,X1,Y1 or X0,Y0,X1,Y1,0|1" if has_label else "X0,Y0,X1,Y1"
    x0, y0, x1, y1, *label = _numbers(option, text, allowed, (4, 5) if has_label else (4,))
    return Box(x0, y0, x1, y1, is_positive=_is_positive(option, label))


def _point(text: str) -> Point:
    x, y, *label = _numbers("--point", text, "X,Y or X,Y,0|1", (2, 3))
    return Point(x, y, is_positive=_is_positive("--point", label))


def _is_positive(option: str, label: list[float]) -> bool:
    if label and label[0] not in (0, 1):
        raise InputError(f"{option} ends in {label[0]:g}, allowed is 1 (wanted) or 0 (not wanted)")
    return not label or label[0] == 1
