"""Training samples: an image with the concepts that are annotated in it, present or absent.

Two sources, one value: a folder with `index.csv`, and COCO JSON (categories as phrases), the form that SAM 3 and
MedSAM-3 train on. It also says which concepts may serve as negatives of an image. It knows no features and no model.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, FiniteFloat, PositiveInt, ValidationError
from scipy import ndimage

from medsam3 import concepts
from medsam3.data.index import IndexRow, Split, concept_mask, load_label_map, read_index
from medsam3.errors import InputError, require
from medsam3.io import read
from medsam3.view.view import view_of

log = logging.getLogger(__name__)

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


def _id(value: object) -> str:
    """Write an id as text, so that 7, 7.0 and "7" are one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("an id is a whole number or a text")
    return str(value).strip()


def _nested(segmentation: object) -> object:
    """Read a polygon that was written without the list around it."""
    is_flat = isinstance(segmentation, list) and segmentation and isinstance(segmentation[0], int | float)
    return [segmentation] if is_flat else segmentation


_Id = Annotated[str, BeforeValidator(_id)]
_Ring = list[FiniteFloat]


class _Rle(BaseModel):
    size: tuple[int, int]
    counts: str | list[int]


class _CocoCategory(BaseModel):
    id: _Id
    name: str
    supercategory: str | None = None

    @property
    def phrase(self) -> str:
        return " ".join(self.name.replace("_", " ").split())


class _CocoPicture(BaseModel):
    id: _Id
    file_name: str
    height: PositiveInt
    width: PositiveInt

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


class _CocoAnnotation(BaseModel):
    image_id: _Id
    category_id: _Id
    segmentation: Annotated[list[_Ring] | _Rle | None, BeforeValidator(_nested)] = None

    @property
    def outline(self) -> _Rle | list[_Ring] | None:
        """What can be drawn: RLE, or the rings of three corners and more; None for a box alone."""
        if isinstance(self.segmentation, _Rle):
            return self.segmentation
        return [ring for ring in self.segmentation or () if len(ring) >= 6 and len(ring) % 2 == 0] or None


class _Coco(BaseModel):
    images: list[_CocoPicture]
    annotations: list[_CocoAnnotation]
    categories: list[_CocoCategory]


def samples_from_coco(annotations: Path, images: Path, split: Split = "train") -> tuple[Sample, ...]:
    """Read all images of a COCO JSON; each category that the file annotates is a concept.

    A concept is absent from an image if nothing says otherwise: no annotation of it, in any of its spellings and
    synonyms, and none of a category that has it as `supercategory`. If an image's annotation of a concept is a box
    alone, the image says nothing of that concept. One warning counts what was left out.

    Args:
        annotations: COCO JSON with polygons (a ring inside another is a hole) or RLE. Ids may be numbers or texts.
        images: Folder that `file_name` is relative to.
        split: Where these samples belong; COCO keeps one split a file.

    Raises:
        InputError: Not COCO JSON, an image that is not there, ids that stand for two things or for nothing, or no
            outline at all.
    """
    require("pycocotools.mask", extra="coco")
    content = _read_coco(annotations)
    notes = _check_coco(content, annotations)
    known = {picture.id for picture in content.images}
    by_image: dict[str, list[_CocoAnnotation]] = defaultdict(list)
    for annotation in content.annotations:
        by_image[annotation.image_id].append(annotation)
    may_lack = len(by_image.keys() - known) > 0  # then an image without annotations may have lost them
    named = _coco_concepts(content)
    samples = []
    for picture in content.images:
        own = by_image[picture.id]
        targets = () if may_lack and not own else _coco_targets(picture, own, named)
        if targets:
            path = _coco_path(images, picture.file_name)
            samples.append(Sample(picture.file_name, path, images.name, picture.id, split, targets))
    if not any(target.is_present for sample in samples for target in sample.targets):
        raise InputError(
            f"{annotations} has no outline, only boxes or nothing: training needs polygons or RLE; draw them, or make "
            "them from the boxes with medsam3 segment --box"
        )
    if len(samples) < len(content.images):
        notes.append(f"{len(content.images) - len(samples)} images are left out, as they say nothing of any concept")
    if notes:
        log.warning("%s: %s", annotations, "; ".join(notes))
    return tuple(samples)


def _read_coco(path: Path) -> _Coco:
    try:
        return _Coco.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        what = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            what = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
        raise InputError(f"{path} is not COCO JSON with images, annotations and categories: {what}") from error


def _check_coco(content: _Coco, path: Path) -> list[str]:
    """Say what is left out.

    Raises:
        InputError: An id is given twice, a category is not there, no annotation is of an image that is there, or an RLE
            does not fit its image.
    """
    pictures = {picture.id: picture for picture in content.images}
    names = {category.id: category.phrase for category in content.categories}
    for kind, ids, all_of in (("images", pictures, content.images), ("categories", names, content.categories)):
        if len(ids) < len(all_of):
            raise InputError(f"{path} has two {kind} of one id: give each an id of its own")
    unknown = Counter(one.category_id for one in content.annotations if one.category_id not in names)
    if unknown:
        raise InputError(
            f"{path} has {unknown.total()} annotations of category ids that its categories lack ({_few(unknown)}), "
            f"allowed are {_few(names)}: add the categories, or remove the annotations"
        )
    orphans = [one.image_id for one in content.annotations if one.image_id not in pictures]
    if orphans and len(orphans) == len(content.annotations):
        raise InputError(
            f"{path} has no annotation of an image that it lists: image_id is {_few(orphans)}, "
            f"the images are {_few(pictures)}: make the ids fit"
        )
    for one in content.annotations:
        if one.image_id in pictures and isinstance(one.segmentation, _Rle):
            _check_rle(one.segmentation, pictures[one.image_id], path)
    never = [names[key] for key in names.keys() - {one.category_id for one in content.annotations}]
    boxes = sum(one.outline is None for one in content.annotations)
    kinds = (
        (len(never), f"categories that nobody annotated are no concepts here ({_few(sorted(never))})"),
        (len(orphans), f"annotations are of images that are not listed (image_id {_few(orphans)})"),
        (boxes, "annotations have a box alone: their image says nothing of their concept; draw an outline"),
    )
    return [f"{count} {text}" for count, text in kinds if count]


