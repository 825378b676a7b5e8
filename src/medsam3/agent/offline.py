"""The policy that needs no LLM: it reads a simple instruction, asks for its concept, and keeps the objects meant.

A concept that the table knows is taken as it is, so that "left lung" is no lung on the left. What is not understood
stays in the phrase: the segmenter then sees all of it. A picture in which the phrase finds many parts is looked at once
more in tiles; no other second answer gained on validation images (docs/agent.md). It decides by the steps so far alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from medsam3.agent.chat import ToolCall
from medsam3.agent.frames import plane_of
from medsam3.agent.values import Decision, Mark, Situation, ToolStep
from medsam3.concepts import find, normalised
from medsam3.errors import InputError
from medsam3.lexicon import Lexicon
from medsam3.phrases import difference, wanted
from medsam3.store import JsonObject

MANY = 15
"""With more parts than this the frame is looked at in tiles. On validation images tiles gained in 12 of 13 such
questions (nuclei, vessels), and lost in 4 of 8 with 9 to 15 parts, where the plain answer was in pieces."""
MOST_CUTS = 4
Wanted = Sequence[tuple[str, JsonObject]]

Order = Literal["any", "size", "-size", "x", "-x", "y", "-y", "score"]
"""The order of objects: `size` the largest, `x` the rightmost, `y` the lowest in the picture, - the other way round."""

_NUMBERS: Mapping[str, int] = MappingProxyType(
    {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "both": 2, "single": 1}
)
_PLACES: Mapping[str, int] = MappingProxyType({"second": 1, "third": 2, "fourth": 3, "2nd": 1, "3rd": 2, "4th": 3})
_ORDERS: Mapping[str, Order] = MappingProxyType(
    {
        **dict.fromkeys(("largest", "larger", "biggest", "bigger", "dominant", "main"), "size"),
        **dict.fromkeys(("smallest", "smaller"), "-size"),
        **dict.fromkeys(("leftmost", "left"), "-x"),
        **dict.fromkeys(("rightmost", "right"), "x"),
        **dict.fromkeys(("uppermost", "topmost", "upper", "highest", "top"), "-y"),
        **dict.fromkeys(("lowermost", "lower", "lowest", "bottom"), "y"),
    }
)
_VERBS = re.compile(
    r"^(?:please |can you |could you |now )*(?:(?:segment|find|show|outline|mark|delineate|contour|locate|select|pick|"
    r"identify|annotate|label|get|give)(?: me| out)?(?: please)? )"
)
_ON_SIDE = re.compile(
    r"\s+(?:on|to|at|in) the (left|right|top|bottom)(?: side| half)?(?: of the (?:image|picture|frame))?$"
)
_ARTICLE = re.compile(r"^(?:the|a|an|all|any|every|each|of|its) ")


@dataclass(frozen=True)
class Wish:
    """The concept and objects that an instruction asks for.

    Attributes:
        phrase: The concept.
        order: Which of its objects come first.
        count: How many of them; None for all.
        skip: How many of the first are passed over, as for "second largest".
        excluded: A concept whose pixels are not meant; None where none was named.
    """

    phrase: str
    order: Order = "any"
    count: int | None = None
    skip: int = 0
    excluded: str | None = None

    def chosen(self, marks: Sequence[Mark]) -> tuple[Mark, ...]:
        """The marks that are meant, in the order that was asked for."""
        if self.order == "any" and self.count is None:
            return tuple(marks)
        ranked = sorted(marks, key=self._rank, reverse=not self.order.startswith("-"))
        return tuple(ranked[self.skip : None if self.count is None else self.skip + self.count])

    def _rank(self, mark: Mark) -> float:
        left, top, right, bottom = mark.mask.box
        values = {"size": float(mark.mask.voxels), "x": (left + right) / 2, "y": (top + bottom) / 2}
        return values.get(self.order.removeprefix("-"), mark.mask.score)


def read_instruction(text: str) -> Wish:
    """Read an instruction such as "the larger of the two nodules, not the vessel".

    Raises:
        InputError: It is not understood, or joins several concepts.
    """
    if find(text) is not None:
        return Wish(text)
    lexicon = Lexicon()
    words, away = difference(_VERBS.sub("", normalised(text).rstrip(".!?")), lexicon)
    if len(away) > 1:
        raise InputError(f"the instruction {text!r} takes away {len(away)} things: name one, or use `medsam3 segment`")
    wish = _ordered(words.strip(" ,;"))
    joined = wanted(wish.phrase, lexicon)
    if len(joined) > 1:
        named = ", ".join(repr(one.phrase) for one in joined)
        raise InputError(f"the instruction {text!r} asks for several concepts: ask each by itself ({named})")
    return replace(wish, excluded=_known(_without_articles(away[0])) if away else None)


def _ordered(words: str) -> Wish:
    whole = _without_articles(words)
    if find(whole) is not None:
        return Wish(_known(whole))
    order: Order = "any"
    count: int | None = None
    skip = 0
    side = _ON_SIDE.search(words)
    if side is not None:
        order, count, words = _ORDERS[side[1]], 1, words[: side.start()]
    parts = [word for word in words.split() if word not in ("the", "of", "all", "any", "every", "its")]
    is_ranked = False
    while parts and find(" ".join(parts)) is None and len(parts) > 1:
        word = parts[0]
        if word in _PLACES:
            skip, count = _PLACES[word], 1
        elif word in _ORDERS:
            order, is_ranked, count = _ORDERS[word], True, count or 1
        elif word in _NUMBERS or word.isdigit():
            # "the two largest" wants two; "the larger of the two" wants one of them
            number = _NUMBERS.get(word) or max(1, int(word))
            count = count if is_ranked else number
        else:
            break
        parts = parts[1:]
    return Wish(_known(" ".join(parts)), order if order != "any" or count is None else "score", count, skip)


def _without_articles(words: str) -> str:
    stripped = words.strip(" ,;")
    while (shorter := _ARTICLE.sub("", stripped)) != stripped:
        stripped = shorter
    return stripped


def _known(phrase: str) -> str:
    """The singular of an English plural where only that is a known phrase, else the phrase."""
    if find(phrase) is None and phrase.endswith("s") and find(phrase[:-1]) is not None:
        return phrase[:-1]
    return phrase


class OfflinePolicy:
    """Asks for the phrase, asks again in tiles if it finds many parts, and accepts what the instruction means."""

    name = "offline"

    def __init__(self, *, is_shown_pictures: bool = True) -> None:
        """Decide without an LLM.

        Args:
            is_shown_pictures: It needs none, but who reads the transcript does.
        """
        self.is_shown_pictures = is_shown_pictures

    def decide(self, situation: Situation) -> Decision:
        """Choose the next calls by what was seen."""
        wish = read_instruction(situation.instruction)
        if not situation.steps:
            return decision(situation, f"the concept is {wish.phrase!r}", [("segment", {"phrase": wish.phrase})])
        asked = [step for step in situation.steps if step.call.name == "segment" and not step.seen.is_mistake]
        if not asked:
            return _absent(situation, f"{wish.phrase!r} could not be asked for: {situation.steps[-1].seen.text}")
        plain = asked[0].seen
        if not plain.marks or not plain.facts["is_present"]:
            return _absent(situation, f"presence of {wish.phrase!r} is {plain.facts['presence']:.2f}")
        if situation.steps[-1].turn == 1 and situation.rounds_left > 0 and situation.turns_left > 1:
            wanted = _second_round(situation, wish, asked[0])
            if wanted:
                return decision(situation, "what else has to be known", wanted)
        return _end(situation, wish, asked)


def decision(situation: Situation, said: str, wanted: Wanted) -> Decision:
    """Make a decision of calls, numbered within the run."""
    turn = len(situation.decisions) + 1
    calls = tuple(ToolCall(f"{turn}.{n}", name, json.dumps(values)) for n, (name, values) in enumerate(wanted, start=1))
    return Decision(said, calls)


def _second_round(situation: Situation, wish: Wish, plain: ToolStep) -> Wanted:
    wanted: list[tuple[str, JsonObject]] = []
    if situation.shape[0] == 1 and len(plain.seen.marks) > MANY:  # a stack was asked whole
        wanted.append(("segment", {"phrase": wish.phrase, "tiles": True}))
    if wish.excluded is not None:
        wanted.append(("segment", {"phrase": wish.excluded}))
    return wanted


def _end(situation: Situation, wish: Wish, asked: Sequence[ToolStep]) -> Decision:
    tiled = next((step for step in asked if "tiles" in json.loads(step.call.arguments) and step.seen.marks), None)
    marks, why = (asked[0].seen.marks, "the plain answer") if tiled is None else (tiled.seen.marks, "seen in tiles")
    chosen = wish.chosen(marks)
    if not chosen:
        return _absent(situation, f"nothing of {wish.phrase!r} was found")
    why += "" if len(chosen) == len(marks) else f"; {len(chosen)} of {len(marks)} as asked"
    numbers = [mark.number for mark in chosen]
    if wish.excluded is not None:
        cuts = _cuts(situation, numbers, wish.excluded)
        if cuts:
            return decision(situation, f"taking away {wish.excluded!r}", cuts)
        numbers = _after_cuts(situation, numbers)
        why += f"; without {wish.excluded!r}"
    return decision(situation, why, [("accept", {"masks": numbers, "reason": why})])


def _cuts(situation: Situation, numbers: Sequence[int], excluded: str) -> Wanted:
    """The subtractions still to be done: of the excluded concept if the model calls it present."""
    if any(step.call.name == "subtract" for step in situation.steps) or situation.turns_left < 2:
        return []
    out = [mark for mark in situation.marks.values() if mark.phrase == excluded and mark.is_present]
    shape = situation.shape[1:]
    calls: list[tuple[str, JsonObject]] = []
    for number in numbers:
        own = plane_of(situation.marks[number], shape)
        hit = next((mark.number for mark in out if (plane_of(mark, shape) & own).any()), None)
        calls += [] if hit is None else [("subtract", {"mask": number, "without": hit})]
    return calls[:MOST_CUTS]


def _after_cuts(situation: Situation, numbers: Sequence[int]) -> list[int]:
    """The numbers, each with a mask that something was taken from replaced by what is left."""
    left = dict(zip(numbers, numbers, strict=True))
    for step in situation.steps:
        if step.call.name == "subtract" and step.seen.marks:
            left[json.loads(step.call.arguments)["mask"]] = step.seen.marks[0].number
    return [left[number] for number in numbers]


def _absent(situation: Situation, reason: str) -> Decision:
    return decision(situation, reason, [("report_absent", {"reason": reason})])
