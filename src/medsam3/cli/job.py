"""The arguments that commands share, and the job that they make: which model, which prompts, how stacks are taken.

It reads no image and loads no model.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

import medsam3
from medsam3.errors import InputError
from medsam3.store import remembered_sha256

if TYPE_CHECKING:
    from medsam3.cli.inputs import FrameRange
    from medsam3.cli.remote import Answering, ServedModel
    from medsam3.io.files import SlidePart
    from medsam3.models.registry import Precision
    from medsam3.models.sam3.lora import LoraSource
    from medsam3.models.segmenter import Segmenter
    from medsam3.prompts import Box, Prompt
    from medsam3.segmentation.options import Options


def Help(text: str) -> Parameter:  # noqa: N802  reads as a note on the field
    """Give an argument its line in the help."""
    return Parameter(help=text)


FLAT = Parameter(name="*")
"""The fields of this dataclass are arguments of the command itself."""
COUNT, ABOVE_0, FROM_0 = (Parameter(validator=check) for check in (Number(gte=1), Number(gt=0), Number(gte=0)))
SHARE = Parameter(validator=Number(gte=0, lte=1))
SEVERAL = Parameter(consume_multiple=True)

_SHIPPED = Path(medsam3.__file__).parent / "weights"
_PRECISIONS: dict[str, Precision] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_REGION = re.compile(r"\d{1,9}(,\d{1,9}){3}")
_BESIDE = ("config.json", "vocab.json", "merges.txt", "tokenizer.json")


@dataclass(frozen=True)
class Sam3Choice:
    """Options that SAM 3 alone takes."""

    lora: Annotated[Path | None, Help("MedSAM-3's adapter for SAM 3: best_lora_weights.pt")] = None
    lora_config: Annotated[Path | None, Help("the adapter's rank and alpha; default: the YAML beside it")] = None
    alpha: Annotated[float | None, ABOVE_0, Help("the adapter's alpha, if no YAML tells it")] = None
    rank: Annotated[int | None, COUNT, Help("the adapter's rank, to be checked against its weights")] = None
    vocabulary: Annotated[
        Path | None, Help("CLIP's vocabulary for SAM 3's phrases, if it is not beside the weights")
    ] = None

    def check(self) -> None:
        """Refuse options of an adapter without one, and a vocabulary that is not there.

        Raises:
            InputError: One of the two.
        """
        for option in ("lora_config", "alpha", "rank"):
            if self.lora is None and getattr(self, option) is not None:
                raise InputError(f"--{option.replace('_', '-')} belongs to an adapter: give its file with --lora")
        if self.vocabulary is not None and not self.vocabulary.exists():
            raise InputError(f"--vocabulary {self.vocabulary} does not exist: correct the path")

    def source(self) -> LoraSource | None:
        """Give the adapter as the models take it."""
        from medsam3.models.sam3.lora import LoraSource  # noqa: PLC0415  torch

        return None if self.lora is None else LoraSource(self.lora, self.lora_config, self.alpha, self.rank)

    def files(self) -> Iterator[Path]:
        """Name what the adapter is read from."""
        if self.lora is not None:
            yield self.lora
            yield from [self.lora_config] if self.lora_config is not None else sorted(self.lora.parent.glob("*.yaml"))


@dataclass(frozen=True)
class ModelChoice:
    """A model as the command line names it."""

    model: Annotated[str, Help("mini (default), mini-open, facebook/sam3, its folder, or sam3.pt")] = "mini"
    weights: Annotated[Path | None, Help("weights of your own, made by medsam3 train")] = None
    flips: Annotated[bool, Help("ask phrases of the mirrored picture too (mini)")] = False
    sam3: Annotated[Sam3Choice, FLAT] = field(default_factory=Sam3Choice)
    device: Annotated[str, Help("where it runs: cpu (default), cuda, cuda:1 or mps")] = "cpu"
    precision: Annotated[Literal["fp32", "bf16", "fp16"] | None, Help("number format of SAM 3 (default: fp32)")] = None
    image_size: Annotated[
        int | None, Help("side in px of the square that SAM 3 sees: a multiple of 14 from 336 on (default: 1008)")
    ] = None

    def load(self) -> Segmenter:
        """Load the model, ready to segment.

        Raises:
            InputError: As `registry.load`.
        """
        from medsam3.models import registry  # noqa: PLC0415  may bring torch, which most errors do not need

        return registry.load(
            self.model,
            device=registry.Running(
                self.device, None if self.precision is None else _PRECISIONS[self.precision], self.image_size
            ),
            weights=self.weights,
            lora=None if self.sam3.lora is None else self.sam3.source(),
            vocabulary=self.sam3.vocabulary,
            flips=self.flips,
        )

    def answering(self) -> Answering:
        """Load the model, and give it as one who answers."""
        from medsam3.cli.remote import AnsweringHere  # noqa: PLC0415

        return AnsweringHere(self.load())

    def key(self) -> tuple[Any, ...]:
        """What of it changes results; where the weights lie does not, nor the device."""
        return self.settings_key(self.model, self.sha256)

    def settings_key(self, name: str, sha256: dict[str, str]) -> tuple[Any, ...]:
        """Give `key` for weights of a name and content."""
        adapter = (self.sam3.alpha, self.sam3.rank)
        return (name if not sha256 else "", sha256, adapter, (self.flips, self.precision, self.image_size))

    @cached_property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of each file that the weights consist of, by name, an adapter's with `lora/` before it.

        A file that is missing is left to `load`, which says so.

        Raises:
            InputError: A hub's repository that cannot be had, a file that cannot be read.
        """
        hashes = {path.name: _sha256_of(path) for path in self._files() if path.is_file()}
        return hashes | {f"lora/{path.name}": _sha256_of(path) for path in self.sam3.files() if path.is_file()}

    @cached_property
    def taught(self) -> tuple[str, ...]:
        """Names of the concepts that the weights were taught, as their card says; () if they have none."""
        from medsam3.models.registry import is_sam3  # noqa: PLC0415

        if is_sam3(self.model):
            return ()
        *_, card = self._files()
        try:
            return tuple(json.loads(card.read_text(encoding="utf-8"))["concepts"])
        except (OSError, ValueError, KeyError, TypeError):
            return ()  # `load` says what is wrong with it

    def _files(self) -> Iterator[Path]:
        from medsam3.models.registry import is_sam3  # noqa: PLC0415

        if not is_sam3(self.model):
            weights = self.weights or _SHIPPED / f"{self.model}.safetensors"
            yield from (weights, weights.with_suffix(".json"))
        elif self.weights is not None:
            yield from _sam3_files(self.weights)
        elif "/" in self.model and not Path(self.model).exists():
            from medsam3.models.sam3.checkpoints import locate  # noqa: PLC0415  torch

            yield from _sam3_files(locate(self.model))
        else:
            yield from _sam3_files(Path(self.model))


