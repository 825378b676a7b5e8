"""The listed concepts: their phrasings, image family and standard codes, and which are surely absent from which images.

Knows no image and no model; the card of the weights says which concepts they were taught. The table lies beside this
module in `concepts.json`. Synonyms go into training; unseen synonyms never do, so that `medsam3 eval --synonyms` can
show what an unknown phrasing costs. No phrase belongs to two concepts.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

Category = Literal["anatomical structure", "morphologically altered structure"]

Side = Literal["left", "right"]
SIDES: tuple[Side, ...] = ("left", "right")

_LEAST_SIMILARITY = 0.6


@dataclass(frozen=True)
class Code:
    """A coded entry as DICOM PS3.3 Section 8 wants it: value, coding scheme and meaning. SCT is SNOMED CT."""

    value: str
    meaning: str
    scheme: str = "SCT"


CATEGORY_CODES: Mapping[Category, Code] = {
    "anatomical structure": Code("91723000", "Anatomical Structure"),
    "morphologically altered structure": Code("49755003", "Morphologically Abnormal Structure"),
}


@dataclass(frozen=True)
class Concept:
    """Something that can be asked for by a phrase.

    Attributes:
        name: The phrase that stands for it in data sets and tables.
        synonyms: Other phrasings, used in training: clinical, lay, plural, abbreviated, descriptive, misspelt.
        unseen_synonyms: Phrasings that are kept out of training, at least two.
        further_phrasings: More ways to say it, by which the small model recognises it; training does not use them.
        translations: Its common names in German, French, Spanish and Chinese, by which it is found as they are spelt.
        code: A SNOMED CT code that surely holds for it. It may be wider in kind (a polyp is coded as a lesion), never a
            whole for its part; None where none is certain.
        category: Which of the two categories a DICOM segment of it belongs to.
        family: The images it is seen in, by modality and part of the body; one family for each concept.
        is_round: Its objects are round and often touch, so that one with a waist is two.
        kind_of: What a single object of it is too, as a melanoma is a skin lesion; None where there is none.
    """

    name: str
    synonyms: tuple[str, ...]
    unseen_synonyms: tuple[str, ...]
    further_phrasings: tuple[str, ...]
    translations: tuple[str, ...]
    code: Code | None
    category: Category
    family: str
    kind_of: str | None = None
    is_round: bool = False

    @property
    def phrases(self) -> tuple[str, ...]:
        """The name, then all synonyms, unseen ones, further phrasings, translations last."""
        return (self.name, *self.synonyms, *self.unseen_synonyms, *self.further_phrasings, *self.translations)

    @property
    def recognised(self) -> tuple[str, ...]:
        """By these the small model recognises it: all but the unseen ones, which tell what unknown phrasings cost."""
        return (self.name, *self.synonyms, *self.further_phrasings)

    @property
    def category_code(self) -> Code:
        """The category as DICOM codes it (CID 7150)."""
        return CATEGORY_CODES[self.category]


def _concept(entry: Mapping[str, Any]) -> Concept:
    code = entry["code"]
    return Concept(
        name=entry["name"],
        synonyms=tuple(entry["synonyms"]),
        unseen_synonyms=tuple(entry["unseen_synonyms"]),
        further_phrasings=tuple(entry["further_phrasings"]),
        translations=tuple(name for names in entry["translations"].values() for name in names),
        code=None if code is None else Code(**code),
        category=entry["category"],
        family=entry["family"],
        kind_of=entry.get("kind_of"),
        is_round=entry.get("is_round", False),
    )


def _read_table() -> tuple[Concept, ...]:
    text = resources.files("medsam3").joinpath("concepts.json").read_text(encoding="utf-8")
    return tuple(_concept(entry) for entry in json.loads(text))


CONCEPTS: tuple[Concept, ...] = _read_table()


def normalised(phrase: str) -> str:
    """The form in which phrases are compared: case, hyphens, kinds of apostrophe and extra white space do not count."""
    return " ".join(phrase.casefold().replace("’", "'").replace("-", " ").split())


def side_of(phrase: str) -> Side | None:
    """The side that a phrase names, which a mirrored picture shows as the other; None where it names none, or both."""
    named = [side for side in SIDES if side in normalised(phrase).split()]
    return named[0] if len(named) == 1 else None


@cache
def _by_phrase() -> dict[str, Concept]:
    return {normalised(phrase): concept for concept in CONCEPTS for phrase in concept.phrases}


def find(phrase: str) -> Concept | None:
    """The concept that has this name or synonym, seen or unseen; None where none has."""
    return _by_phrase().get(normalised(phrase))


def synonyms(name: str) -> tuple[str, ...]:
    """The training synonyms of the concept that `name` belongs to, without its name; () where it is not known."""
    concept = find(name)
    return () if concept is None else concept.synonyms


def code_for(phrase: str) -> Code | None:
    """The SNOMED CT code of the concept that the phrase names; None where there is none."""
    concept = find(phrase)
    return None if concept is None else concept.code


def search(query: str) -> list[Concept]:
    """Concepts that fit a query, the best first; all of them, in the table's order, for an empty query.

    A phrase equal to the query counts most, then one that starts with it or holds its words, then one spelt alike.
    """
    wanted = normalised(query)
    if not wanted:
        return list(CONCEPTS)
    ranked = [
        (max(_closeness(wanted, normalised(phrase)) for phrase in concept.phrases), concept) for concept in CONCEPTS
    ]
    fitting = [pair for pair in ranked if pair[0] >= _LEAST_SIMILARITY]
    return [concept for _, concept in sorted(fitting, key=lambda pair: -pair[0])]


def suggest(phrase: str, *, limit: int = 3) -> tuple[str, ...]:
    """Names of at most `limit` concepts with a phrasing that is spelt like `phrase`, the most similar first."""
    close = difflib.get_close_matches(normalised(phrase), _by_phrase(), n=len(_by_phrase()), cutoff=_LEAST_SIMILARITY)
    return tuple(dict.fromkeys(_by_phrase()[match].name for match in close))[:limit]


_SECTIONS = frozenset(
    {
        "abdominal CT and MRI",
        "brain MRI",
        "cardiac MRI",
        "chest X-ray and CT",
        "head CT",
        "prostate MRI",
        "spine MRI",
    }
)
"""Families of CT, MR and X-ray: each image shows far more of the body than its data set labels."""
_NECK = frozenset({"carotid ultrasound", "neck ultrasound"})
_SKIN = frozenset({"dermoscopy", "skin photograph"})
_TISSUE = frozenset({"abdominal CT and MRI", "brain MRI", "chest X-ray and CT", "prostate MRI"})
"""Sections through organs whose tissue is commonly looked at under the microscope."""

MAY_SHOW: Mapping[str, frozenset[str]] = {
    "abdominal CT and MRI": _SECTIONS | {"fetal ultrasound", "gastrointestinal endoscopy"},
    "brain MRI": _SECTIONS | _NECK | {"fetal ultrasound", "fundus photograph"},
    "breast ultrasound": frozenset({"breast ultrasound", "chest X-ray and CT"}),
    "cardiac MRI": _SECTIONS | _NECK | {"breast ultrasound", "fetal ultrasound"},
    "carotid ultrasound": _NECK | {"chest X-ray and CT", "spine MRI"},
    "chest X-ray and CT": _SECTIONS | _NECK | {"breast ultrasound", "fetal ultrasound"},
    "dermoscopy": _SKIN,
    "fetal ultrasound": _SECTIONS | {"fetal ultrasound"},
    "fundus photograph": frozenset({"fundus photograph"}),
    "gastrointestinal endoscopy": frozenset({"abdominal CT and MRI", "gastrointestinal endoscopy"}),
    "head CT": _SECTIONS | _NECK | {"fetal ultrasound", "fundus photograph"},
    "microscopy": _TISSUE | _SKIN | {"breast ultrasound", "gastrointestinal endoscopy", "microscopy"},
    "neck ultrasound": _NECK | {"chest X-ray and CT", "spine MRI"},
    "prostate MRI": _SECTIONS | {"fetal ultrasound", "gastrointestinal endoscopy"},
    "skin photograph": _SKIN,
    "spine MRI": _SECTIONS | _NECK | {"fetal ultrasound"},
}
"""For each image family, those whose concepts its images may show, labelled or not; doubt counts as "may".

