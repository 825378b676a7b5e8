"""One evaluation from rows to results: who answers, the journal, near-duplicates, other runs beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medsam3.data.duplicates import NearDuplicate, near_duplicates, thumbnails
from medsam3.data.index import IndexRow
from medsam3.errors import InputError
from medsam3.eval.answers import Bench, Failure, Progress
from medsam3.eval.benchmark import run_benchmark
from medsam3.eval.beside import beside_rows
from medsam3.eval.cases import VOLUME_MODES, EvalConfig, Selection, VolumeWay
from medsam3.eval.provenance import Provenance, provenance
from medsam3.eval.records import Journal
from medsam3.eval.results import Extras, Results
from medsam3.eval.saved import SavedResults
from medsam3.eval.summary import summarise

_WAYS: dict[VolumeWay, str] = {
    "slices": "each slice for itself",
    "follow": "objects followed through the slices",
    "vote": "two of three planes, objects followed",
}


@dataclass(frozen=True)
class EvalJob:
    """What is to be evaluated.

    Attributes:
        folder: The data folder.
        rows: All of its rows, of every split; comparators are trained on some.
        chosen: The rows that are asked about.
        config: How they are asked about.
        model: Name of a model, or of a comparator.
        weights: In place of the model's own.
        flips: Ask phrases of the mirrored picture too.
        out: The run's folder.
        is_resumed: Go on with the run that is there.
        unet_minutes: Most minutes of training for each U-Net.
        beside: Other runs to set this one against.
        command: As it was called.
    """

    folder: Path
    rows: tuple[IndexRow, ...]
    chosen: Selection
    config: EvalConfig
    model: str
    weights: Path | None
    flips: bool
    out: Path
    is_resumed: bool
    unet_minutes: float
    beside: tuple[SavedResults, ...]
    command: str


@dataclass(frozen=True)
class _Answered:
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]
    about: Provenance


def run_job(job: EvalJob, progress: Progress) -> Results:
    """Answer what the journal lacks, and put the results together.

    Raises:
        InputError: The model cannot be had or does not fit the questions, or the folder holds another run.
    """
    about = provenance(job.model, job.weights, job.folder, job.chosen.rows, job.command)
    about = replace(about, model=f"{about.model} with flips") if job.flips else about
    journal, answered = _answer(job, about, progress)
    duplicates = _duplicates(job, progress)
    return Results(
        about=answered.about,
        config=job.config,
        skipped_volumes=job.chosen.skipped_volumes,
        failures=answered.failures,
        summary=summarise(journal.cases, seed=job.config.seed),
        cases=tuple(journal.cases),
        extras=Extras(
            notes=(*answered.notes, *_warnings(job, duplicates)),
            beside=tuple(beside_rows(journal.cases, job.beside, seed=job.config.seed)),
            duplicates=tuple(duplicates),
        ),
    )


def _answer(job: EvalJob, about: Provenance, progress: Progress) -> tuple[Journal, _Answered]:
    if job.model in ("unet", "litemedsam"):
        return _answer_by_baseline(job, about, progress)
    from medsam3.models.registry import load  # noqa: PLC0415

    # Before the journal, which a model that fails must not begin.
    segmenter = load(job.model, weights=job.weights, flips=job.flips)
    with _journal(job, about, {}) as journal:
        work = about.weights_sha256 or about.model
        bench = Bench(job.folder, segmenter, job.config, job.out / "masks", job.out / "volumes", work)
        failures = run_benchmark(bench, job.chosen.rows, journal, progress)
    return journal, _Answered(tuple(failures), _about_volumes(job), about)


def _about_volumes(job: EvalJob) -> tuple[str, ...]:
    """How volumes were asked, where there are any."""
    volumes = len({row.image for row in job.chosen.rows if row.is_volume})
    unasked = [mode for mode in job.config.modes if mode not in VOLUME_MODES]
    if not volumes:
        return ()
    said = f"{volumes} volumes were segmented whole ({_WAYS[job.config.volumes]}) and measured in mm"
    if unasked:
        said += f"; they were asked by text alone, not in modes {', '.join(unasked)}: a box belongs to one slice"
    return (said,)


def _answer_by_baseline(job: EvalJob, about: Provenance, progress: Progress) -> tuple[Journal, _Answered]:
    from medsam3.eval.baselines.fit import UnetConfig  # noqa: PLC0415  torch
    from medsam3.eval.baselines.litemedsam import load_litemedsam  # noqa: PLC0415
    from medsam3.eval.baselines.run import Unets, check_baseline, run_unets  # noqa: PLC0415
    from medsam3.models.mini.encoder_files import LITE_MEDSAM  # noqa: PLC0415

    if job.weights is not None or job.flips:
        raise InputError(f"{job.model} takes no --weights and no --flips: it is trained here, or comes as published")
    check_baseline(job.config, job.model)
    if job.model == "litemedsam":
        about = replace(about, weights_sha256=LITE_MEDSAM.sha256)
        segmenter = load_litemedsam()
        with _journal(job, about, {}) as journal:
            bench = Bench(job.folder, segmenter, job.config, job.out / "masks")
            failures = run_benchmark(bench, job.chosen.rows, journal, progress)
        return journal, _Answered(tuple(failures), (), about)
    config = UnetConfig(minutes=job.unet_minutes, seed=job.config.seed)
    unets = Unets(job.out / "unet", config, progress)
    with _journal(job, about, asdict(config)) as journal:
        answers = run_unets(job.folder, job.config, (job.rows, job.chosen.rows), journal, unets)
    made = replace(about, weights_sha256=answers.weights_sha256)
    return journal, _Answered(answers.failures, answers.notes, made)


def _journal(job: EvalJob, about: Provenance, baseline: dict[str, Any]) -> Journal:
    header = {
        "model": about.model,
        "weights": about.weights_sha256,
        "data": about.data_sha256,
        "config": json.loads(json.dumps(asdict(job.config))),
        "baseline": baseline,
    }
    return Journal(job.out / "cases.jsonl", header, resume=job.is_resumed)


def _duplicates(job: EvalJob, progress: Progress) -> list[NearDuplicate]:
    """Near-copies, across splits, of pictures of the evaluated data sets that can be read."""
    names = {row.dataset for row in job.chosen.rows}
    rows = [row for row in job.rows if row.dataset in names]
    pictures = thumbnails(
        rows, job.folder, on_image=lambda done, count: progress(done, count, "near-duplicates"), is_lenient=True
    )
    return near_duplicates(pictures)


def _warnings(job: EvalJob, duplicates: Sequence[NearDuplicate]) -> list[str]:
    found = []
    if job.config.fold is not None and job.model != "unet":
        found.append(
            f"fold {job.config.fold}: this is a fair test only of weights that were trained without this fold's groups"
        )
    asked = {row.image.relative_to(job.folder).as_posix() for row in job.chosen.rows}
    near = sum(pair.first in asked or pair.second in asked for pair in duplicates)
    if near:
        found.append(f"{near} near-duplicates of evaluated pictures stand in another split (listed in the report)")
    return found
