"""A look at the data before anything is trained on it: sizes, empties, duplicates, concepts, phrases that collide.

Each image and mask is read once. It changes nothing, and knows no model.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medsam3 import concepts
from medsam3.data.duplicates import SIDE as THUMBNAIL_SIDE
from medsam3.data.duplicates import Thumbnail, near_duplicates, thumbnail
from medsam3.data.index import SPLITS
from medsam3.data.samples import Sample, Target, contents_digest
from medsam3.errors import InputError, reason_of
from medsam3.models.mini.letterbox import SIDE, letterbox_labels

TINY_PIXELS = 14
"""Fewer pixels than these at 256 x 256 are no object of their own for the trainer (a share of .0002)."""


@dataclass(frozen=True)
class SetFacts:
    """Images of one data set in one split; sizes are (H, W), by area."""

    dataset: str
    split: str
    images: int
    empty: int
    smallest: tuple[int, int]
    largest: tuple[int, int]


@dataclass(frozen=True)
class ConceptFacts:
    """Images that a concept is present in, absent from, tiny in, and so small in that it is gone at 256 x 256."""

    concept: str
    split: str
    present: int
    absent: int
    tiny: int
    gone: int


@dataclass(frozen=True)
class Duplicate:
    """Two images of different groups that are the same, pixel for pixel, or look alike."""

    first: str
    second: str
    splits: tuple[str, str]
    is_exact: bool

    @property
    def is_across(self) -> bool:
        """They stand in two splits, so that one gives the other away."""
        return self.splits[0] != self.splits[1]


@dataclass(frozen=True)
class DataReport:
    """The findings.

    Attributes:
        digest: Of names, groups, and the contents of the samples.
        sets, concepts: The counts.
        mismatched: Samples with a mask of another size than the image.
        belied: `SAMPLE: CONCEPT` where the data says present and the mask is empty, or the other way round.
        duplicates: Those across splits first.
        crossing: `DATASET/GROUP` that stands in two splits.
        collisions: Lines that name phrases which cannot be told apart.
        unknown: Concepts that `medsam3 concepts` does not list, so that they have no synonyms and no family.
    """

    digest: str
    sets: tuple[SetFacts, ...]
    concepts: tuple[ConceptFacts, ...]
    mismatched: tuple[str, ...]
    belied: tuple[str, ...]
    duplicates: tuple[Duplicate, ...]
    crossing: tuple[str, ...]
    collisions: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class _Seen:
    """Facts about one sample; `areas` are pixels at 256 x 256 by target, None where the mask does not fit."""

    sample: Sample
    size: tuple[int, int]
    pixels: bytes
    thumbnail: Thumbnail
    areas: tuple[int | None, ...]
    is_filled: tuple[bool, ...]


def report_on(samples: Sequence[Sample], *, on_image: Callable[[], None] = lambda: None) -> DataReport:
    """Read all samples and report.

    Raises:
        InputError: An image or mask cannot be read.
    """
    seen = []
    for sample in samples:
        seen.append(_look(sample))
        on_image()
    pairs = [(one, k) for one in seen for k in range(len(one.sample.targets))]
    return DataReport(
        digest=digest_of(samples),
        sets=tuple(_sets(seen)),
        concepts=tuple(_concepts(seen)),
        mismatched=tuple(one.sample.name for one in seen if None in one.areas),
        belied=tuple(
            f"{one.sample.name}: {one.sample.targets[k].concept}"
            for one, k in pairs
            if one.areas[k] is not None and one.is_filled[k] != one.sample.targets[k].is_present
        ),
        duplicates=tuple(_duplicates(seen)),
        crossing=tuple(_crossing(samples)),
        collisions=tuple(collisions(samples)),
        unknown=tuple(name for name in _names(samples) if concepts.find(name) is None),
    )


def digest_of(samples: Sequence[Sample]) -> str:
    """Compute a digest that changes with what a report says: names, groups, and the contents of the samples."""
    digest = hashlib.sha256(contents_digest(samples).encode())
    for sample in samples:
        digest.update(f"{sample.name};{sample.group};{sample.dataset}\n".encode())
    return digest.hexdigest()


def collisions(samples: Sequence[Sample]) -> list[str]:
    """Phrases that cannot be told apart, one line each."""
    found = []
    for first, second in combinations(_names(samples), 2):
        known = concepts.find(first)
        if concepts.normalised(first) == concepts.normalised(second):
            found.append(f"{first!r} and {second!r} are two spellings of one phrase")
        elif known is not None and known is concepts.find(second):
            found.append(f"{first!r} and {second!r} are two phrasings of {known.name!r}")
    twice: dict[tuple[str, str], str] = {}
    for sample in samples:
        own = [concepts.normalised(target.concept) for target in sample.targets]
        twice |= {(sample.dataset, name): sample.name for name in own if own.count(name) > 1}
    found += [f"{name!r} has two masks in {sample} of {dataset}" for (dataset, name), sample in twice.items()]
    return found


def _names(samples: Iterable[Sample]) -> list[str]:
    return sorted({target.concept for sample in samples for target in sample.targets})


def _look(sample: Sample) -> _Seen:
    try:
        rgb = sample.load_rgb()
        masks = [_mask_of(target) for target in sample.targets]
    except OSError as error:
        what = error.strerror or reason_of(error)
        raise InputError(f"{sample.name} cannot be read ({what}): replace the file, or leave it out") from error
    size = (rgb.shape[0], rgb.shape[1])
    small = PIL.Image.fromarray(rgb).convert("L").resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), PIL.Image.Resampling.BOX)
    return _Seen(
        sample=sample,
        size=size,
        pixels=hashlib.sha256(repr(size).encode() + rgb.tobytes()).digest(),
        thumbnail=thumbnail(sample.name, sample.dataset, sample.split, np.asarray(small, np.float64)),
        areas=tuple(
            None if mask is None or mask.shape != size else int((letterbox_labels(mask.astype(np.int32)) > 0).sum())
            for mask in masks
        ),
        is_filled=tuple(mask is not None and bool(mask.any()) for mask in masks),
    )


def _mask_of(target: Target) -> NDArray[np.bool_] | None:
    """Read a target's mask; None if it does not fit its image."""
    try:
        return target.load() > 0
    except InputError:
        return None


