"""The reader of a data folder with an `index.csv`: one row for each image and concept.

Columns: dataset, image, mask, concept, label_value, split, group, present. Paths are relative to the folder, a mask is
an 8- or 16-bit label map of the image's size, `label_value` joins with `|` the values whose union is the concept, and
`present` 0 marks a true negative: the concept is annotated in that data set and absent from that image. `group` names
what must stay in one split (a patient, a sequence); `in_fold` splits anew by it. It does not know models,
training or metrics.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any, Literal, TypeGuard, TypeVar, cast, get_args

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError, first_few, reason_of
from medsam3.geometry import BoolArray
from medsam3.io.raster import open_picture

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
LabelMap = NDArray[np.uint8] | NDArray[np.uint16]
Labels = TypeVar("Labels", bound=NDArray[Any])

MOST_FOLDS = 20
FOLD_VAL_SHARE = 8
"""Of the groups outside the test fold, one image in so many validates."""
COLUMNS = ("dataset", "image", "mask", "concept", "label_value", "split", "group", "present")
_VOLUME_SUFFIXES = (".nii", ".nii.gz")
_TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    5: lambda labels: labels.T,
    6: lambda labels: np.rot90(labels, -1),
    7: lambda labels: np.rot90(labels, 2).T,
    8: lambda labels: np.rot90(labels, 1),
}
"""From a picture as it is stored to the one that is shown, by EXIF orientations that exchange the sides."""
_ORIENTATION_TAG = 0x0112
_LABEL_MODES = {"1": np.uint8, "L": np.uint8, "P": np.uint8, "I;16": np.uint16, "I;16B": np.uint16, "I": np.uint16}


@dataclass(frozen=True)
class IndexRow:
    """One image asked about one concept.

    Attributes:
        dataset: Name of the data set; negatives hold within one data set only.
        image: The picture or volume.
        mask: Its label map, of the same size.
        concept: The phrase of the concept.
        label_values: Values of the label map whose union is the concept, each at least 1.
        split: Where the row belongs; no group crosses splits.
        group: What must not be shared between splits (patient, sequence, volume), unique within its data set.
        is_present: The concept has at least one pixel in this image; False marks a true negative.
        instances: A map of instance numbers (0 background), `<dataset>/instances/<stem>.png`; None where none exists.
        loader: Gives the numbers of the concept's objects (H, W), 0 elsewhere, if `mask` is no label map, as in COCO.
    """

    dataset: str
    image: Path
    mask: Path
    concept: str
    label_values: tuple[int, ...]
    split: Split
    group: str
    is_present: bool
    instances: Path | None = None
    loader: Callable[[], NDArray[np.integer]] | None = None

    @property
    def is_volume(self) -> bool:
        """The image is a NIfTI volume, not a picture."""
        return is_volume_file(self.image.name)


def is_volume_file(name: str) -> bool:
    """The name is that of a NIfTI volume."""
    return name.lower().endswith(_VOLUME_SUFFIXES)


def read_index(folder: Path) -> tuple[IndexRow, ...]:
    """All rows of `folder/index.csv`, in the file's order.

    Raises:
        InputError: No such file, a column that lacks, a field that cannot be read, a path that leaves the folder, a
            group that lies in two splits, or no rows at all. Image files are not opened here.
    """
    table = folder / "index.csv"
    if not folder.is_dir():
        reason = "is a file: name the folder that it lies in" if folder.exists() else "does not exist: correct the path"
        raise InputError(f"{folder} {reason}")
    if not table.is_file():
        raise InputError(f"{folder} holds no index.csv: name a data folder with an index.csv ({', '.join(COLUMNS)})")
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            header = stream.readline()
            stream.seek(0)
            apart = max((",", ";", "\t"), key=header.count)  # spreadsheets of many countries write semicolons
            rows = tuple(_rows(csv.DictReader(stream, delimiter=apart), table))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table.name} cannot be read as UTF-8 CSV ({error}): save it as UTF-8 CSV") from error
    if not rows:
        raise InputError(f"{table} has no rows: it needs one row for each image and concept")
    _check_groups(rows, table)
    return rows


@dataclass(frozen=True)
class Fold:
    """Fold `number` of `count`, counted from 1, as `2/5` says it."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 2 <= self.count <= MOST_FOLDS or not 1 <= self.number <= self.count:
            raise InputError(f"fold is {self}, allowed are 1/n to n/n with n from 2 to {MOST_FOLDS}, such as 1/5")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def from_text(cls, text: str) -> Fold:
        """Read `2/5`.

        Raises:
            InputError: Of another form, or out of range.
        """
        parts = text.split("/")
        if len(parts) != 2 or not all(part.isascii() and part.isdigit() for part in parts):
            raise InputError(f"fold is {text!r}, allowed are 1/n to n/n with n from 2 to {MOST_FOLDS}, such as 1/5")
        return cls(int(parts[0]), int(parts[1]))


