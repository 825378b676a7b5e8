"""One evaluation from rows to results: every image goes through `medsam3.segment`, and each answer is kept at once.

Nothing is dropped: what cannot be read or answered is returned with its reason. It knows a segmenter by its protocol.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam3.data.duplicates import NearDuplicate, near_duplicates, thumbnails
from medsam3.data.index import IndexRow, concept_mask
from medsam3.errors import InputError
from medsam3.eval.case_pictures import keep_answer
from medsam3.eval.case_result import AskedConcept, CaseResult, case_result
from medsam3.eval.cases import (
    CLICK_MODES,
    VOLUME_MODES,
    ChosenRows,
    EvalConfig,
    EvalQuestion,
    Truth,
    VolumeWay,
    foreign_questions,
    jitter_rng,
    jittered,
    load_truth,
    oracle_boxes,
    questions,
    shown_mode,
    truth_of,
)
from medsam3.eval.clicking import clicked
from medsam3.eval.compare import beside_rows
from medsam3.eval.phrasings import rivals
from medsam3.eval.provenance import Provenance, provenance
from medsam3.eval.results import Extras, Results, Unanswered
from medsam3.geometry import BoolArray
from medsam3.image import Image, Masks
from medsam3.io import read
from medsam3.io.labels import label_stack, label_values
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Box, Prompt
from medsam3.segmentation.options import Options
from medsam3.segmentation.run import segment
from medsam3.segmentation.session import Session
from medsam3.store import Journal

Progress = Callable[[int, int, str], None]
"""Called with images done, images in all, and the data set at hand."""
RowQuestion = tuple[IndexRow, EvalQuestion]

_WAYS: dict[VolumeWay, str] = {
    "slices": "each slice for itself",
    "follow": "objects followed through the slices",
    "vote": "two of three planes, objects followed",
}


@dataclass(frozen=True)
class EvalJob:
    """An evaluation that is to be run.

    Attributes:
        folder: The data folder.
        rows: All of its rows, of every split.
        chosen: The rows that are asked about.
        config: How they are asked about.
        model: Name of a model, or of a comparator.
        weights: In place of the model's own.
        flips: Ask phrases of the mirrored picture too.
        out: The run's folder.
        is_resumed: Resume the run that is there.
        beside: Other runs to set this one against.
        command: As it was called.
    """

    folder: Path
    rows: tuple[IndexRow, ...]
    chosen: ChosenRows
    config: EvalConfig
    model: str
    weights: Path | None
    flips: bool
    out: Path
    is_resumed: bool
    beside: tuple[Results, ...]
    command: str


@dataclass(frozen=True)
class Answered:
    """Answers of a model or a comparator: every case, what could not be asked, how it was made, by which weights."""

    cases: tuple[CaseResult, ...]
    failures: tuple[Unanswered, ...]
    notes: tuple[str, ...]
    about: Provenance


Answerer = Callable[[EvalJob, Provenance, Progress], Answered]


@dataclass(frozen=True)
class AskedModel:
    """A model as it is evaluated.

    Attributes:
        folder: The data folder.
        segmenter: The model.
        config: What to measure.
        masks_folder: Where answers are kept for the report, pictures as 1-bit PNG, volumes as NIfTI; None keeps none.
        journals: Where volumes that are not finished are noted slice by slice; None notes nothing.
        work: Names the weights, so that such notes are not taken for those of others.
    """

    folder: Path
    segmenter: Segmenter
    config: EvalConfig
    masks_folder: Path | None = None
    journals: Path | None = None
    work: str = ""

    def name_of(self, image: Path) -> str:
        """Give the path of an image as cases name it."""
        return image.relative_to(self.folder).as_posix()


def run_job(job: EvalJob, progress: Progress, answerer: Answerer | None = None) -> Results:
    """Answer what the journal lacks, and put the results together.

    Args:
        job: What is to be evaluated.
        progress: Told of every image.
        answerer: A comparator in place of the model that the job names.

    Raises:
        InputError: The model cannot be had or does not fit the questions, or the folder holds another run.
    """
    about = provenance(job.model, job.weights, job.folder, job.chosen.rows, job.command)
    about = replace(about, model=f"{about.model} with flips") if job.flips else about
    answered = (answerer or _answer_by_model)(job, about, progress)
    duplicates = _duplicates(job, progress)
    return Results(
        about=answered.about,
        config=job.config,
        skipped_volumes=job.chosen.skipped_volumes,
        failures=answered.failures,
        cases=answered.cases,
        extras=Extras(
            notes=(*answered.notes, *_warnings(job, duplicates)),
            beside=tuple(beside_rows(answered.cases, job.beside, seed=job.config.seed)),
            duplicates=tuple(duplicates),
        ),
    )


def _answer_by_model(job: EvalJob, about: Provenance, progress: Progress) -> Answered:
    from medsam3.models.registry import load  # noqa: PLC0415

    # Before the journal, which a model that fails must not begin.
    segmenter = load(job.model, weights=job.weights, flips=job.flips)
    work = about.weights_sha256 or about.model
    with open_journal(job, about) as journal:
        asked = AskedModel(job.folder, segmenter, job.config, job.out / "masks", job.out / "volumes", work)
        failures = answer_rows(asked, job.chosen.rows, journal, progress)
        return Answered(cases_of(journal), tuple(failures), _about_volumes(job), about)


def open_journal(job: EvalJob, about: Provenance, settings: Mapping[str, object] | None = None) -> Journal:
    """Open the run's `cases.jsonl`, with settings of a comparator where it has some.

    Raises:
        InputError: It holds an earlier run that is not resumed, or one of other settings, weights or data.
    """
    heading = {
        "model": about.model,
        "weights": about.weights_sha256,
        "data": about.data_sha256,
        "config": asdict(job.config),
        "settings": settings or {},
        "version": 1,
    }
    return run_journal(job, "cases.jsonl", heading)


def run_journal(job: EvalJob, name: str, heading: Mapping[str, object]) -> Journal:
    """Open a journal in the run's folder.

    Raises:
        InputError: It holds an earlier run that is not resumed, or one of another heading.
    """
    path = job.out / name
    if path.exists() and not job.is_resumed:
        raise InputError(f"{path} holds an earlier run: go on with it by --resume, or give another --out")
    return Journal(path, heading, other="refuse")


def cases_of(journal: Journal) -> tuple[CaseResult, ...]:
    """Read the cases of a journal.

    Raises:
        InputError: Cases of another version.
    """
    return tuple(CaseResult.from_json(record) for record in journal.records)


def answer_rows(
    model: AskedModel, rows: Sequence[IndexRow], journal: Journal, progress: Progress | None = None
) -> list[Unanswered]:
    """Answer all questions about `rows` that the journal does not hold yet, and write each answer to it.

    Returns:
        Images that could not be read, concepts whose mask does not fit; their questions are not in the journal.
    """
    failures: list[Unanswered] = []
    done = {case.key for case in cases_of(journal)}
    images = [list(own) for _, own in groupby(rows, key=lambda row: row.image)]
    report = progress or (lambda done, count, name: None)
    for count, own in enumerate(images):
        report(count, len(images), own[0].dataset)
        name = model.name_of(own[0].image)
        asked = [(row, question) for row in own for question in questions(row, model.config)]
        asked += foreign_questions(own, model.config)
        asked = [pair for pair in asked if (pair[0].dataset, name, pair[0].concept, *pair[1].key) not in done]
        for answer in _answers(model, own, asked, _within(report, count, len(images), own[0])):
            if isinstance(answer, Unanswered):
                failures.append(answer)
            else:
                journal.append(answer.to_json())
    report(len(images), len(images), "")
    return failures


def _within(report: Progress, count: int, images: int, row: IndexRow) -> Callable[[int, int], None]:
    """Tell of a volume's slices as of the image at hand; a picture has none to tell of."""
    if not row.is_volume:
        return lambda done, steps: None
    return lambda done, steps: report(count, images, f"{row.dataset}, volume: step {done} of {steps}")


