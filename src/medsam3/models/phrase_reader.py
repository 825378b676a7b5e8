"""Reads a phrase as what the weights were taught, or says that it is not taught, or not understood.

The grammar of `medsam3.phrases` takes a phrase apart. Each part is then looked up: a phrase that training used is asked
as it stands; one that is listed, or nearly spelt or meant like one, is asked by the name of the concept; what is like
none is asked as it stands and marked as not taught. No image, no detector.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medsam3.concepts import Side, find, normalised
from medsam3.errors import InputError
from medsam3.lexicon import Lexicon, folded
from medsam3.phrases import ImageSide, Wanted, denies, wanted

How = Literal["listed", "spelling", "meaning", "unknown", "untold"]
Vectors = NDArray[np.float32]

LEAST_LIKENESS = 0.725
"""Least cosine of a phrase's vector with a listed one's to mean the same; chosen by `benchmarks/phrases.py`."""

SHORT_PHRASE = 2
"""So few words name a thing of their own: a prostate is no prostate tumor, a kidney capsule no kidney."""

_TELLING = (
    "left",
    "right",
    "both",
    "anterior front rostral",
    "posterior rear dorsal",
    "upper superior top cranial",
    "lower inferior bottom",
    "inner internal interior middle center central core",
    "outer external exterior peripheral",
    "outside around surrounding",
    "between",
    "beneath under below",
    "above over",
    "common",
    "benign harmless noncancerous innocent nonmalignant",
    "malignant cancer cancers cancerous carcinoma carcinomas malignancy malignancies adenocarcinoma",
    "tumor tumors mass masses neoplasm neoplasms lump lumps nodule nodules growth growths cancer cancers carcinoma "
    "adenoma adenomas adenocarcinoma lesion lesions",
    "cyst cysts pseudocyst",
    "stone stones calculus calculi",
    "hemorrhage hemorrhages hematoma hematomas bleed bleeds bleeding clot blood",
    "fracture fractures",
    "edema swelling",
    "infarct stroke",
    "ulcer ulcers",
    "artery arteries arterial arteriole arterioles",
    "vein veins venous venule venules",
    "vessel vessels vascular vasculature",
    "nerve nerves",
    "cord",
    "bone bones",
    "muscle muscles myocardium muscular",
    "valve valves",
    "atrium atria atrial",
    "ventricle ventricles ventricular",
    "gland glands",
    "cell cells",
    "nucleus nuclei nuclear",
    "cup cups excavation cupping",
    "disc discs",
    "canal",
    "zone zones",
    "lobe lobes",
    "half halves",
    "edge edges border borders margin rim",
    "tip apex",
    "base",
    "pole poles",
    "cortex cortical",
    "medulla",
    "capsule",
    "wall walls",
    "septum",
    "duct ducts",
    "branch branches",
    "head heads pes",
    "body",
    "tail",
    "neck",
    "part parts portion piece segment segments end",
)
_CLASS_OF = {
    word: frozenset(n for n, words in enumerate(_TELLING) if word in words.split())
    for words in _TELLING
    for word in words.split()
}
"""Words that tell one concept from its neighbours: a phrase means the same as a listed one if both have the same."""
_EMPTY_WORDS = "of in on at to for with from by and or is are that which where it as region area tissue seen"
_EMPTY = frozenset(_EMPTY_WORDS.split())


@dataclass(frozen=True)
class Reading:
    """One answer that a phrase asks for, and how it was understood.

    Attributes:
        phrase: The words that name the answer.
        text: What the detector is asked.
        how: `listed`: a name that was taught, or a phrasing of it in `concepts.json`; `spelling`, `meaning`: it is
            nearly one; `unknown`: it is like none, and asked as it stands; `untold`: the weights do not tell what they
            were taught.
        without: What the detector is asked too, and what is taken away.
        image_sides: Sides of the image, as it is shown, on which alone it counts.
        patient_side: The side of the patient on which alone it counts; None counts both.
        ignored: Qualifiers that are not heeded.
    """

    phrase: str
    text: str
    how: How
    without: tuple[str, ...] = ()
    image_sides: tuple[ImageSide, ...] = ()
    patient_side: Side | None = None
    ignored: tuple[str, ...] = ()

    @property
    def is_taught(self) -> bool | None:
        """Whether the weights were taught what it means; None if they do not tell."""
        return None if self.how == "untold" else self.how != "unknown"

    @property
    def is_plain(self) -> bool:
        """Whether the detector's answer is the answer: nothing is taken away, no side chosen."""
        return not (self.without or self.image_sides or self.patient_side)

    @property
    def as_it_stands(self) -> Reading:
        """The reading of a phrase whose sides cannot be told in an image: asked in its own words, and not taught."""
        return Reading(self.phrase, self.phrase, "untold" if self.how == "untold" else "unknown")

    @property
    def told(self) -> str | None:
        """What the phrase is taken for, in words; None if it is asked as it stands."""
        said = self.text if not self.without else f"{self.text} minus {' and '.join(self.without)}"
        said += "".join(f", {side} of the image" for side in (" ".join(self.image_sides),) if side)
        said += f", patient's {self.patient_side}" if self.patient_side else ""
        said += f"; not heeded: {' '.join(self.ignored)}" if self.ignored else ""
        return None if said == self.phrase else said


