"""Training samples from plain folders of pictures and masks, matched by their names without the ending.

A mask is named as its picture, or with an ending such as `_mask` or `_segmentation`, beside it or in another folder;
several masks of a picture are its objects. A mask is of one concept, 0 where it is not, or a label map whose values are
named. If the pictures lie in folders named train, val and test, these are the splits; otherwise groups are ordered by a
hash and cut at 70 % and 80 %.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsam3.data.index import (
    SPLITS,
    LabelMap,
    Split,
    concept_mask,
    fitted,
    hash_of_group,
    load_label_map,
    turned_unseen,
)
from medsam3.data.samples import Instances, Sample, Target, connected_objects, set_name
from medsam3.errors import InputError, first_few
from medsam3.io.files import RASTER_SUFFIXES
from medsam3.prompts import check_phrase

_log = logging.getLogger(__name__)
_SPLITS: dict[str, Split] = {**{name: name for name in SPLITS}, "valid": "val", "validation": "val"}
_TRAIN_SHARE, _VAL_SHARE = 0.7, 0.1
_MASK_ENDING = re.compile(
    r"[ _.-](mask|seg|segmentation|label|gt|groundtruth|annotation)s?([ _-]?\d+)?$", re.IGNORECASE
)
_SOFT_LEVELS, _SOFT_SHARE = 40, 0.97
"""A mask with more values is black and white all the same if this share of it lies so near to 0 and 255."""
_MASK_SUFFIXES = (*RASTER_SUFFIXES, ".gif")
_LEAST_JUDGED, _INVERTED_SHARE = 3, 0.8
"""Masks are taken for inverted if so many, and this share of them, cover all corners."""


@dataclass(frozen=True)
class FolderSource:
    """Two folders and what the masks mean.

    Attributes:
        images, masks: The folders, which may be the same one; folders in them are looked into.
        concept: What is not 0 in the masks; "" if `labels` says it.
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
        for phrase in (self.concept, *(name for name, _ in self.labels)):
            if phrase:
                check_phrase(phrase)
        try:
            groups = re.compile(self.group_pattern).groups
        except re.error as error:
            raise InputError(f"--group-pattern is not a regular expression ({error})") from error
        if self.group_pattern and groups != 1:
            raise InputError(f"--group-pattern has {groups} groups, allowed is 1, such as (patient[0-9]+)")

    @property
    def dataset(self) -> str:
        """The name of the set; see `set_name`."""
        return set_name(self.images)


