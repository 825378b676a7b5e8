"""Requests and answers, as they go over the wire and between the processes. Positions are pixels of the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from medsam3 import __version__
from medsam3.agent.chat import Usage
from medsam3.segmentation.options import FusionRules, Options, TrackingRules
from medsam3.view.planes import PlaneChoice

_DEFAULTS = Options()
MOST_STROKE_POINTS = 10_000
Number = Annotated[float, Field(allow_inf_nan=False)]
Phrase = Annotated[str, Field(min_length=1, max_length=300)]
FrameNumber = Annotated[int, Field(ge=0)]
Position = tuple[Number, Number]
Corners = tuple[Number, Number, Number, Number]


class Asked(BaseModel):
    """A request; a field that is not known is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Segment(Asked):
    """Find the objects of a phrase, on one frame or on all."""

    do: Literal["segment"]
    phrase: Phrase
    frame: FrameNumber | None = None


class Click(Asked):
    """Say that a pixel is on the object, or off it."""

    do: Literal["click"]
    x: Number
    y: Number
    positive: bool = True
    frame: FrameNumber | None = None
    object: int | None = None


class Scribble(Asked):
    """Say of all pixels along a line that they are on the object, or off it."""

    do: Literal["scribble"]
    points: Annotated[list[Position], Field(min_length=1, max_length=MOST_STROKE_POINTS)]
    positive: bool = True
    frame: FrameNumber | None = None
    object: int | None = None


class DrawBox(Asked):
    """Draw a box (x0, y0, x1, y1) around an object."""

    do: Literal["box"]
    box: Corners
    frame: FrameNumber | None = None
    object: int | None = None


class ShowExample(Asked):
    """Show by a box an example of what is meant, or a look-alike that is not; the frame is searched anew."""

    do: Literal["exemplar"]
    box: Corners
    positive: bool = True
    phrase: Phrase | None = None
    frame: FrameNumber | None = None


class Paint(Asked):
    """Brush pixels onto an object, or off it, exactly: those under the line and within `radius` of it."""

    do: Literal["paint"]
    points: Annotated[list[Position], Field(min_length=1, max_length=MOST_STROKE_POINTS)]
    radius: Annotated[float, Field(gt=0, le=500)] = 3.0
    adding: bool = True
    frame: FrameNumber | None = None
    object: int | None = None


class OnObject(Asked):
    """Choose, remove, accept or follow an object, the current one if none is named."""

    do: Literal["select", "remove", "accept", "propagate"]
    object: int | None = None


class Plain(Asked):
    """Take the last step back, do it again, or begin anew."""

    do: Literal["undo", "redo", "reset"]


Step = Annotated[
    Segment | Click | Scribble | DrawBox | ShowExample | Paint | OnObject | Plain, Field(discriminator="do")
]


WindowAsked = Annotated[str, Field(max_length=60)] | Annotated[tuple[Number, Number], Field(description="low, high")]


class OptionsAsked(Asked):
    """How an image is segmented; the fields are those of `medsam3.Options`, where they are explained."""

    window: WindowAsked | None = None
    threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    frames: Annotated[list[FrameNumber], Field(max_length=20_000)] | None = None
    at: FrameNumber | None = None
    propagate: bool | None = None
    key_every: Annotated[int, Field(ge=1)] = 1
    plane: PlaneChoice | Literal["vote"] = "auto"
    neighbours: bool = False
    weak_score: Annotated[float, Field(ge=0, le=1)] = _DEFAULTS.weak_score
    weak_share: Annotated[float, Field(ge=0, le=1)] = _DEFAULTS.weak_share
    is_recognised: bool = _DEFAULTS.is_recognised
    tracking: TrackingRules = _DEFAULTS.tracking
    fusion: FusionRules = _DEFAULTS.fusion


class SessionAsked(OptionsAsked):
    """Settings of a new session; `frame` is that of all its steps."""

    frame: FrameNumber | None = None


class PromptAsked(Asked):
    """A prompt of `medsam3.Prompt`: exemplars are x0, y0, x1, y1 and whether it is what is meant."""

    text: Phrase | None = None
    boxes: Annotated[list[Corners], Field(max_length=100)] = []
    points: Annotated[list[tuple[Number, Number, bool]], Field(max_length=100)] = []
    exemplars: Annotated[list[tuple[Number, Number, Number, Number, bool]], Field(max_length=100)] = []


