"""Training samples from volumes: slices, cut and shown exactly as `medsam3 segment VOLUME` shows them to a model.

A volume gives every k-th slice across its concepts, and some slices without any as true negatives. Pixels are read when
they are asked for; masks are kept packed in memory. It knows no features and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from pathlib import Path

import numpy as np

from medsam3.data.index import IndexRow, read_index
from medsam3.data.samples import RGB, Instances, Sample, Target, connected_objects
from medsam3.errors import InputError
from medsam3.geometry import BoolArray
from medsam3.io import read
from medsam3.io.labels import label_stack, label_values
from medsam3.segmentation.packed import PackedMask
from medsam3.view.planes import CHOICES, PlaneChoice, turned
from medsam3.view.view import View, view_of


@dataclass(frozen=True)
class SlicePlan:
    """Which slices of a volume are trained on.

    Attributes:
        every: Every so many slices across the concepts, from the first that has one to the last.
        empty_share: Slices without any concept, as a share of those that have one; they are spread evenly.
        planes: How volumes are cut; each plane gives its own samples. `auto` is what `medsam3 segment` does by itself.
    """

    every: int = 2
    empty_share: float = 0.25
    planes: tuple[PlaneChoice, ...] = ("auto",)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InputError(f"every {self.every}th slice was asked for, allowed is 1 and above")
        if not self.empty_share >= 0:
            raise InputError(f"empty_share is {self.empty_share}, allowed is 0 and above")
        unknown = [plane for plane in self.planes if plane not in CHOICES]
        if unknown or not self.planes:
            raise InputError(f"planes are {', '.join(self.planes) or 'none'}, allowed are {', '.join(CHOICES)}")


def samples_from_volumes(
    folder: Path, plan: SlicePlan | None = None, rows: Sequence[IndexRow] | None = None
) -> tuple[Sample, ...]:
    """Cut slices of all volumes of a data folder with `index.csv`; pictures are left out.

    A sample is named `IMAGE#N`, N being the number of the slice as it is cut, or `IMAGE#PLANE-N` where the plane is not
    the automatic one. Its group is the volume's.

    Args:
        folder: The folder.
        plan: How they are cut; None takes the defaults.
        rows: What `read_index` gave for the folder; None reads it.

    Raises:
        InputError: See `read_index`; a volume that cannot be read, or a mask of another size or place.
    """
    rows = read_index(folder) if rows is None else rows
    volumes = sorted((row for row in rows if row.is_volume), key=lambda row: row.image.as_posix())
    samples: list[Sample] = []
    for _, group in groupby(volumes, key=lambda row: row.image):
        own = list(group)
        for plane in (plan or SlicePlan()).planes:
            samples += _slices(own, folder, plan or SlicePlan(), plane)
    return tuple(samples)


def chosen_slices(has_concept: BoolArray, plan: SlicePlan) -> list[int]:
    """Which slices are taken, by whether each (N,) shows any concept; every k-th where none does."""
    shown = np.flatnonzero(has_concept)
    if not len(shown):
        return list(range(0, len(has_concept), plan.every))
    taken = [n for n in range(int(shown[0]), int(shown[-1]) + 1, plan.every) if has_concept[n]]
    empty = np.flatnonzero(~has_concept)
    count = min(len(empty), int(np.ceil(plan.empty_share * len(taken))))
    spread = ((np.arange(count) + 0.5) * len(empty) / max(count, 1)).astype(np.intp)
    return sorted([*taken, *empty[spread].tolist()])


def _slices(rows: Sequence[IndexRow], folder: Path, plan: SlicePlan, plane: PlaneChoice) -> list[Sample]:
    """The samples of one volume in one plane."""
    first = rows[0]
    view = _view(first.image, plane)
    labels = {row.mask: turned(label_stack(row.mask, view.image), view.turn) for row in rows}
    kept: dict[int, list[Target]] = {}
    shown = np.zeros(view.count, dtype=np.bool_)
    for n in range(view.count):
        planes = {path: label_values(own, n) for path, own in labels.items()}
        masks = [np.isin(planes[row.mask], row.label_values) for row in rows]
        shown[n] = any(bool(mask.any()) for mask in masks)
        kept[n] = [_target(row, f"{plane}#{n}", view.mask_to_view(mask)) for row, mask in zip(rows, masks, strict=True)]
    name = first.image.relative_to(folder).as_posix() + ("#" if plane == "auto" else f"#{plane}-")
    return [
        Sample(
            name=f"{name}{n}",
            image=first.image,
            dataset=first.dataset,
            group=first.group,
            split=first.split,
            targets=tuple(kept[n]),
            loader=partial(_rgb, first.image, plane, n),
            is_mirrorable=_runs_left_to_right(view),
        )
        for n in chosen_slices(shown, plan)
    ]


def _target(row: IndexRow, place: str, mask: BoolArray) -> Target:
    packed = PackedMask.of(mask)

    def load() -> Instances:
        return connected_objects(packed.dense())

    return Target(row.concept, bool(mask.any()), load, (row.mask, f"{row.label_values}", place))


def _rgb(image: Path, plane: PlaneChoice, n: int) -> RGB:
    return _view(image, plane).rgb(n)


@lru_cache(maxsize=4)
def _view(image: Path, plane: PlaneChoice) -> View:
    """A volume as it is shown; the last few stay open."""
    return view_of(read(image), plane)


def _runs_left_to_right(view: View) -> bool:
    """The columns go from one side of the body to the other, or it is not known where they go."""
    affine = view.cut.affine
    return affine is None or int(np.abs(affine[:3, 2]).argmax()) == 0