def _answers(
    model: AskedModel, rows: Sequence[IndexRow], asked: Sequence[RowQuestion], report: Callable[[int, int], None]
) -> Iterator[CaseResult | Unanswered]:
    """Answer questions about one image: all prompts in one call of `segment`, then the boxes that phrases gave, then
    clicks.

    `seconds` of each case is an equal share of its call, and those of its own session with clicks.
    """
    if not asked:
        return
    name = model.name_of(rows[0].image)
    try:
        image = read(rows[0].image)
        if image.shape[0] != 1 and not rows[0].is_volume:
            raise InputError(f"{name} has {image.shape[0]} frames, pictures are evaluated: split it")
    except InputError as error:
        yield Unanswered(name, "", str(error))
        return
    truths = Truths(image, rows)
    prompts: list[tuple[IndexRow, EvalQuestion, Prompt]] = []
    drawn = [pair for pair in asked if pair[1].mode in CLICK_MODES]
    for row, own in groupby((pair for pair in asked if pair not in drawn), key=lambda pair: pair[0]):
        try:
            truth = truths.of(row)
            prompts += [(row, question, _prompt(model.config, row, question, truth)) for _, question in own]
        except InputError as error:
            yield Unanswered(name, row.concept, str(error))
    try:
        found, seconds = _found(model, rows[0], image, [prompt for _, _, prompt in prompts], report)
        boxed = {p: _own_boxes(found[p]) for _, question, p in prompts if question.mode == "TB"}
        again, more = _found(model, rows[0], image, [prompt for prompt in boxed.values() if prompt], report)
    except InputError as error:
        yield Unanswered(name, "", str(error))
        return
    for row, own_prompts in groupby(prompts, key=lambda entry: entry[0]):
        concept = AskedConcept(row, name, image, truths.of(row), truths.rivals(row))
        for _, question, prompt in own_prompts:
            boxes = boxed.get(prompt) if question.mode == "TB" else None
            masks, took = (found[prompt], seconds) if boxes is None else (again[boxes], seconds + more)
            case = case_result(concept, question, masks, seconds=took, tolerance=model.config.tolerance)
            if model.masks_folder is not None and _is_shown(model.config, question, case):
                keep_answer(model.masks_folder, concept, masks)
            yield case
    yield from _clicked(model, truths, drawn, name, image)


