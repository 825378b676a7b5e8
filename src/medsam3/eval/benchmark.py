"""Runs a segmenter over the rows of a data folder: each picture is encoded once and asked all its questions.

Knows the segmenter by its protocol only. Nothing is dropped: what cannot be read is returned as a failure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from medsam3.errors import InputError
from medsam3.eval.cases import (
    EvalConfig,
    Question,
    Truth,
    foreign_questions,
    jitter_rng,
    jittered,
    load_truth,
    oracle_boxes,
    questions,
    shown_mode,
)
from medsam3.eval.instances import match_objects
from medsam3.eval.metrics import boundary_distances, dice, iou
from medsam3.eval.phrasings import rivals
from medsam3.eval.records import CaseResult, Journal
from medsam3.geometry import BoolArray
from medsam3.image import Image, Masks
from medsam3.io import read
from medsam3.io.files import replacing
from medsam3.io.index import IndexRow
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Box, Prompt
from medsam3.render import to_rgb

Progress = Callable[[int, int, str], None]
"""Called with images done, images in all, and the data set at hand."""


@dataclass(frozen=True)
class Failure:
    """An image, or one concept of it, that could not be evaluated, and why."""

    image: str
    concept: str
    error: str


@dataclass(frozen=True)
class Bench:
    """What a run needs.

    Attributes:
        folder: The data folder.
        segmenter: The model.
        config: What to measure.
        masks_folder: Where the unions of answers are kept as 1-bit PNG for the report; None keeps none.
    """

    folder: Path
    segmenter: Segmenter
    config: EvalConfig
    masks_folder: Path | None = None


def run_benchmark(
    bench: Bench, rows: Sequence[IndexRow], journal: Journal, progress: Progress | None = None
) -> list[Failure]:
    """Answer all questions about `rows` that the journal does not hold yet, and write each answer to it.

    Returns:
        Images that could not be read, concepts whose mask does not fit; their questions are not in the journal.
    """
    failures: list[Failure] = []
    done = {case.key for case in journal.cases}
    images = [list(own) for _, own in groupby(rows, key=lambda row: row.image)]
    report = progress or (lambda done, count, name: None)
    for count, own in enumerate(images):
        report(count, len(images), own[0].dataset)
        asked = [(row, question) for row in own for question in questions(row, bench.config)]
        asked += foreign_questions(own, bench.config)
        asked = [(row, question) for row, question in asked if _key(bench, row, question) not in done]
        if asked:
            for answer in _ask_about_image(bench, own, asked):
                if isinstance(answer, Failure):
                    failures.append(answer)
                else:
                    journal.add(answer)
    report(len(images), len(images), "")
    return failures


def measure(truth: Truth, found: Masks, spacing: tuple[float, float] | None, tolerance: float) -> dict[str, Any]:
    """The numbers of one answer over (1, H, W), under the names of `CaseResult`.

    A model that says absent is taken at its word: its union is empty and it has no objects.
    """
    says_present = found.is_present if found.is_present is not None else len(found) > 0
    predicted = found.union()[0] if says_present else np.zeros_like(truth.mask)
    objects = [found.dense(k)[0] for k in range(len(found))] if says_present else []
    match = match_objects(truth.objects, objects)
    numbers: dict[str, Any] = dict.fromkeys(("dice", "iou", "nsd", "hd95", "assd"))
    if truth.mask.any():
        distances = boundary_distances(truth.mask, predicted, spacing)
        numbers = {
            "dice": dice(truth.mask, predicted),
            "iou": iou(truth.mask, predicted),
            "nsd": distances.nsd(tolerance),
            "hd95": distances.hausdorff(95),
            "assd": distances.assd(),
        }
    return {
        **numbers,
        "says_present": says_present,
        "unit": "px" if spacing is None else "mm",
        "reference_px": int(truth.mask.sum()),
        "predicted_px": int(predicted.sum()),
        "references": match.references,
        "predictions": match.predictions,
        "overlaps": match.overlaps,
    }


def mask_file(masks_folder: Path, dataset: str, image: str, concept: str) -> Path:
    """Where the union of the text answer about a concept of an image is kept."""
    slug = "".join(letter if letter.isalnum() else "-" for letter in concept.lower())
    return masks_folder / dataset / f"{Path(image).stem}__{slug}.png"


def _key(bench: Bench, row: IndexRow, question: Question) -> tuple[str, str, str, str, str, float]:
    image = _relative(bench, row.image)
    return row.dataset, image, row.concept, question.mode, question.phrase, question.jitter_percent


def _relative(bench: Bench, path: Path) -> str:
    return path.relative_to(bench.folder).as_posix()


def _ask_about_image(
    bench: Bench, rows: Sequence[IndexRow], asked: Sequence[tuple[IndexRow, Question]]
) -> Iterator[CaseResult | Failure]:
    name = _relative(bench, rows[0].image)
    try:
        image = read(rows[0].image)
        if image.shape[0] != 1:
            raise InputError(f"{name} has {image.shape[0]} frames, pictures are evaluated: split it")
        features = bench.segmenter.encode(to_rgb(image))
    except InputError as error:
        yield Failure(name, "", str(error))
        return
    for row, own in groupby(asked, key=lambda pair: pair[0]):
        try:
            truth = load_truth(row)
            others = rival_masks(row, rows)
            if truth.mask.shape != image.shape[1:]:
                raise InputError(
                    f"{row.mask.name} is {truth.mask.shape}, the image is {image.shape[1:]} (rows, columns)"
                )
        except InputError as error:
            yield Failure(name, row.concept, str(error))
            continue
        case = _Case(row, image, features, truth, others)
        for _, question in own:
            yield _answer(bench, case, question)


def rival_masks(row: IndexRow, rows: Sequence[IndexRow]) -> dict[str, BoolArray]:
    """Truth (H, W) of the concepts in the same image that this row's is easily taken for.

    Raises:
        InputError: See `load_truth`.
    """
    names = rivals(row.concept)
    return {other.concept: load_truth(other).mask for other in rows if other.concept in names and other.is_present}


@dataclass(frozen=True)
class _Case:
    row: IndexRow
    image: Image
    features: Any
    truth: Truth
    rivals: dict[str, BoolArray]
    text_answers: dict[str, Masks] = field(default_factory=dict)  # by phrase, for the modes that start from one


def _answer(bench: Bench, case: _Case, question: Question) -> CaseResult:
    started = time.perf_counter()
    found = _decode(bench, case, question)
    seconds = time.perf_counter() - started
    has_phrase = question.mode in ("T", "TI")
    presence = found.presence
    if has_phrase and presence is None:  # a model without a presence output is taken by its best object
        presence = max(found.scores, default=0.0)
    spacing = None if case.image.spacing_mm is None else case.image.spacing_mm[1:]
    numbers = measure(case.truth, found, spacing, bench.config.tolerance)
    is_kept = (
        question.phrasing == "name" and question.mode == shown_mode(bench.config.modes) and not question.jitter_percent
    )
    if bench.masks_folder is not None and is_kept and not (question.is_foreign and not numbers["predicted_px"]):
        union = found.union()[0] & numbers["says_present"]
        name = _relative(bench, case.row.image)
        _write_mask(mask_file(bench.masks_folder, case.row.dataset, name, case.row.concept), union)
    return CaseResult(
        dataset=case.row.dataset,
        image=_relative(bench, case.row.image),
        concept=case.row.concept,
        group=case.row.group,
        mode=question.mode,
        phrase=question.phrase,
        phrasing=question.phrasing,
        kind=question.kind,
        jitter_percent=question.jitter_percent,
        is_present=case.row.is_present,
        is_foreign=question.is_foreign,
        presence=presence if has_phrase else None,
        rivals=tuple(case.rivals),
        rival_dices=tuple(_dice_of(mask, found, says_present=numbers["says_present"]) for mask in case.rivals.values()),
        seconds=seconds,
        **numbers,
    )


def _decode(bench: Bench, case: _Case, question: Question) -> Masks:
    if question.mode in ("T", "TB"):
        if question.phrase not in case.text_answers:
            case.text_answers[question.phrase] = bench.segmenter.decode(case.features, Prompt(text=question.phrase))
        found = case.text_answers[question.phrase]
        if question.mode == "T" or not len(found) or found.is_present is False:
            return found
        boxes = tuple(Box(*part.box) for part in found.objects)
        return bench.segmenter.decode(case.features, Prompt(boxes=boxes))
    rng = jitter_rng(case.row, question.jitter_percent, bench.config.seed)
    drawn = oracle_boxes(case.truth, bench.config.box_rule)
    boxes = jittered(drawn, question.jitter_percent, case.image.shape[1:], rng)
    text = question.phrase if question.mode == "TI" else None
    return bench.segmenter.decode(case.features, Prompt(text=text, boxes=boxes))


def _dice_of(reference: BoolArray, found: Masks, *, says_present: bool) -> float:
    return dice(reference, found.union()[0]) if says_present else 0.0


def _write_mask(path: Path, mask: BoolArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, ".png") as temporary:
        PIL.Image.fromarray(mask).save(temporary, optimize=True)
