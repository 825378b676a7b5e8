"""The questions of an evaluation: which rows of the data are asked, their truth, and the prompts drawn from it.

A box drawn from the truth is an *oracle*: it tells the model where the object is, and that it is there. Knows no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medsam3.concepts import surely_absent
from medsam3.data.index import Fold, IndexRow, LabelMap, Split, concept_mask, hash_of_group, load_label_map
from medsam3.data.samples import Sample, connected_objects
from medsam3.errors import InputError
from medsam3.eval.phrasings import PhraseKind, panel
from medsam3.geometry import BoolArray, box_of_mask
from medsam3.prompts import Box

EvalMode = Literal["T", "TB", "I", "TI", "C", "TC"]
"""T: phrase alone; TB: the boxes that the phrase gave, as box prompts; I: oracle boxes; TI: phrase and oracle boxes; C:
clicks of a simulated person, from nothing; TC: clicks that correct the phrase's mask."""
Phrasing = Literal["name", "synonym", "unseen synonym"]
BoxRule = Literal["parts", "whole"]
VolumeWay = Literal["slices", "follow", "vote"]
"""Each slice for itself; objects followed through them; two of three planes, each followed. See docs/volumes.md."""

MODES: tuple[EvalMode, ...] = ("T", "TB", "I", "TI", "C", "TC")
ORACLE_MODES: tuple[EvalMode, ...] = ("I", "TI")
CLICK_MODES: tuple[EvalMode, ...] = ("C", "TC")
VOLUME_MODES: tuple[EvalMode, ...] = ("T", "C")
"""A box belongs to one slice of a volume; clicks on one are followed through the others."""
LEAST_PART = 0.01
"""Parts below this share of the concept's pixels get no oracle box: nobody would draw one around a speck."""
MAX_JITTER_PERCENT = 40.0


@dataclass(frozen=True)
class EvalConfig:
    """The settings of an evaluation.

    Attributes:
        split: Rows of this split; `all` takes every split.
        datasets: Names; () takes all.
        modes: Which prompts.
        with_synonyms: Ask text for the panel of phrasings of a concept too, where it is present.
        jitters_percent: Oracle boxes are shifted at random by up to this part of their side, each edge by itself.
        limit: At most so many images of each data set, chosen by a hash of their path; None takes all.
        tolerance: Of NSD, in mm where the image has a spacing, else in pixels.
        box_rule: `parts` draws one oracle box around each part (instances where the data has them), `whole` just one.
        seed: Of the jitter and the intervals.
        absent: So many concepts of other image families are asked about in each picture, where they surely are not.
        fold: Evaluate fold k of n in place of the split that the data came with; None keeps that.
        volumes: How volumes are segmented.

    Raises:
        InputError: No mode, a jitter, limit or tolerance out of range.
    """

    split: Split | Literal["all"] = "test"
    datasets: tuple[str, ...] = ()
    modes: tuple[EvalMode, ...] = ("T",)
    with_synonyms: bool = False
    jitters_percent: tuple[float, ...] = (0.0,)
    limit: int | None = None
    tolerance: float = 2.0
    box_rule: BoxRule = "parts"
    seed: int = 0
    absent: int = 0
    fold: Fold | None = None
    volumes: VolumeWay = "slices"

    def __post_init__(self) -> None:
        if not self.modes:
            raise InputError(f"no mode was chosen, allowed are {', '.join(MODES)}")
        if not self.jitters_percent or not all(0 <= jitter <= MAX_JITTER_PERCENT for jitter in self.jitters_percent):
            raise InputError(f"jitter is {self.jitters_percent}, allowed is 0 to {MAX_JITTER_PERCENT:g} % of a side")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit is {self.limit}, allowed is 1 or more images of each data set")
        if not (np.isfinite(self.tolerance) and self.tolerance >= 0):
            raise InputError(f"tolerance is {self.tolerance}, allowed is 0 or more")
        if self.absent < 0:
            raise InputError(f"absent is {self.absent}, allowed is 0 or more foreign concepts a picture")


@dataclass(frozen=True)
class EvalQuestion:
    """One prompt about one row: mode, phrase ("" in mode I), what kind of phrasing it is, jitter of oracle boxes."""

    mode: EvalMode
    phrase: str
    phrasing: Phrasing = "name"
    kind: PhraseKind = ""
    jitter_percent: float = 0.0
    is_foreign: bool = False

    @property
    def key(self) -> tuple[EvalMode, str, float]:
        """The part of a case's key that the question gives."""
        return self.mode, self.phrase, self.jitter_percent