class JobAsked(OptionsAsked):
    """Segment a whole image by phrases, or by what is drawn on frame `at`; or by whole prompts."""

    kind: Literal["segment"] = "segment"
    image: str
    phrases: Annotated[list[Phrase], Field(max_length=50)] = []
    boxes: Annotated[list[Corners], Field(max_length=100)] = []
    points: Annotated[list[tuple[Number, Number, bool]], Field(max_length=100)] = []
    prompts: Annotated[list[PromptAsked], Field(max_length=50)] = []

    @property
    def asked(self) -> list[PromptAsked]:
        """All prompts."""
        if not (self.phrases or self.boxes or self.points):
            return self.prompts
        phrases: list[str | None] = [*self.phrases] or [None]
        return [*(PromptAsked(text=one, boxes=self.boxes, points=self.points) for one in phrases), *self.prompts]


class FolderAsked(OptionsAsked):
    """Segment many images by the same phrases, one after the other."""

    kind: Literal["folder"] = "folder"
    images: Annotated[list[str], Field(min_length=1, max_length=1000)]
    phrases: Annotated[list[Phrase], Field(min_length=1, max_length=50)]


class AgentAsked(Asked):
    """Follow an instruction in words; `consent` is what the preview gave, and needed if an LLM is asked."""

    kind: Literal["agent"] = "agent"
    image: str
    instruction: Phrase
    policy: Literal["offline", "llm"] = "offline"
    send_images: bool = False
    rounds: Annotated[int, Field(ge=1, le=20)] = 3
    consent: Annotated[str, Field(max_length=100)] | None = None


AnyJob = Annotated[
    Annotated[JobAsked, Tag("segment")] | Annotated[FolderAsked, Tag("folder")] | Annotated[AgentAsked, Tag("agent")],
    Discriminator(lambda asked: asked.get("kind", "segment") if isinstance(asked, dict) else "segment"),
]


class Display(BaseModel):
    """How a frame is shown: turned as a radiologist sees it, with square pixels.

    `to_file` holds the rows (a, b, c) and (d, e, f): x = a u + b v + c and y = d u + e v + f give the file's pixel of
    the shown pixel (u, v). `letters` say where the left, right, top and bottom edge of the picture point. `window` is
    the automatic grey window, from black to white in the values of the file; None if they are shown as they are.
    """

    width: int
    height: int
    to_file: tuple[tuple[float, float, float], tuple[float, float, float]]
    letters: tuple[str, str, str, str] | None = None
    pixel_mm: float | None = None
    window: tuple[float, float] | None = None


class ImageAnswer(BaseModel):
    """An image that was opened; `windows` are the presets that suit it, those of CT, each from black to white."""

    id: str
    name: str
    kind: Literal["picture", "volume", "video"]
    frames: int
    height: int
    width: int
    channels: int
    spacing_mm: tuple[float, float, float] | None = None
    modality: str | None = None
    fps: float | None = None
    windows: dict[str, tuple[float, float]] = {}
    display: Display


class ConceptFound(BaseModel):
    """Answer to one phrase; an area is over all frames."""

    phrase: str
    presence: float | None = None
    is_present: bool | None = None
    verdict: Literal["yes", "not sure", "no"] | None = None
    read_as: str | None = None
    is_taught: bool | None = None
    objects: int = 0
    pixels: int = 0
    area_mm2: float | None = None
    volume_ml: float | None = None
    fullest_frame: int | None = None


class ObjectFound(BaseModel):
    """One object; its box is (x0, y0, x1, y1), its diameter the longest in a frame, in pixels if mm are not known."""

    number: int
    concept: str
    score: float
    pixels: int
    area_mm2: float | None = None
    volume_ml: float | None = None
    diameter_mm: float | None = None
    diameter_px: float | None = None
    box: Corners | None = None
    first_frame: int | None = None
    last_frame: int | None = None
    is_accepted: bool = False