A colonoscopy is a view of the large bowel, a fetus has all organs, a slice of the head holds the eyes, a slide of the
colon may be of a cancer. The reverse need not hold: no colonoscopy shows a cell's nucleus.
"""
_GENERAL_WORDS = frozenset({"gland", "suspicious lesion"})
"""Names of concepts that fit things in images of other families too: a thyroid, a breast tumor."""


def surely_absent(shown: Iterable[str]) -> tuple[Concept, ...]:
    """List the concepts that cannot be in an image of a data set, in the table's order.

    Concepts are annotated within one data set only: another set's images may show a liver without a label. So this
    rests on `MAY_SHOW` alone, never on missing labels.

    Args:
        shown: Names or synonyms of the concepts that the data set annotates.

    Returns:
        () if there are none, or if the family of one of them is not known: what such images show is not known either.
    """
    found = [find(name) for name in shown]
    possible: set[str] = set()
    for concept in found:
        if concept is None or concept.family not in MAY_SHOW:
            return ()
        possible |= MAY_SHOW[concept.family]
    absent = (c for c in CONCEPTS if c.family in MAY_SHOW and c.family not in possible)
    return tuple(concept for concept in absent if concept.name not in _GENERAL_WORDS) if found else ()


def _closeness(wanted: str, phrase: str) -> float:
    """How well a phrase fits a query: 4 equal, 3 starts with it, 2 has all its words, 0..1 similar spelling."""
    if phrase == wanted:
        return 4.0
    if phrase.startswith(wanted):
        return 3.0
    if set(wanted.split()) <= set(phrase.split()):
        return 2.0
    return difflib.SequenceMatcher(None, wanted, phrase).ratio()