def in_fold(rows: Iterable[IndexRow], fold: Fold) -> tuple[IndexRow, ...]:
    """The rows in their order, split anew for cross-validation: each group is in `test` in exactly one of the folds.

    Within each data set, groups with the same present concepts are spread evenly over the folds by number of images, in
    order of a hash of their name, so that the folds are alike and the same in every run. Of the groups left, every
    eighth image's worth is `val`, the rest `train`; what the split was before does not matter.
    """
    everything = tuple(rows)
    images: dict[tuple[str, str], set[Path]] = defaultdict(set)
    shown: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in everything:
        images[row.dataset, row.group].add(row.image)
        shown[row.dataset, row.group].update([row.concept] if row.is_present else [])
    strata: dict[tuple[str, tuple[str, ...]], list[tuple[str, str]]] = defaultdict(list)
    for group in sorted(images, key=hash_of_group):
        strata[group[0], tuple(sorted(shown[group]))].append(group)
    split: dict[tuple[str, str], Split] = {}
    filled: Counter[tuple[str, int]] = Counter()
    for (dataset, _), groups in sorted(strata.items()):
        in_stratum: Counter[int] = Counter()
        for group in groups:
            least = min(range(fold.count), key=lambda n: (in_stratum[n], filled[dataset, n], n))
            in_stratum[least] += len(images[group])
            filled[dataset, least] += len(images[group])
            split[group] = "test" if least == fold.number - 1 else "train"
        split.update(_validating([group for group in groups if split[group] == "train"], images))
    return tuple(replace(row, split=split[row.dataset, row.group]) for row in everything)


def _validating(
    groups: Sequence[tuple[str, str]], images: Mapping[tuple[str, str], set[Path]]
) -> dict[tuple[str, str], Split]:
    """Choose the groups, in order, that hold every eighth image."""
    chosen: dict[tuple[str, str], Split] = {}
    passed = FOLD_VAL_SHARE // 2
    for group in groups:
        before, passed = passed, passed + len(images[group])
        if passed // FOLD_VAL_SHARE > before // FOLD_VAL_SHARE:
            chosen[group] = "val"
    return chosen


def hash_of_group(group: tuple[str, str]) -> bytes:
    """Hash a data set and the name of one of its groups: an order that no one chose."""
    return hashlib.sha256("/".join(group).encode()).digest()


def load_label_map(path: Path) -> LabelMap:
    """Read the label map (H, W) of a picture, uint8, or uint16 if the file has 16 bits; a palette's indices are kept.

    Raises:
        InputError: Missing, a volume, not a readable image, or one with colours.
    """
    if is_volume_file(path.name):
        raise InputError(f"{path} is a volume, a label map of a picture is wanted: give a PNG of its size")
    try:
        with open_picture(path, also=["GIF"]) as opened:
            mode, values = opened.mode, np.asarray(opened)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: correct the path in index.csv") from error
    except (OSError, InputError) as error:
        raise InputError(f"{path}: {reason_of(error)}") from error
    if mode in ("RGB", "RGBA", "LA") and _is_grey(values, mode):
        mode, values = "L", values[..., 0]
    if mode not in _LABEL_MODES:
        raise InputError(
            f"{path} is of mode {mode}, a label map has one channel of 8 or 16 bits, no colours: save it as grey PNG, "
            "with a number for each concept"
        )
    if values.min(initial=0) < 0 or values.max(initial=0) > np.iinfo(np.uint16).max:
        raise InputError(f"{path} holds values outside 0..65535: save the mask as a 16-bit PNG")
    return values.astype(_LABEL_MODES[mode])


def _is_grey(values: NDArray[np.uint8], mode: str) -> bool:
    """Tell whether all colours (H, W, C) are alike, and nothing is transparent."""
    count = 1 if mode == "LA" else 3
    is_opaque = values.shape[-1] == count or bool((values[..., count:] == 255).all())
    return is_opaque and bool((values[..., :count] == values[..., :1]).all())


