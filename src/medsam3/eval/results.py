"""The results of one run as a value and as JSON, written and read back: provenance, settings, and every case.

Tables are not read back: they are made of the cases whenever they are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

from medsam3.data.duplicates import NearDuplicate
from medsam3.errors import InputError, value_error
from medsam3.eval.case_result import CaseResult
from medsam3.eval.cases import EvalConfig
from medsam3.eval.compare import BesideRow
from medsam3.eval.provenance import Provenance
from medsam3.eval.summary import Summary, summarise
from medsam3.store import JsonObject, without_nan, write_json

FORM = 2
"""Raised when the JSON changes so that older readers would misread it."""


@dataclass(frozen=True)
class Unanswered:
    """An image, or one concept of it, that could not be evaluated, and why."""

    image: str
    concept: str
    error: str


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
    """Parts of a report beside the run's own numbers.

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
    """The findings of one evaluation.

    Attributes:
        about: What it was made with.
        config: What was measured.
        skipped_volumes: Rows left out because their image is a volume.
        failures: What could not be read.
        cases: Every case.
        extras: What else the report tells.
        path: The file that it was read from; None if it was not.
    """

    about: Provenance
    config: EvalConfig
    skipped_volumes: int
    failures: tuple[Unanswered, ...]
    cases: tuple[CaseResult, ...]
    extras: Extras = Extras()
    path: Path | None = None

    @cached_property
    def summary(self) -> Summary:
        """The tables of the cases, made once."""
        return summarise(self.cases, seed=self.config.seed)

    def to_json(self, *, with_cases: bool = True) -> JsonObject:
        """Give all but the path as strict JSON takes it: NaN becomes null."""
        entry: JsonObject = {
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
        cleaned: JsonObject = without_nan(entry)
        return cleaned


def write_results(results: Results, path: Path) -> None:
    """Write the JSON in one step.

    Raises:
        InputError: The file cannot be written.
    """
    write_json(path, results.to_json())


def read_results(path: Path) -> Results:
    """Read what `write_results` wrote; rows beside other runs are left out.

    Settings that a version did not know yet have their defaults; those that this one does not know are refused.

    Raises:
        InputError: Missing, or of another form.
    """
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415  a tenth of a second, which writing does not need

    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
        form = entry["form"]
        if form == FORM:
            _check_settings(entry["config"])
            extras = {name: value for name, value in entry["extras"].items() if name != "beside"}
            kept = {name: value for name, value in entry.items() if name not in ("form", "summary")}
            return replace(TypeAdapter(Results).validate_python({**kept, "extras": extras}), path=path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): name a results.json of medsam3 eval") from error
    except ValidationError as error:
        what = value_error(error.errors()[0])
        raise InputError(f"{path} is no results.json of this version ({what}): run the evaluation again") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} is no results.json of medsam3 eval ({type(error).__name__}: {error})") from error
    raise InputError(f"{path} is of form {form}, this version reads {FORM}: run the evaluation again")


def _check_settings(names: Iterable[str]) -> None:
    unknown = sorted(set(names) - {field.name for field in fields(EvalConfig)})
    if unknown:
        raise InputError(f"the run has settings that this version does not know ({', '.join(unknown)}): update medsam3")