class Found(BaseModel):
    """All that a session or job has found."""

    concepts: list[ConceptFound] = []
    objects: list[ObjectFound] = []
    current: int | None = None
    touched: list[int] = []


class SessionAnswer(BaseModel):
    """A session as it stands."""

    id: str
    image: str
    can_undo: bool = False
    can_redo: bool = False
    steps: int = 0
    found: Found = Found()


class MaskRuns(BaseModel):
    """A mask on one frame: lengths of runs, row by row, beginning with those outside."""

    number: int
    concept: str
    runs: list[int]


class FrameMasks(BaseModel):
    """The masks of a frame, over `width` x `height` pixels of the display, or of the file."""

    frame: int
    width: int
    height: int
    masks: list[MaskRuns]


class PreviewPicture(BaseModel):
    """A picture as it would be sent: PNG in base64."""

    caption: str
    width: int
    height: int
    png: str


class PreviewAnswer(BaseModel):
    """What an agent's run would send where, before anything is sent; `sent_to` is null if nothing leaves the machine.

    Later turns send what tools say about masks, and their pictures if pictures are sent at all.
    """

    sent_to: str | None = None
    model: str | None = None
    system: str = ""
    text: str = ""
    tools: list[str] = []
    pictures: list[PreviewPicture] = []
    consent: str | None = None


class AgentStep(BaseModel):
    """A step of an agent's run, told as an event named `step`."""

    number: int
    turn: int
    call: str
    arguments: str
    text: str
    is_mistake: bool
    seconds: float


class AgentAnswer(BaseModel):
    """How an agent's run ended."""

    outcome: Literal["found", "absent", "undecided"]
    reason: str
    rounds: int
    turns: int
    seconds: float
    usage: Usage


class JobAnswer(BaseModel):
    """Long work, and how far it is; `result`, `session` or `agent` once it is done.

    Of work on many images, `results` names the result of each image by its id, and `failures` says why one has none.
    """

    id: str
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    done: int = 0
    count: int = 0
    error: str | None = None
    result: str | None = None
    session: SessionAnswer | None = None
    agent: AgentAnswer | None = None
    results: dict[str, str] = {}
    failures: dict[str, str] = {}


class ResultAnswer(BaseModel):
    """Masks that can be taken away in each format."""

    id: str
    image: str
    found: Found
    formats: list[str]


class ConceptAnswer(BaseModel):
    """A concept that may be asked for, and whether the model was taught it."""

    name: str
    synonyms: list[str]
    is_taught: bool | None


class PhraseAnswer(BaseModel):
    """How one part of a phrase is read: taught as it stands, taught and read as something else, or not taught."""

    phrase: str
    read_as: str | None = None
    is_taught: bool | None = None


class ModelAnswer(BaseModel):
    """The model that answers."""

    name: str
    concepts: list[str]
    is_ready: bool = True
    version: str = __version__
    weights_sha256: dict[str, str] = {}


class PoliciesAnswer(BaseModel):
    """Who may decide for the agent: rules alone, or an LLM too, and whether pictures may go to it."""

    llm: str | None = None
    sent_to: str | None = None
    may_send_images: bool = False


class SampleAnswer(BaseModel):
    """A picture that is installed, and a phrase that fits it."""

    name: str
    title: str
    phrase: str


class EntryAnswer(BaseModel):
    """A file or folder that may be opened."""

    name: str
    path: str
    is_folder: bool


class Problem(BaseModel):
    """A problem document of RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


@dataclass(frozen=True)
class Source:
    """An image on the server's disk.

    Attributes:
        path: Its file or folder.
        frame: Time point, page or frame of a file that is no one stack; see `medsam3.read`.
        series: Which of several DICOM series.
    """

    path: Path
    frame: int | None = None
    series: str | None = None


@dataclass(frozen=True)
class SessionPlace:
    """Names a session to a worker, and says how to make it again.

    Attributes:
        id: Its name.
        image: The image.
        asked: Its settings.
        steps: Steps that were done so far.
        is_long: The steps, which a worker may have to do again, may take as long as a job.
    """

    id: str
    image: Source
    asked: SessionAsked
    steps: tuple[Step, ...]
    is_long: bool