def shown_size(picture: Path) -> tuple[tuple[int, int], int]:
    """Read the size (H, W) of a picture as it is shown, and its EXIF orientation.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with open_picture(picture) as opened:
            orientation = int(opened.getexif().get(_ORIENTATION_TAG, 1))
            height, width = opened.height, opened.width
    except FileNotFoundError as error:
        raise InputError(f"{picture} does not exist: correct its path") from error
    except (OSError, InputError) as error:
        raise InputError(f"{picture}: {reason_of(error)}") from error
    return ((width, height) if orientation in _TURNS else (height, width)), orientation


def turned_unseen(pictures: Mapping[str, Path]) -> str:
    """Say which pictures EXIF turns or mirrors without a change of their sides; "" if none.

    Masks that were drawn on them as they are stored cannot be told from those that were drawn as they are shown.

    Raises:
        InputError: One cannot be read.
    """
    found = []
    for name, picture in pictures.items():
        (height, width), orientation = shown_size(picture)
        if orientation > 1 and (orientation not in _TURNS or height == width):
            found.append(name)
    if not found:
        return ""
    return (
        f"{len(found)} pictures are turned or mirrored by EXIF ({first_few(found)}): their masks are taken as drawn on "
        "the pictures as viewers show them"
    )


def fitted(labels: Labels, picture: Path) -> Labels:
    """Turn labels (H, W) as EXIF turns the picture, if they were drawn on it as it is stored; else give them as is.

    Raises:
        InputError: They fit the picture neither way.
    """
    size, orientation = shown_size(picture)
    if labels.shape == size:
        return labels
    if orientation in _TURNS and labels.shape == size[::-1]:
        return cast(Labels, np.ascontiguousarray(_TURNS[orientation](labels)))
    raise InputError(
        f"the mask of {picture} has {labels.shape} pixels (rows, columns), its image has {size}: give the mask of this "
        "picture, or scale it to these without smoothing"
    )


def concept_mask(labels: LabelMap, label_values: tuple[int, ...]) -> BoolArray:
    """Mark the pixels of a label map (H, W) that have one of the concept's values, (H, W) bool."""
    mask: BoolArray = np.isin(labels, label_values)
    return mask


def _rows(reader: csv.DictReader[str], table: Path) -> Iterator[IndexRow]:
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{table.name} lacks the columns {', '.join(missing)}: it needs {', '.join(COLUMNS)}")
    for number, fields in enumerate(reader, start=2):
        try:
            yield _row(fields, table.parent)
        except InputError as error:
            raise InputError(f"{table.name} line {number}: {error}") from error


def _row(fields: Mapping[str, str | None], folder: Path) -> IndexRow:
    text = {column: (fields[column] or "").strip() for column in COLUMNS}
    empty = [column for column, value in text.items() if not value]
    if empty:
        raise InputError(f"{', '.join(empty)} empty, every column needs a value")
    split = text["split"]
    if not _is_split(split):
        raise InputError(f"split is {split!r}, allowed are train, val and test")
    if text["present"] not in ("0", "1"):
        raise InputError(f"present is {text['present']!r}, allowed are 0 and 1")
    mask = path_inside(folder, text["mask"])
    instances = mask.parent.parent / "instances" / mask.name
    return IndexRow(
        dataset=text["dataset"],
        image=path_inside(folder, text["image"]),
        mask=mask,
        concept=text["concept"],
        label_values=_label_values(text["label_value"]),
        split=split,
        group=text["group"],
        is_present=text["present"] == "1",
        instances=instances if instances.is_file() else None,
    )


def _is_split(text: str) -> TypeGuard[Split]:
    return text in SPLITS


def path_inside(folder: Path, text: str, what: str = "path") -> Path:
    """Give a path that was written relative to a folder, also one that was written on Windows.

    Raises:
        InputError: It leaves the folder.
    """
    relative = PureWindowsPath(text)  # reads both kinds of slashes
    if "\0" in text or relative.drive or relative.root or ".." in relative.parts:
        raise InputError(f"{what} {text!r} leaves the folder {folder}: write it relative to that, without ..")
    plain = folder / text
    return plain if "\\" not in text or plain.exists() else folder.joinpath(*relative.parts)


def _label_values(text: str) -> tuple[int, ...]:
    parts = text.split("|")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"label_value is {text!r}, allowed are whole numbers from 1 joined by '|', such as 1|2")
    return tuple(int(part) for part in parts)


def _check_groups(rows: tuple[IndexRow, ...], table: Path) -> None:
    seen: dict[tuple[str, str], str] = {}
    for row in rows:
        first = seen.setdefault((row.dataset, row.group), row.split)
        if first != row.split:
            raise InputError(
                f"{table.name}: group {row.group!r} of {row.dataset} is in {first} and in {row.split}, "
                "a group must lie in one split: correct the split column"
            )
