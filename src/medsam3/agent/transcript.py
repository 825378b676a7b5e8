"""A run on disk: a journal with one line for each step, its pictures beside it, and the page that shows both.

A step stands in the journal only after its pictures are on disk, so a killed run can be resumed after any step.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from medsam3.agent.chat import ShownPicture, Usage
from medsam3.agent.values import Budget, Decision, StoredPicture, ToolStep, Verdict
from medsam3.errors import InputError, printable, reason_of, value_error
from medsam3.page import render
from medsam3.store import Journal, JsonObject, cannot_write, check_format, read_lines, replacing, write_text

FILE_NAME = "transcript.jsonl"
PICTURES = "pictures"
VERSION = 1
"""Raised when the lines change so that older readers would misread them."""
LineKind = Literal["opening", "decision", "lost", "step", "ending"]


@dataclass(frozen=True)
class Heading:
    """The identity of a run: it may be resumed only if this is equal.

    Attributes:
        instruction: The user's.
        image: SHA-256 of pixels and shape; the file's name is not kept.
        shape: (N, H, W).
        model: The segmenter.
        weights: What tells its weights from others; "" if that is not known.
        policy: Name of the policy.
        budget: What it may cost.
        sent_to: The provider that pictures go to; None if they stay here.
        coordinates: The unit of places in calls.
    """

    instruction: str
    image: str
    shape: tuple[int, int, int]
    model: str
    weights: str
    policy: str
    budget: Budget
    sent_to: str | None
    coordinates: Literal["0 to 1000 along each side of the picture"] = "0 to 1000 along each side of the picture"


@dataclass(frozen=True)
class Ending:
    """How a run ended: a verdict, or the error that stopped it."""

    verdict: Verdict | None
    error: str | None
    usage: Usage
    seconds: float


@dataclass
class RecordedRun:
    """All that a transcript holds; `lost` is what asking cost that came to no decision."""

    heading: Heading
    opening: tuple[ShownPicture, ...] | None = None
    decisions: list[Decision] = field(default_factory=list)
    steps: list[ToolStep] = field(default_factory=list)
    lost: Usage = field(default_factory=Usage)
    ending: Ending | None = None

    def take(self, kind: LineKind, value: Any) -> None:
        """Add one line's value; whatever follows an ending resumes the run."""
        self.ending = value if kind == "ending" else None
        if kind == "opening":
            self.opening = value
        elif kind == "lost":
            self.lost = self.lost + value
        elif kind == "decision":
            self.decisions.append(value)
        elif kind == "step":
            self.steps.append(value)


_HEADING = TypeAdapter(Heading)
_LINES: dict[str, TypeAdapter[Any]] = {
    "opening": TypeAdapter(tuple[StoredPicture, ...]),
    "decision": TypeAdapter(Decision),
    "lost": TypeAdapter(Usage),
    "step": TypeAdapter(ToolStep),
    "ending": TypeAdapter(Ending),
}


class PictureEntry(TypedDict):
    """A picture in a transcript: the name of its file, and the rest of `ShownPicture`."""

    file: str
    caption: str
    number: int
    frame: int
    part: Sequence[int] | None


@dataclass(frozen=True)
class PictureFolder:
    """The pictures of a transcript, each once, by its content."""

    path: Path

    def store(self, picture: ShownPicture) -> PictureEntry:
        """Write a picture unless it is there, and give its entry."""
        name = f"{hashlib.sha256(picture.png).hexdigest()[:16]}.png"
        if not (self.path / name).exists():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(self.path, error) from error
            with replacing(self.path / name, ".png") as temporary:
                temporary.write_bytes(picture.png)
        return {
            "file": name,
            "caption": picture.caption,
            "number": picture.number,
            "frame": picture.frame,
            "part": picture.part,
        }

    def load(self, entry: PictureEntry) -> ShownPicture:
        """Read the picture of an entry, from this folder alone."""
        png = (self.path / Path(str(entry["file"])).name).read_bytes()
        part = None if entry["part"] is None else tuple(map(int, entry["part"]))
        number, frame = int(entry["number"]), int(entry["frame"])
        return ShownPicture(png, str(entry["caption"]), number, frame, part)  # type: ignore[arg-type]


class Transcript:
    """A run's record as it grows; without a folder it is kept in memory only."""

    def __init__(self, folder: Path | None, heading: Heading) -> None:
        """Open a folder: begin, or resume a run with the same heading.

        Raises:
            InputError: The folder holds another run, is damaged, is in use, or cannot be written.
        """
        self.run = RecordedRun(heading)
        self._folder = folder
        path = None if folder is None else folder / FILE_NAME
        about = {"heading": _HEADING.dump_python(heading, mode="json"), "version": VERSION}
        self._journal = Journal(path, about, other="refuse")
        try:
            if folder is not None:
                self.run = _recorded(folder, [self._journal.heading, *self._journal.records])
        except BaseException:
            self.close()
            raise

    def add(self, kind: LineKind, value: Any) -> None:
        """Write one line so that it outlives this process: its pictures first.

        Raises:
            InputError: The disk is full, or the folder cannot be written.
        """
        if self._folder is not None:
            context = {"pictures": PictureFolder(self._folder / PICTURES)}
            try:
                entry = _LINES[kind].dump_python(value, mode="json", context=context)
            except PydanticSerializationError as error:
                if isinstance(error.__cause__, InputError):  # what a picture's folder says
                    raise error.__cause__ from None
                raise
            self._journal.append({kind: entry})
        self.run.take(kind, value)

    def close(self) -> None:
        """Let go of the folder."""
        self._journal.close()


def read_transcript(folder: Path) -> RecordedRun:
    """Read a run that `Transcript` wrote; a half line at the end is left out.

    Raises:
        InputError: There is none, or it is damaged.
    """
    try:
        with (folder / FILE_NAME).open("rb") as stream:
            lines, _ = read_lines(stream)
    except OSError as error:
        raise InputError(f"{folder} holds no transcript ({error.strerror}): name a folder of --transcript") from error
    return _recorded(folder, lines)


def _recorded(folder: Path, lines: list[JsonObject]) -> RecordedRun:
    context = {"pictures": PictureFolder(folder / PICTURES)}
    check_format(lines[0].get("version") if lines else None, VERSION, str(folder / FILE_NAME))
    try:
        run = RecordedRun(_HEADING.validate_python(lines[0]["heading"]))
        for line in lines[1:]:
            ((kind, entry),) = line.items()
            run.take(kind, _LINES[kind].validate_python(entry, context=context))  # type: ignore[arg-type]
    except (OSError, ValueError, ArithmeticError, LookupError, AttributeError, TypeError, zlib.error) as error:
        what = value_error(error.errors()[0]) if isinstance(error, ValidationError) else reason_of(error)
        raise InputError(f"{folder / FILE_NAME} is damaged ({what[:200]}): name another folder") from error
    return run


def write_html(folder: Path, page: Path) -> None:
    """Write the transcript in a folder as one HTML page that needs nothing else.

    Raises:
        InputError: No transcript, or a place that cannot be written.
    """
    text = page_of(read_transcript(folder))
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, text)


def page_of(run: RecordedRun) -> str:
    """Fill the page's template; whatever a model, an image or a transcript says is escaped."""
    return render("agent/transcript.html.jinja", shown=_printable, run=run, as_json=json.dumps, base64=_base64) + "\n"


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode()
