"""Other runs beside this one, over the same cases: what a user would train or take instead. Knows results, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medsam3.eval.cases import EvalMode
from medsam3.eval.records import CaseResult
from medsam3.eval.saved import SavedResults
from medsam3.eval.summary import ALL
from medsam3.measure.intervals import Estimate, paired_interval

_Pair = tuple[str, str, str]


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
        """The interval lies wholly on one side of 0."""
        return self.difference.low > 0 or self.difference.high < 0


def beside_rows(cases: Sequence[CaseResult], others: Sequence[SavedResults], *, seed: int = 0) -> list[BesideRow]:
    """Every mode of this run against every mode of the others; oracle modes are set against oracle modes alone."""
    rows: list[BesideRow] = []
    mine = _by_mode(cases)
    for other in others:
        for other_mode, theirs in _by_mode(other.cases).items():
            for mode, own in mine.items():
                if mode in ("T", "TB") or other_mode in ("I", "TI"):
                    rows += _paired_rows((mode, own), (other.model, other_mode, theirs), seed)
    return rows


def _by_mode(cases: Sequence[CaseResult]) -> dict[EvalMode, dict[_Pair, CaseResult]]:
    found: dict[EvalMode, dict[_Pair, CaseResult]] = {}
    for case in cases:
        if case.is_present and case.phrasing == "name" and not case.jitter_percent:
            found.setdefault(case.mode, {})[case.dataset, case.image, case.concept] = case
    return found


def _paired_rows(
    mine: tuple[EvalMode, dict[_Pair, CaseResult]], other: tuple[str, EvalMode, dict[_Pair, CaseResult]], seed: int
) -> list[BesideRow]:
    mode, own = mine
    model, other_mode, theirs = other
    scopes: dict[tuple[str, str], list[_Pair]] = {}
    for key in sorted(own.keys() & theirs.keys()):
        for scope in ((key[0], key[2]), (ALL, ALL)):
            scopes.setdefault(scope, []).append(key)
    rows = []
    for (dataset, concept), keys in scopes.items():
        first = [theirs[key].dice or 0.0 for key in keys]
        second = [own[key].dice or 0.0 for key in keys]
        groups = [own[key].draw_group for key in keys]
        difference = paired_interval(first, second, groups, seed=seed)
        means = sum(second) / len(keys), sum(first) / len(keys)
        rows.append(BesideRow(dataset, concept, mode, model, other_mode, *means, difference))
    return sorted(rows, key=lambda row: (row.dataset == ALL, row.dataset, row.concept))