def _sets(seen: Sequence[_Seen]) -> list[SetFacts]:
    by_set: dict[tuple[str, str], list[_Seen]] = defaultdict(list)
    for one in seen:
        by_set[one.sample.dataset, one.sample.split].append(one)
    facts = []
    for dataset, split in sorted(by_set, key=lambda key: (key[0], SPLITS.index(key[1]))):
        own = by_set[dataset, split]
        sizes = sorted((one.size for one in own), key=lambda size: size[0] * size[1])
        empty = sum(not any(target.is_present for target in one.sample.targets) for one in own)
        facts.append(SetFacts(dataset, split, len(own), empty, sizes[0], sizes[-1]))
    return facts


def _concepts(seen: Sequence[_Seen]) -> list[ConceptFacts]:
    by_concept: dict[tuple[str, str], list[tuple[bool, int]]] = defaultdict(list)
    for one in seen:
        for target, area in zip(one.sample.targets, one.areas, strict=True):
            by_concept[target.concept, one.sample.split].append((target.is_present, SIDE**2 if area is None else area))
    facts = []
    for concept, split in sorted(by_concept, key=lambda key: (key[0], SPLITS.index(key[1]))):
        own = by_concept[concept, split]
        areas = [area for is_present, area in own if is_present]
        tiny, gone = sum(0 < area < TINY_PIXELS for area in areas), sum(area == 0 for area in areas)
        facts.append(ConceptFacts(concept, split, len(areas), len(own) - len(areas), tiny, gone))
    return facts


def _duplicates(seen: Sequence[_Seen]) -> list[Duplicate]:
    """Pairs of different groups: within one (neighbouring slices, frames of a clip) likeness is expected."""
    by_name = {one.sample.name: one for one in seen}
    groups = [f"{one.sample.dataset}/{one.sample.group}" for one in seen]
    alike = near_duplicates([replace(one.thumbnail, split=g) for one, g in zip(seen, groups, strict=True)])
    pairs = {(pair.first, pair.second) for pair in alike}
    same: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    for one, group in zip(seen, groups, strict=True):
        pairs |= {(other, one.sample.name) for other, its in same[one.pixels] if its != group}
        same[one.pixels].append((one.sample.name, group))
    found = []
    for first, second in sorted(pairs):
        a, b = by_name[first], by_name[second]
        found.append(Duplicate(first, second, (a.sample.split, b.sample.split), a.pixels == b.pixels))
    return sorted(found, key=lambda pair: (not pair.is_across, not pair.is_exact))


def _crossing(samples: Sequence[Sample]) -> list[str]:
    splits: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        splits[f"{sample.dataset}/{sample.group}"].add(sample.split)
    return sorted(group for group, own in splits.items() if len(own) > 1)
