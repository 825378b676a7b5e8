"""The one grammar of phrases: what a phrase asks for, as concepts, differences and sides, or why it is not understood.

The library, the command line and the agent read phrases through it. It knows words and names of concepts; no image, no
model, no vectors. A phrase that denies is never read as what it denies.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from medsam3.errors import InputError
from medsam3.lexicon import Lexicon, folded

ImageSide = Literal["left", "right", "upper", "lower"]

_SIDES: Mapping[str, ImageSide] = {
    "left": "left",
    "right": "right",
    "upper": "upper",
    "top": "upper",
    "lower": "lower",
    "bottom": "lower",
}
_PLEASE = re.compile(
    r"^(?:(?:please|kindly|now|hi|hello|hey|ok|can you|could you|would you|will you|i want(?: you)? to|"
    r"i need(?: you)? to|i would like(?: you)? to|i want|i need|let us|let's|try to|help me(?: to)?)[ ,]+)*"
    r"(?:(?:segment|find|show|outline|mark|delineate|contour|locate|select|pick|identify|annotate|label|detect|"
    r"highlight|get|give|see|look for|search for|where is|where are|what is|is there|are there|is this|there is|"
    r"there are|do you see|image of|picture of|scan of|mask of|masks of|outline of|contour of|segmentation of)"
    r"(?: me| us| out| all)?(?: please)? )*"
)
_SHOWN = (
    r"(?:(?:this|the|that|these|my|our|your|a|an|each|every|given|attached|uploaded) )*"
    r"(?:image|picture|photo|photograph|frame|screen|scan|slice|display|view|x ray|xray|radiograph|film|video|slide)s?"
)
_TAIL = re.compile(
    rf"(?:,? (?:please|thanks|thank you|if any|visible|seen|here)| (?:seen |visible |shown |that is shown )?"
    rf"(?:in|on|from|of|within) (?:{_SHOWN}|(?:(?:this|the|a|an) )*(?:ct|mri|mr|ultrasound|sonogram|endoscopy|"
    r"colonoscopy|patient|volume|dermoscopy|dermatoscopy|mammogram|histology|microscopy)(?: image| scan| picture)?))$"
)
_PLACE = r"(?P<first>left|right|upper|lower|top|bottom)(?:(?: hand)?[ ]?(?P<second>left|right))?(?: hand)?"
_PART_OF_IMAGE = r"(?: (?:side|half|part|portion|edge|corner|quadrant|area|region|third))?"
_IN_IMAGE = (
    re.compile(
        rf"^(?P<noun>.+?),? (?:that is |which is |lying |located |seen )?(?:on|in|at|to|towards?|from)"
        rf" (?:the )?{_PLACE}{_PART_OF_IMAGE} (?:of|in|on) {_SHOWN}$"
    ),
    re.compile(
        rf"^(?P<noun>.+?),? (?:(?:on|in|at|to) )?(?:the )?(?:image|screen|picture)(?:'s)? {_PLACE}{_PART_OF_IMAGE}$"
    ),
    re.compile(rf"^(?P<noun>.+?),? (?:on|to|at) (?:the )?(?:viewer's|reader's|my) {_PLACE}{_PART_OF_IMAGE}$"),
    re.compile(
        rf"^(?:(?:on|in|at) )?(?:the )?{_PLACE}{_PART_OF_IMAGE} (?:of|in|on) {_SHOWN}[,:]? (?:the )?(?P<noun>.+)$"
    ),
    re.compile(rf"^(?:image|screen|viewer's) {_PLACE} (?P<noun>.+)$"),
)
_OF_IMAGE = re.compile(
    rf"\b(?:left|right|upper|lower|top|bottom)\b.*\b(?:of|in|on) {_SHOWN}\b|\bimage (?:left|right)\b"
)

_MINUS = re.compile(
    r",? \(?(?:without|w/o|excluding|exclud(?:e|es)|exclusive of|except(?:ing)?(?: for)?|minus|but not|and not|but no|"
    r"with no|that has no|that have no|not including|not counting|not containing|other than|apart from|aside from|"
    r"rather than|instead of|free of|free from|clear of|devoid of|lacking|omitting|leaving out|ohne|sans|sin|− ?|– |"
    r"(?<!\bdo )(?<!\bdoes )(?<!\bdid )(?<!\bis )(?<!\bare )(?<!\bcan )(?<!\bwould )not)"
    r"(?: any| all| the| a| an| its| their)* (?P<rest>.+?)\)?$"
)
_FREE = re.compile(r"^(?P<rest>[\w']+)[ -]free (?P<noun>.+)$|^(?P<noun2>.+) (?P<rest2>[\w']+)-free$")
_BENIGN = re.compile(r"\bnon[ -]?(?:cancerous|malignant)\b")
_DENIED = re.compile(
    r"\b(?:no|not|non|none|nothing|never|neither|nor|without|w/o|absent (?=\w)|(?<=\w )absent|absence|missing|"
    r"lack|lacks|lacking|devoid|"
    r"negative|exclud\w*|except\w*|minus|rul(?:e|es|ed|ing)[ -]out|r/o|cannot|can't|\w+n't|unless|"
    r"(?:any|every)thing but|all but|other than|apart from|aside from|rather than|instead of|free of|free from|"
    r"deny|denies|denied|ignor(?:e|ing)|omit(?:ting)?|remov(?:e|ing)|subtract(?:ing)?|opposite|complement|"
    r"background of|outside|"
    r"kein\w*|nicht|ohne|sans|aucune?|pas|sin|ningun[oa]?|ningún)\b|\bnon[a-z]{4,}|-free\b|没有|不|无|除"
)
_JOIN = re.compile(
    r"\s*(?:,|;|/|\+|&|、|，|；|和|与|及)\s*(?:(?:and/or|and|or|und|oder|et|ou|y|o)\s+)?|"
    r"\s+(?:and/or|and also|and|or|as well as|along with|together with|plus|und|oder|et|ou|y)\s+"
)
_WITH = re.compile(r" (?:with|including|incl\.?|containing|bearing|mit|avec|con)(?: its| the| a| an| any| all)* ")
_BOTH_SIDES = re.compile(r"\b(?:left|right) (?:and|or|&|and/or|/) (?:the )?(?:left|right)\b")
_BOTH = "both-sided"
_DETERMINERS = re.compile(
    r"^(?:the|a|an|all(?! but\b)|any|every|each|some|both|either)(?: of)?(?: the| these| those)? (?=\w)"
)
_ARTICLES = re.compile(r"^(?:(?:the|a|an|all|any|its|their) )+")
_PLACED = re.compile(r"^(?:on|in|at|to|of|from|near|inside|outside)\b")


@dataclass(frozen=True)
class Wanted:
    """One answer that a phrase asks for.

    Attributes:
        phrase: The words that name the answer; reading them again gives the same value.
        noun: What is to be found, as a model can be asked.
        without: What is taken away from it, as a model can be asked.
        image_sides: Sides of the image, as it is shown, on which alone it counts.
    """

    phrase: str
    noun: str
    without: tuple[str, ...] = ()
    image_sides: tuple[ImageSide, ...] = ()


def wanted(phrase: str, lexicon: Lexicon) -> tuple[Wanted, ...]:
    """Read a phrase: one value for each concept that it joins.

    What no name in the lexicon is in stays one phrase, however many words join it.

    Raises:
        InputError: The phrase holds no word, only denies, or names a side or a difference that is not understood.
    """
    if lexicon.is_name(phrase):
        return (Wanted(phrase, phrase),)
    words = cleaned(phrase)
    if not any(letter.isalpha() for letter in words):
        raise InputError(f"the phrase {phrase!r} is not understood: it holds no word; name a concept such as 'polyp'")
    if lexicon.is_name(words):
        return (Wanted(phrase, words),)
    noun, away = difference(words, lexicon)
    for text in (noun, *away):
        refuse_denial(phrase, text, lexicon)
    if any(_PLACED.match(text) for text in away):
        raise InputError(
            f"the phrase {phrase!r} is not understood: a place cannot be taken away; name the side that is wanted, as "
            "in 'lung on the left of the image'"
        )
    found = _distinct(_sided(phrase, _BOTH_SIDES.sub(_BOTH, noun), lexicon), lexicon)
    if away:
        found = tuple(_minus(phrase, one, away, lexicon) for one in found)
    return (replace(found[0], phrase=phrase),) if len(found) == 1 else found


def separated(phrase: str, taught: Iterable[str] = ()) -> tuple[str, ...]:
    """The phrases of a phrase that joins several concepts, each to be asked by itself; else the phrase alone.

    Args:
        phrase: Such as "liver and kidney".
        taught: Names of concepts beside those of the table.

    Raises:
        InputError: As `wanted`.
    """
    return tuple(one.phrase for one in wanted(phrase, _lexicon(tuple(taught))))


@lru_cache(4)
def _lexicon(taught: tuple[str, ...]) -> Lexicon:
    return Lexicon(taught)


def cleaned(phrase: str) -> str:
    """The phrase in small letters, without quotes, pictographs, politeness and mention of the image as a whole."""
    text = unicodedata.normalize("NFKC", phrase).casefold().replace("’", "'").replace("‘", "'")
    text = "".join(c if unicodedata.category(c) not in ("So", "Sk", "Cf", "Cs", "Co", "Mn") else " " for c in text)
    text = re.sub(r"(?<!\w)'|'(?!\w)|[\"“”„«»`*_#!?¿¡()\[\]{}<>|\\~^=]", " ", text)
    text = re.sub(r"[-‐‑](?!free)", " ", re.sub(r"\bx-ray", "x ray", text))
    words = " ".join(text.split()).strip(" .,;:/")
    words = _PLEASE.sub("", words, count=1).strip(" ,:.")
    while (shorter := _TAIL.sub("", words)) != words and not _is_sided_tail(words):
        words = shorter.strip(" ,")
    return _DETERMINERS.sub("", words)


def _is_sided_tail(words: str) -> bool:
    """Whether the mention of the image at the end belongs to one of its sides."""
    return any(pattern.match(words) for pattern in _IN_IMAGE) or _OF_IMAGE.search(words) is not None


def difference(words: str, lexicon: Lexicon) -> tuple[str, tuple[str, ...]]:
    """Take cleaned words apart: what is wanted, and what is taken away from it, () if nothing is."""
    match = _FREE.match(words)
    if match is not None:
        rest, noun = match["rest"] or match["rest2"], match["noun"] or match["noun2"]
        if "-free" in words or lexicon.find(f"{noun} {rest}") is not None:
            return noun, (rest,)
    match = _MINUS.search(words)
    if match is None:
        return words, ()
    noun = words[: match.start()].strip(" ,(")
    return noun, tuple(_ARTICLES.sub("", part) for part in _JOIN.split(match["rest"]) if part)


def denies(text: str) -> bool:
    """Whether words of a phrase deny something; "noncancerous" is a kind, and does not."""
    return _denial(text) is not None


def _denial(text: str) -> re.Match[str] | None:
    return _DENIED.search(_BENIGN.sub("benign", text))


def refuse_denial(phrase: str, text: str, lexicon: Lexicon) -> None:
    """Refuse a part of a phrase that is empty or denies what it names, unless it is a name as it stands.

    Raises:
        InputError: It is and does.
    """
    if lexicon.is_name(text):
        return
    denied = _denial(text)
    if denied is not None or not text:
        said = (
            f"{denied[0]!r} denies, or takes away in a way that is not known" if denied else "it names nothing to find"
        )
        raise InputError(
            f"the phrase {phrase!r} is not understood: {said}; ask for what is to be found, such as 'kidney', or for "
            "a difference, such as 'kidney without kidney tumor'"
        )


def _sided(phrase: str, noun: str, lexicon: Lexicon) -> tuple[Wanted, ...]:
    """What is wanted, with sides of the image where it or a part of it names them."""
    whole = _with_image_sides(phrase, noun)
    if lexicon.find(whole.noun.replace(_BOTH, "left and right")) is not None and _BOTH not in noun:
        return (whole,)
    parts = [part for part in _JOIN.split(noun) if part]
    for pattern in (None, _WITH):
        some = parts if pattern is None else [part for part in pattern.split(noun) if part]
        if len(some) < 2:
            continue
        named = _shared([_with_image_sides(phrase, part) for part in some], lexicon)
        is_found = [lexicon.find(one.noun) is not None for one in named]
        if all(is_found) or (pattern is None and any(is_found)):
            return tuple(one for part in named for one in _both(part, lexicon))
    return _both(whole, lexicon)


def _distinct(found: tuple[Wanted, ...], lexicon: Lexicon) -> tuple[Wanted, ...]:
    """Leave out what is asked a second time."""
    kept: list[Wanted] = []
    for one in found:
        twins = (other for other in kept if other.image_sides == one.image_sides)
        if not any(other.noun == one.noun or _is_same(other.noun, one.noun, lexicon) for other in twins):
            kept.append(one)
    return tuple(kept)


def _both(one: Wanted, lexicon: Lexicon) -> tuple[Wanted, ...]:
    """Left and right of it: two concepts where each side is one, else the concept of both."""
    if _BOTH not in one.noun:
        return (one,)
    rest = " ".join(one.noun.replace(_BOTH, "").split())
    sides = [replace(one, noun=f"{side} {rest}", phrase=f"{side} {rest}") for side in ("left", "right")]
    if all(lexicon.find(side.noun) is not None for side in sides) and lexicon.find(rest) is None:
        return tuple(sides)
    return (replace(one, noun=rest, phrase=one.phrase.replace(_BOTH, "left and right")),)


def _with_image_sides(phrase: str, text: str) -> Wanted:
    for pattern in _IN_IMAGE:
        match = pattern.match(text)
        if match is not None:
            named = [match["first"], match["second"]]
            return Wanted(text, match["noun"], image_sides=tuple(_SIDES[side] for side in named if side))
    if _OF_IMAGE.search(text):
        raise InputError(
            f"the phrase {phrase!r} is not understood: it names a side of the image; say it as in "
            "'lung on the left of the image'"
        )
    return Wanted(text, text)


def _shared(parts: list[Wanted], lexicon: Lexicon) -> list[Wanted]:
    """Parts with the words that they share: "benign and malignant breast tumor", "optic disc and cup"."""
    first, last = parts[0].noun.split(), parts[-1].noun.split()
    result = []
    for part in parts:
        before = [f"{part.noun} {' '.join(last[k:])}" for k in range(1, len(last))] if part is not parts[-1] else []
        after = [f"{' '.join(first[:k])} {part.noun}" for k in range(len(first), 0, -1)]
        ways = (part.noun, *before, *after)
        noun = next((text for text in ways if lexicon.find(text) is not None), part.noun)
        result.append(replace(part, noun=noun, phrase=part.phrase.replace(part.noun, noun)))
    return result


def _minus(phrase: str, one: Wanted, away: Iterable[str], lexicon: Lexicon) -> Wanted:
    """What is wanted without what is named: "tumor" of a kidney is a kidney tumor where that is a name."""
    nouns, named = [], lexicon.find(one.noun)
    for text in away:
        of_its_own = f"{one.noun if named is None else named.name} {text}"  # a cell's nucleus, not any
        ways = (text, f"{one.noun} {text}", *(f"{word} {text}" for word in one.noun.split()))
        ways = (of_its_own, *ways) if lexicon.is_name(of_its_own) else ways
        nouns.append(next((way for way in ways if lexicon.find(way) is not None), text))
    if any(folded(noun) == folded(one.noun) or _is_same(noun, one.noun, lexicon) for noun in nouns):
        raise InputError(f"the phrase {phrase!r} is not understood: nothing is left where a thing is taken from itself")
    return replace(one, phrase=f"{one.phrase} without {' and '.join(nouns)}", without=tuple(nouns))


def _is_same(text: str, other: str, lexicon: Lexicon) -> bool:
    first, second = lexicon.find(text), lexicon.find(other)
    return first is not None and second is not None and (first.name, first.side) == (second.name, second.side)