def _sam3_files(place: Path) -> Iterator[Path]:
    """Name the weights at a place, and what beside them changes the results."""
    folder = place if place.is_dir() else place.parent
    if place.is_file():
        yield place
    else:
        pickled = [path for ending in ("pt", "pth", "bin") for path in sorted(folder.glob(f"*.{ending}"))]
        yield from sorted(folder.glob("*.safetensors")) or pickled
    yield from (folder / name for name in _BESIDE)


def _sha256_of(path: Path) -> str:
    try:
        return remembered_sha256(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a file that you may read") from error


@dataclass(frozen=True)
class SlideChoice:
    """What is read of a whole slide."""

    level: Annotated[
        int | None, FROM_0, Help("of a whole slide, this level: 0 is the finest (default: by the size of what is read)")
    ] = None
    region: Annotated[
        str | None, Help("X,Y,WIDTH,HEIGHT: of a whole slide, this part, in pixels of its finest level")
    ] = None

    def part(self) -> SlidePart | None:
        """Give it as `medsam3.io.read` takes it; None if nothing was told.

        Raises:
            InputError: A region that is not four whole numbers.
        """
        from medsam3.io.files import SlidePart  # noqa: PLC0415  numpy

        if self.region is not None and not _REGION.fullmatch(self.region):
            raise InputError(f"--region is {self.region!r}, allowed is X,Y,WIDTH,HEIGHT in pixels of the finest level")
        if self.level is None and self.region is None:
            return None
        if self.region is None:
            return SlidePart(self.level)
        x, y, width, height = (int(value) for value in self.region.split(","))
        return SlidePart(self.level, (x, y, width, height))


@dataclass(frozen=True)
class StackChoice:
    """How volumes and videos are segmented."""

    propagate: Annotated[
        bool,
        Help(
            "follow objects through slices or frames, both ways: the default for videos, and for what is drawn; "
            "a folder of pictures is then one video"
        ),
    ] = False
    each_slice: Annotated[
        bool, Help("let every slice or frame stand for itself: the default for a phrase in a volume")
    ] = False
    at: Annotated[int | None, Help("slice or frame of the boxes and points, from 0")] = None
    key_every: Annotated[int, COUNT, Help("ask phrases on every K-th slice, follow in between")] = 1
    plane: Annotated[
        Literal["auto", "native", "axial", "coronal", "sagittal", "vote"],
        Help("how a volume is cut (auto); vote: two of three"),
    ] = "auto"
    window: Annotated[
        str | None, Help("NAME or CENTRE,WIDTH: lung, bone, soft-tissue, brain, liver ...; default: automatic")
    ] = None
    neighbours: Annotated[bool, Help("show the slices before and after as colours")] = False

    def check(self) -> None:
        """Refuse what is wrong before any file is looked at.

        Raises:
            InputError: An unknown window, or two ways at once.
        """
        if self.propagate and self.each_slice:
            raise InputError("--each-slice was given with --propagate: take one of them")
        if self.window is not None or self.key_every > 1:
            self.options()

    def options(self) -> Options:
        """Give the settings for `medsam3.segment`.

        Raises:
            InputError: An unknown window.
        """
        from medsam3.segmentation.options import Options  # noqa: PLC0415  scipy
        from medsam3.view.grey import window_named  # noqa: PLC0415

        return Options(
            is_followed=True if self.propagate else False if self.each_slice else None,
            at=self.at,
            key_every=self.key_every,
            plane=self.plane,
            window=None if self.window is None else window_named(self.window),
            has_neighbours=self.neighbours,
        )


@dataclass(frozen=True)
class Job:
    """The questions that are asked of every file.

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
    model: ModelChoice | ServedModel = field(default_factory=ModelChoice)
    stacks: StackChoice = field(default_factory=StackChoice)

    def key(self, prompt: Prompt) -> str:
        """Hash what changes the result of one prompt, the content of the weights among it.

        Where the weights lie does not change it, nor the device that they run on.
        """
        asked = (
            medsam3.__version__,
            prompt.to_json(),
            self.formats,
            self.threshold,
            [asdict(one) for one in self.frames],
            *self.model.key(),
            asdict(self.stacks),
        )
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]

    def identity(self, prompt: Prompt) -> str:
        """Hash what changes the masks of one prompt, in whichever form; the UIDs of DICOM results are made of it."""
        return replace(self, formats=None).key(prompt)


def prompts_from(
    text: Sequence[str],
    box: Sequence[str],
    point: Sequence[str],
    exemplar: Sequence[str],
    taught: Sequence[str] = (),
) -> tuple[Prompt, ...]:
    """Read prompts from the command line's texts: one for each concept, with all boxes, points and exemplars.

    Args:
        text: Phrases; one that joins concepts makes a prompt of each.
        box: Boxes.
        point: Points.
        exemplar: Exemplars.
        taught: Names of concepts beside those of the table.

    Raises:
        InputError: A text that is no position, a phrase that is empty or not understood, or nothing to ask for.
    """
    from medsam3.phrases import separated  # noqa: PLC0415  numpy, not for --help
    from medsam3.prompts import Point, Prompt, check_phrase  # noqa: PLC0415

    boxes = tuple(_box("--box", one) for one in box)
    points = []
    for one in point:
        x, y, *label = _numbers("--point", one, "X,Y or X,Y,0|1", (2, 3))
        points.append(Point(x, y, is_positive=_is_positive("--point", label)))
    exemplars = tuple(_box("--exemplar", one, has_label=True) for one in exemplar)
    phrases: list[str | None] = [one for joined in text for one in separated(check_phrase(joined), taught)]
    return tuple(dict.fromkeys(Prompt(phrase, boxes, tuple(points), exemplars) for phrase in phrases or [None]))


def names_in(text: str) -> tuple[str, ...]:
    """Split names that are joined by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def formats_from(text: str | None) -> tuple[str, ...] | None:
    """Read names of formats that are joined by commas.

    Raises:
        InputError: A name that is not known, or none.
    """
    from medsam3.io import FORMATS  # noqa: PLC0415

    if text is None:
        return None
    names = tuple(dict.fromkeys(name.lower() for name in names_in(text)))
    if not names or any(name not in FORMATS for name in names):
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
    from medsam3.prompts import Box  # noqa: PLC0415

    allowed = "X0,Y0,X1,Y1 or X0,Y0,X1,Y1,0|1" if has_label else "X0,Y0,X1,Y1"
    x0, y0, x1, y1, *label = _numbers(option, text, allowed, (4, 5) if has_label else (4,))
    return Box(x0, y0, x1, y1, is_positive=_is_positive(option, label))


def _is_positive(option: str, label: list[float]) -> bool:
    if label and label[0] not in (0, 1):
        raise InputError(f"{option} ends in {label[0]:g}, allowed is 1 (wanted) or 0 (not wanted)")
    return not label or label[0] == 1