class PhraseReader:
    """Reads phrases for weights that were taught some concepts, or do not tell which."""

    def __init__(
        self,
        taught: Sequence[str] = (),
        vectors: Callable[[Sequence[str]], Vectors] | None = None,
        least_likeness: float = LEAST_LIKENESS,
        is_word: Callable[[str], bool] = lambda word: False,
    ) -> None:
        """Make a reader.

        Args:
            taught: Names of the concepts that the weights were taught; () if they do not tell.
            vectors: From n phrases to (n, D) of length 1; None compares no meanings.
            least_likeness: Least cosine of two phrases that mean the same.
            is_word: Whether a word is a common one, so that it alone is no misspelt name.
        """
        self._vectors, self._least_likeness = vectors, least_likeness
        self._lexicon, self._taught = Lexicon(taught, is_word), frozenset(taught)
        known = {name: find(name) for name in taught}
        self._names = {normalised(text): name for name, of in known.items() if of for text in of.recognised}
        self._names |= {normalised(name): name for name in taught}  # a name is no phrasing of another
        self._trained = {
            normalised(text) for name, of in known.items() for text in (name, *(of.synonyms if of else ()))
        }
        self._read: dict[str, tuple[Reading, ...]] = {}

    def readings(self, phrase: str) -> tuple[Reading, ...]:
        """Read a phrase: one reading for each concept that it joins.

        Raises:
            InputError: It is not understood; or something is to be taken away from, or with, what was not taught.
        """
        if phrase not in self._read:
            self._read[phrase] = tuple(self._reading(phrase, one) for one in wanted(phrase, self._lexicon))
        return self._read[phrase]

    def read(self, phrase: str) -> Reading:
        """Read a phrase that a detector is asked by itself: without differences and sides, which it cannot compose.

        A phrase that joins concepts, takes one away or names a side is asked as it stands; `medsam3.segment` composes.

        Raises:
            InputError: It is not understood.
        """
        readings = self.readings(phrase)
        alone = replace(readings[0], phrase=phrase)
        return alone if len(readings) == 1 and alone.is_plain else alone.as_it_stands

    def _reading(self, phrase: str, one: Wanted) -> Reading:
        noun = self._noun(one.noun)
        if one.noun == one.phrase == noun.text:
            noun = replace(noun, phrase=one.phrase)
        away = [self._noun(text) for text in one.without]
        for part in (noun, *away) if away else ():
            if part.is_taught is False:
                raise InputError(
                    f"the phrase {phrase!r} cannot be answered: {part.phrase!r} was not taught to these weights, so no "
                    "difference can be made with it; ask for each by itself (see: medsam3 concepts)"
                )
        for part in away:
            if part.ignored or part.patient_side:
                raise InputError(
                    f"the phrase {phrase!r} is not understood: only whole concepts can be taken away, and "
                    f"{part.phrase!r} is a part or kind of one"
                )
        return replace(noun, phrase=one.phrase, without=tuple(part.text for part in away), image_sides=one.image_sides)

    def _noun(self, noun: str) -> Reading:
        """What a noun phrase is taken to mean."""
        if not self._taught:
            return Reading(noun, noun, "untold")
        if normalised(noun) in self._trained:
            return Reading(noun, noun, "listed")
        found = self._lexicon.find(noun)
        if found is None:
            meant = self._by_meaning(noun)
            return Reading(noun, noun, "unknown") if meant is None else Reading(noun, meant, "meaning")
        if found.name not in self._taught:
            return Reading(noun, noun, "unknown")
        return Reading(noun, found.name, found.spelt, patient_side=found.side, ignored=found.ignored)

    def _by_meaning(self, noun: str) -> str | None:
        """The concept of the listed phrase that is nearest, among those that tell the same, if it is near enough.

        A phrase that only adds words to a listed one, or leaves some out, is narrower or wider and no other way to say
        it: a kidney capsule, a prostate that is listed only in "prostate tumor".
        """
        if self._vectors is None:
            return None
        words, telling = _words(noun), _telling(noun)
        fits = np.array([own == telling and not _only_adds(words, them) for them, own in self._table[1]])
        likeness = np.where(fits, self._table[0] @ self._vectors([noun])[0], -1.0)
        is_near = likeness.max() >= self._least_likeness
        return list(self._names.values())[int(likeness.argmax())] if is_near else None

    @cached_property
    def _table(self) -> tuple[Vectors, list[tuple[frozenset[str | int], frozenset[int]]]]:
        """(n, D) of the listed phrases, in their order, and what `_words` and `_telling` give of them."""
        assert self._vectors is not None, "meanings are compared"
        return self._vectors(list(self._names)), [(_words(known), _telling(known)) for known in self._names]


def _words(phrase: str) -> frozenset[str | int]:
    """Words of a phrase; those that tell the same, such as lump and tumor, are one."""
    words = (word for word in re.findall(r"[\w']+", folded(phrase)) if word not in _EMPTY)
    return frozenset(one for word in words for one in _CLASS_OF.get(word, (word.removesuffix("s"),)))


def _telling(phrase: str) -> frozenset[int]:
    """Numbers of the classes of a phrase's words; two more for what no vector shows, a denial and a number."""
    words = folded(phrase).split()
    more = (denies(phrase), any(word.isdigit() for word in words))
    classes = {n for word in words for n in _CLASS_OF.get(word, ())}
    return frozenset(classes | {len(_TELLING) + k for k, is_so in enumerate(more) if is_so})


def _only_adds(words: frozenset[str | int], others: frozenset[str | int]) -> bool:
    """Whether a phrase of one or two words and another differ by words that only one of them has."""
    fewer, more = sorted((words, others), key=len)
    return len(fewer) <= SHORT_PHRASE and fewer < more
