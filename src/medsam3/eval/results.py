"""The results of one run as a value and as JSON: provenance, settings, tables, and every case behind them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medsam3.errors import InputError
from medsam3.eval.benchmark import Failure
from medsam3.eval.cases import EvalConfig
from medsam3.eval.provenance import Provenance
from medsam3.eval.records import CaseResult
from medsam3.eval.summary import Summary
from medsam3.io.files import replacing

FORM = 1
"""Raised when the JSON changes so that older readers would misread it."""


@dataclass(frozen=True)
class Results:
    """What one evaluation found.

    Attributes:
        about: What it was made with.
        config: What was measured.
        skipped_volumes: Rows left out because their image is a volume.
        failures: What could not be read.
        summary: The tables.
        cases: Every case.
    """

    about: Provenance
    config: EvalConfig
    skipped_volumes: int
    failures: tuple[Failure, ...]
    summary: Summary
    cases: tuple[CaseResult, ...]

    def to_json(self, *, with_cases: bool = True) -> dict[str, Any]:
        """As JSON takes it: NaN becomes null."""
        entry: dict[str, Any] = {
            "form": FORM,
            "about": asdict(self.about),
            "config": asdict(self.config),
            "skipped_volumes": self.skipped_volumes,
            "failures": [asdict(failure) for failure in self.failures],
            "summary": asdict(self.summary),
        }
        if with_cases:
            entry["cases"] = [case.to_json() for case in self.cases]
        cleaned: dict[str, Any] = without_nan(entry)
        return cleaned


@dataclass(frozen=True)
class SavedResults:
    """What a comparison needs of a results file."""

    name: str
    model: str
    data_sha256: str
    cases: tuple[CaseResult, ...]


def write_results(results: Results, path: Path) -> None:
    """Write the JSON in one step.

    Raises:
        InputError: The place cannot be written.
    """
    with replacing(path, ".json") as temporary:
        temporary.write_text(json.dumps(results.to_json(), indent=1) + "\n", encoding="utf-8")


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


def without_nan(value: Any) -> Any:
    """A value as strict JSON takes it: numbers that are not finite become None, reals keep six digits."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value
