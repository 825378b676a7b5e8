"""Several runs as one: the folds of a cross-validation, or data sets that were evaluated in processes of their own.

Nothing is measured anew: the cases are put together and summarised, so that intervals are over the groups of all runs.
Runs that do not belong together are refused.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from medsam3.data.duplicates import NearDuplicate
from medsam3.errors import InputError
from medsam3.eval.case_result import CaseKey
from medsam3.eval.compare import beside_rows
from medsam3.eval.provenance import Provenance, versions
from medsam3.eval.results import Extras, PooledRun, Results

_OWN_OF_EACH_RUN = ("datasets", "fold")
_TRAINED_BY_DATA_SET = "unet"
"""A comparator that is trained for each data set, so that runs over several have several weights by right."""


def pool(runs: Sequence[Results], *, command: str, beside: Sequence[Results] = ()) -> Results:
    """Put runs together.

    Args:
        runs: At least two, over different cases by the same settings.
        command: As it was called.
        beside: Other runs to set the whole against.

    Raises:
        InputError: Fewer than two runs, one that is pooled itself, other models or settings, weights that differ within
            a fold (without folds: at all), a case or a group that stands in two runs.
    """
    _check(runs)
    cases = tuple(case for run in runs for case in run.cases)
    first = runs[0].config
    return Results(
        about=_about(runs, command),
        config=replace(first, datasets=_datasets(runs), fold=None),
        skipped_volumes=sum(run.skipped_volumes for run in runs),
        failures=tuple(failure for run in runs for failure in run.failures),
        cases=cases,
        extras=Extras(
            notes=(*_notes(runs), *_warnings(runs)),
            beside=tuple(beside_rows(cases, beside, seed=first.seed)),
            duplicates=_duplicates(runs),
            pooled=tuple(_part(run) for run in runs),
        ),
    )


def make_place(out: Path) -> None:
    """Make the folder of a pool, which must not take the place of a run.

    Raises:
        InputError: The folder holds a run, or cannot be made.
    """
    if (out / "cases.jsonl").exists():
        raise InputError(f"{out} holds a run, whose results a pool would replace: give another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made ({error.strerror}): give --out a folder you may write to") from error


def _check(runs: Sequence[Results]) -> None:
    if len(runs) < 2:
        raise InputError(f"{len(runs)} results.json was given to pool, it takes 2 or more")
    for run in runs:
        if run.extras.pooled:
            raise InputError(f"{run.path} is itself pooled: name the runs that it is made of")
        if run.about.model != runs[0].about.model:
            raise InputError(
                f"{runs[0].path} is of model {runs[0].about.model} and {run.path} of {run.about.model}: "
                "pool runs of one model (to set models against each other, take --beside or --compare)"
            )
        _check_settings(runs[0], run)
    _check_weights(runs)
    _check_cases(runs)


def _check_settings(first: Results, other: Results) -> None:
    mine, theirs = asdict(first.config), asdict(other.config)
    differing = [name for name in mine if name not in _OWN_OF_EACH_RUN and mine[name] != theirs[name]]
    if differing:
        said = ", ".join(f"{name} {mine[name]} and {theirs[name]}" for name in differing)
        raise InputError(f"{first.path} and {other.path} differ in settings ({said}): run them with the same ones")
    counts = [None if config.fold is None else config.fold.count for config in (first.config, other.config)]
    if counts[0] != counts[1]:
        said = " and ".join("no fold" if count is None else f"one of {count} folds" for count in counts)
        raise InputError(f"{first.path} and {other.path} are {said}: pool folds of one cross-validation")


def _check_weights(runs: Sequence[Results]) -> None:
    """Each fold has weights of its own; whatever else is pooled has the same."""
    if runs[0].about.model == _TRAINED_BY_DATA_SET:
        return
    seen: dict[str, Results] = {}
    for run in runs:
        fold = str(run.config.fold or "")
        first = seen.setdefault(fold, run)
        if first.about.weights_sha256 != run.about.weights_sha256:
            within = f"in fold {fold} " if fold else ""
            raise InputError(
                f"{first.path} and {run.path} were {within}made by different weights: only folds may differ in them"
            )


def _check_cases(runs: Sequence[Results]) -> None:
    owners: dict[CaseKey, Results] = {}
    groups: dict[str, Results] = {}
    for run in runs:
        for case in run.cases:
            if case.key in owners:
                raise InputError(
                    f"{case.image}, {case.concept} is in {owners[case.key].path} and in {run.path}: "
                    "pool runs over different cases"
                )
            owners[case.key] = run
            first = groups.setdefault(case.draw_group, run)
            if first.config.fold != run.config.fold:
                raise InputError(
                    f"group {case.draw_group} is in fold {first.config.fold} ({first.path}) and in fold "
                    f"{run.config.fold} ({run.path}): evaluate all folds on the same index.csv"
                )


def _about(runs: Sequence[Results], command: str) -> Provenance:
    """Describe what all have in common; what each has of its own is in `Extras.pooled`."""
    weights = {run.about.weights_sha256 for run in runs}
    commits = {run.about.commit for run in runs}
    data = sorted({run.about.data_sha256 for run in runs})
    return Provenance(
        model=runs[0].about.model,
        weights_sha256=weights.pop() if len(weights) == 1 else None,
        data_sha256=data[0] if len(data) == 1 else hashlib.sha256("\n".join(data).encode()).hexdigest(),
        commit=commits.pop() if len(commits) == 1 else None,
        command=command,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        versions=versions(),
    )


def _datasets(runs: Sequence[Results]) -> tuple[str, ...]:
    """All that were chosen; () where one of the runs took all there are."""
    if not all(run.config.datasets for run in runs):
        return ()
    return tuple(sorted({name for run in runs for name in run.config.datasets}))


def _part(run: Results) -> PooledRun:
    fold = run.config.fold
    return PooledRun(
        path=str(run.path),
        fold=None if fold is None else str(fold),
        datasets=tuple(sorted({case.dataset for case in run.cases})),
        cases=len(run.cases),
        about=run.about,
    )


def _notes(runs: Sequence[Results]) -> list[str]:
    """Join what the runs say of themselves: once if all say it, else with the run's name."""
    said: dict[str, list[Results]] = defaultdict(list)
    for run in runs:
        for note in run.extras.notes:
            said[note].append(run)
    return [
        note if len(own) == len(runs) else f"{', '.join(str(run.path) for run in own)}: {note}"
        for note, own in said.items()
    ]


def _warnings(runs: Sequence[Results]) -> list[str]:
    found = []
    folds = {fold.number: fold.count for run in runs if (fold := run.config.fold) is not None}
    for count in set(folds.values()):
        missing = [str(n) for n in range(1, count + 1) if n not in folds]
        if missing:
            found.append(f"of {count} folds, {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not here")
    if len(folds) > 1 and len({run.about.weights_sha256 for run in runs}) == 1 and runs[0].about.weights_sha256:
        found.append("all folds were answered by the same weights: fair only if these were trained on none of them")
    for name, values in (
        ("commits", {run.about.commit or "none" for run in runs}),
        ("versions of packages", {str(sorted(run.about.versions.items())) for run in runs}),
    ):
        if len(values) > 1:
            found.append(f"the runs were made by different {name} (each is in results.json)")
    return found


def _duplicates(runs: Sequence[Results]) -> tuple[NearDuplicate, ...] | None:
    known = [run.extras.duplicates for run in runs if run.extras.duplicates is not None]
    if not known:
        return None
    return tuple({(pair.first, pair.second): pair for own in known for pair in own}.values())
