from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from medsam3 import concepts
from medsam3.concepts import (
    CONCEPTS,
    MAY_SHOW,
    Code,
    Concept,
    code_for,
    find,
    normalised,
    search,
    surely_absent,
    synonyms,
)

IDS = [concept.name for concept in CONCEPTS]


def test_no_phrase_belongs_to_two_concepts_or_stands_twice_in_one() -> None:
    count = Counter(normalised(phrase) for concept in CONCEPTS for phrase in set(concept.phrases))
    assert {phrase for phrase, n in count.items() if n > 1} == set()
    assert all(len(set(concept.phrases)) == len(concept.phrases) for concept in CONCEPTS)


@pytest.mark.parametrize("concept", CONCEPTS, ids=IDS)
def test_every_concept_has_six_phrasings_of_which_two_are_unseen(concept: Concept) -> None:
    assert len(concept.phrases) >= 6
    assert len(concept.unseen_synonyms) >= 2
    assert all(phrase == " ".join(phrase.split()) and phrase for phrase in concept.phrases)


def test_a_phrase_is_found_whatever_its_case_hyphens_and_spaces() -> None:
    found = find("  Optic  DISK ")
    assert found is not None and found.name == "optic disc"
    assert find("high grade dysplasia") is find("High-Grade Dysplasia") is not None
    assert find("Barrett’s esophagus") is find("Barrett's esophagus") is not None
    assert find("teapot") is None


def test_training_synonyms_hold_neither_the_name_nor_an_unseen_phrasing() -> None:
    known = synonyms("polyp")
    assert "polip" in known and "polyp" not in known
    assert "adenomatous polyp" not in known
    assert synonyms("adenomatous polyp") == known
    assert synonyms("teapot") == ()


def test_abbreviations_name_the_structure_they_stand_for() -> None:
    names = {short: concept.name for short in ("LV", "RV", "ONH", "IVC", "CCA") if (concept := find(short))}
    assert names == {
        "LV": "left ventricle",
        "RV": "right ventricle",
        "ONH": "optic disc",
        "IVC": "inferior vena cava",
        "CCA": "common carotid artery",
    }


def test_a_narrower_concept_is_not_a_synonym_of_the_wider_one() -> None:
    wider, narrower = find("breast mass"), find("breast cancer")
    assert wider is not None and wider.name == "breast tumor"
    assert narrower is not None and narrower.name == "malignant breast tumor"


def test_codes_come_by_name_or_synonym_and_lack_where_none_is_certain() -> None:
    assert code_for("hepatic parenchyma") == Code("10200004", "Liver", "SCT")
    assert code_for("optic cup") is None
    assert code_for("teapot") is None


def test_a_concept_knows_its_dicom_category() -> None:
    polyp, liver = find("polyp"), find("liver")
    assert polyp is not None and polyp.category_code == Code("49755003", "Morphologically Abnormal Structure")
    assert liver is not None and liver.category_code == Code("91723000", "Anatomical Structure")


def test_every_code_and_meaning_stands_in_pydicoms_dictionary() -> None:
    dictionary = pytest.importorskip("pydicom.sr._concepts_dict").concepts["SCT"]
    known = {(value, meaning) for entry in dictionary.values() for value, (meaning, _) in entry.items()}
    codes = [concept.code for concept in CONCEPTS if concept.code] + [concept.category_code for concept in CONCEPTS]
    assert {(code.value, code.meaning) for code in codes} - known == set()


def test_search_ranks_an_equal_phrase_before_one_that_holds_it_and_one_that_resembles_it() -> None:
    names = [concept.name for concept in search("breast tumor")]
    assert names[0] == "breast tumor"
    assert {"benign breast tumor", "malignant breast tumor"} <= set(names)
    assert search("optik cup")[0].name == "optic cup"
    assert search("xyzzy") == []
    assert search(" ") == list(CONCEPTS)


def absent_from(*shown: str) -> set[str]:
    return {concept.name for concept in surely_absent(shown)}


def test_every_family_says_what_its_images_may_show_and_that_is_its_own_concepts_at_least() -> None:
    assert set(MAY_SHOW) == {concept.family for concept in CONCEPTS}
    assert all(family in others <= set(MAY_SHOW) for family, others in MAY_SHOW.items())


def test_what_another_section_or_another_view_of_the_same_organ_shows_does_not_count_as_absent() -> None:
    in_ct = absent_from("liver", "kidney")
    assert {"optic disc", "breast tumor", "cell nucleus", "wound"} <= in_ct
    assert not {"liver", "pancreas", "kidney stone", "brain tumor", "lung", "polyp"} & in_ct
    in_endoscopy = absent_from("polyp")
    assert {"brain tumor", "optic disc"} <= in_endoscopy and "large bowel" not in in_endoscopy
    assert "brain tumor" not in absent_from("fetal head") and "fetal head" not in absent_from("brain tumor")


def test_look_alikes_of_the_newer_data_sets_do_not_count_as_absent() -> None:
    assert not {"gland", "white blood cell", "white blood cell nucleus"} & absent_from("cell nucleus")
    assert not {"cell nucleus", "gastrointestinal cancer", "high-grade dysplasia"} & absent_from("gland")
    assert "wound" not in absent_from("skin lesion") and not {"skin lesion", "melanoma"} & absent_from("wound")
    assert not {"retinal blood vessel", "optic cup"} & absent_from("optic disc hemorrhage")
    assert "common carotid artery" not in absent_from("brachial plexus nerve")
    assert not {"malignant breast tumor", "lung", "kidney"} & absent_from("cell nucleus")  # a slide may be of these
    assert {"cell nucleus", "white blood cell"} <= absent_from("breast tumor")  # no ultrasound shows a nucleus


def test_a_word_that_fits_other_organs_too_is_nowhere_surely_absent() -> None:
    everywhere = [absent_from(concept.name) for concept in CONCEPTS]
    assert not any({"gland", "suspicious lesion"} & own for own in everywhere)


def test_several_concepts_may_show_what_any_of_them_may_and_a_synonym_counts_as_its_name() -> None:
    assert absent_from("polyps", "ONH") == absent_from("polyp") & absent_from("optic disc")


def test_what_is_not_known_makes_nothing_absent_and_is_never_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert absent_from() == absent_from("teapot") == absent_from("polyp", "teapot") == set()
    monkeypatch.setattr(concepts, "MAY_SHOW", {k: v for k, v in MAY_SHOW.items() if k != "fundus photograph"})
    assert absent_from("optic disc") == absent_from("polyp", "optic disc") == set()
    assert "optic disc" not in absent_from("polyp") and "lung" in absent_from("polyp")


def test_concepts_need_no_torch() -> None:
    code = "import sys, medsam3.concepts; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_concept_of_the_data_pack_is_listed_and_a_data_set_has_one_family() -> None:
    if "MEDSAM3_DATA" not in os.environ:
        pytest.skip("needs the data pack: set MEDSAM3_DATA to its folder")
    folder = Path(os.environ["MEDSAM3_DATA"])
    from medsam3.data.index import read_index  # noqa: PLC0415

    families: dict[str, set[str]] = {}
    for row in read_index(folder):
        concept = find(row.concept)
        assert concept is not None and concept.name == row.concept
        families.setdefault(row.dataset, set()).add(concept.family)
    assert {name for name, own in families.items() if len(own) != 1} == set()
