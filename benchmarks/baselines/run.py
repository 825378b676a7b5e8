"""Runs a comparator over the very cases that the model is asked: data set after data set, each U-Net trained first.

A data set without training images is answered by the U-Net of the data set that has most images of the same concepts.
What was trained or answered stands in the run's folder, so that a broken run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from baselines.fit import FitState, UnetConfig, fit_unet, stopped_by
from baselines.litemedsam import load_litemedsam
from baselines.squares import load_squares
from baselines.unet import UnetSegmenter, unet
from medsam3.data.index import IndexRow
from medsam3.errors import InputError
from medsam3.eval.cases import EvalMode
from medsam3.eval.provenance import Provenance, data_hash
from medsam3.eval.results import Unanswered
from medsam3.eval.run import Answered, AskedModel, EvalJob, Progress, answer_rows, cases_of, open_journal
from medsam3.models.mini.encoder_files import LITE_MEDSAM
from medsam3.store import replacing, sha256_of

BASELINE_MODES: dict[str, EvalMode] = {"unet": "T", "litemedsam": "I"}
VAL_SHARE = 5
"""One in so many groups of the training images validates, where a data set has no images of its own for that."""


@dataclass(frozen=True)
class Trained:
    """A U-Net of one data set, and how it came about."""

    segmenter: UnetSegmenter
    note: str
    sha256: str


def answer_by_unets(job: EvalJob, about: Provenance, progress: Progress, config: UnetConfig) -> Answered:
    """Train and ask a U-Net for each evaluated data set; rows of all splits are in the job."""
    unets = Unets(job.out / "unet", config, progress)
    failures: list[Unanswered] = []
    notes: list[str] = []
    hashes: list[str] = []
    with open_journal(job, about, asdict(config)) as journal:
        for dataset in dict.fromkeys(row.dataset for row in job.chosen.rows):
            own = [row for row in job.chosen.rows if row.dataset == dataset]
            try:
                donor = donor_of(own, job.rows)
                trained = unets.trained(job.folder, [row for row in job.rows if row.dataset == donor])
            except InputError as error:
                failures.append(Unanswered(dataset, "", str(error)))
                continue
            notes.append(f"{dataset}: {trained.note}")
            hashes.append(trained.sha256)
            known = [row for row in own if row.concept in trained.segmenter.concepts]
            failures += [
                Unanswered(row.image.name, row.concept, f"the U-Net of {donor} was not taught this concept")
                for row in own
                if row.concept not in trained.segmenter.concepts
            ]
            model = AskedModel(job.folder, trained.segmenter, job.config, job.out / "masks")
            failures += answer_rows(model, known, journal, progress)
        cases = cases_of(journal)
    digest = hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else None
    return Answered(cases, tuple(failures), tuple(notes), replace(about, weights_sha256=digest))


def answer_by_litemedsam(job: EvalJob, about: Provenance, progress: Progress) -> Answered:
    """Ask LiteMedSAM as published with oracle boxes."""
    about = replace(about, weights_sha256=LITE_MEDSAM.sha256)
    segmenter = load_litemedsam()
    with open_journal(job, about) as journal:
        model = AskedModel(job.folder, segmenter, job.config, job.out / "masks")
        failures = answer_rows(model, job.chosen.rows, journal, progress)
        return Answered(cases_of(journal), tuple(failures), (), about)


def donor_of(rows: Sequence[IndexRow], everything: Sequence[IndexRow]) -> str:
    """The data set whose U-Net answers: its own, else that with most training images of these concepts.

    Raises:
        InputError: No data set has any.
    """
    concepts = {row.concept for row in rows}
    counts = Counter(
        row.dataset
        for row in everything
        if row.split == "train" and row.is_present and row.concept in concepts and not row.is_volume
    )
    if counts[rows[0].dataset]:
        return rows[0].dataset
    if not counts:
        raise InputError(f"no data set has training images of {', '.join(sorted(concepts))}: no U-Net can be trained")
    return max(sorted(counts), key=lambda name: counts[name])


def train_and_val(rows: Sequence[IndexRow]) -> tuple[list[IndexRow], list[IndexRow]]:
    """Rows to train and to validate on; where none validate, every fifth training group does, in order of its hash."""
    pictures = [row for row in rows if not row.is_volume]
    train = sorted((row for row in pictures if row.split == "train"), key=_by_image)
    val = sorted((row for row in pictures if row.split == "val"), key=_by_image)
    if not val:
        groups = sorted({row.group for row in train}, key=lambda name: hashlib.sha256(name.encode()).digest())
        chosen = set(groups[::VAL_SHARE])
        train, val = [r for r in train if r.group not in chosen], [r for r in train if r.group in chosen]
    return train, val


class Unets:
    """The U-Nets of a run, in `folder`: one for each data set, trained when it is first wanted."""

    def __init__(self, folder: Path, config: UnetConfig, progress: Progress) -> None:
        self.folder, self.config, self.progress = folder, config, progress
        self._made: dict[str, Trained] = {}

    def trained(self, data: Path, rows: Sequence[IndexRow]) -> Trained:
        """The U-Net of a data set, from its rows of all splits.

        Raises:
            InputError: It cannot be trained, or the folder holds one that was trained otherwise.
        """
        dataset = rows[0].dataset
        if dataset not in self._made:
            self._made[dataset] = self._load_or_train(dataset, data, rows)
        return self._made[dataset]

    def _load_or_train(self, dataset: str, data: Path, rows: Sequence[IndexRow]) -> Trained:
        concepts = tuple(sorted({row.concept for row in rows if not row.is_volume}))
        train, val = train_and_val(rows)
        key = _key(data, [*train, *val], concepts, self.config)
        place = self.folder / f"{dataset}-{key[:12]}"
        place.mkdir(parents=True, exist_ok=True)
        weights = place / "unet.pt"
        if not weights.is_file():
            squares = load_squares(train, concepts), load_squares(val, concepts)

            def on_step(done: int, count: int, dice: float) -> None:
                self.progress(done, count, f"U-Net {dataset}, val {dice:.3f}")

            state = fit_unet(*squares, self.config, place / "checkpoint.pt", on_step)
            facts = _facts(state, len(squares[0]), len(squares[1]), self.config)
            with replacing(weights, ".pt") as temporary:
                torch.save({"concepts": list(concepts), "state": state.best, "facts": facts}, temporary)
        return _load(weights, dataset)


def _facts(state: FitState, train: int, val: int, config: UnetConfig) -> dict[str, Any]:
    return {
        "train": train,
        "val": val,
        "steps": state.step,
        "ended": stopped_by(state, config.steps(train), config),
        "seconds": round(state.seconds, 1),
        "best_step": state.best_step,
        "val_dice": round(state.best_dice, 4),
    }


def _load(path: Path, dataset: str) -> Trained:
    saved = torch.load(path, weights_only=True)
    network = unet(len(saved["concepts"]))
    network.load_state_dict(saved["state"])
    facts = saved["facts"]
    note = (
        f"U-Net trained on {dataset} ({facts['train']} images, {facts['val']} to validate), {facts['steps']} steps in "
        f"{facts['seconds'] / 60:.1f} min ({facts['ended']}), validation Dice {facts['val_dice']:.3f} at step "
        f"{facts['best_step']}"
    )
    return Trained(UnetSegmenter(network, saved["concepts"]), note, sha256_of(path))


def _key(data: Path, rows: Sequence[IndexRow], concepts: Sequence[str], config: UnetConfig) -> str:
    text = json.dumps([data_hash(data, rows), list(concepts), asdict(config)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _by_image(row: IndexRow) -> str:
    return row.image.as_posix()
