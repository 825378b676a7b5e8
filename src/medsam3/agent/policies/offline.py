"""The policy that needs no LLM: ask, ask again in other ways, and take another answer only where that was worth it.

The plain answer to the phrase comes first. Then the same is asked in other phrasings and closer up, and boxes around
what was found go through the box decoder. Numbers fitted on validation data (`offline.json`) say what each kind of
answer is likely to gain over the plain one; the best is taken if that is more than nothing. It decides by the steps so
far alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import numpy as np

from medsam3.agent.bench import as_box
from medsam3.agent.chat import ToolCall
from medsam3.agent.instructions import Wish, read_instruction
from medsam3.agent.measuring import overlap, plane_of
from medsam3.agent.values import Decision, Mark, Situation, Step
from medsam3.concepts import find
from medsam3.geometry import BoolArray
from medsam3.view.crops import closer_window

Kind = Literal["phrasings", "closer", "tiles", "boxes", "phrase and boxes"]
KINDS: tuple[Kind, ...] = ("phrasings", "closer", "tiles", "boxes", "phrase and boxes")
FEATURES = ("one", "overlap with plain", "agreement", "log area ratio", "presence")
MOST_SYNONYMS = 4
MOST_BOXED = 4
MANY = 15
"""With more parts than this the frame is looked at in tiles, not around them. On validation images tiles gained in 12
of 13 such questions (nuclei, vessels), and lost in 4 of 8 with 9 to 15 parts, where the plain answer was in pieces."""
_SPECK = 0.5
"""Parts with less than this share of the best score are not looked at closer."""


@dataclass(frozen=True)
class Gain:
    """What one kind of answer gains in Dice over the plain one: linear in `FEATURES`, fitted on validation."""

    kind: Kind
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Selection:
    """Fitted on the validation split by `benchmarks/agent.py fit`, and stored beside this module.

    Attributes:
        gains: For those kinds that gained something in cross-validation; the others are not tried.
        least_gain: What has to be expected for a kind to be taken.
        votes_to_affirm: Share of phrasings that must say present where the plain phrase says absent; above 1 for never.
        votes_to_keep: Share of phrasings that must say present where the plain phrase does.
        about: How it was made.
    """

    gains: tuple[Gain, ...] = ()
    least_gain: float = 0.0
    votes_to_affirm: float = 1.1
    votes_to_keep: float = 0.0
    about: str = ""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What is tried."""
        return tuple(gain.kind for gain in self.gains)

    def to_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        gains = [{"kind": gain.kind, "weights": dict(zip(FEATURES, gain.weights, strict=True))} for gain in self.gains]
        return {**self.__dict__, "gains": gains}


@dataclass(frozen=True)
class Candidate:
    """One way to answer: the marks of a step, as one mask."""

    kind: Kind | Literal["plain"]
    marks: tuple[Mark, ...]
    union: BoolArray


@cache
def shipped_selection() -> Selection:
    """The numbers that lie beside this module."""
    return selection_from(json.loads(resources.files(__package__).joinpath("offline.json").read_text(encoding="utf-8")))


def selection_from(entry: dict[str, Any]) -> Selection:
    """Read what `Selection.to_json` gave."""
    gains = tuple(Gain(gain["kind"], tuple(gain["weights"][name] for name in FEATURES)) for gain in entry["gains"])
    return Selection(**{**entry, "gains": gains})


