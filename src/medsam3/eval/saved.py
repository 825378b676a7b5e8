"""A results file read back, as far as comparisons need it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from medsam3.errors import InputError
from medsam3.eval.records import CaseResult

FORM = 2
"""Raised when the JSON changes so that older readers would misread it."""


@dataclass(frozen=True)
class SavedResults:
    """What a comparison needs of a results file."""

    name: str
    model: str
    data_sha256: str
    cases: tuple[CaseResult, ...]


def read_results(path: Path) -> SavedResults:
    """Read what `write_results` wrote.

    Raises:
        InputError: Missing, or of another form.
    """
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["form"] != FORM:
            raise InputError(f"{path} is of form {entry['form']}, this version reads {FORM}: run the evaluation again")
        cases = tuple(CaseResult.from_json(case) for case in entry["cases"])
        about = entry["about"]
        return SavedResults(path.name, about["model"], about["data_sha256"], cases)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): name a results.json of medsam3 eval") from error
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no results.json of medsam3 eval ({type(error).__name__}: {error})") from error
