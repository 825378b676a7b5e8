from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from medsam3.concepts import CONCEPTS, Code, Concept, code_for, find, normalised, search, suggest, synonyms

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


def test_a_misspelt_phrase_suggests_the_concept_meant() -> None:
    assert suggest("menningioma")[0] == "meningioma"
    assert suggest("pulmonary artey")[0] == "pulmonary artery"
    assert len(suggest("nevus", limit=2)) == 2
    assert suggest("xyzzy") == ()


def test_concepts_need_no_torch() -> None:
    code = "import sys, medsam3.concepts; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_concept_of_the_data_pack_is_listed_and_a_data_set_has_one_family() -> None:
    if "MEDSAM3_DATA" not in os.environ:
        pytest.skip("needs the data pack: set MEDSAM3_DATA to its folder")
    folder = Path(os.environ["MEDSAM3_DATA"])
    from medsam3.io.index import read_index  # noqa: PLC0415

    families: dict[str, set[str]] = {}
    for row in read_index(folder):
        concept = find(row.concept)
        assert concept is not None and concept.name == row.concept
        families.setdefault(row.dataset, set()).add(concept.family)
    assert {name for name, own in families.items() if len(own) != 1} == set()