class OfflinePolicy:
    """See the module."""

    def __init__(
        self,
        selection: Selection | None = None,
        *,
        tries: Sequence[Kind] | None = None,
        is_shown_pictures: bool = True,
    ) -> None:
        """The policy with the shipped numbers, or others.

        Args:
            selection: In place of the shipped numbers.
            tries: Kinds that are asked whatever the numbers say.
            is_shown_pictures: It needs none, but who reads the transcript does.
        """
        self.is_shown_pictures = is_shown_pictures
        self.selection = selection or shipped_selection()
        self.tries: tuple[Kind, ...] = self.selection.kinds if tries is None else tuple(tries)

    @property
    def name(self) -> str:
        """`offline`."""
        return "offline"

    def decide(self, situation: Situation) -> Decision:
        """The next calls by what was seen."""
        wish = read_instruction(situation.instruction)
        asked = [step for step in situation.steps if step.call.name == "segment" and not step.seen.is_mistake]
        if not situation.steps:
            return Decision(
                f"the concept is {wish.phrase!r}", self._calls(situation, [("segment", {"phrase": wish.phrase})])
            )
        if not asked:
            return self._absent(situation, f"{wish.phrase!r} could not be asked for: {situation.steps[-1].seen.text}")
        turn, wanted = situation.steps[-1].turn, []
        if situation.shape[0] > 1:  # a stack was asked whole: other ways of asking look at one frame
            return self._end(situation, wish, asked[0])
        if situation.rounds_left > 0 and turn == 1:
            wanted = self._second_round(situation, wish, asked[0])
        elif situation.rounds_left > 0 and turn == 2:
            wanted = self._boxes(situation, wish)
        if turn == 1 and not wanted and situation.rounds_left > 0:
            wanted = self._boxes(situation, wish)
        if wanted and situation.turns_left > 1:
            return Decision("the same in other ways", self._calls(situation, wanted))
        return self._end(situation, wish, asked[0])

    def _second_round(self, situation: Situation, wish: Wish, plain: Step) -> list[tuple[str, dict[str, Any]]]:
        calls: list[tuple[str, dict[str, Any]]] = []
        concept = find(wish.phrase)
        others = [] if concept is None else [text for text in concept.phrases if text != wish.phrase][:MOST_SYNONYMS]
        needs_votes = self.selection.votes_to_affirm <= 1 or self.selection.votes_to_keep > 0
        if others and ("phrasings" in self.tries or needs_votes):
            calls.append(("segment", {"phrase": wish.phrase, "also": others}))
        marks = plain.seen.marks
        if marks and plain.seen.facts["is_present"]:
            if len(marks) > MANY and "tiles" in self.tries:
                calls.append(("segment", {"phrase": wish.phrase, "tiles": True}))
            elif len(marks) <= MANY and "closer" in self.tries:
                window = closer_window(_around(_strong(marks)), situation.shape[1:])
                if window is not None:
                    region = [window.left, window.top, window.right, window.bottom]
                    calls.append(("segment", {"phrase": wish.phrase, "region": region}))
        if wish.excluded is not None:
            calls.append(("segment", {"phrase": wish.excluded}))
        return calls

    def _boxes(self, situation: Situation, wish: Wish) -> list[tuple[str, dict[str, Any]]]:
        if not self._is_present(situation) or any(step.call.name == "segment_box" for step in situation.steps):
            return []
        best, _ = self._best(situation)
        strong = _strong(best.marks)
        if not 0 < len(strong) <= MOST_BOXED:
            return []
        boxes = [[round(edge, 1) for edge in as_box(mark.mask).xyxy] for mark in strong]
        calls: list[tuple[str, dict[str, Any]]] = []
        if "boxes" in self.tries:
            calls.append(("segment_box", {"boxes": boxes}))
        if "phrase and boxes" in self.tries:
            calls.append(("segment_box", {"boxes": boxes, "phrase": wish.phrase}))
        return calls

    def _end(self, situation: Situation, wish: Wish, plain: Step) -> Decision:
        if not self._is_present(situation):
            return self._absent(situation, f"presence of {wish.phrase!r} is {plain.seen.facts['presence']:.2f}")
        best, gain = self._best(situation)
        chosen = wish.chosen(best.marks)
        if not chosen:
            return self._absent(situation, f"nothing of {wish.phrase!r} was found")
        why = "the plain answer" if best.kind == "plain" else f"by {best.kind}, expected to gain {gain:.3f} Dice"
        which = "" if len(chosen) == len(best.marks) else f"; {len(chosen)} of {len(best.marks)} as asked"
        numbers = [mark.number for mark in chosen]
        if wish.excluded is not None:
            cut = self._without_excluded(situation, numbers)
            if cut:
                return Decision(f"taking away {wish.excluded!r}", self._calls(situation, cut))
            numbers = _after_cuts(situation, numbers)
            which += f"; without {wish.excluded!r}"
        call = ("accept", {"masks": numbers, "reason": why + which})
        return Decision(why + which, self._calls(situation, [call]))

    def _without_excluded(self, situation: Situation, numbers: Sequence[int]) -> list[tuple[str, dict[str, Any]]]:
        """Subtractions that are still to be done: of the excluded concept where the model calls it present."""
        if any(step.call.name == "subtract" for step in situation.steps) or situation.turns_left < 2:
            return []
        wish = read_instruction(situation.instruction)
        out = [
            mark
            for mark in situation.marks.values()
            if mark.phrase == wish.excluded and mark.is_present and mark.origin == "segment"
        ]
        shape = situation.shape[1:]
        calls = []
        for number in numbers:
            own = plane_of(situation.marks[number], shape)
            hits = [mark.number for mark in out if (plane_of(mark, shape) & own).any()]
            calls += [("subtract", {"mask": number, "without": other}) for other in hits[:1]]
        return calls[:4]

    def _is_present(self, situation: Situation) -> bool:
        steps = [step for step in situation.steps if step.call.name == "segment" and not step.seen.is_mistake]
        plain = bool(steps[0].seen.facts["is_present"]) and bool(steps[0].seen.marks)
        votes = next((step.seen.facts["votes"] for step in steps if len(step.seen.facts["votes"]) > 1), None)
        if votes is None:
            return plain
        share = float(np.mean(votes))
        return share >= (self.selection.votes_to_keep if plain else self.selection.votes_to_affirm)

    def _best(self, situation: Situation) -> tuple[Candidate, float]:
        every = candidates(situation)
        best, expected = every[0], self.selection.least_gain
        for one in every[1:]:
            weights = next((gain.weights for gain in self.selection.gains if gain.kind == one.kind), None)
            if weights is None or not one.marks:
                continue
            gain = float(np.dot(weights, features_of(one, every)))
            if gain > expected:
                best, expected = one, gain
        return best, expected

    def _absent(self, situation: Situation, reason: str) -> Decision:
        return Decision(reason, self._calls(situation, [("report_absent", {"reason": reason})]))

    @staticmethod
    def _calls(situation: Situation, wanted: Sequence[tuple[str, dict[str, Any]]]) -> tuple[ToolCall, ...]:
        turn = len(situation.decisions) + 1
        return tuple(
            ToolCall(f"{turn}.{n}", name, json.dumps(values)) for n, (name, values) in enumerate(wanted, start=1)
        )


