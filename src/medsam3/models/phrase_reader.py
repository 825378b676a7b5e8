"""Reads a phrase as a concept that the weights were taught, where it is listed, nearly spelt or nearly meant so.

A detector that saw a few hundred phrases in training knows those best. They are asked as they stand. A phrase that says
the same as one of them is asked by the concept's name; what is like none of them is asked as it stands too. `Reading`
says which, for users to be told. Knows phrases and their vectors; no image, no detector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import OSA

from medsam3.concepts import find, normalised, side_of

How = Literal["listed", "spelling", "meaning", "unknown", "untold"]
Vectors = NDArray[np.float32]

SHORT_WORD = 4
"""Words of fewer letters are not corrected: LV is no misspelt RV."""
LONG_WORD = 10
"""Words of so many letters may have two mistakes."""
LEAST_LIKENESS = 0.8
"""Least cosine of a phrase's vector with a listed one's to mean the same; chosen by `benchmarks/phrases.py`."""


@dataclass(frozen=True)
class Reading:
    """How a phrase was understood.

    Attributes:
        phrase: As it was asked.
        text: What the detector is asked.
        how: `listed`: a name that was taught, or a phrasing of it in `concepts.json`; `spelling`, `meaning`: it is
            nearly one; `unknown`: it is like none, and asked as it stands; `untold`: the weights do not tell what they
            were taught.
    """

    phrase: str
    text: str
    how: How

    @property
    def is_taught(self) -> bool | None:
        """The weights were taught what it means; None where they do not tell."""
        return None if self.how == "untold" else self.how != "unknown"


class PhraseReader:
    """Reads phrases for weights that were taught some concepts."""

    def __init__(
        self,
        taught: Sequence[str],
        vectors: Callable[[Sequence[str]], Vectors],
        least_likeness: float = LEAST_LIKENESS,
    ) -> None:
        """`vectors` gives (n, D) of length 1 for n phrases."""
        self._vectors, self._least_likeness = vectors, least_likeness
        known = {name: find(name) for name in taught}
        self._names = {normalised(text): name for name, of in known.items() if of for text in of.recognised}
        self._names |= {normalised(name): name for name in taught}  # a name is no phrasing of another
        self._trained = {
            normalised(text) for name, of in known.items() for text in (name, *(of.synonyms if of else ()))
        }
        self._read: dict[str, Reading] = {}

    def read(self, phrase: str) -> Reading:
        """What a phrase is taken to mean."""
        if phrase not in self._read:
            self._read[phrase] = self._new(phrase)
        return self._read[phrase]

    def _new(self, phrase: str) -> Reading:
        if not self._names:
            return Reading(phrase, phrase, "untold")
        key = normalised(phrase)
        if key in self._trained:
            return Reading(phrase, phrase, "listed")
        if key in self._names:
            return Reading(phrase, self._names[key], "listed")
        spelt = self._by_spelling(key)
        if spelt is not None:
            return Reading(phrase, spelt, "spelling")
        meant = self._by_meaning(phrase)
        return Reading(phrase, phrase, "unknown") if meant is None else Reading(phrase, meant, "meaning")

    def _by_spelling(self, key: str) -> str | None:
        """The concept of the listed phrases that differ by the fewest mistakes; None where two concepts do."""
        possible = [
            (count, name) for known, name in self._names.items() if (count := _mistakes(key, known)) is not None
        ]
        fewest = min((count for count, _ in possible), default=0)
        names = {name for count, name in possible if count == fewest}
        return names.pop() if len(names) == 1 else None

    def _by_meaning(self, phrase: str) -> str | None:
        """The concept of the nearest listed phrase of the same side, or of none likewise, where it is near enough."""
        side = side_of(phrase)
        same_side = np.array([side_of(known) == side for known in self._names])
        likeness = np.where(same_side, self._table @ self._vectors([phrase])[0], -1.0)
        is_near = likeness.max() >= self._least_likeness
        return list(self._names.values())[int(likeness.argmax())] if is_near else None

    @cached_property
    def _table(self) -> Vectors:
        """(n, D) of the listed phrases, in their order."""
        return self._vectors(list(self._names))


def _mistakes(phrase: str, known: str) -> int | None:
    """Letters that are wrong, missing, too many or swapped; None where it is another phrase.

    White space apart, each word must begin alike and have at most one mistake, or two where it is long.
    """
    if phrase.replace(" ", "") == known.replace(" ", ""):
        return 1
    words, others = phrase.split(), known.split()
    if len(words) != len(others):
        return None
    total = 0
    for word, other in zip(words, others, strict=True):
        allowed = 0 if len(other) < SHORT_WORD or word[0] != other[0] else 1 + (len(other) >= LONG_WORD)
        count = 0 if word == other else OSA.distance(word, other, score_cutoff=allowed)
        if count > allowed:
            return None
        total += count
    return total
