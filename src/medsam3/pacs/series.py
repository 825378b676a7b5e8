"""The series of an archive, how an address names them, and which of them a rule asks for something.

It reads no image and speaks to no server.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from medsam3.errors import InputError

SCHEME = "dicomweb:"
_ALLOWED = (
    "allowed is dicomweb:https://HOST/ROOT/studies/STUDY/series/SERIES, .../studies/STUDY or .../studies?PatientID=ID"
)
_PATH = re.compile(r"(?P<root>.*?)(?:/studies(?:/(?P<study>[^/]+)(?:/series(?:/(?P<series>[^/]+))?)?)?|/series)?/?")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_NO_IMAGES = re.compile(r"SEG|RTSTRUCT|RTPLAN|RTDOSE|RTRECORD|SR|PR|KO|DOC|REG|FID|RWV|PLAN|AU|ECG|HD|ANN|M3D")
"""Modalities whose series hold no pictures of a patient, or results that are made from pictures."""
_CONDITIONS = ("modality", "body_part", "description")


class UnreachableError(InputError):
    """An archive or node that does not answer, or not well, and may do so later."""


def is_uid(text: str) -> bool:
    """Tell whether a text is a DICOM identifier, and so safe as the name of a file. Source: DICOM PS3.5 9.1."""
    return len(text) <= 64 and _UID.fullmatch(text) is not None


@dataclass(frozen=True)
class Series:
    """A series as an archive or its first file tells of it.

    Attributes:
        study: Study Instance UID.
        uid: Series Instance UID.
        modality: Such as CT; "" if not told.
        body_part: Body Part Examined.
        description: Series Description.
        count: How many instances it is said to have; None if not told.
        instances: Their SOP Instance UIDs, if these have been asked for.
    """

    study: str
    uid: str
    modality: str = ""
    body_part: str = ""
    description: str = ""
    count: int | None = None
    instances: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        wrong = [text for text in (self.study, self.uid, *self.instances) if not is_uid(text)]
        if wrong:
            raise InputError(f"{wrong[0][:80]!r} is no DICOM identifier, allowed are digits and dots, at most 64")

    @property
    def may_hold_images(self) -> bool:
        """Whether its modality has pictures that can be segmented."""
        return _NO_IMAGES.fullmatch(self.modality.upper()) is None

    @property
    def fingerprint(self) -> str:
        """Hash of the instances; changes when one is added."""
        return hashlib.sha256("\n".join((self.study, self.uid, *sorted(self.instances))).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ArchiveAddress:
    """A place in a DICOMweb archive.

    Attributes:
        root: URL that the services lie below, without a slash at its end.
        study: Study Instance UID; None for no one study.
        series: Series Instance UID; None for no one series.
        query: Attributes by which series or studies are searched, such as a patient's ID; never shown.
        of_studies: Whether the query is for studies, else for series.
    """

    root: str
    study: str | None = None
    series: str | None = None
    query: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    of_studies: bool = False


def is_address(text: str) -> bool:
    """Tell whether an argument names a place in an archive."""
    return text.lower().startswith(SCHEME)


def address_of(text: str) -> ArchiveAddress:
    """Read an address such as dicomweb:https://host/dicom-web/studies/1.2/series/3.4.

    Raises:
        InputError: Not of that form, or it holds a password.
    """
    try:
        parts = urlsplit(text[len(SCHEME) :])
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_good = False
    if not is_address(text) or not is_good or parts.fragment:
        raise InputError(f"{text[:200]!r} is no address of an archive: {_ALLOWED}")
    if "@" in parts.netloc:
        raise InputError(
            "the address holds a user or password, which would be logged: give them by MEDSAM3_DICOMWEB_USER and "
            "MEDSAM3_DICOMWEB_PASSWORD"
        )
    found = _PATH.fullmatch(parts.path)
    assert found is not None, "its parts match any text"
    left = [part for part in found["root"].split("/") if part in ("studies", "series", "..")]
    for uid in (found["study"], found["series"], *left):
        if uid is not None and not is_uid(uid):
            raise InputError(f"{uid[:80]!r} is no DICOM identifier, allowed are digits and dots: {_ALLOWED}")
    if parts.query and found["study"] is not None:
        raise InputError(f"the address names a study and searches by a query too: take one of them; {_ALLOWED}")
    root = f"{parts.scheme}://{parts.netloc}{found['root']}"
    of_studies = parts.path.rstrip("/").endswith("/studies")
    return ArchiveAddress(root, found["study"], found["series"], tuple(parse_qsl(parts.query)), of_studies)


@dataclass(frozen=True)
class Rule:
    """What to look for in which series.

    Attributes:
        text: Phrases.
        modality: Of the series, such as CT; None takes any that has images.
        body_part: Pattern of the body part, such as `ABD*`; None takes any.
        description: Pattern of the series' description, such as `*portal*`.
        rtstruct: Whether an RT structure set is made beside each segmentation.
    """

    text: tuple[str, ...]
    modality: str | None = None
    body_part: str | None = None
    description: str | None = None
    rtstruct: bool = False

    def fits(self, series: Series) -> bool:
        """Tell whether a series is meant; upper and lower case are the same."""
        if not series.may_hold_images:
            return False
        told = {"modality": series.modality, "body_part": series.body_part, "description": series.description}
        return all(
            pattern is None or fnmatchcase(told[name].strip().casefold(), pattern.strip().casefold())
            for name, pattern in ((name, getattr(self, name)) for name in _CONDITIONS)
        )


def read_rules(path: Path) -> tuple[Rule, ...]:
    """Read rules from a TOML file with a table `[[rule]]` for each.

    Raises:
        InputError: The file cannot be read, or holds anything but rules of the right form.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"rules {path} cannot be read ({reason}): give a TOML file with [[rule]] tables") from error
    tables = content.get("rule")
    if set(content) != {"rule"} or not isinstance(tables, list) or not tables:
        raise InputError(
            f"rules {path} hold {', '.join(content) or 'nothing'}, allowed are [[rule]] tables and no more"
        )
    return tuple(_rule(path, number, table) for number, table in enumerate(tables, start=1))


def _rule(path: Path, number: int, table: Any) -> Rule:
    where = f"rule {number} of {path}"
    allowed = ("text", *_CONDITIONS, "rtstruct")
    if not isinstance(table, Mapping) or not set(table) <= set(allowed):
        names = ", ".join(sorted(set(table) - set(allowed))) if isinstance(table, Mapping) else "no table"
        raise InputError(f"{where} has {names}, allowed are {', '.join(allowed)}")
    phrases = table.get("text")
    many: Any = [phrases] if isinstance(phrases, str) else phrases
    if not _are_texts(many):
        raise InputError(f'{where} has no phrases: write text = "liver" or text = ["liver", "kidney"]')
    for name in _CONDITIONS:
        if name in table and not _are_texts([table[name]]):
            raise InputError(f'{where} has {name} = {table[name]!r}, allowed is a text such as "CT"')
    if not isinstance(table.get("rtstruct", False), bool):
        raise InputError(f"{where} has rtstruct = {table['rtstruct']!r}, allowed is true or false")
    conditions = {name: table.get(name) for name in _CONDITIONS}
    return Rule(tuple(many), rtstruct=table.get("rtstruct", False), **conditions)


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(isinstance(one, str) and one.strip() for one in values)


def fitting(rules: Sequence[Rule], series: Series) -> tuple[Rule, ...]:
    """Choose the rules that ask something of a series."""
    return tuple(rule for rule in rules if rule.fits(series))
