"""Runs over the same cases, paired case by case: two runs compared, and others set beside this one.

It knows results, no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from medsam3.errors import InputError
from medsam3.eval.case_result import CaseKey, CaseResult
from medsam3.eval.cases import ORACLE_MODES, EvalMode
from medsam3.eval.summary import ALL
from medsam3.measure.intervals import Estimate, holds, paired_interval

if TYPE_CHECKING:
    from medsam3.eval.results import Results

_Pair = TypeVar("_Pair", CaseKey, tuple[str, str, str])


@dataclass(frozen=True)
class DifferenceRow:
    """Dice of the second run minus the first, on the positives that both have.

    Attributes:
        dataset: Name of the data set.
        concept: Name of the concept.
        mode: How it was asked.
        jitter_percent: Of the oracle boxes.
        first: Mean Dice of the first run.
        second: Mean Dice of the second run.
        difference: Paired, with its interval.
    """

    dataset: str
    concept: str
    mode: EvalMode
    jitter_percent: float
    first: float
    second: float
    difference: Estimate

    @property
    def holds(self) -> bool:
        """Whether the interval lies wholly on one side of 0."""
        return holds(self.difference)


@dataclass(frozen=True)
class Comparison:
    """Paired differences of two runs.

    Attributes:
        rows: One for each data set, concept and mode; last those that join all, if there is more than one.
        unpaired: Positives that only one of the runs has.
        is_same_data: Both runs saw the very same files.
    """

    rows: tuple[DifferenceRow, ...]
    unpaired: int
    is_same_data: bool


@dataclass(frozen=True)
class BesideRow:
    """Dice of this run by one mode and of another run, on the positives that both have.

    Attributes:
        dataset: Name of the data set, or `all`.
        concept: Name of the concept, or `all`.
        mode: Of this run, without jitter.
        other: The other run's model.
        other_mode: Of the other run, without jitter.
        ours: Mean Dice of this run.
        theirs: Mean Dice of the other.
        difference: Ours minus theirs, paired, with its interval.
    """

    dataset: str
    concept: str
    mode: EvalMode
    other: str
    other_mode: EvalMode
    ours: float
    theirs: float
    difference: Estimate

    @property
    def holds(self) -> bool:
        """Whether the interval lies wholly on one side of 0."""
        return holds(self.difference)


def compare(first: Results, second: Results, *, seed: int = 0) -> Comparison:
    """Compare case by case.

    Raises:
        InputError: The runs have no case in common.
    """
    before, after = ({case.key: case for case in _positives(run.cases)} for run in (first, second))
    if not before.keys() & after.keys():
        raise InputError(
            f"{first.path} and {second.path} have no case in common: compare runs over the same data and modes"
        )
    asked = sorted({(case.mode, case.jitter_percent) for case in before.values()})
    rows = []
    for mode, jitter in asked:
        own = {key: case for key, case in before.items() if (case.mode, case.jitter_percent) == (mode, jitter)}
        for (dataset, concept), one, other, difference in _paired(own, after, seed):
            rows.append(DifferenceRow(dataset, concept, mode, jitter, one, other, difference))
    single = {(row.dataset, row.concept) for row in rows if row.dataset != ALL}
    if len(single) == 1:
        rows = [row for row in rows if row.dataset != ALL]
    return Comparison(
        rows=tuple(sorted(rows, key=lambda row: (row.dataset == ALL, row.dataset, row.concept))),
        unpaired=len(before.keys() ^ after.keys()),
        is_same_data=first.about.data_sha256 == second.about.data_sha256,
    )


def beside_rows(cases: Sequence[CaseResult], others: Sequence[Results], *, seed: int = 0) -> list[BesideRow]:
    """Set every mode of this run against every mode of the others, and oracle modes against oracle modes alone."""
    rows: list[BesideRow] = []
    mine = _by_mode(cases)
    for other in others:
        for other_mode, theirs in _by_mode(other.cases).items():
            for mode, own in mine.items():
                if mode in ORACLE_MODES and other_mode not in ORACLE_MODES:
                    continue
                paired = sorted(_paired(theirs, own, seed), key=lambda found: (found[0][0] == ALL, found[0]))
                rows += [
                    BesideRow(*scope, mode, other.about.model, other_mode, second, first, difference)
                    for scope, first, second, difference in paired
                ]
    return rows


def _positives(cases: Iterable[CaseResult]) -> list[CaseResult]:
    return [case for case in cases if case.is_present and case.phrasing == "name"]


def _by_mode(cases: Sequence[CaseResult]) -> dict[EvalMode, dict[tuple[str, str, str], CaseResult]]:
    found: dict[EvalMode, dict[tuple[str, str, str], CaseResult]] = {}
    for case in _positives(cases):
        if not case.jitter_percent:
            found.setdefault(case.mode, {})[case.dataset, case.image, case.concept] = case
    return found


def _paired(
    before: Mapping[_Pair, CaseResult], after: Mapping[_Pair, CaseResult], seed: int
) -> list[tuple[tuple[str, str], float, float, Estimate]]:
    """Pair cases by key: for each data set and concept, then for all, both means of Dice and second minus first."""
    scopes: dict[tuple[str, str], list[_Pair]] = {}
    for key in sorted(before.keys() & after.keys(), key=str):
        for scope in ((before[key].dataset, before[key].concept), (ALL, ALL)):
            scopes.setdefault(scope, []).append(key)
    found = []
    for scope, keys in scopes.items():
        first = [before[key].dice or 0.0 for key in keys]
        second = [after[key].dice or 0.0 for key in keys]
        difference = paired_interval(first, second, [before[key].draw_group for key in keys], seed=seed)
        found.append((scope, sum(first) / len(keys), sum(second) / len(keys), difference))
    return found
