"""Training samples from two plain folders, pictures and their masks, matched by their names without the ending.

A mask is of one concept, 0 where it is not, or a label map whose values are named. Where the pictures lie in folders
named train, val and test, these are the splits; otherwise groups are ordered by a hash and cut at 70 % and 80 %.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsam3.data.index import Split, concept_mask, load_label_map
from medsam3.data.samples import Instances, Sample, Target, connected_objects
from medsam3.errors import InputError
from medsam3.io.files import RASTER_SUFFIXES
from medsam3.io.raster import open_picture

_SPLITS: tuple[Split, ...] = ("train", "val", "test")
_TRAIN_SHARE, _VAL_SHARE = 0.7, 0.1
_PLAIN_NAMES = ("images", "image", "imgs", "img")
_MOST_NAMED = 3


@dataclass(frozen=True)
class FolderSource:
    """Two folders and what the masks mean.

    Attributes:
        images, masks: The folders; folders in them are looked into.
        concept: What is not 0 in the masks; "" where `labels` says it.
        labels: Concepts of a label map, each with the values that make it up.
        group_pattern: A regular expression with one group that finds in a name what must stay in one split, such as
            `(patient\\d+)`; "" makes every picture its own group.
    """

    images: Path
    masks: Path
    concept: str = ""
    labels: tuple[tuple[str, tuple[int, ...]], ...] = ()
    group_pattern: str = ""

    def __post_init__(self) -> None:
        for folder in (self.images, self.masks):
            if not folder.is_dir():
                raise InputError(f"{folder} is not a folder: --folder takes a folder of images and one of masks")
        if bool(self.concept) == bool(self.labels):
            raise InputError(f"--folder {self.images} needs either --concept PHRASE or --labels VALUE=PHRASE after it")
        try:
            groups = re.compile(self.group_pattern).groups
        except re.error as error:
            raise InputError(f"--group-pattern is not a regular expression ({error})") from error
        if self.group_pattern and groups != 1:
            raise InputError(f"--group-pattern has {groups} groups, allowed is 1, such as (patient[0-9]+)")

    @property
    def dataset(self) -> str:
        """The name of the set: that of the folder of images, or of the one above where that is just `images`."""
        name = self.images.resolve().name
        return self.images.resolve().parent.name if name.lower() in _PLAIN_NAMES else name


def parse_labels(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """`1=optic disc,2=optic cup`, values of one concept joined by `|`, as concepts with their values.

    Raises:
        InputError: Another form, or a concept named twice.
    """
    named: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        values, _, concept = (piece.strip() for piece in part.partition("="))
        numbers = values.split("|")
        if not concept or not all(n.isascii() and n.isdigit() and int(n) > 0 for n in numbers) or concept in named:
            raise InputError(f"--labels has {part!r}, allowed are 1=PHRASE,2=PHRASE or 1|2=PHRASE, each phrase once")
        named[concept] = tuple(int(n) for n in numbers)
    return tuple(named.items())


def samples_from_folder(source: FolderSource) -> tuple[Sample, ...]:
    """All pictures of the folder, by name; each mask is read once, to see what is present.

    Raises:
        InputError: No pictures, a picture without a mask or with another size, two files of one name, a mask that
            cannot be read, or values that nothing names.
    """
    images, masks = _by_stem(source.images), _by_stem(source.masks)
    if not images:
        raise InputError(f"{source.images} holds no pictures ({', '.join(RASTER_SUFFIXES)})")
    lacking = [stem for stem in images if stem not in masks]
    if lacking:
        named = ", ".join(lacking[:_MOST_NAMED]) + (", ..." if len(lacking) > _MOST_NAMED else "")
        raise InputError(
            f"{source.masks} has no mask for {len(lacking)} of {len(images)} images ({named}): names must match"
        )
    groups = {stem: _group(stem, source.group_pattern) for stem in images}
    splits = _given_splits(images) or hashed_splits(groups, source.dataset)
    return tuple(
        Sample(
            name=f"{source.dataset}/{path.relative_to(source.images).as_posix()}",
            image=path,
            dataset=source.dataset,
            group=groups[stem],
            split=splits[stem],
            targets=_targets(path, masks[stem], source),
        )
        for stem, path in images.items()
    )


def hashed_splits(groups: Mapping[str, str], dataset: str) -> dict[str, Split]:
    """A split for each name: groups ordered by a hash of `dataset/group` and cut at 70 % and 80 % of the names.

    With two groups or more, train and val have at least one each.
    """
    order = sorted(set(groups.values()), key=lambda group: hashlib.sha256(f"{dataset}/{group}".encode()).digest())
    sizes = {group: sum(own == group for own in groups.values()) for group in order}
    of_group: dict[str, Split] = {}
    before = 0
    for number, group in enumerate(order):
        share = before / len(groups)
        if number == 0 or (share < _TRAIN_SHARE and number < len(order) - 1):
            of_group[group] = "train"
        elif "val" not in of_group.values() or share < _TRAIN_SHARE + _VAL_SHARE:
            of_group[group] = "val"
        else:
            of_group[group] = "test"
        before += sizes[group]
    return {name: of_group[group] for name, group in groups.items()}


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in RASTER_SUFFIXES and not path.name.startswith("."):
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in found:
                raise InputError(f"{found[stem]} and {path.name} have one name: keep one of them")
            found[stem] = path
    return found


def _given_splits(stems: Mapping[str, Path]) -> dict[str, Split]:
    """The splits that folders named train, val and test give; {} where any picture lies elsewhere."""
    given = {stem: split for stem in stems for split in _SPLITS if stem.split("/")[0] == split}
    return given if len(given) == len(stems) else {}


def _group(stem: str, pattern: str) -> str:
    if not pattern:
        return stem
    found = re.search(pattern, stem)
    if found is None or not found.group(1):
        raise InputError(f"--group-pattern {pattern!r} finds nothing in {stem!r}: it must fit every name")
    return found.group(1)


def _targets(image: Path, mask: Path, source: FolderSource) -> tuple[Target, ...]:
    labels = load_label_map(mask)
    try:
        with open_picture(image) as opened:
            size = (opened.height, opened.width)
    except (OSError, InputError) as error:
        raise InputError(f"{image} cannot be read as a picture ({error}): replace the file") from error
    if size != labels.shape:
        raise InputError(
            f"{mask} has {labels.shape} pixels (rows, columns), its image has {size}: they must be the same"
        )
    values = [int(value) for value in np.unique(labels) if value > 0]
    wanted = source.labels
    if not wanted:
        if len(values) > 1:
            raise InputError(f"{mask} holds the values {_listed(values)}, --concept allows one besides 0: use --labels")
        wanted = ((source.concept, tuple(values)),)
    unknown = sorted(set(values) - {value for _, own in wanted for value in own})
    if unknown:
        raise InputError(f"{mask} holds the values {_listed(unknown)}, which --labels does not name: name them all")
    return tuple(Target(concept, bool(set(own) & set(values)), _loader(mask, own)) for concept, own in wanted)


def _listed(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values[:_MOST_NAMED]) + (", ..." if len(values) > _MOST_NAMED else "")


def _loader(mask: Path, values: tuple[int, ...]) -> Callable[[], Instances]:
    return lambda: connected_objects(concept_mask(load_label_map(mask), values))