def _clicked(
    model: AskedModel, truths: Truths, asked: Sequence[RowQuestion], name: str, image: Image
) -> Iterator[CaseResult | Unanswered]:
    """Let a simulated person correct one concept after the other, in one session, whose frames are encoded once."""
    session = Session(image, model.segmenter) if asked else None
    for row, question in asked:
        assert session is not None, "something is asked"
        try:
            found = clicked(session, question, truths.of(row))
        except InputError as error:
            yield Unanswered(name, row.concept, str(error))
            continue
        concept = AskedConcept(row, name, image, found.truth, {})
        case = case_result(concept, question, found.masks, seconds=found.seconds, tolerance=model.config.tolerance)
        yield replace(case, by_click=found.dices, followed=found.followed)
        if model.masks_folder is not None and _is_shown(model.config, question, case):
            keep_answer(model.masks_folder, concept, found.masks)


def _is_shown(config: EvalConfig, question: EvalQuestion, case: CaseResult) -> bool:
    """Whether the report may draw the answer."""
    is_plain = question.phrasing == "name" and not question.jitter_percent
    is_empty_foreign = question.is_foreign and not case.predicted_px
    return is_plain and question.mode == shown_mode(config.modes) and not is_empty_foreign


class Truths:
    """The truths of one image. A volume's label maps are read once; truths are large, and made when they are needed."""

    def __init__(self, image: Image, rows: Sequence[IndexRow]) -> None:
        self._image, self._rows = image, rows
        self._read: dict[Path, NDArray[np.uint16]] = {}

    def of(self, row: IndexRow) -> Truth:
        """Give the truth of a row, over (H, W) of a picture, (N, H, W) of a volume.

        Raises:
            InputError: See `load_truth`, `label_stack` and `truth_of`; another size; values that are no labels.
        """
        if row.is_volume:
            instances = None if row.instances is None else self._labels(row.instances)
            return truth_of(row, self._labels(row.mask), instances)
        truth = load_truth(row)
        size = self._image.shape[1:]
        if truth.mask.shape != size:
            raise InputError(f"{row.mask.name} is {truth.mask.shape}, the image is {size} (rows, columns)")
        return truth

    def rivals(self, row: IndexRow) -> dict[str, BoolArray]:
        """Give the truth of the concepts in the same image that this row's is easily taken for."""
        names = rivals(row.concept)
        own = [other for other in self._rows if other.concept in names and other.is_present]
        if not row.is_volume:
            return {other.concept: load_truth(other).mask for other in own}
        return {other.concept: concept_mask(self._labels(other.mask), other.label_values) for other in own}

    def _labels(self, path: Path) -> NDArray[np.uint16]:
        if path not in self._read:
            labels = label_stack(path, self._image)
            whole = np.empty(labels.shape, dtype=np.uint16)
            for n in range(labels.shape[0]):
                values = label_values(labels, n)
                if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
                    raise InputError(f"{path.name} holds values outside 0..65535: save the mask as whole numbers")
                whole[n] = values
            self._read[path] = whole
        return self._read[path]


