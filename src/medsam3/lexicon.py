"""Names of concepts and how a noun phrase is found among them: spelling variants, qualifiers, the patient's sides.

Knows the table of concepts and the names that weights were taught beside it; no grammar of whole phrases, no vectors.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from medsam3.concepts import CONCEPTS, Side, find, normalised

Spelt = Literal["listed", "spelling"]

SHORT_WORD = 4
"""Words of fewer letters are not corrected: LV is no misspelt RV."""
LONG_WORD = 10
"""Words of so many letters may have two mistakes."""

_VARIANTS = (
    ("tumour", "tumor"),
    ("haem", "hem"),
    ("oesoph", "esoph"),
    ("foet", "fet"),
    ("naev", "nev"),
    ("leuco", "leuko"),
    ("rrhoe", "rrhe"),
    ("oedema", "edema"),
    ("colour", "color"),
    ("centre", "center"),
    ("grey", "gray"),
)
"""British spellings and the American ones, wherever they stand in a word."""
_QUALIFIER_WORDS = """
small smaller smallest tiny little large larger largest big bigger biggest huge giant massive medium sized size whole
entire complete full total visible clear clearly obvious apparent prominent subtle faint bright dark round oval flat
raised sessile pedunculated solitary single one two three four five six several multiple many few numerous possible
probable suspected likely known new early late acute chronic subacute recent primary residual recurrent normal healthy
human adult pediatric paediatric patient patient's typical mm cm diameter very rather quite really main first second
third
"""
_QUALIFIERS = frozenset(_QUALIFIER_WORDS.split())
_ARTICLE_WORDS = "the a an any all some every each this that these those his her its their my our your both"
_ARTICLES = frozenset(_ARTICLE_WORDS.split())
_OF = re.compile(r"^(?P<part>.+?) (?:of|in|on|within|inside|at) (?P<whole>.+)$")
_FOREIGN_ARTICLE = re.compile(r"^(?:der |die |das |den |le |la |les |l'|el |los |las )")
_PUNCTUATION = re.compile(r"[.,;:!?\"“”„()\[\]]")
_DISK = re.compile(r"\b(dis)k(s?)\b")
_POSSESSIVE = re.compile(r"'s\b")
_PATIENT_SIDE = (
    re.compile(r"^(?:patient's )?(?P<side>left|right)(?: sided| side| hand side)? (?P<noun>(?!of\b).+)$"),
    re.compile(
        r"^(?P<noun>.+?) (?:(?:on|at|of|in|to) (?:the )?)?(?:patient's )?(?P<side>left|right)(?: (?:hand )?side)?"
        r"(?: of (?:the )?(?:patient|body))?$"
    ),
)
_LIE_ON_A_SIDE = frozenset(
    {
        "kidney", "kidney tumor", "kidney stone", "lung", "hippocampus", "anterior hippocampus",
        "posterior hippocampus", "common carotid artery", "brachial plexus nerve", "brain tumor", "glioma",
        "meningioma", "epidural hematoma",
        "subdural hematoma", "intraparenchymal hemorrhage", "breast tumor", "benign breast tumor",
        "malignant breast tumor",
    }
)  # fmt: skip
"""Concepts of which each object belongs to one side of the patient. A left liver would be a part of it."""


@dataclass(frozen=True)
class NamedConcept:
    """A concept that a noun phrase names.

    Attributes:
        name: Of the concept.
        spelt: `listed`: by a name or phrasing that the lexicon holds; `spelling`: nearly so.
        ignored: Qualifiers of the phrase that make no difference to what is asked.
        side: The side of the patient on which alone it is meant; None asks for both.
    """

    name: str
    spelt: Spelt = "listed"
    ignored: tuple[str, ...] = ()
    side: Side | None = None


class Lexicon:
    """Names and phrasings by which concepts are found: those of the table, and those that weights were taught."""

    def __init__(self, taught: Iterable[str] = (), is_word: Callable[[str], bool] = lambda word: False) -> None:
        """Make a lexicon.

        Args:
            taught: Names beside those of the table, for which the phrasings of their concepts stand too.
            is_word: Whether a word is a common one, so that it alone is no misspelt name.
        """
        own = {name: find(name) for name in taught}
        named = [(concept.name, concept) for concept in CONCEPTS]
        named += [(name, concept) for name, concept in own.items() if concept is not None]
        english = {folded(text): name for name, concept in named for text in concept.recognised}
        english |= {folded(name): name for name in own}  # a name is no phrasing of another
        foreign = {folded(text): name for name, concept in named for text in concept.translations}
        self._names = foreign | english
        self._corrected = english
        self._is_word = is_word
        self._found: dict[str, NamedConcept | None] = {}

    def is_name(self, phrase: str) -> bool:
        """Whether the phrase as it stands is a name or phrasing."""
        return folded(phrase) in self._names

    def find(self, noun: str) -> NamedConcept | None:
        """The concept that a noun phrase names; None where it names none, or nearly two."""
        if noun not in self._found:
            self._found[noun] = self._new(folded(noun))
        return self._found[noun]

    def _new(self, key: str) -> NamedConcept | None:
        for lookup in (self._listed, self._nearly):
            for text, ignored in _with_fewer_qualifiers(key):
                found = lookup(text) or self._on_a_side(text, lookup)
                if found is not None:
                    return replace(found, ignored=ignored)
        return None

    def _listed(self, key: str) -> NamedConcept | None:
        names = (self._names[text] for text in _variants(key) if text in self._names)
        name = next(names, None)
        return None if name is None else NamedConcept(name)

    def _on_a_side(self, key: str, lookup: Callable[[str], NamedConcept | None]) -> NamedConcept | None:
        for pattern in _PATIENT_SIDE:
            match = pattern.match(key)
            if match is None:
                continue
            side: Side = "left" if match["side"] == "left" else "right"
            found = lookup(f"{side} {match['noun']}")
            if found is not None:
                return found
            found = lookup(match["noun"])
            if found is None or _names_side(found.name):
                continue
            own = self._names.get(folded(f"{side} {found.name}"))
            if own is not None:
                return replace(found, name=own)
            if found.name in _LIE_ON_A_SIDE:
                return replace(found, side=side)
        return None

    def _nearly(self, key: str) -> NamedConcept | None:
        """The concept of the phrasings that differ by the fewest mistakes; None where two concepts do."""
        if not key.isascii() or (" " not in key and self._is_word(key)):
            return None
        possible = [
            (count, name) for known, name in self._corrected.items() if (count := mistakes(key, known)) is not None
        ]
        fewest = min((count for count, _ in possible), default=0)
        names = {name for count, name in possible if count == fewest}
        return NamedConcept(names.pop(), "spelling") if len(names) == 1 else None


@lru_cache(8192)
def folded(phrase: str) -> str:
    """The form in which names are looked up: without accents, articles, punctuation and British spelling."""
    text = normalised(phrase)
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text)
        text = "".join(letter for letter in text if not unicodedata.combining(letter))
    text = _PUNCTUATION.sub(" ", text)
    for british, american in _VARIANTS:
        text = text.replace(british, american)
    words = (_DISK.sub(r"\1c\2", text) if "disk" in text else text).split()
    kept = [word for word in words if word not in _ARTICLES]
    return " ".join(kept or words)


def _variants(key: str) -> Iterator[str]:
    """The key, its singular, "tumor of kidney" as "kidney tumor", and what follows a foreign article."""
    yield key
    yield _FOREIGN_ARTICLE.sub("", key)
    for text in (key, _POSSESSIVE.sub("", key)):
        match = _OF.match(text)
        forms = [text] if match is None else [text, f"{match['whole']} {match['part']}"]
        for form in forms:
            yield form
            yield from (form.removesuffix(ending) for ending in ("s", "es") if form.endswith(ending) and len(form) > 4)
        if match is not None:
            yield f"{match['whole'].removesuffix('s')} {match['part'].removesuffix('s')}"


def _with_fewer_qualifiers(key: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The key and what is left out of it: nothing, the first qualifiers one by one, all of them."""
    yield key, ()
    words = key.split()
    count = 0
    while count < len(words) - 1 and _is_qualifier(words[count]):
        count += 1
        yield " ".join(words[count:]), tuple(words[:count])
    kept = [word for word in words if not _is_qualifier(word)]
    if kept and len(kept) not in (len(words), len(words) - count):
        yield " ".join(kept), tuple(word for word in words if _is_qualifier(word))


def _is_qualifier(word: str) -> bool:
    return word in _QUALIFIERS or word.isdigit()


def _names_side(name: str) -> bool:
    return bool({"left", "right"} & set(name.split()))


def mistakes(phrase: str, known: str) -> int | None:
    """Count the letters that are wrong, missing, too many or swapped; None where it is another phrase.

    White space apart, each word must begin alike and have at most one mistake, or two where it is long.
    """
    from rapidfuzz.distance import OSA  # noqa: PLC0415  the package is imported without it

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
