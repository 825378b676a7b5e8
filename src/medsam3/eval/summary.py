"""From single cases to tables: means with intervals by data set, concept and mode, presence, synonyms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medsam3.eval.case_result import CaseResult
from medsam3.eval.cases import EvalMode, Phrasing
from medsam3.measure.intervals import Estimate, mean_interval, paired_interval, statistic_interval
from medsam3.measure.objects import cgf1, positive_micro_f1
from medsam3.measure.presence import CalibrationCurve, auroc, calibration, verdicts

ALL = "all"
_MODE_ORDER: dict[EvalMode, int] = {"T": 0, "TB": 1, "I": 2, "TI": 3}


@dataclass(frozen=True)
class Scope:
    """Which cases a row of a table stands for; `all` where it joins several data sets or concepts."""

    dataset: str
    concept: str


@dataclass(frozen=True)
class OverlapRow:
    """How well the concept was outlined where it is present.

    Attributes:
        scope: Data set and concept.
        mode: How it was asked.
        jitter_percent: Of the oracle boxes.
        dice: A missed object counts 0.
        iou: Likewise.
        nsd: Likewise.
        hd95: A missed object counts as the image's diagonal.
        assd: Likewise.
        unit: Of the distances; `mixed` where cases differ, whose means then have no meaning.
        missed: Cases in which nothing was returned.
        f1: Mean over images of the objects' F1 at IoU 0.5.
        pq: Mean over images of panoptic quality.
        objects: Mean number of reference objects.
    """

    scope: Scope
    mode: EvalMode
    jitter_percent: float
    dice: Estimate
    iou: Estimate
    nsd: Estimate
    hd95: Estimate
    assd: Estimate
    unit: str
    missed: int
    f1: Estimate
    pq: Estimate
    objects: float


@dataclass(frozen=True)
class PresenceRow:
    """How well text alone tells present from absent. NaN where there are no negatives.

    Attributes:
        scope: Data set and concept.
        positives: Images with the concept.
        negatives: Images of the same data set without it.
        auroc: Of the presence probability.
        sensitivity: At the model's own threshold.
        specificity: Likewise.
        unsure: Share of all answers that affirm without being sure.
        mcc: Likewise.
        mcc_interval: The same with its interval.
        pmf1: Mean over IoU thresholds .5 to .95 of the objects' micro F1 on positives.
        cgf1: pmf1 x mcc.
    """

    scope: Scope
    positives: int
    negatives: int
    auroc: Estimate
    sensitivity: float
    specificity: float
    unsure: float
    mcc: float
    mcc_interval: Estimate
    pmf1: float
    cgf1: float


@dataclass(frozen=True)
class ForeignRow:
    """Concepts of other kinds of image, asked where they cannot be.

    Attributes:
        scope: The data set whose images were asked, or the concept that was asked for, or both `all`.
        alarms: Share of these questions that were answered with "present".
        presence: Mean stated probability.
    """

    scope: Scope
    alarms: Estimate
    presence: Estimate


@dataclass(frozen=True)
class ConfusionRow:
    """Whether a concept is taken for another that looks or sounds like it, by the concept's own name.

    Attributes:
        concept: What was asked for.
        rival: What it may be taken for; in all these images it is present.
        both: Images that show both.
        dice: There, with the concept.
        rival_dice: There, of the same answers with the rival.
        taken: There, images in which the answer fits the rival better.
        without: Images that show the rival and not the concept.
        alarms: There, images in which the concept was said to be present.
    """

    concept: str
    rival: str
    both: int
    dice: Estimate
    rival_dice: Estimate
    taken: int
    without: int
    alarms: int


@dataclass(frozen=True)
class SynonymRow:
    """What another phrasing of a concept costs, over the same images.

    Attributes:
        concept: Name of the concept; `all` for the mean over concepts' phrasings.
        phrase: The phrasing, or which of them are joined.
        phrasing: Whether it was used in training; "" where both kinds are joined.
        dice: With this phrasing.
        difference: This phrasing's Dice minus the name's, paired.
    """

    concept: str
    phrase: str
    phrasing: Phrasing | Literal[""]
    dice: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Summary:
    """All tables of one run; `everything` joins annotated and foreign absences, None where none are foreign."""

    overlap: tuple[OverlapRow, ...]
    presence: tuple[PresenceRow, ...]
    foreign: tuple[ForeignRow, ...]
    everything: PresenceRow | None
    confusions: tuple[ConfusionRow, ...]
    synonyms: tuple[SynonymRow, ...]
    calibration: CalibrationCurve


def summarise(cases: Sequence[CaseResult], *, seed: int = 0) -> Summary:
    """All tables of the cases; the order of the cases does not matter."""
    ordered = sorted(cases, key=lambda case: case.key)
    asked_by_name = [case for case in ordered if case.phrasing == "name"]
    named = [case for case in asked_by_name if not case.is_foreign]
    text = [case for case in named if case.mode == "T"]
    foreign = [case for case in asked_by_name if case.is_foreign]
    return Summary(
        overlap=tuple(_overlap_rows(named, seed)),
        presence=tuple(_presence_row(scope, own, seed) for scope, own in _scopes(text)),
        foreign=tuple(_foreign_rows(foreign, seed)),
        everything=_presence_row(Scope(ALL, ALL), [*text, *foreign], seed) if foreign else None,
        confusions=tuple(_confusion_rows(text, seed)),
        synonyms=tuple(_synonym_rows(ordered, seed)),
        calibration=calibration([case.is_present for case in text], [case.presence or 0.0 for case in text]),
    )


def _scopes(cases: Sequence[CaseResult]) -> Iterator[tuple[Scope, list[CaseResult]]]:
    """Each concept of each data set; then what joins more than one: concepts, data sets, everything."""
    single: dict[tuple[str, str], list[CaseResult]] = {}
    for case in cases:
        single.setdefault((case.dataset, case.concept), []).append(case)
    for (dataset, concept), own in sorted(single.items()):
        yield Scope(dataset, concept), own
    for concept in sorted({concept for _, concept in single}):
        if sum(key[1] == concept for key in single) > 1:
            yield Scope(ALL, concept), [case for case in cases if case.concept == concept]
    for dataset in sorted({dataset for dataset, _ in single}):
        if sum(key[0] == dataset for key in single) > 1:
            yield Scope(dataset, ALL), [case for case in cases if case.dataset == dataset]
    if len(single) > 1:
        yield Scope(ALL, ALL), list(cases)


def _overlap_rows(cases: Sequence[CaseResult], seed: int) -> Iterator[OverlapRow]:
    positives = [case for case in cases if case.is_present]
    for scope, own in _scopes(positives):
        asked = sorted({(_MODE_ORDER[case.mode], case.mode, case.jitter_percent) for case in own})
        for _, mode, jitter in asked:
            chosen = [case for case in own if (case.mode, case.jitter_percent) == (mode, jitter)]
            yield _overlap_row(scope, chosen, seed)


def _overlap_row(scope: Scope, cases: Sequence[CaseResult], seed: int) -> OverlapRow:
    units = {case.unit for case in cases}

    def mean(metric: Callable[[CaseResult], float | None]) -> Estimate:
        known = [(value, case.draw_group) for case in cases if (value := metric(case)) is not None]
        return mean_interval([value for value, _ in known], [group for _, group in known], seed=seed)

    return OverlapRow(
        scope=scope,
        mode=cases[0].mode,
        jitter_percent=cases[0].jitter_percent,
        dice=mean(lambda case: case.dice),
        iou=mean(lambda case: case.iou),
        nsd=mean(lambda case: case.nsd),
        hd95=mean(lambda case: case.hd95),
        assd=mean(lambda case: case.assd),
        unit=units.pop() if len(units) == 1 else "mixed",
        missed=sum(case.is_missed for case in cases),
        f1=mean(lambda case: case.match.f1()),
        pq=mean(lambda case: case.match.panoptic_quality()),
        objects=float(np.mean([case.references for case in cases])),
    )


def _presence_row(scope: Scope, cases: Sequence[CaseResult], seed: int) -> PresenceRow:
    truth = np.array([case.is_present for case in cases])
    probabilities = np.array([case.presence or 0.0 for case in cases])
    said = np.array([case.says_present for case in cases])
    counted = verdicts(truth, said)
    matches = [case.match for case in cases]
    return PresenceRow(
        scope=scope,
        positives=int(truth.sum()),
        negatives=int((~truth).sum()),
        auroc=statistic_interval(
            lambda index: auroc(truth[index], probabilities[index]), [case.draw_group for case in cases], seed=seed
        ),
        sensitivity=counted.sensitivity,
        specificity=counted.specificity,
        unsure=float(np.mean([case.says_present and not case.is_sure for case in cases])) if cases else float("nan"),
        mcc=counted.mcc,
        mcc_interval=statistic_interval(
            lambda index: verdicts(truth[index], said[index]).mcc, [case.draw_group for case in cases], seed=seed
        ),
        pmf1=float(positive_micro_f1(matches).mean()),
        cgf1=cgf1(matches, counted.mcc),
    )


def _synonym_rows(cases: Sequence[CaseResult], seed: int) -> Iterator[SynonymRow]:
    asked = [case for case in cases if case.mode == "T" and case.is_present]
    named = {(case.dataset, case.image, case.concept): case for case in asked if case.phrasing == "name"}
    pairs: dict[tuple[str, str, Phrasing | Literal[""]], list[tuple[CaseResult, CaseResult]]] = {}
    for case in asked:
        name = named.get((case.dataset, case.image, case.concept))
        if case.phrasing != "name" and name is not None:
            pairs.setdefault((case.concept, case.phrase, case.phrasing), []).append((name, case))
            for joined, kind in _joined(case):
                pairs.setdefault((ALL, joined, kind), []).append((name, case))
    for (concept, phrase, phrasing), own in sorted(
        pairs.items(), key=lambda item: (item[0][0], item[0][2], item[0][1])
    ):
        groups = [case.draw_group for _, case in own]
        before, after = _dices(name for name, _ in own), _dices(case for _, case in own)
        yield SynonymRow(
            concept,
            phrase,
            phrasing,
            mean_interval(after, groups, seed=seed),
            paired_interval(before, after, groups, seed=seed),
        )


def _joined(case: CaseResult) -> Iterator[tuple[str, Phrasing | Literal[""]]]:
    yield "every other phrasing", ""
    yield f"every {case.phrasing}", case.phrasing
    if case.kind:
        yield f"every {case.phrasing}, {case.kind}", case.phrasing


def _foreign_rows(cases: Sequence[CaseResult], seed: int) -> Iterator[ForeignRow]:
    scopes: dict[Scope, list[CaseResult]] = {}
    for case in cases:
        for scope in (Scope(ALL, ALL), Scope(case.dataset, ALL), Scope(ALL, case.concept)):
            scopes.setdefault(scope, []).append(case)
    for scope, own in sorted(scopes.items(), key=lambda item: (item[0].dataset, item[0].concept)):
        groups = [case.draw_group for case in own]
        yield ForeignRow(
            scope,
            mean_interval([float(case.says_present) for case in own], groups, seed=seed),
            mean_interval([case.presence or 0.0 for case in own], groups, seed=seed),
        )


def _confusion_rows(text: Sequence[CaseResult], seed: int) -> Iterator[ConfusionRow]:
    pairs: dict[tuple[str, str], list[tuple[CaseResult, float]]] = {}
    for case in text:
        for rival, value in zip(case.rivals, case.rival_dices, strict=True):
            pairs.setdefault((case.concept, rival), []).append((case, value))
    for (concept, rival), own in sorted(pairs.items()):
        both = [(case, value) for case, value in own if case.is_present]
        without = [case for case, _ in own if not case.is_present]
        groups = [case.draw_group for case, _ in both]
        yield ConfusionRow(
            concept=concept,
            rival=rival,
            both=len(both),
            dice=mean_interval([case.dice or 0.0 for case, _ in both], groups, seed=seed),
            rival_dice=mean_interval([value for _, value in both], groups, seed=seed),
            taken=sum(value > (case.dice or 0.0) for case, value in both),
            without=len(without),
            alarms=sum(case.says_present for case in without),
        )


def _dices(cases: Iterable[CaseResult]) -> list[float]:
    return [case.dice for case in cases if case.dice is not None]
