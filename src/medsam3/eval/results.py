"""The results of one run as a value and as JSON: provenance, settings, tables, and every case behind them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medsam3.data.duplicates import NearDuplicate
from medsam3.eval.answers import Failure
from medsam3.eval.beside import BesideRow
from medsam3.eval.cases import EvalConfig
from medsam3.eval.provenance import Provenance
from medsam3.eval.records import CaseResult
from medsam3.eval.saved import FORM
from medsam3.eval.summary import Summary
from medsam3.store import replacing


@dataclass(frozen=True)
class PooledRun:
    """One of the runs that results were pooled from.

    Attributes:
        path: Its results.json, as it was named.
        fold: `2/5`; None where it is no fold.
        datasets: That it has cases of.
        cases: How many.
        about: What it was made with.
    """

    path: str
    fold: str | None
    datasets: tuple[str, ...]
    cases: int
    about: Provenance


@dataclass(frozen=True)
class Extras:
    """What a report tells beside the run's own numbers.

    Attributes:
        notes: Lines on how the run was made, such as how a comparator was trained.
        beside: This run against others, paired by case.
        duplicates: Near-copies of the evaluated data sets across splits; None where nobody looked.
        pooled: The runs that these results were put together from; () for a run of its own.
    """

    notes: tuple[str, ...] = ()
    beside: tuple[BesideRow, ...] = ()
    duplicates: tuple[NearDuplicate, ...] | None = None
    pooled: tuple[PooledRun, ...] = ()


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
        extras: What else the report tells.
    """

    about: Provenance
    config: EvalConfig
    skipped_volumes: int
    failures: tuple[Failure, ...]
    summary: Summary
    cases: tuple[CaseResult, ...]
    extras: Extras = Extras()

    def to_json(self, *, with_cases: bool = True) -> dict[str, Any]:
        """As JSON takes it: NaN becomes null."""
        entry: dict[str, Any] = {
            "form": FORM,
            "about": asdict(self.about),
            "config": asdict(self.config),
            "skipped_volumes": self.skipped_volumes,
            "failures": [asdict(failure) for failure in self.failures],
            "summary": asdict(self.summary),
            "extras": asdict(self.extras),
        }
        if with_cases:
            entry["cases"] = [case.to_json() for case in self.cases]
        cleaned: dict[str, Any] = without_nan(entry)
        return cleaned


def write_results(results: Results, path: Path) -> None:
    """Write the JSON in one step.

    Raises:
        InputError: The place cannot be written.
    """
    with replacing(path, ".json") as temporary:
        temporary.write_text(json.dumps(results.to_json(), indent=1) + "\n", encoding="utf-8")


def without_nan(value: Any) -> Any:
    """A value as strict JSON takes it: numbers that are not finite become None, reals keep six digits."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value
