"""Runs a segmenter over the rows of a data folder: each picture is encoded once and asked all its questions.

Knows the segmenter by its protocol only. Nothing is dropped: what cannot be read is returned as a failure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from medsam3.data.index import IndexRow
from medsam3.errors import InputError
from medsam3.eval.answers import Asked, Bench, Failure, Progress, case_result
from medsam3.eval.cases import (
    Question,
    foreign_questions,
    jitter_rng,
    jittered,
    load_truth,
    oracle_boxes,
    questions,
)
from medsam3.eval.phrasings import rivals
from medsam3.eval.records import CaseResult, Journal
from medsam3.eval.volume_cases import answer_volume
from medsam3.geometry import BoolArray
from medsam3.image import Masks
from medsam3.io import read
from medsam3.prompts import Box, Prompt
from medsam3.view.view import View, view_of


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
        for answer in _answers(bench, own, asked, _within(report, count, len(images), own[0].dataset)):
            if isinstance(answer, Failure):
                failures.append(answer)
            else:
                journal.add(answer)
    report(len(images), len(images), "")
    return failures


def _within(report: Progress, count: int, images: int, name: str) -> Progress:
    """What a volume tells of its slices, as what is told of the image at hand."""
    return lambda done, steps, _: report(count, images, f"{name}, volume: step {done} of {steps}")


def _key(bench: Bench, row: IndexRow, question: Question) -> tuple[str, str, str, str, str, float]:
    image = bench.relative(row.image)
    return row.dataset, image, row.concept, question.mode, question.phrase, question.jitter_percent


def _answers(
    bench: Bench, rows: Sequence[IndexRow], asked: Sequence[tuple[IndexRow, Question]], report: Progress
) -> Iterator[CaseResult | Failure]:
    if not asked:
        return iter(())
    if rows[0].is_volume:
        return answer_volume(bench, rows, asked, report)
    return _answer_picture(bench, rows, asked)


def _answer_picture(
    bench: Bench, rows: Sequence[IndexRow], asked: Sequence[tuple[IndexRow, Question]]
) -> Iterator[CaseResult | Failure]:
    name = bench.relative(rows[0].image)
    try:
        image = read(rows[0].image)
        if image.shape[0] != 1:
            raise InputError(f"{name} has {image.shape[0]} frames, pictures are evaluated: split it")
        view = view_of(image)
        features = bench.segmenter.encode(view.rgb(0))
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
        case = _Case(Asked(row, image, truth, others), view, features)
        for _, question in own:
            started = time.perf_counter()
            found = _decode(bench, case, question)
            yield case_result(bench, case.asked, question, found, time.perf_counter() - started)


def rival_masks(row: IndexRow, rows: Sequence[IndexRow]) -> dict[str, BoolArray]:
    """Truth (H, W) of the concepts in the same image that this row's is easily taken for.

    Raises:
        InputError: See `load_truth`.
    """
    names = rivals(row.concept)
    return {other.concept: load_truth(other).mask for other in rows if other.concept in names and other.is_present}


@dataclass(frozen=True)
class _Case:
    asked: Asked
    view: View
    features: Any
    text_answers: dict[str, Masks] = field(default_factory=dict)  # by phrase, for the modes that start from one

    def decode(self, bench: Bench, prompt: Prompt) -> Masks:
        """What the model says to a prompt in pixels of the picture."""
        return self.view.masks_back(bench.segmenter.decode(self.features, self.view.prompt(prompt)))


def _decode(bench: Bench, case: _Case, question: Question) -> Masks:
    if question.mode in ("T", "TB"):
        if question.phrase not in case.text_answers:
            case.text_answers[question.phrase] = case.decode(bench, Prompt(text=question.phrase))
        found = case.text_answers[question.phrase]
        if question.mode == "T" or not len(found) or found.is_present is False:
            return found
        boxes = tuple(Box(*part.box) for part in found.objects)
        return case.decode(bench, Prompt(boxes=boxes))
    rng = jitter_rng(case.asked.row, question.jitter_percent, bench.config.seed)
    drawn = oracle_boxes(case.asked.truth, bench.config.box_rule)
    boxes = jittered(drawn, question.jitter_percent, case.asked.image.shape[1:], rng)
    text = question.phrase if question.mode == "TI" else None
    return case.decode(bench, Prompt(text=text, boxes=boxes))