@dataclass(frozen=True)
class Truth:
    """The annotation of one concept in one image.

    Attributes:
        mask: (H, W) bool, (N, H, W) of a volume.
        objects: Numbers of single objects, 0 elsewhere: the data's instances, else parts connected at least at a
            corner.
        are_instances: `objects` come from the data set, not from connected parts.
    """

    mask: BoolArray
    objects: NDArray[np.integer]
    are_instances: bool


@dataclass(frozen=True)
class ChosenRows:
    """Rows to evaluate, and how many of volumes were left out."""

    rows: tuple[IndexRow, ...]
    skipped_volumes: int


def select(rows: Iterable[IndexRow], config: EvalConfig, *, with_volumes: bool = False) -> ChosenRows:
    """The rows of the configured split and data sets, images of one data set together.

    Volumes are left out where they are not wanted, or not asked by text.

    Raises:
        InputError: An unknown data set, or nothing to evaluate.
    """
    everything = tuple(rows)
    known = sorted({row.dataset for row in everything})
    unknown = [name for name in config.datasets if name not in known]
    if unknown:
        raise InputError(f"there is no data set {', '.join(unknown)}, allowed are {', '.join(known)}")
    chosen = [
        row
        for row in everything
        if config.split in ("all", row.split) and (not config.datasets or row.dataset in config.datasets)
    ]
    takes_volumes = with_volumes and any(mode in VOLUME_MODES for mode in config.modes)
    kept = sorted(
        (row for row in chosen if takes_volumes or not row.is_volume),
        key=lambda row: (row.dataset, row.image.as_posix(), row.concept),
    )
    if not kept:
        kind = "image" if takes_volumes else "picture"
        where = ", ".join(config.datasets) or "any data set"
        raise InputError(f"no {kind} of {where} is in split {config.split}: choose another --split, or all")
    skipped = len(chosen) - len(kept)
    if config.limit is not None:
        kept = _limited(kept, config.limit)
    return ChosenRows(tuple(kept), skipped)


def questions(row: IndexRow, config: EvalConfig) -> list[EvalQuestion]:
    """List the questions about a row: on absent concepts text alone, as no box can be drawn around nothing."""
    modes = [mode for mode in config.modes if mode in VOLUME_MODES or not row.is_volume]
    asked = [EvalQuestion(mode, "" if mode == "C" else row.concept) for mode in modes if mode not in ORACLE_MODES]
    if not row.is_present:
        return [question for question in asked if question.mode == "T"]
    asked += [
        EvalQuestion(mode, "" if mode == "I" else row.concept, jitter_percent=jitter)
        for mode in modes
        if mode in ORACLE_MODES
        for jitter in config.jitters_percent
    ]
    if config.with_synonyms:
        asked += [
            EvalQuestion("T", phrase.text, "unseen synonym" if phrase.is_held_out else "synonym", phrase.kind)
            for phrase in panel(row.concept)
        ]
    return asked


def foreign_questions(rows: Sequence[IndexRow], config: EvalConfig) -> list[tuple[IndexRow, EvalQuestion]]:
    """Concepts of other image families, asked about one image of which these are all rows, each with a row of its own.

    Such a row has no label values: the concept's mask is empty.
    """
    if not config.absent or "T" not in config.modes:
        return []
    absent = [concept.name for concept in surely_absent(row.concept for row in rows)]
    names = drawn_absent(rows[0], absent, config.absent, seed=config.seed)
    loader = rows[0].loader
    nothing = None if loader is None else lambda: np.zeros_like(loader())
    return [
        (
            replace(rows[0], concept=name, label_values=(), is_present=False, instances=None, loader=nothing),
            EvalQuestion("T", name, is_foreign=True),
        )
        for name in names
    ]


def drawn_absent(row: IndexRow, candidates: Iterable[str], count: int, *, seed: int) -> tuple[str, ...]:
    """Draw at most `count` of the candidates by a hash of the image and the seed, the same ones in every run."""
    place = f"{seed}/{row.dataset}/{row.image.name}"
    ordered = sorted(candidates, key=lambda name: hashlib.sha256(f"{place}/{name}".encode()).digest())
    return tuple(ordered[:count])


def shown_mode(modes: Sequence[EvalMode]) -> EvalMode:
    """The mode that pictures and box plots show: text alone where it was asked, else the first."""
    return "T" if "T" in modes else modes[0]