def candidates(situation: Situation) -> list[Candidate]:
    """The ways to answer that the steps so far give, the plain one first."""
    shape = situation.shape[1:]
    found: list[Candidate] = []
    wanted = None
    for step in situation.steps:
        kind = _kind(step, is_first=not found)
        if kind is None:
            continue
        values = json.loads(step.call.arguments)
        wanted = wanted or values["phrase"]
        if values.get("phrase", wanted) != wanted:  # what is to be taken away
            continue
        union = np.zeros(shape, dtype=np.bool_)
        for mark in step.seen.marks:
            union |= plane_of(mark, shape)
        found.append(Candidate(kind, step.seen.marks, union))
    return found


def features_of(one: Candidate, every: Sequence[Candidate]) -> tuple[float, ...]:
    """`FEATURES` of a candidate among all that there are, the plain one first."""
    plain = every[0]
    others = [overlap(one.union, other.union) for other in every if other is not one]
    ratio = np.log((one.union.sum() + 1) / (plain.union.sum() + 1))
    presence = plain.marks[0].presence if plain.marks else 0.0
    return 1.0, overlap(one.union, plain.union), float(np.mean(others or [1.0])), float(ratio), float(presence or 0.0)


def _kind(step: Step, *, is_first: bool) -> Kind | Literal["plain"] | None:
    if step.seen.is_mistake:
        return None
    values = json.loads(step.call.arguments)
    if step.call.name == "segment_box":
        return "phrase and boxes" if "phrase" in values else "boxes"
    if step.call.name != "segment":
        return None
    if is_first:
        return "plain"
    if "tiles" in values:
        return "tiles"
    return "closer" if "region" in values else "phrasings"


def _strong(marks: Sequence[Mark]) -> list[Mark]:
    best = max((mark.mask.score for mark in marks), default=0.0)
    return [mark for mark in marks if mark.mask.score >= _SPECK * best]


def _around(marks: Sequence[Mark]) -> tuple[float, float, float, float]:
    boxes = np.array([mark.mask.box for mark in marks])
    return tuple(map(float, (*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0))))  # type: ignore[return-value]


def _after_cuts(situation: Situation, numbers: Sequence[int]) -> list[int]:
    """The numbers, each with a mask that something was taken from replaced by what is left."""
    left = dict(zip(numbers, numbers, strict=True))
    for step in situation.steps:
        if step.call.name == "subtract" and step.seen.marks:
            left[json.loads(step.call.arguments)["mask"]] = step.seen.marks[0].number
    return [left[number] for number in numbers]
