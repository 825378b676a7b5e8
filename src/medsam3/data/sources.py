"""Where training data comes from, in one value: folders with an index.csv, COCO JSON and plain folders, all together.

It also says which data sets are left out and how often the others are drawn. It knows no model and no arguments.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medsam3.data.folders import FolderSource, samples_from_folder
from medsam3.data.index import Fold, Split, in_fold, read_index
from medsam3.data.licences import is_open
from medsam3.data.samples import Sample, samples_from_coco, samples_from_index
from medsam3.data.volumes import SlicePlan, samples_from_volumes
from medsam3.errors import InputError


@dataclass(frozen=True)
class CocoSource:
    """A COCO JSON, the folder of its images, and its split."""

    annotations: Path
    images: Path
    split: Split = "train"


@dataclass(frozen=True)
class Sources:
    """All data of a run.

    Attributes:
        indexes: Folders with an `index.csv`.
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


def read_samples(sources: Sources) -> tuple[Sample, ...]:
    """The samples that are trained and validated on, `test` ones among them.

    Raises:
        InputError: A source that cannot be read, a data set that is not there, two samples of one name, no sample left
            for train or val, or a fold of something else than an index.
    """
    if sources.fold is not None and (sources.coco or sources.folders):
        raise InputError("--fold splits an index.csv by its groups: leave --coco and --folder out, or leave out --fold")
    samples: list[Sample] = []
    for folder in sources.indexes:
        own = [*samples_from_index(folder), *(samples_from_volumes(folder, sources.slices) if sources.slices else ())]
        samples += own if sources.fold is None else _split_anew(own, folder, sources.fold)
    for coco in sources.coco:
        samples += samples_from_coco(coco.annotations, coco.images, coco.split)
    for plain in sources.folders:
        samples += samples_from_folder(plain)
    _check_names(samples)
    known = {sample.dataset for sample in samples}
    weights = dict(sources.weights)
    for option, names in (("--datasets", sources.only), ("--leave-out", sources.left_out), ("--weight", weights)):
        unknown = sorted(set(names) - known)
        if unknown:
            raise InputError(
                f"{option}: there is no data set {', '.join(unknown)}, allowed are {', '.join(sorted(known))}"
            )
    taken = known & set(sources.only or known) - set(sources.left_out)
    if sources.is_only_open:
        taken = {name for name in taken if is_open(name)}
    kept = [replace(s, weight=weights.get(s.dataset, 1.0)) for s in samples if s.dataset in taken]
    for split in ("train", "val"):
        if not any(sample.split == split for sample in kept):
            why = ", none of it under an open licence" if sources.is_only_open and not taken else ""
            raise InputError(f"no image has the split {split}{why}: give data with a train and a val split")
    return tuple(kept)


def _split_anew(samples: Sequence[Sample], folder: Path, fold: Fold) -> list[Sample]:
    """The samples of an index in the splits of a fold, those of `medsam3 eval`: its test groups are in no other."""
    splits = {(row.dataset, row.group): row.split for row in in_fold(read_index(folder), fold)}
    return [replace(sample, split=splits[sample.dataset, sample.group]) for sample in samples]


def _check_names(samples: Sequence[Sample]) -> None:
    twice = [name for name, count in Counter(sample.name for sample in samples).items() if count > 1]
    if twice:
        raise InputError(
            f"{len(twice)} images are given twice ({twice[0]}, ...): give each source once, under one name"
        )
