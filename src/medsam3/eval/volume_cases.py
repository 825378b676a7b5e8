"""Volumes of a data folder: each is segmented whole, as `medsam3 segment` does, and measured in three axes.

Volumes are asked by text alone: a box drawn from the truth, or from an answer, belongs to one slice.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3.data.index import IndexRow, concept_mask
from medsam3.errors import InputError
from medsam3.eval.answers import Asked, Bench, Failure, Progress, case_result
from medsam3.eval.cases import Question, Truth, VolumeWay, truth_of
from medsam3.eval.phrasings import rivals
from medsam3.eval.records import CaseResult
from medsam3.geometry import BoolArray
from medsam3.image import Image, Masks
from medsam3.io import read
from medsam3.io.labels import label_stack, label_values
from medsam3.segmentation.options import Options
from medsam3.segmentation.run import segment

Labels = NDArray[np.uint16]


def options_for(way: VolumeWay, **about: Any) -> Options:
    """The settings of `medsam3.segment` for a way: slice by slice, followed, or by a vote of three planes."""
    return Options(is_followed=way != "slices", plane="vote" if way == "vote" else "auto", **about)


def answer_volume(
    bench: Bench, rows: Sequence[IndexRow], asked: Sequence[tuple[IndexRow, Question]], report: Progress
) -> Iterator[CaseResult | Failure]:
    """Answer questions about one volume, whose rows are `rows`: all phrases in one run over its slices.

    `seconds` of each case is an equal share of that run.
    """
    name = bench.relative(rows[0].image)
    try:
        image = read(rows[0].image)
    except InputError as error:
        yield Failure(name, "", str(error))
        return
    maps = LabelMaps(image)
    known: list[tuple[IndexRow, list[Question]]] = []
    for row, own in groupby(asked, key=lambda pair: pair[0]):
        try:
            maps.truth(row)
            known.append((row, [question for _, question in own]))
        except InputError as error:
            yield Failure(name, row.concept, str(error))
    phrases = list(dict.fromkeys(question.phrase for _, questions in known for question in questions))
    if not phrases:
        return
    started = time.perf_counter()
    try:
        found = dict(zip(phrases, _segmented(bench, rows[0], image, phrases, report), strict=True))
    except InputError as error:
        yield Failure(name, "", str(error))
        return
    seconds = (time.perf_counter() - started) / len(phrases)
    for row, questions in known:
        case = Asked(row, image, maps.truth(row), maps.rivals(row, rows))
        for question in questions:
            yield case_result(bench, case, question, found[question.phrase], seconds)


class LabelMaps:
    """The label maps of one volume, each read once; truths are large, and made of them when they are needed."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._read: dict[Path, Labels] = {}

    def truth(self, row: IndexRow) -> Truth:
        """Of one row, over (N, H, W).

        Raises:
            InputError: See `label_stack` and `truth_of`; values that are no labels.
        """
        instances = None if row.instances is None else self._labels(row.instances)
        return truth_of(row, self._labels(row.mask), instances)

    def rivals(self, row: IndexRow, rows: Sequence[IndexRow]) -> dict[str, BoolArray]:
        """Truth of the concepts of the same volume that this row's is easily taken for."""
        names = rivals(row.concept)
        return {
            other.concept: concept_mask(self._labels(other.mask), other.label_values)
            for other in rows
            if other.concept in names and other.is_present
        }

    def _labels(self, path: Path) -> Labels:
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


def _segmented(bench: Bench, row: IndexRow, image: Image, phrases: Sequence[str], report: Progress) -> Sequence[Masks]:
    """Masks of the phrases; what a killed run found of this volume is taken up, and forgotten once it is whole."""
    way = bench.config.volumes

    def told(done: int, count: int) -> None:
        report(done, count, "")

    if bench.journals is None:
        return segment(image, phrases, bench.segmenter, options_for(way), progress=told)
    work = repr((bench.work, row.dataset, bench.relative(row.image), way, tuple(phrases)))
    stem = hashlib.sha256(work.encode()).hexdigest()[:16]
    options = options_for(way, journal=bench.journals / f".{stem}.journal", work=work)
    found = segment(image, phrases, bench.segmenter, options, progress=told)
    for journal in bench.journals.glob(f".{stem}.*"):
        journal.unlink()
    return found
