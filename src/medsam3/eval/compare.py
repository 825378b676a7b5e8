"""Two runs over the same cases: paired differences, and which of them hold. Knows results, no model."""

from __future__ import annotations

from dataclasses import dataclass

from medsam3.errors import InputError
from medsam3.eval.cases import EvalMode
from medsam3.eval.records import CaseResult
from medsam3.eval.saved import SavedResults
from medsam3.eval.summary import ALL
from medsam3.measure.intervals import Estimate, paired_interval

Key = tuple[str, str, EvalMode, float]


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
        """The interval lies wholly on one side of 0."""
        return self.difference.low > 0 or self.difference.high < 0


@dataclass(frozen=True)
class Comparison:
    """Paired differences of two runs.

    Attributes:
        rows: One for each data set, concept and mode; last those that join all, where there is more than one.
        unpaired: Positives that only one of the runs has.
        is_same_data: Both runs saw the very same files.
    """

    rows: tuple[DifferenceRow, ...]
    unpaired: int
    is_same_data: bool


def compare(first: SavedResults, second: SavedResults, *, seed: int = 0) -> Comparison:
    """Compare case by case.

    Raises:
        InputError: The runs have no case in common.
    """
    before, after = _positives(first), _positives(second)
    shared = sorted(before.keys() & after.keys())
    if not shared:
        raise InputError(
            f"{first.name} and {second.name} have no case in common: compare runs over the same data and modes"
        )
    rows: dict[Key, list[tuple[CaseResult, CaseResult]]] = {}
    for key in shared:
        case = before[key]
        for dataset, concept in ((case.dataset, case.concept), (ALL, ALL)):
            rows.setdefault((dataset, concept, case.mode, case.jitter_percent), []).append((case, after[key]))
    single = {key[:2] for key in rows} - {(ALL, ALL)}
    if len(single) == 1:
        rows = {key: pairs for key, pairs in rows.items() if key[0] != ALL}
    return Comparison(
        rows=tuple(_row(key, rows[key], seed) for key in sorted(rows, key=lambda key: (key[0] == ALL, key))),
        unpaired=len(before.keys() ^ after.keys()),
        is_same_data=first.data_sha256 == second.data_sha256,
    )


def _positives(results: SavedResults) -> dict[tuple[str, str, str, str, str, float], CaseResult]:
    return {case.key: case for case in results.cases if case.is_present and case.phrasing == "name"}


def _row(key: Key, pairs: list[tuple[CaseResult, CaseResult]], seed: int) -> DifferenceRow:
    before = [case.dice or 0.0 for case, _ in pairs]
    after = [case.dice or 0.0 for _, case in pairs]
    difference = paired_interval(before, after, [case.draw_group for case, _ in pairs], seed=seed)
    return DifferenceRow(*key, sum(before) / len(pairs), sum(after) / len(pairs), difference)