def parse_labels(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Read `1=optic disc,2=optic cup`, values of one concept joined by `|`; `0=PHRASE` is for inverted masks.

    Raises:
        InputError: Another form, or a concept named twice.
    """
    named: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        values, _, concept = (piece.strip() for piece in part.partition("="))
        numbers = values.split("|")
        if not concept or not all(n.isascii() and n.isdigit() for n in numbers) or concept in named:
            raise InputError(f"--labels has {part!r}, allowed are 1=PHRASE,2=PHRASE or 1|2=PHRASE, each phrase once")
        named[concept] = tuple(int(n) for n in numbers)
    return tuple(named.items())


def samples_from_folder(source: FolderSource) -> tuple[Sample, ...]:
    """Read all pictures of the folder, by name; each mask is read once, to see what is present.

    Raises:
        InputError: No pictures, a picture without a mask or with another size, two files of one name, a mask that
            cannot be read, values that nothing names, or masks that seem to be inverted.
    """
    images, masks = _paired(source)
    if not images:
        raise InputError(f"{source.images} holds no pictures ({', '.join(RASTER_SUFFIXES)})")
    lacking = [stem for stem in images if not masks[stem]]
    if lacking:
        raise InputError(
            f"{source.masks} has no mask for {len(lacking)} of {len(images)} images ({first_few(lacking)}): a mask is "
            f"named as its picture, or with an ending such as _mask, and is {', '.join(_MASK_SUFFIXES)}"
        )
    if note := turned_unseen(images):
        _log.warning("%s: %s", source.images, note)
    groups = {stem: _group(stem, source.group_pattern) for stem in images}
    splits = _given_splits(images) or hashed_splits(groups, source.dataset)
    samples = tuple(
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
    if source.concept:
        _check_inverted(samples, source)
    return samples


def _paired(source: FolderSource) -> tuple[dict[str, Path], dict[str, tuple[Path, ...]]]:
    """Find the pictures by name, and each one's masks: that of its own name, or else those with an ending."""
    files, masks = _by_stem(source.images, RASTER_SUFFIXES), _by_stem(source.masks, _MASK_SUFFIXES)
    is_one_folder = source.images.resolve() == source.masks.resolve()
    ended: dict[str, list[Path]] = {}
    for stem, path in masks.items():
        if _MASK_ENDING.search(stem):
            ended.setdefault(_MASK_ENDING.sub("", stem), []).append(path)
    of_picture = {path for stem, own in ended.items() if stem in files for path in own}
    images = {stem: path for stem, path in files.items() if path not in of_picture}
    if is_one_folder:
        return images, {stem: tuple(ended.get(stem, ())) for stem in images}
    return images, {stem: (masks[stem],) if stem in masks else tuple(ended.get(stem, ())) for stem in images}


def _check_inverted(samples: Sequence[Sample], source: FolderSource) -> None:
    """Refuse masks that cover the corners of nearly every picture, as the background does.

    Raises:
        InputError: They do.
    """
    covering = shown = 0
    for sample in samples:
        labels = sample.targets[0].load() > 0
        shown += bool(labels.any())
        covering += bool(labels[[0, 0, -1, -1], [0, -1, 0, -1]].all())
    if shown >= _LEAST_JUDGED and covering >= _INVERTED_SHARE * shown:
        values = sorted({int(value) for value in np.unique(load_label_map(_first_mask(samples[0]))) if value})
        named = "|".join(map(str, values[:3])) or "255"
        raise InputError(
            f"{source.masks}: {covering} of {shown} masks cover all corners of their picture, so they seem to be "
            f"inverted: if they are, give --labels '0={source.concept}' in place of --concept; if they are not, "
            f"--labels '{named}={source.concept}'"
        )


def _first_mask(sample: Sample) -> Path:
    return next(part for part in sample.targets[0].source if isinstance(part, Path))


def hashed_splits(groups: Mapping[str, str], dataset: str) -> dict[str, Split]:
    """Choose a split for each name: groups ordered by a hash of `dataset/group` and cut at 70 % and 80 % of the names.

    With two groups or more, train and val have at least one each.
    """
    order = sorted(set(groups.values()), key=lambda group: hash_of_group((dataset, group)))
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


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in found:
                raise InputError(f"{found[stem]} and {path.name} have one name: keep one of them")
            found[stem] = path
    return found


def _given_splits(stems: Mapping[str, Path]) -> dict[str, Split]:
    """Read the splits that folders named train, val and test give; {} if any picture lies elsewhere."""
    given = {stem: _SPLITS[stem.split("/")[0].lower()] for stem in stems if stem.split("/")[0].lower() in _SPLITS}
    return given if len(given) == len(stems) else {}


def _group(stem: str, pattern: str) -> str:
    if not pattern:
        return stem
    found = re.search(pattern, stem)
    if found is None or not found.group(1):
        raise InputError(f"--group-pattern {pattern!r} finds nothing in {stem!r}: it must fit every name")
    return found.group(1)


def _targets(image: Path, masks: tuple[Path, ...], source: FolderSource) -> tuple[Target, ...]:
    read = [_read_mask(mask, image, source) for mask in masks]
    values = sorted({int(value) for labels in read for value in np.unique(labels)})
    wanted = source.labels or ((source.concept, tuple(value for value in values if value)),)
    unknown = sorted({value for value in values if value} - {value for _, own in wanted for value in own})
    if unknown and 0 not in {value for _, own in wanted for value in own}:
        raise InputError(
            f"{masks[0]} holds the values {first_few(unknown)}, which --labels does not name: name them all"
        )
    return tuple(
        Target(concept, bool(set(own) & set(values)), _loader(image, masks, own, source), (*masks, f"{own}"))
        for concept, own in wanted
    )


def _read_mask(mask: Path, image: Path, source: FolderSource) -> LabelMap:
    """Read a mask as the picture is shown: its own values, or 0 and another one for a single concept.

    Raises:
        InputError: It has another size, or more values than one concept has.
    """
    labels = load_label_map(mask)
    if source.concept:
        values = np.unique(labels[labels > 0])
        if len(values) > 1:
            is_near = (labels <= _SOFT_LEVELS) | ((labels >= 255 - _SOFT_LEVELS) & (labels <= 255))
            if is_near.mean() < _SOFT_SHARE or values.max() <= _SOFT_LEVELS:
                raise InputError(
                    f"{mask} holds the values {first_few(values.tolist())}, --concept allows one besides 0: "
                    "use --labels"
                )
            labels = np.where(labels > 127, 255, 0).astype(np.uint8)  # lossy or smoothed, but black and white
    try:
        return fitted(labels, image)
    except InputError as error:
        raise InputError(f"{mask}: {error}") from error


def _loader(
    image: Path, masks: tuple[Path, ...], values: tuple[int, ...], source: FolderSource
) -> Callable[[], Instances]:
    """Give connected parts of a single mask; of several masks, each one is an object."""

    def load() -> Instances:
        shown = [concept_mask(_read_mask(mask, image, source), values) for mask in masks]
        if len(shown) == 1:
            return connected_objects(shown[0])
        instances = np.zeros(shown[0].shape, np.int32)
        for number, mask in enumerate(shown, start=1):
            instances[mask] = number
        return instances

    return load
