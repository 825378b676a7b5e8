from __future__ import annotations

from pathlib import Path

import pytest

from medsam3.concepts import CONCEPTS, Concept, find, normalised, surely_absent, synonyms
from medsam3.data.index import IndexRow
from medsam3.eval.cases import drawn_absent
from medsam3.eval.phrasings import CONFUSABLE, KINDS, held_out_phrases, panel, rivals

IDS = [concept.name for concept in CONCEPTS]


@pytest.mark.parametrize("concept", CONCEPTS, ids=IDS)
def test_the_panel_has_six_phrasings_or_more_with_one_of_each_kind_held_out(concept: Concept) -> None:
    phrases = panel(concept.name)
    assert len({normalised(phrase.text) for phrase in phrases}) == len(phrases) >= 6
    assert tuple(phrase.kind for phrase in phrases if phrase.is_held_out) == KINDS
    assert concept.name not in {phrase.text for phrase in phrases}


def test_no_held_out_phrase_is_used_in_training_or_listed_for_the_model_or_names_another_concept() -> None:
    trained = {normalised(text) for concept in CONCEPTS for text in (*concept.recognised, *synonyms(concept.name))}
    seen: set[str] = set()
    for name, phrases in held_out_phrases().items():
        for text in phrases.values():
            assert normalised(text) not in trained
            assert normalised(text) not in seen
            seen.add(normalised(text))
            known = find(text)
            assert known is None or known.name == name
    assert set(held_out_phrases()) == set(IDS)


def test_a_panel_is_found_by_synonym_and_empty_for_a_concept_of_ones_own() -> None:
    assert panel("polyps") == panel("polyp")
    assert panel("teapot") == ()


def test_confusable_concepts_are_known_and_mutual() -> None:
    assert {name for group in CONFUSABLE for name in group} <= set(IDS)
    assert rivals("optic cup") == ("optic disc",)
    assert rivals("left ventricle") == ("left ventricular myocardium", "right ventricle")
    assert all(name in rivals(other) for name in IDS for other in rivals(name))
    assert rivals("teapot") == ()


def test_foreign_concepts_are_drawn_alike_in_every_run_and_differ_by_image_and_seed() -> None:
    rows = [IndexRow("gut", Path(f"{n}.png"), Path("m"), "polyp", (1,), "test", "g", True) for n in range(40)]
    names = [concept.name for concept in surely_absent(["polyp"])]
    drawn = [drawn_absent(row, names, 3, seed=0) for row in rows]
    assert drawn == [drawn_absent(row, names, 3, seed=0) for row in rows]
    assert all(len(set(own)) == 3 for own in drawn) and len(set(drawn)) > 30
    assert drawn != [drawn_absent(row, names, 3, seed=1) for row in rows]
    assert drawn_absent(rows[0], ("liver",), 3, seed=0) == ("liver",)