def _check_rle(rle: _Rle, picture: _CocoPicture, path: Path) -> None:
    pixels = rle.size[0] * rle.size[1] if isinstance(rle.counts, str) else sum(rle.counts)
    if rle.size != picture.size or pixels != picture.height * picture.width:
        raise InputError(
            f"{path} has an RLE of {rle.size[0]} x {rle.size[1]} with {pixels} pixels in {picture.file_name}, "
            f"which is {picture.height} x {picture.width} (rows x columns): make it anew"
        )


def _few(ids: Iterable[str]) -> str:
    shown = list(dict.fromkeys(ids))
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")


def _meant(phrase: str) -> str:
    """Give what spellings and synonyms of one concept share."""
    spelt = concepts.normalised(phrase.replace("_", " "))
    known = concepts.find(spelt)
    return spelt if known is None else known.name


@dataclass(frozen=True)
class _CocoConcept:
    """A concept of a COCO file: its phrase, its categories, and those that it is the `supercategory` of."""

    phrase: str
    ids: frozenset[str]
    parts: frozenset[str]


def _coco_concepts(content: _Coco) -> list[_CocoConcept]:
    """Find the concepts that the file annotates, each under the name of its first category."""
    annotated = {one.category_id for one in content.annotations}
    by_meaning: dict[str, list[_CocoCategory]] = defaultdict(list)
    for category in content.categories:
        if category.id in annotated:
            by_meaning[_meant(category.phrase)].append(category)
    return [
        _CocoConcept(
            own[0].phrase,
            frozenset(category.id for category in own),
            frozenset(
                one.id for one in content.categories if one.supercategory and _meant(one.supercategory) == meaning
            ),
        )
        for meaning, own in by_meaning.items()
    ]


def _coco_targets(
    picture: _CocoPicture, annotations: Sequence[_CocoAnnotation], named: Sequence[_CocoConcept]
) -> tuple[Target, ...]:
    targets = []
    shown = {annotation.category_id for annotation in annotations}
    for concept in named:
        own = [annotation.outline for annotation in annotations if annotation.category_id in concept.ids]
        outlines = [outline for outline in own if outline is not None]
        if len(outlines) == len(own) and (own or not shown & concept.parts):
            targets.append(Target(concept.phrase, bool(own), _coco_loader(outlines, picture.size)))
    return tuple(targets)


def _coco_path(images: Path, name: str) -> Path:
    """Find an image, also by a path that was written on Windows."""
    for path in (images / name, images / name.replace("\\", "/")):
        if path.is_file():
            return path
    raise InputError(f"{images / name} does not exist: name the folder that file_name is relative to")


def _coco_loader(outlines: Sequence[_Rle | list[_Ring]], size: tuple[int, int]) -> Callable[[], Instances]:
    def load() -> Instances:
        instances = np.zeros(size, dtype=np.int32)
        for number, outline in enumerate(outlines, start=1):
            if isinstance(outline, _Rle):
                instances[_decoded(outline.model_dump(), size)] = number
            else:
                _draw(outline, number, instances)
        return instances

    return load


def _decoded(shape: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode RLE or rings: (H, W), or (H, W, n) of several rings."""
    from pycocotools import mask as coco_mask  # noqa: PLC0415 - an optional package, checked by the caller

    if isinstance(shape, list) or isinstance(shape["counts"], list):
        shape = coco_mask.frPyObjects(shape, *size)
    decoded: NDArray[np.bool_] = coco_mask.decode(shape).astype(np.bool_)
    return decoded


def _draw(rings: Sequence[_Ring], number: int, instances: Instances) -> None:
    """Write a number into (H, W) where rings are filled; only their own window is decoded, as there may be thousands.

    A ring that lies wholly inside a larger one is a hole in it, one inside the hole an island, and so on.
    """
    corners = [np.reshape(ring, (-1, 2)) for ring in rings]
    every = np.concatenate(corners)
    limit = np.array(instances.shape[::-1])
    x0, y0 = start = np.clip(np.floor(every.min(axis=0)).astype(int) - 1, 0, limit)
    x1, y1 = np.clip(np.ceil(every.max(axis=0)).astype(int) + 1, start, limit)
    if x1 == x0 or y1 == y0:
        return  # outside the image
    parts = _decoded([(ring - start).ravel().tolist() for ring in corners], (int(y1 - y0), int(x1 - x0)))
    areas = parts.sum(axis=(0, 1))
    filled = np.zeros(parts.shape[:2], dtype=np.bool_)
    for k in np.argsort(-areas, kind="stable"):
        around = [j for j in np.flatnonzero(areas > areas[k]) if not (parts[..., k] & ~parts[..., j]).any()]
        filled[parts[..., k]] = len(around) % 2 == 0
    instances[y0:y1, x0:x1][filled] = number


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
