"""The sources of training data as one value: folders with an index.csv, COCO JSON and plain folders, all together.

It also says which data sets are left out and how often the others are drawn. It knows no model and no arguments.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import cast

from medsam3.data.coco import samples_from_coco
from medsam3.data.folders import FolderSource, samples_from_folder
from medsam3.data.index import Fold, IndexRow, Split, hash_of_group, in_fold, read_index
from medsam3.data.samples import Sample, samples_from_index
from medsam3.data.volumes import SlicePlan, samples_from_volumes
from medsam3.errors import InputError

log = logging.getLogger(__name__)
_ROBOFLOW = "_annotations.coco.json"
_VAL_EVERY = 5


@dataclass(frozen=True)
class CocoSource:
    """A COCO JSON, the folder of its images (None: the one that it lies in), and its split."""

    annotations: Path
    images: Path | None = None
    split: Split = "train"


@dataclass(frozen=True)
class Sources:
    """All data of a run.

    Attributes:
        indexes: Folders with an `index.csv`, or with a COCO export of Roboflow, a folder a split.
        coco: COCO files.
        folders: Plain folders.
        slices: How volumes of the indexes are cut; None leaves volumes out.
        only: Data sets to take; () takes all.
        left_out: Data sets that go to no split, so that `medsam3 eval --datasets NAME` measures what was never seen.
        is_only_open: Take only data sets with an open licence; see `licences`.
        weights: How much more often than by its size a data set is drawn, by name; 1 where it is not named.
        fold: Split the indexes anew, as `medsam3 eval --fold` does; None keeps the splits that they came with.
    """

    indexes: tuple[Path, ...] = ()
    coco: tuple[CocoSource, ...] = ()
    folders: tuple[FolderSource, ...] = ()
    slices: SlicePlan | None = None
    only: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    is_only_open: bool = False
    weights: tuple[tuple[str, float], ...] = ()
    fold: Fold | None = None


def read_samples(sources: Sources, splits: tuple[Split, ...] = ("train", "val")) -> tuple[Sample, ...]:
    """Read the samples of all sources, those of further splits among them.

    If val is wanted and no source has one, a fifth of the train images are made val, whole groups at a time; a warning
    says so.

    Args:
        sources: What to read.
        splits: Splits that must have samples, such as ("test",) to evaluate.

    Raises:
        InputError: A source that cannot be read, a data set that is not there, two samples of one name, no sample left
            for a split that is wanted, nothing to learn, or a fold of something else than an index.
    """
    if sources.fold is not None and (sources.coco or sources.folders):
        raise InputError("--fold splits an index.csv by its groups: leave --coco and --folder out, or leave out --fold")
    samples: list[Sample] = []
    for folder in sources.indexes:
        samples += _from_folder(folder, sources)
    for coco in sources.coco:
        samples += samples_from_coco(coco.annotations, coco.images, coco.split)
    for plain in sources.folders:
        samples += samples_from_folder(plain)
    samples = _told_apart(samples)
    taken, weights = _taken(samples, sources), dict(sources.weights)
    kept = [replace(s, weight=weights.get(s.dataset, 1.0)) for s in samples if s.dataset in taken]
    if "val" in splits and kept and not any(sample.split == "val" for sample in kept):
        kept = _with_val(kept)
    for split in splits:
        if not any(sample.split == split for sample in kept):
            why = ", none of it under an open licence" if sources.is_only_open and not taken else ""
            raise InputError(f"no image has the split {split}{why}: give data with {' and '.join(splits)} images")
    if "train" in splits and not any(
        t.is_present for sample in kept if sample.split == "train" for t in sample.targets
    ):
        raise InputError("no train image shows any concept, all of their masks are empty: give the values of the masks")
    return tuple(kept)


def _taken(samples: Sequence[Sample], sources: Sources) -> set[str]:
    """Choose the data sets that are read.

    Raises:
        InputError: One is named that is not there.
    """
    known = {sample.dataset for sample in samples}
    named = (("--datasets", sources.only), ("--leave-out", sources.left_out), ("--weight", dict(sources.weights)))
    for option, names in named:
        unknown = sorted(set(names) - known)
        if unknown:
            raise InputError(
                f"{option}: there is no data set {', '.join(unknown)}, allowed are {', '.join(sorted(known))}"
            )
    taken = known & set(sources.only or known) - set(sources.left_out)
    return {name for name in taken if is_open(name)} if sources.is_only_open else taken


def _from_folder(folder: Path, sources: Sources) -> list[Sample]:
    """Read a folder with an index.csv, or an export of Roboflow."""
    exports = sorted(folder.glob(f"*/{_ROBOFLOW}")) if not (folder / "index.csv").is_file() else []
    if exports and sources.fold is not None:
        raise InputError(f"--fold splits an index.csv by its groups, {folder} has none: leave out --fold")
    if exports:
        splits = {"valid": "val", "val": "val", "test": "test"}
        found: list[Sample] = []
        for path in exports:
            found += samples_from_coco(path, None, cast(Split, splits.get(path.parent.name.lower(), "train")))
        return found
    try:
        rows = read_index(folder)
    except InputError as error:
        if (folder / "index.csv").is_file():
            raise
        raise InputError(f"{error}; for COCO JSON use --coco, for pictures and masks --folder IMAGES MASKS") from error
    own = [*samples_from_index(folder, rows)]
    own += samples_from_volumes(folder, sources.slices, rows) if sources.slices else ()
    return own if sources.fold is None else _split_anew(own, rows, sources.fold)


def _with_val(samples: Sequence[Sample]) -> list[Sample]:
    """Make val of a fifth of the train images, whole groups in the order of a hash; the same ones every time."""
    train = [sample for sample in samples if sample.split == "train"]
    sizes = Counter((sample.dataset, sample.group) for sample in train)
    if len(sizes) < 2:
        return list(samples)
    order = sorted(sizes, key=hash_of_group)
    chosen: set[tuple[str, str]] = set()
    for group in order[:-1]:
        if sum(sizes[one] for one in chosen) >= len(train) / _VAL_EVERY:
            break
        chosen.add(group)
    count = sum(sizes[group] for group in chosen)
    log.warning(
        "no source has val images: %d of the %d train images are val now, %d of %d groups; to choose them yourself, "
        "give --coco-val or a split",
        *(count, len(train), len(chosen), len(sizes)),
    )
    return [
        replace(sample, split="val") if sample.split == "train" and (sample.dataset, sample.group) in chosen else sample
        for sample in samples
    ]


def _told_apart(samples: Sequence[Sample]) -> list[Sample]:
    """Give different pictures of one name the names of their folders too.

    Raises:
        InputError: A picture is given twice.
    """
    counts = Counter(sample.name for sample in samples)
    named = [
        replace(sample, name=f"{sample.image.parent.name}/{sample.name}") if counts[sample.name] > 1 else sample
        for sample in samples
    ]
    twice = [name for name, count in Counter(sample.name for sample in named).items() if count > 1]
    if twice:
        raise InputError(
            f"{len(twice)} images are given twice ({twice[0]}, ...): give each source once, under one name"
        )
    return named


def _split_anew(samples: Sequence[Sample], rows: Sequence[IndexRow], fold: Fold) -> list[Sample]:
    """Put the samples of an index into the splits of a fold, those of `medsam3 eval`: test groups are in no other."""
    splits = {(row.dataset, row.group): row.split for row in in_fold(rows, fold)}
    return [replace(sample, split=splits[sample.dataset, sample.group]) for sample in samples]


@dataclass(frozen=True)
class Licence:
    """The licence of a data set as far as known.

    Attributes:
        licence: In words.
        is_open: The original itself is under CC0, CC BY, CC BY-SA or MIT; what only a copy says does not count.
        why: What `is_open` rests on.
    """

    licence: str
    is_open: bool
    why: str


@cache
def licences() -> Mapping[str, Licence]:
    """Read the table `licences.json`, whose facts are those of THIRD_PARTY.md, by data set."""
    text = resources.files("medsam3.data").joinpath("licences.json").read_text(encoding="utf-8")
    return {entry.pop("dataset"): Licence(**entry) for entry in json.loads(text)}


def is_open(dataset: str) -> bool:
    """Tell whether a data set may train weights that anybody may use; one that is not in the table may not."""
    known = licences().get(dataset)
    return known is not None and known.is_open
