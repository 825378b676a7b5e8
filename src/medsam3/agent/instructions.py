"""Simple instructions without an LLM: which concept, which of its objects, and what is not meant.

A concept that the table knows is taken as it is, so that "left lung" is no lung on the left. What is not understood
stays in the phrase: the segmenter then sees all of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from medsam3.agent.values import Mark
from medsam3.concepts import find, normalised
from medsam3.errors import InputError
from medsam3.lexicon import Lexicon
from medsam3.phrases import difference, wanted

Order = Literal["any", "size", "-size", "x", "-x", "y", "-y", "score"]
"""What comes first: `size` the largest, `x` the rightmost, `y` the lowest in the picture, - the other way round."""

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
    """What an instruction asks for.

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
