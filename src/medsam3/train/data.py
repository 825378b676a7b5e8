"""Training samples: an image with the concepts that are annotated in it, present or absent.

Two sources, one value: a folder with `index.csv`, and COCO JSON (categories as phrases), the form that SAM 3 and
MedSAM-3 train on. It also says which concepts may serve as negatives of an image. It knows no features and no model.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3 import concepts
from medsam3.errors import InputError, require
from medsam3.io import read
from medsam3.io.index import IndexRow, Split, concept_mask, load_label_map, read_index
from medsam3.view.view import view_of

RGB = NDArray[np.uint8]
Instances = NDArray[np.int32]


@dataclass(frozen=True)
class Target:
    """One concept of one image. `load` gives instance numbers (H, W) int32, 0 where the concept is not."""

    concept: str
    is_present: bool
    load: Callable[[], Instances]


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
        """Show the picture as `medsam3.segment` shows it to a model, (H, W, 3) uint8."""
        if self.loader is not None:
            return self.loader()
        return view_of(read(self.image)).rgb(0)


def connected_objects(mask: NDArray[np.bool_]) -> Instances:
    """Number the 8-connected parts of (H, W), from 1."""
    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return np.asarray(labels, dtype=np.int32)


def samples_from_index(folder: Path) -> tuple[Sample, ...]:
    """All pictures of a data folder with `index.csv`, by name; for its volumes see `volume_samples`.

    Raises:
        InputError: See `read_index`.
    """
    rows = [row for row in read_index(folder) if not row.is_volume]
    rows.sort(key=lambda row: row.image.as_posix())
    return tuple(_sample(list(group), folder) for _, group in groupby(rows, key=lambda row: row.image))


def _sample(rows: Sequence[IndexRow], folder: Path) -> Sample:
    first = rows[0]
    targets = tuple(Target(row.concept, row.is_present, _index_loader(row)) for row in rows)
    name = first.image.relative_to(folder).as_posix()
    return Sample(name, first.image, first.dataset, first.group, first.split, targets)


def _index_loader(row: IndexRow) -> Callable[[], Instances]:
    def load() -> Instances:
        mask = concept_mask(load_label_map(row.mask), row.label_values)
        if row.instances is None:
            return connected_objects(mask)
        return np.where(mask, load_label_map(row.instances).astype(np.int32), 0)

    return load


def samples_from_coco(annotations: Path, images: Path, split: Split = "train") -> tuple[Sample, ...]:
    """All images of a COCO JSON; each category is a concept, absent where an image has no annotation of it.

    Args:
        annotations: COCO JSON with polygons or RLE.
        images: Folder that `file_name` is relative to.
        split: Where these samples belong; COCO keeps one split a file.

    Raises:
        InputError: Not COCO JSON, or an image that is not there.
    """
    require("pycocotools.mask", extra="coco")
    try:
        content: dict[str, Any] = json.loads(annotations.read_text(encoding="utf-8"))
        names = {category["id"]: str(category["name"]).replace("_", " ") for category in content["categories"]}
        by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        return tuple(_coco_sample(entry, by_image[entry["id"]], names, images, split) for entry in content["images"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"{annotations} is not COCO JSON with images, annotations and categories ({error!r})"
        ) from error


def _coco_sample(
    entry: dict[str, Any], annotations: Sequence[dict[str, Any]], names: dict[Any, str], images: Path, split: Split
) -> Sample:
    path = images / entry["file_name"]
    if not path.is_file():
        raise InputError(f"{path} does not exist: name the folder that file_name is relative to")
    size = (int(entry["height"]), int(entry["width"]))
    targets = []
    for category, concept in names.items():
        own = [annotation for annotation in annotations if annotation["category_id"] == category]
        targets.append(Target(concept, bool(own), _coco_loader(own, size)))
    return Sample(entry["file_name"], path, images.name, str(entry["id"]), split, tuple(targets))


def _coco_loader(annotations: Sequence[dict[str, Any]], size: tuple[int, int]) -> Callable[[], Instances]:
    def load() -> Instances:
        from pycocotools import mask as coco_mask  # noqa: PLC0415 - an optional package, checked by the caller

        instances = np.zeros(size, dtype=np.int32)
        for number, annotation in enumerate(annotations, start=1):
            shape = annotation["segmentation"]
            if isinstance(shape, list):
                shape = coco_mask.merge(coco_mask.frPyObjects(shape, *size))
            elif isinstance(shape["counts"], list):
                shape = coco_mask.frPyObjects(shape, *size)
            instances[coco_mask.decode(shape).astype(bool)] = number
        return instances

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
