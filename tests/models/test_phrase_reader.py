"""Phrases are read by hand-made vectors: what a phrase means is where it points in a plane."""

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.models.phrase_reader import PhraseReader

TAUGHT = ("polyp", "left lung", "right lung", "breast tumor", "intervertebral disc", "tooth")
DEGREES = {
    "outgrowth of the bowel": 5.0,  # near polyp, which points to 0
    "bowel": 44.0,  # between polyp and breast tumor, which points to 90: cos 44 deg = .72
    "air sac of the left side": 181.0,  # near both lungs, which point to 180 and 184
    "air sac": 181.0,
    "molar": 268.0,  # near tooth, a name that the table does not list
    "house": 130.0,
}
NAMES = {"polyp": 0.0, "breast tumor": 90.0, "left lung": 184.0, "right lung": 180.0, "tooth": 270.0}


def vectors(phrases: Sequence[str]) -> NDArray[np.float32]:
    """Listed phrasings point away from all others, 330 degrees, so that names alone decide."""
    degrees = np.array([DEGREES.get(phrase, NAMES.get(phrase, 330.0)) for phrase in phrases])
    return np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], axis=1).astype(np.float32)


@pytest.fixture
def reader() -> PhraseReader:
    return PhraseReader(TAUGHT, vectors, least_likeness=0.9)


@pytest.mark.parametrize(
    ("phrase", "text", "how"),
    [
        ("polyp", "polyp", "listed"),
        ("Colonic  Polyp", "Colonic  Polyp", "listed"),  # a synonym, which training uses
        ("gut polyp", "polyp", "listed"),  # a further phrasing of the table
        ("Tooth", "Tooth", "listed"),  # taught, though the table knows nothing of it
        ("polypp", "polyp", "spelling"),
        ("ployp", "polyp", "spelling"),
        ("intravertebral disc", "intervertebral disc", "spelling"),  # two mistakes in a word of 14 letters
        ("breasttumor", "breast tumor", "spelling"),
        ("outgrowth of the bowel", "polyp", "meaning"),  # cos 5 deg = .996
        ("molar", "tooth", "meaning"),
        ("bowel", "bowel", "unknown"),
        ("house", "house", "unknown"),
    ],
)
def test_phrases_are_read_as_what_was_taught(reader: PhraseReader, phrase: str, text: str, how: str) -> None:
    reading = reader.read(phrase)
    assert (reading.phrase, reading.text, reading.how) == (phrase, text, how)
    assert reading.is_taught == (how != "unknown")


def test_a_side_is_never_exchanged_or_made_up(reader: PhraseReader) -> None:
    assert reader.read("lefft lung").text == "left lung"
    assert reader.read("air sac").how == "unknown"  # near right lung, but names no side
    assert reader.read("air sac of the left side").text == "left lung"  # though the right one is nearer


def test_short_words_and_first_letters_are_not_corrected() -> None:
    reader = PhraseReader(("left ventricle", "right ventricle", "liver"), vectors, least_likeness=1.1)
    assert reader.read("LV").how == "listed"
    assert reader.read("MV").how == "unknown"
    assert reader.read("river").how == "unknown"


def test_a_phrase_between_two_concepts_is_neither() -> None:
    reader = PhraseReader(("femur", "femora"), vectors, least_likeness=1.1)
    assert reader.read("femor").how == "unknown"  # one mistake from both


def test_a_taught_name_comes_before_a_phrasing_of_another() -> None:
    reader = PhraseReader(("LV", "left ventricle"), vectors)
    assert reader.read("L V").text == "LV"
    assert reader.read("left vventricle").text == "left ventricle"


def test_weights_that_do_not_tell_what_they_were_taught_are_asked_every_phrase_as_it_stands() -> None:
    reading = PhraseReader((), vectors).read("polypp")
    assert (reading.text, reading.how, reading.is_taught) == ("polypp", "untold", None)


def test_what_only_adds_words_or_leaves_them_out_means_something_else() -> None:
    near = {"prostate tumor": 0.0, "prostate": 1.0, "prostate tumor capsule": 1.0, "cancer of the front gland": 1.0}

    def almost_equal(phrases: Sequence[str]) -> NDArray[np.float32]:
        degrees = np.deg2rad([near.get(phrase, 90.0) for phrase in phrases])
        return np.stack([np.cos(degrees), np.sin(degrees)], axis=1).astype(np.float32)

    reader = PhraseReader(("prostate tumor",), almost_equal)
    assert reader.read("prostate").how == "unknown"  # the whole of which the tumor is a part
    assert reader.read("prostate tumor capsule").how == "unknown"
    assert reader.read("cancer of the front gland").how == "unknown"  # "front" is not in what is listed


def test_translations_are_found_as_they_are_spelt_and_never_corrected() -> None:
    reader = PhraseReader(("liver", "gland"))
    assert [reader.read(text).text for text in ("Leber", "die Leber", "foie", "higado", "肝脏")] == ["liver"] * 5
    assert reader.read("foil").how == "unknown"  # one letter from the French name
    assert reader.read("drusen").how == "unknown"  # in the eye, one letter from the German glands


def test_a_common_word_is_no_misspelt_name() -> None:
    assert PhraseReader(("large bowel",)).read("color").text == "large bowel"  # one letter from colon
    assert PhraseReader(("large bowel",), is_word=lambda word: word == "color").read("color").how == "unknown"


@pytest.mark.parametrize(
    ("phrase", "told"),
    [
        ("kidney without tumor", "kidney minus kidney tumor"),
        ("small polyp", "polyp; not heeded: small"),
        ("left kidney", "kidney, patient's left"),
        ("lung at the top of the image", "lung, upper of the image"),
        ("polyp", None),
        ("spleen", None),
    ],
)
def test_a_reading_is_told_in_words(phrase: str, told: str | None) -> None:
    (reading,) = PhraseReader(("kidney", "kidney tumor", "polyp", "lung")).readings(phrase)
    assert reading.told == told


@pytest.mark.parametrize(
    ("phrase", "message"),
    [
        ("no kidney", "'no' denies"),
        ("kidney without spleen", "'spleen' was not taught"),
        ("spleen without kidney", "'spleen' was not taught"),
        ("kidney without small kidney tumor", "only whole concepts"),
        ("kidney without kidneys", "taken from itself"),
        ("kidney except on the left", "a place cannot be taken away"),
        ("left half of the image", "names a side of the image"),
        ("???", "holds no word"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_reason(phrase: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        PhraseReader(("kidney", "kidney tumor", "polyp")).readings(phrase)


def test_a_detector_is_asked_what_it_cannot_compose_as_it_stands() -> None:
    reader = PhraseReader(("kidney", "kidney tumor"))
    for phrase in ("left kidney", "kidney without tumor", "kidney and kidney tumor"):
        assert (reader.read(phrase).text, reader.read(phrase).how) == (phrase, "unknown")


def test_a_part_or_something_wider_is_not_what_is_listed() -> None:
    reader = PhraseReader(
        ("benign breast tumor", "liver"), lambda phrases: np.ones((len(phrases), 1), np.float32), least_likeness=0.9
    )  # to these vectors all phrases mean the same
    for phrase in ("benign tumor", "benign lump", "liver segment"):
        assert reader.read(phrase).how == "unknown", phrase
    assert reader.read("benign lump of somebody's breast").text == "benign breast tumor"