def _prompt(config: EvalConfig, row: IndexRow, question: EvalQuestion, truth: Truth) -> Prompt:
    """Make the prompt of a question; with mode TB that of its phrase, whose boxes are asked afterwards."""
    if question.mode in ("T", "TB"):
        return Prompt(text=question.phrase)
    rng = jitter_rng(row, question.jitter_percent, config.seed)
    size = truth.mask.shape[0], truth.mask.shape[1]
    boxes = jittered(oracle_boxes(truth, config.box_rule), question.jitter_percent, size, rng)
    return Prompt(text=question.phrase if question.mode == "TI" else None, boxes=boxes)


def _own_boxes(found: Masks) -> Prompt | None:
    """Make a prompt of the boxes around what a phrase found; None where it found nothing."""
    if not len(found) or found.is_present is False:
        return None
    return Prompt(boxes=tuple(Box(*part.box) for part in found.objects))


def options_for(way: VolumeWay) -> Options:
    """Give the settings of `medsam3.segment` for a way: slice by slice, followed, or by a vote of three planes."""
    return Options(is_followed=way != "slices", plane="vote" if way == "vote" else "auto")


def _found(
    model: AskedModel,
    row: IndexRow,
    image: Image,
    prompts: Sequence[Prompt],
    report: Callable[[int, int], None],
) -> tuple[dict[Prompt, Masks], float]:
    """Segment an image by each prompt once, and say how many seconds one prompt took.

    A volume that a killed run left is resumed at its slice, and its journal removed once it is whole.
    """
    asked = list(dict.fromkeys(prompts))
    if not asked:
        return {}, 0.0
    started = time.perf_counter()
    options = Options()
    journal = None
    if row.is_volume:
        way = model.config.volumes
        options = options_for(way)
        if model.journals is not None:
            work = repr((model.work, row.dataset, model.name_of(row.image), way, tuple(one.text for one in asked)))
            journal = model.journals / f".{hashlib.sha256(work.encode()).hexdigest()[:16]}.journal"
            options = replace(options, journal=journal, work=work)
    found = segment(image, asked, model.segmenter, options, progress=report)
    if journal is not None:
        for left in journal.parent.glob(f"{journal.stem}.*"):
            left.unlink()
    return dict(zip(asked, found, strict=True)), (time.perf_counter() - started) / len(asked)


def _about_volumes(job: EvalJob) -> tuple[str, ...]:
    """Say how volumes were asked, if there are any."""
    volumes = len({row.image for row in job.chosen.rows if row.is_volume})
    unasked = [mode for mode in job.config.modes if mode not in VOLUME_MODES]
    if not volumes:
        return ()
    said = f"{volumes} volumes were segmented whole ({_WAYS[job.config.volumes]}) and measured in mm"
    if unasked:
        said += f"; they were not asked in modes {', '.join(unasked)}: a box belongs to one slice"
    return (said,)


def _duplicates(job: EvalJob, progress: Progress) -> list[NearDuplicate]:
    """Find near-copies, across splits, of pictures of the evaluated data sets that can be read; none of a sample."""
    if job.config.limit is not None:  # it would take all pictures to tell of a few
        return []
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
    if job.config.limit is not None and any(not row.is_volume for row in job.chosen.rows):
        found.append("with --limit, near-duplicates in other splits are not looked for; medsam3 eval --duplicates does")
    asked = {row.image.relative_to(job.folder).as_posix() for row in job.chosen.rows}
    near = sum(pair.first in asked or pair.second in asked for pair in duplicates)
    if near:
        found.append(f"{near} near-duplicates of evaluated pictures stand in another split (listed in the report)")
    return found
