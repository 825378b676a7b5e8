"""Training samples: an image with the concepts that are annotated in it, present or absent.

All sources of data give this one value. It also says which concepts may serve as negatives of an image, and what a set
of samples holds, by contents. It knows no features and no model.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3 import concepts
from medsam3.data.index import IndexRow, Split, concept_mask, fitted, load_label_map, read_index
from medsam3.errors import InputError
from medsam3.io import read
from medsam3.store import sha256_of
from medsam3.view.view import view_of

RGB = NDArray[np.uint8]
Instances = NDArray[np.int32]
_PLAIN_NAMES = ("images", "image", "imgs", "img", "train", "valid", "val", "validation", "test")


@dataclass(frozen=True)
class Target:
    """One concept of one image.

    Attributes:
        concept: Its phrase.
        is_present: The image shows it.
        load: Gives instance numbers (H, W) int32, 0 where the concept is not.
        source: The files and texts that decide what `load` gives; () if only `load` can tell.
    """

    concept: str
    is_present: bool
    load: Callable[[], Instances]
    source: tuple[Path | str, ...] = ()

    def digest(self) -> str:
        """Compute a SHA-256 of the concept and of all that its mask depends on; file names do not count."""
        digest = hashlib.sha256(f"{self.concept}={int(self.is_present)}\n".encode())
        if not self.source:
            labels = self.load()
            digest.update(f"{labels.shape}".encode() + labels.tobytes())
        for part in self.source:
            digest.update(f"{contents_of(part) if isinstance(part, Path) else part}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Sample:
    """One image with all concepts that its data set annotates.

    Attributes:
        name: Unique among the samples of a run.
        image: The file that it comes from.
        dataset, group, split: As in `IndexRow`.
        targets: The concepts.
        loader: Gives the picture where it is not the whole file, such as a slice of a volume.
        is_mirrorable: Left and right may be swapped, as far as the view goes; see `is_sided`.
        weight: How much more often than others of its size its data set is drawn.
    """

    name: str
    image: Path
    dataset: str
    group: str
    split: Split
    targets: tuple[Target, ...]
    loader: Callable[[], RGB] | None = None
    is_mirrorable: bool = True
    weight: float = 1.0

    def load_rgb(self) -> RGB:
        """Show the picture as `medsam3.segment` shows it to a model, (H, W, 3) uint8.

        Raises:
            InputError: As `medsam3.read`; a file of several pages, slices or frames.
        """
        if self.loader is not None:
            return self.loader()
        image = read(self.image)
        if image.shape[0] != 1:
            raise InputError(
                f"{self.image} holds {image.shape[0]} pages, slices or frames, a picture is wanted: save one as a file"
            )
        return view_of(image).rgb(0)

    def picture_digest(self) -> str:
        """Compute a SHA-256 of what `load_rgb` depends on: the file's bytes, and which slice of it is shown."""
        part = "" if self.loader is None else self.name.rpartition("#")[2]
        return hashlib.sha256(f"{contents_of(self.image)}#{part}".encode()).hexdigest()


def contents_of(path: Path) -> str:
    """Compute the SHA-256 of a file; while its size and time stay, it is read once.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        stat = path.stat()
        return _contents(path, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): put the file back, or leave it out") from error


@cache
def _contents(path: Path, size: int, mtime_ns: int) -> str:
    del size, mtime_ns
    return sha256_of(path)


def contents_digest(samples: Iterable[Sample]) -> str:
    """Compute a SHA-256 of all that training reads: pictures, masks, concepts, splits, and how often sets are drawn.

    Names do not count, so the data may be moved; the order does, as batches are drawn by it.
    """
    digest, sets = hashlib.sha256(), dict[str, int]()
    for sample in samples:
        number = sets.setdefault(sample.dataset, len(sets))
        own = (sample.picture_digest(), *(target.digest() for target in sample.targets))
        digest.update(f"{number};{sample.split};{sample.weight};{own}\n".encode())
    return digest.hexdigest()


def set_name(folder: Path) -> str:
    """Name the data set of a folder: by its own name, or by the folder above if that is just `images` or `train`."""
    place = folder.resolve()
    while place.name.lower() in _PLAIN_NAMES and place.parent != place:
        place = place.parent
    return place.name


def connected_objects(mask: NDArray[np.bool_]) -> Instances:
    """Number the parts of (H, W) or (N, H, W) that touch at least at a corner, from 1."""
    labels, _ = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
    return np.asarray(labels, dtype=np.int32)


def samples_from_index(folder: Path, rows: Sequence[IndexRow] | None = None) -> tuple[Sample, ...]:
    """Read all pictures of a data folder with `index.csv`, by name; for its volumes see `samples_from_volumes`.

    Args:
        folder: The folder.
        rows: What `read_index` gave for it; None reads it.

    Raises:
        InputError: See `read_index`.
    """
    own = [row for row in (read_index(folder) if rows is None else rows) if not row.is_volume]
    own.sort(key=lambda row: row.image.as_posix())
    return tuple(_sample(list(group), folder) for _, group in groupby(own, key=lambda row: row.image))


def _sample(rows: Sequence[IndexRow], folder: Path) -> Sample:
    first = rows[0]
    targets = tuple(Target(row.concept, row.is_present, _index_loader(row), _source(row)) for row in rows)
    name = first.image.relative_to(folder).as_posix()
    return Sample(name, first.image, first.dataset, first.group, first.split, targets)


def _source(row: IndexRow) -> tuple[Path | str, ...]:
    numbers = () if row.instances is None else (row.instances,)
    return (row.mask, f"{row.label_values}", *numbers)


def _index_loader(row: IndexRow) -> Callable[[], Instances]:
    def load() -> Instances:
        mask = concept_mask(load_label_map(row.mask), row.label_values)
        if row.instances is None:
            return fitted(connected_objects(mask), row.image)
        return fitted(np.where(mask, load_label_map(row.instances).astype(np.int32), 0), row.image)

    return load


def foreign_concepts(samples: Sequence[Sample], weights: Sequence[float] | None = None) -> dict[str, dict[str, float]]:
    """Find for each data set the concepts that surely are not in its images, as those belong to another image family.

    Each comes with the weight of the images that show it, by default their number. Asked for as often where they are
    absent as where they are present, phrases carry no hint of the answer; a frequent phrase that is rarely denied would
    always be affirmed.

    Which ones these are is said by `concepts.surely_absent`.
    """
    by_dataset: dict[str, set[str]] = defaultdict(set)
    shown: dict[str, float] = defaultdict(float)
    for sample, weight in zip(samples, [1.0] * len(samples) if weights is None else weights, strict=True):
        by_dataset[sample.dataset].update(target.concept for target in sample.targets)
        for target in sample.targets:
            shown[target.concept] += weight if target.is_present else 0.0
    absent = {name: set(concepts.surely_absent(own)) for name, own in by_dataset.items()}
    return {
        name: {concept: shown[concept] for concept in sorted(shown) if shown[concept] and concepts.find(concept) in own}
        for name, own in absent.items()
    }


def is_sided(sample: Sample) -> bool:
    """The sample must not be mirrored: a concept of it has a side, or its view shows front and back side by side."""
    return not sample.is_mirrorable or any(concepts.side_of(target.concept) is not None for target in sample.targets)