def rows_of_samples(samples: Iterable[Sample], source: Path, *, are_instances: bool) -> tuple[IndexRow, ...]:
    """Give the rows of samples that have no index, one for each picture and concept.

    Args:
        samples: Of COCO JSON or of plain folders.
        source: The file or folder that annotates them, for messages.
        are_instances: Their objects are annotated one by one.
    """
    return tuple(
        IndexRow(
            dataset=sample.dataset,
            image=sample.image,
            mask=source,
            concept=target.concept,
            label_values=(),
            split=sample.split,
            group=sample.group,
            is_present=target.is_present,
            instances=source if are_instances else None,
            loader=target.load,
        )
        for sample in samples
        for target in sample.targets
    )


def load_truth(row: IndexRow) -> Truth:
    """Read the mask of a picture's row and number its objects.

    Raises:
        InputError: Unreadable maps, or what `truth_of` says.
    """
    if row.loader is not None:
        objects = row.loader()
        mask = objects > 0
        _check_presence(row, mask)
        return Truth(mask, objects, are_instances=row.instances is not None)
    return truth_of(row, load_label_map(row.mask), None if row.instances is None else load_label_map(row.instances))


def truth_of(row: IndexRow, labels: LabelMap, instances: LabelMap | None) -> Truth:
    """The truth of a row in its label map, (H, W) or (N, H, W), with the data's own numbers of objects if it has any.

    Raises:
        InputError: Maps of different sizes, or a `present` in the index that the mask belies.
    """
    mask = concept_mask(labels, row.label_values)
    _check_presence(row, mask)
    if instances is None:
        return Truth(mask, connected_objects(mask), are_instances=False)
    if instances.shape != mask.shape:
        raise InputError(f"{row.mask.name}: instances are {instances.shape}, the mask is {mask.shape}")
    return Truth(mask, np.where(mask, instances.astype(np.int32), 0), are_instances=True)


def _check_presence(row: IndexRow, mask: BoolArray) -> None:
    if bool(mask.any()) != row.is_present:
        said = "present" if row.is_present else "absent"
        raise InputError(f"{row.mask.name}: the index says {row.concept} is {said}, the mask says otherwise")


def oracle_boxes(truth: Truth, rule: BoxRule) -> tuple[Box, ...]:
    """Boxes around the truth, outer pixel edges included; () where the concept is absent."""
    if rule == "whole":
        return _boxes([truth.mask])
    return _boxes([truth.objects == n for n in object_numbers(truth)])


def object_numbers(truth: Truth) -> list[int]:
    """List the numbers of the objects; parts that are specks beside the concept do not count."""
    least = 0.0 if truth.are_instances else LEAST_PART * truth.mask.sum()
    sizes = np.bincount(truth.objects.ravel())
    return [n for n in range(1, len(sizes)) if sizes[n] and sizes[n] >= least]


def jittered(boxes: Sequence[Box], percent: float, size: tuple[int, int], rng: np.random.Generator) -> tuple[Box, ...]:
    """Boxes with each edge moved at random by up to `percent` of the box's side, kept inside (height, width)."""
    if percent == 0:
        return tuple(boxes)
    height, width = size
    moved = []
    for box in boxes:
        x0, y0, x1, y1 = box.xyxy
        reach = np.array([x1 - x0, y1 - y0] * 2) * percent / 100
        edges = np.array(box.xyxy) + rng.uniform(-1, 1, size=4) * reach
        edges = np.clip(edges, -0.5, [width - 0.5, height - 0.5] * 2)
        moved.append(Box(*edges.tolist()))
    return tuple(moved)


def jitter_rng(row: IndexRow, jitter_percent: float, seed: int) -> np.random.Generator:
    """Random numbers that depend on the case and nothing else, so that a resumed run draws the same boxes."""
    name = f"{seed}/{row.dataset}/{row.image.name}/{row.concept}/{jitter_percent:g}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))


def _boxes(masks: Iterable[BoolArray]) -> tuple[Box, ...]:
    found = (box_of_mask(mask) for mask in masks)
    return tuple(Box(float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in filter(None, found))


def _limited(rows: Sequence[IndexRow], limit: int) -> list[IndexRow]:
    images: dict[str, set[str]] = {}
    for row in rows:
        images.setdefault(row.dataset, set()).add(row.image.name)
    kept = {
        (dataset, name)
        for dataset, names in images.items()
        for name in sorted(names, key=lambda name: hash_of_group((dataset, name)))[:limit]
    }
    return [row for row in rows if (row.dataset, row.image.name) in kept]
