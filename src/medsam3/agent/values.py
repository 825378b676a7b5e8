"""The values that the agent's parts hand to each other: steps, marks, budgets, verdicts, and the protocol of a policy.

Everything that a policy may know stands in a `Situation`, so that a resumed run decides as if never broken off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from pydantic import PlainSerializer, PlainValidator, ValidationInfo

from medsam3.agent.chat import ShownPicture, ToolCall, Usage
from medsam3.errors import InputError
from medsam3.image import ObjectMask
from medsam3.io.packed_masks import packed, unpacked
from medsam3.store import JsonObject

Outcome = Literal["found", "absent", "undecided"]
MOST_ROUNDS = 20


def _loaded(entry: Any, about: ValidationInfo) -> ShownPicture:
    shown: ShownPicture = (about.context or {})["pictures"].load(entry)
    return shown


StoredMask = Annotated[ObjectMask, PlainValidator(unpacked), PlainSerializer(packed, return_type=dict)]
"""A mask that JSON holds as packed bits."""
StoredPicture = Annotated[
    ShownPicture,
    PlainValidator(_loaded),
    PlainSerializer(lambda picture, about: about.context["pictures"].store(picture)),
]
"""A picture that JSON holds as the name of its file; the context's `pictures` stores and loads it."""


class ToolError(Exception):
    """A mistake of whoever called a tool; it goes back as an observation, and the run goes on."""


@dataclass(frozen=True)
class Budget:
    """The limits of a run's cost; None sets no limit.

    Attributes:
        rounds: Turns in which the segmenter is asked. Looking, measuring and deciding are free of it.
        tokens: Input and output together.
        seconds: From the start, those of earlier parts of a resumed run included.
        usd: US dollars; it needs a model whose price is known.

    Raises:
        InputError: A limit that is not above 0.
    """

    rounds: int = 3
    tokens: int | None = None
    seconds: float | None = None
    usd: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= MOST_ROUNDS:
            raise InputError(f"rounds are {self.rounds}, allowed is 1 to {MOST_ROUNDS}")
        for name in ("tokens", "seconds", "usd"):
            limit = getattr(self, name)
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise InputError(f"the budget of {name} is {limit}, allowed is a finite number above 0")

    @property
    def turns(self) -> int:
        """The most turns of any kind, so that a model that only looks comes to an end."""
        return 4 * self.rounds + 2

    def spent(self, usage: Usage, seconds: float) -> str | None:
        """Which limit is reached, in words; None while there is room."""
        tokens = usage.input_tokens + usage.output_tokens
        if self.tokens is not None and tokens >= self.tokens:
            return f"{tokens} tokens are used, allowed are {self.tokens}"
        if self.seconds is not None and seconds >= self.seconds:
            return f"{seconds:.0f} s have passed, allowed are {self.seconds:g}"
        if self.usd is not None and usage.usd is None:
            return "the price of this model is not known, so a budget in dollars cannot be kept"
        if self.usd is not None and usage.usd is not None and usage.usd >= self.usd:
            return f"{usage.usd:.4f} dollars are spent, allowed are {self.usd:g}"
        return None


@dataclass(frozen=True)
class Mark:
    """One mask under its number, which is never given twice in a run.

    Attributes:
        number: From 1.
        mask: Over the whole image.
        phrase: What was asked for; "" for a box or points.
        presence: Probability in 0..1 that the phrase's concept is in the frame; None without a phrase.
        is_present: The model's calibrated yes or no; None likewise.
        origin: The tool that made it.
    """

    number: int
    mask: StoredMask
    phrase: str
    presence: float | None
    is_present: bool | None
    origin: str


@dataclass(frozen=True)
class Verdict:
    """How a run ended.

    Attributes:
        outcome: `undecided` where a budget ended it; its marks are then the best so far.
        marks: Numbers of the accepted masks.
        reason: In words.
    """

    outcome: Outcome
    marks: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Observation:
    """The result of a tool.

    Attributes:
        text: For the model.
        pictures: For the model; what leaves the machine is what stands here.
        marks: New masks.
        facts: The same in numbers, for policies that read none of the text.
        verdict: Set by the tools that end the run.
        is_mistake: The call was wrong, and the text says why.
    """

    text: str
    pictures: tuple[StoredPicture, ...] = ()
    marks: tuple[Mark, ...] = ()
    facts: JsonObject = field(default_factory=dict)
    verdict: Verdict | None = None
    is_mistake: bool = False


@dataclass(frozen=True)
class ToolStep:
    """One call and what came of it, as the transcript keeps it.

    Attributes:
        number: From 1.
        turn: Calls of one answer share it, from 1.
        call: The call as it was written.
        seen: What it gave.
        seconds: Since the step before.
        is_round: The segmenter was asked.
    """

    number: int
    turn: int
    call: ToolCall
    seen: Observation
    seconds: float
    is_round: bool


@dataclass(frozen=True)
class Decision:
    """The next step that a policy wants: words, calls, and what thinking about it cost."""

    said: str
    calls: tuple[ToolCall, ...]
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Situation:
    """The state that a policy decides on.

    Attributes:
        instruction: The user's.
        opening: The picture as it was when the run began, with its caption; empty for a policy that needs none.
        shape: (N, H, W).
        decisions: Of the policy so far, one for each turn.
        steps: All so far.
        marks: All masks so far, by number.
        rounds_left: Turns in which the segmenter may still be asked.
        turns_left: Turns of any kind, this one included.
        timeout_s: The longest that the decision may take.
    """

    instruction: str
    opening: tuple[ShownPicture, ...]
    shape: tuple[int, int, int]
    decisions: Sequence[Decision]
    steps: Sequence[ToolStep]
    marks: Mapping[int, Mark]
    rounds_left: int
    turns_left: int
    timeout_s: float


class Policy(Protocol):
    """Decides what is done next."""

    @property
    def name(self) -> str:
        """For the transcript, such as `offline` or `google:gemini-3-pro`."""
        ...

    @property
    def is_shown_pictures(self) -> bool:
        """Whether tools are to make pictures for it."""
        ...

    def decide(self, situation: Situation) -> Decision:
        """The next calls; none at all counts as a mistake."""
        ...
