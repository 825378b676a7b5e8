"""Addresses, series and rules, without a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from medsam3.errors import InputError
from medsam3.pacs.series import ArchiveAddress, Rule, Series, address_of, is_address, read_rules

ROOT = "https://host:8443/dicom-web"
CT = Series("1.2", "1.2.3", "CT", "ABDOMEN", "Portal venous 3 mm")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (ROOT, ArchiveAddress(ROOT)),
        (f"{ROOT}/", ArchiveAddress(ROOT)),
        (f"{ROOT}/studies/1.2", ArchiveAddress(ROOT, "1.2")),
        (f"{ROOT}/studies/1.2/series/3.4", ArchiveAddress(ROOT, "1.2", "3.4")),
        (f"{ROOT}/studies/1.2/series", ArchiveAddress(ROOT, "1.2")),
        (f"{ROOT}/studies?PatientID=a%20b", ArchiveAddress(ROOT, query=(("PatientID", "a b"),), of_studies=True)),
        (f"{ROOT}/series?Modality=CT", ArchiveAddress(ROOT, query=(("Modality", "CT"),))),
        ("http://host", ArchiveAddress("http://host")),
        ("http://host/aets/A/rs/studies/1.2", ArchiveAddress("http://host/aets/A/rs", "1.2")),
    ],
)
def test_an_address_is_read(text: str, address: ArchiveAddress) -> None:
    assert is_address(f"dicomweb:{text}")
    assert address_of(f"dicomweb:{text}") == address
    assert "a b" not in repr(address_of(f"dicomweb:{text}"))  # whose images they are


@pytest.mark.parametrize(
    "text",
    [
        *(
            "host/dicom-web",
            "ftp://host/x",
            "https://",
            "https://host:x/",
            "https://host/studies/../..",
            "http://u:p@host",
        ),
        *("https://host/studies/1.2?PatientID=3", "https://host/studies/1.2/series/x", "https://host/#studies"),
    ],
)
def test_an_address_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        address_of(f"dicomweb:{text}")


@pytest.mark.parametrize("uid", ["", "..", "1..2", "1/2", "a", "1." * 40 + "1"])
def test_what_is_no_identifier_names_no_folder(uid: str) -> None:
    with pytest.raises(InputError):
        Series("1.2", uid)


@pytest.mark.parametrize(
    ("rule", "fits"),
    [
        (Rule(("liver",)), True),
        (Rule(("liver",), modality="ct"), True),
        (Rule(("liver",), modality="MR"), False),
        (Rule(("liver",), body_part="abd*", description="*PORTAL*"), True),
        (Rule(("liver",), body_part="abd*", description="*arterial*"), False),
        (Rule(("liver",), description="Portal"), False),  # a pattern is of the whole text
    ],
)
def test_a_rule_fits_by_all_its_conditions(rule: Rule, fits: bool) -> None:
    assert rule.fits(CT) is fits


@pytest.mark.parametrize("modality", ["SEG", "RTSTRUCT", "SR", "PR"])
def test_no_rule_fits_what_holds_no_images(modality: str) -> None:
    assert not Rule(("liver",)).fits(Series("1.2", "1.2.3", modality))


def test_a_series_that_grows_is_another_one() -> None:
    prints = {Series("1.2", "1.3", instances=one).fingerprint for one in (("1", "2"), ("2", "1"), ("1", "2", "3"))}
    assert len(prints) == 2


def test_rules_are_read_from_toml(tmp_path: Path) -> None:
    text = '[[rule]]\nmodality = "CT"\ntext = "liver"\n[[rule]]\ntext = ["a", "b"]\nrtstruct = true\n'
    (tmp_path / "rules.toml").write_text(text, encoding="utf-8")
    assert read_rules(tmp_path / "rules.toml") == (Rule(("liver",), "CT"), Rule(("a", "b"), rtstruct=True))
