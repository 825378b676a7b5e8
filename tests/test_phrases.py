"""The grammar alone: what phrases ask for, by the panel of the benchmark and by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsam3.concepts import CONCEPTS
from medsam3.errors import InputError
from medsam3.eval.phrasings import held_out_phrases
from medsam3.lexicon import Found, Lexicon, folded
from medsam3.models.phrase_reader import PhraseReader
from medsam3.phrases import Wanted, separated, wanted

LEXICON = Lexicon()
PANEL = json.loads((Path(__file__).parents[1] / "benchmarks" / "phrase_panel.json").read_text(encoding="utf-8"))
READER = PhraseReader([concept.name for concept in CONCEPTS], is_word={"color", "house"}.__contains__)
"""Compares no meanings; two words stand for its vocabulary."""


def test_the_panel_has_200_phrases_of_every_kind() -> None:
    kinds = {one["kind"] for one in PANEL}
    assert len({one["phrase"] for one in PANEL}) == len(PANEL) >= 200
    assert {"denied", "joined", "minus", "sided", "translated", "misspelt", "plain", "nonsense"} <= kinds


@pytest.mark.parametrize("one", PANEL, ids=[one["phrase"][:40] for one in PANEL])
def test_no_phrase_of_the_panel_is_read_as_another_concept(one: dict[str, str]) -> None:
    names = {name.strip() for part in one["reading"].split("+") for name in part.split("@")[0].split("-")}
    names |= {name.split("@")[0].strip() for name in one["reading"].split("+")}  # high-grade dysplasia has a hyphen
    try:
        readings = READER.readings(one["phrase"])
    except InputError:
        assert one["reading"] in ("!", "?") or one["kind"] == "untaught"
        return
    for reading in readings:
        found = LEXICON.find(reading.text)
        assert reading.is_taught is False or (found is not None and found.name in names)
        assert reading.is_taught is False or bool(reading.without) == (" - " in one["reading"])


@pytest.mark.parametrize("one", PANEL, ids=[one["phrase"][:40] for one in PANEL])
def test_the_parts_of_a_phrase_read_again_are_themselves(one: dict[str, str]) -> None:
    try:
        parts = wanted(one["phrase"], LEXICON)
    except InputError:
        return
    for part in parts:
        (again,) = wanted(part.phrase, LEXICON)
        assert (again.without, again.image_sides, again.phrase) == (part.without, part.image_sides, part.phrase)
        assert LEXICON.find(again.noun) == LEXICON.find(part.noun)


def test_what_is_joined_is_separated_and_shared_words_are_given_to_each() -> None:
    assert separated("liver and kidney") == ("liver", "kidney")
    assert separated("Benign and malignant breast tumour") == ("benign breast tumour", "malignant breast tumour")
    assert separated("kidney and pancreas without tumor") == ("kidney without kidney tumor", "pancreas without tumor")
    assert separated("head and neck tumor") == ("head and neck tumor",)  # no part is known: one open phrase
    assert separated("nerve and vessel", ["nerve and vessel"]) == ("nerve and vessel",)  # a name that was taught


def test_sides_of_the_image_are_not_those_of_the_patient() -> None:
    assert wanted("left lung on the right of the image", LEXICON) == (
        Wanted("left lung on the right of the image", "left lung", image_sides=("right",)),
    )
    assert LEXICON.find("left kidney") == Found("kidney", side="left")
    assert LEXICON.find("left lung") == Found("left lung")  # a concept of its own
    assert LEXICON.find("left liver") is None  # a part of it


def test_spellings_accents_and_articles_do_not_count() -> None:
    assert folded("The Tumour of the Œsophagus, riñón") == "tumor of œsophagus rinon"
    names: dict[str, set[str]] = {}
    for concept in CONCEPTS:
        for phrase in concept.phrases:
            names.setdefault(folded(phrase), set()).add(concept.name)
    assert {phrase for phrase, own in names.items() if len(own) > 1} == set()


def test_held_out_phrasings_are_neither_listed_nor_refused() -> None:
    translations = {text for concept in CONCEPTS for text in concept.translations}
    for phrases in held_out_phrases().values():
        for phrase in phrases.values():
            assert phrase not in translations
            assert wanted(phrase, LEXICON)


def test_what_is_named_twice_is_asked_once() -> None:
    assert [one.noun for one in wanted("polyp and polyps", LEXICON)] == ["polyp"]
    sides = wanted("polyp on the left of the image and polyp on the right of the image", LEXICON)
    assert [one.image_sides for one in sides] == [("left",), ("right",)]


def test_what_is_taken_away_is_a_thing_s_own_part_where_that_has_a_name() -> None:
    (one,) = wanted("white blood cells without nucleus", LEXICON)
    assert one.without == ("white blood cell nucleus",)
    (other,) = wanted("liver without kidney", LEXICON)
    assert other.without == ("kidney",)
