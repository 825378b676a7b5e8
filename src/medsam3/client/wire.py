"""What is asked and answered, as the server takes and gives it: settings, prompts, files of an image, masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, TypedDict

from medsam3.client.connection import Form
from medsam3.errors import InputError
from medsam3.image import Image, Masks
from medsam3.io.files import HEADERS
from medsam3.prompts import Prompt
from medsam3.segmentation.options import Options
from medsam3.store import JsonObject

_NOT_SENT = ("journal", "encode", "memory_bytes", "disk_bytes", "work")


class PromptBody(TypedDict):
    """A prompt in a request; boxes are x0, y0, x1, y1, points x, y, each with whether it is on what is meant."""

    text: str | None
    boxes: list[tuple[float, float, float, float]]
    points: list[tuple[float, float, bool]]
    exemplars: list[tuple[float, float, float, float, bool]]


class ImageTold(TypedDict):
    """An image on the server, as far as it is compared with the one here."""

    id: str
    kind: str
    frames: int
    height: int
    width: int
    spacing_mm: Sequence[float] | None


class FoundTold(TypedDict):
    """The state of a session's objects: the current one, and the frames that the last step changed."""

    current: int | None
    touched: list[int]


class SessionTold(TypedDict):
    """A session on the server as it stands."""

    id: str
    found: FoundTold


class AgentTold(TypedDict):
    """How an agent's run on the server ended."""

    outcome: Literal["found", "absent", "undecided"]
    reason: str
    rounds: int
    turns: int
    seconds: float
    usage: JsonObject


class JobTold(TypedDict):
    """Long work on the server, and how far it is; `result`, `session` or `agent` once it is done."""

    id: str
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    done: int
    count: int
    error: str | None
    result: str | None
    session: SessionTold | None
    agent: AgentTold | None


class AgentStepTold(TypedDict):
    """A step of an agent's run."""

    number: int
    turn: int
    call: str
    arguments: str
    text: str
    is_mistake: bool
    seconds: float


class ModelTold(TypedDict):
    """The model of a server."""

    name: str
    concepts: list[str]
    is_ready: bool
    version: str
    weights_sha256: dict[str, str]


class PhraseTold(TypedDict):
    """How one part of a phrase is read; see `medsam3.models.phrase_reader`."""

    phrase: str
    read_as: str | None
    is_taught: bool | None


class PoliciesTold(TypedDict):
    """Who may decide for a server's agent: rules alone, or an LLM too, and whether pictures may go to it."""

    llm: str | None
    sent_to: str | None
    may_send_images: bool


def options_body(options: Options | None) -> JsonObject:
    """Give settings as a request holds them.

    Raises:
        InputError: A setting that only this machine can heed.
    """
    asked = options or Options()
    if asked.journal is not None or asked.encode is not None:
        raise InputError("journal and encode are of this machine, and a server cannot heed them: leave them out")
    sent = {name: value for name, value in vars(asked).items() if name not in _NOT_SENT}
    sent["propagate"] = sent.pop("is_followed")
    sent["neighbours"] = sent.pop("has_neighbours")
    window = asked.window
    sent["window"] = None if window is None else [float(window.low), float(window.high)]
    sent["frames"] = None if asked.frames is None else [int(n) for n in asked.frames]
    return sent | {"tracking": asdict(asked.tracking), "fusion": asdict(asked.fusion)}


def prompt_body(prompt: Prompt) -> PromptBody:
    """Give a prompt as a request holds it."""
    return {
        "text": prompt.text,
        "boxes": [box.xyxy for box in prompt.boxes],
        "points": [(point.x, point.y, point.is_positive) for point in prompt.points],
        "exemplars": [(*box.xyxy, box.is_positive) for box in prompt.exemplars],
    }


def files_of(path: Path, image: Image) -> Form:
    """List the files that an image was read from, under names that tell nothing but their order and form."""
    if path.name.lower().endswith(HEADERS):
        stem = path.name.rpartition(".")[0]
        return [(one.name, one) for one in sorted(path.parent.iterdir()) if one.name.startswith(f"{stem}.")]
    if len(image.source) == 1:
        return [(f"image{_ending(image.source[0])}", image.source[0])]
    return [(f"stack/{n:06d}{_ending(one)}", one) for n, one in enumerate(image.source)]


def _ending(path: Path) -> str:
    return ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix


def check_same(image: Image, about: ImageTold) -> None:
    """Refuse a server that read another image out of the files than this machine does.

    Raises:
        InputError: Another kind, or other sizes.
    """
    there = about["kind"], (about["frames"], about["height"], about["width"])
    if there != (image.kind, image.shape):
        raise InputError(
            f"the server read a {there[0]} of {there[1]}, this machine a {image.kind} of {image.shape}: "
            "bring both to the same version of medsam3"
        )


def placed(masks: Sequence[Masks], image: Image) -> list[Masks]:
    """Give masks the image that they are over."""
    return [replace(one, image=image) for one in masks]
