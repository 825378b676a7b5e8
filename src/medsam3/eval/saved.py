"""A results file read back: its cases for comparisons, and all of it for pooling."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from medsam3.data.duplicates import NearDuplicate
from medsam3.data.index import Fold
from medsam3.errors import InputError
from medsam3.eval.answers import Failure
from medsam3.eval.cases import EvalConfig
from medsam3.eval.provenance import Provenance
from medsam3.eval.records import CaseResult

FORM = 2
"""Raised when the JSON changes so that older readers would misread it."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class SavedResults:
    """What a comparison needs of a results file."""

    name: str
    model: str
    data_sha256: str
    cases: tuple[CaseResult, ...]


@dataclass(frozen=True)
class SavedRun:
    """What pooling needs of a results file: all but its tables.

    Attributes:
        path: The file.
        about: What the run was made with.
        config: What was measured.
        skipped_volumes: Rows that were left out.
        failures: What could not be read.
        notes: How the run was made.
        duplicates: Near-copies across splits; None where nobody looked.
        is_pooled: It is made of other runs.
        cases: Every case.
    """

    path: Path
    about: Provenance
    config: EvalConfig
    skipped_volumes: int
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    duplicates: tuple[NearDuplicate, ...] | None
    is_pooled: bool
    cases: tuple[CaseResult, ...]


def read_results(path: Path) -> SavedResults:
    """Read the cases of what `write_results` wrote.

    Raises:
        InputError: Missing, or of another form.
    """

    def results(entry: Mapping[str, Any]) -> SavedResults:
        about = entry["about"]
        return SavedResults(path.name, about["model"], about["data_sha256"], _cases(entry))

    return _read(path, results)


def read_run(path: Path) -> SavedRun:
    """Read all of what `write_results` wrote, but for the tables.

    Raises:
        InputError: Missing, or of another form.
    """

    def run(entry: Mapping[str, Any]) -> SavedRun:
        extras = entry["extras"]
        duplicates = extras["duplicates"]
        return SavedRun(
            path=path,
            about=Provenance(**entry["about"]),
            config=_config(entry["config"]),
            skipped_volumes=entry["skipped_volumes"],
            failures=tuple(Failure(**failure) for failure in entry["failures"]),
            notes=tuple(extras["notes"]),
            duplicates=None if duplicates is None else tuple(_duplicate(pair) for pair in duplicates),
            is_pooled=bool(extras.get("pooled")),
            cases=_cases(entry),
        )

    return _read(path, run)


def _read(path: Path, parse: Callable[[Mapping[str, Any]], Value]) -> Value:
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["form"] != FORM:
            raise InputError(f"{path} is of form {entry['form']}, this version reads {FORM}: run the evaluation again")
        return parse(entry)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): name a results.json of medsam3 eval") from error
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no results.json of medsam3 eval ({type(error).__name__}: {error})") from error


def _cases(entry: Mapping[str, Any]) -> tuple[CaseResult, ...]:
    return tuple(CaseResult.from_json(case) for case in entry["cases"])


def _config(entry: Mapping[str, Any]) -> EvalConfig:
    """Settings that a version did not know yet have their defaults; those that this one does not know are refused."""
    unknown = sorted(set(entry) - {field.name for field in fields(EvalConfig)})
    if unknown:
        raise InputError(f"the run has settings that this version does not know ({', '.join(unknown)}): update medsam3")
    tuples = {name: tuple(value) for name, value in entry.items() if isinstance(value, list)}
    fold = entry.get("fold")
    return EvalConfig(**{**entry, **tuples, "fold": None if fold is None else Fold(**fold)})


def _duplicate(entry: Mapping[str, Any]) -> NearDuplicate:
    first, second = entry["splits"]
    return NearDuplicate(**{**entry, "splits": (first, second)})
