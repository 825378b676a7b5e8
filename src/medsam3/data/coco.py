"""Training samples from COCO JSON, categories as phrases: the form that SAM 3 and MedSAM-3 train on.

All of the file is checked before anything is drawn. It knows no features and no model.
"""

from __future__ import annotations

import codecs
import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

from medsam3 import concepts
from medsam3.data.index import Split, fitted, path_inside, shown_size, turned_unseen
from medsam3.data.samples import Instances, Sample, Target, set_name
from medsam3.errors import InputError, first_few, require, value_error
from medsam3.io.coco import run_lengths

log = logging.getLogger(__name__)
_UPRIGHT_ORIENTATIONS = 4
"""EXIF orientations up to this one keep the sides of a picture."""


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


def _run_lengths(counts: object) -> object:
    return run_lengths(counts) if isinstance(counts, str) else counts


_Id = Annotated[str, BeforeValidator(_id)]
_Ring = list[FiniteFloat]


class _Rle(BaseModel):
    size: tuple[int, int]
    counts: Annotated[list[NonNegativeInt], BeforeValidator(_run_lengths)]


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
        """Give the part that can be drawn: RLE, or the rings of three corners and more; None for a box alone."""
        if isinstance(self.segmentation, _Rle):
            return self.segmentation
        return [ring for ring in self.segmentation or () if len(ring) >= 6 and len(ring) % 2 == 0] or None


class _Coco(BaseModel):
    images: list[_CocoPicture]
    annotations: list[_CocoAnnotation]
    categories: list[_CocoCategory]


def samples_from_coco(annotations: Path, images: Path | None = None, split: Split = "train") -> tuple[Sample, ...]:
    """Read all images of a COCO JSON; each category that the file annotates is a concept.

    A concept is absent from an image if nothing says otherwise: no annotation of it, in any of its spellings and
    synonyms, and none of a category below it by `supercategory`, however many lie between. If an image's annotation of
    a concept is a box alone, the image says nothing of that concept. One warning counts what was left out.

    Args:
        annotations: COCO JSON with polygons (a ring inside another is a hole) or RLE. Ids may be numbers or texts.
        images: Folder that `file_name` is relative to; the folder of the JSON is looked into as well.
        split: Where these samples belong; COCO keeps one split a file.

    Raises:
        InputError: Not COCO JSON, an image that is not there, outside of the folder or of another size, ids that stand
            for two things or for nothing, coordinates far outside, or no outline at all.
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
    folders = [folder for folder in (images, annotations.parent) if folder is not None]
    dataset = set_name(folders[0])
    samples = []
    for picture in content.images:
        own = by_image[picture.id]
        targets = () if may_lack and not own else _coco_targets(picture, own, named)
        if targets:
            path = _coco_path(folders, picture.file_name)
            _check_size(picture, path)
            targets = tuple(replace(target, load=_fitting(target.load, path)) for target in targets)
            samples.append(Sample(picture.file_name, path, dataset, picture.file_name, split, targets))
    if not any(target.is_present for sample in samples for target in sample.targets):
        raise InputError(
            f"{annotations} has no outline, only boxes or nothing: training needs polygons or RLE; draw them, or make "
            "them from the boxes with medsam3 segment --box"
        )
    if note := turned_unseen({sample.name: sample.image for sample in samples}):
        notes.append(note)
    if len(samples) < len(content.images):
        notes.append(f"{len(content.images) - len(samples)} images are left out, as they say nothing of any concept")
    if notes:
        log.warning("%s: %s", annotations, "; ".join(notes))
    return tuple(samples)


def _read_coco(path: Path) -> _Coco:
    try:
        return _Coco.model_validate_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except (OSError, ValidationError) as error:
        if isinstance(error, OSError):
            raise InputError(f"{path} cannot be read ({error.strerror}): give a COCO JSON") from error
        what = value_error(max(error.errors(), key=lambda one: len(one["loc"])))  # of the kind that came furthest
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
    nameless = [one.id for one in content.categories if not one.phrase]
    if nameless:
        raise InputError(
            f"{path} has categories without a name ({first_few(nameless)}): give each the phrase that it stands for"
        )
    unknown = Counter(one.category_id for one in content.annotations if one.category_id not in names)
    if unknown:
        raise InputError(
            f"{path} has {unknown.total()} annotations of category ids that its categories lack "
            f"({first_few(unknown)}), allowed are {first_few(names)}: add the categories, or remove the annotations"
        )
    orphans = [one.image_id for one in content.annotations if one.image_id not in pictures]
    if orphans and len(orphans) == len(content.annotations):
        raise InputError(
            f"{path} has no annotation of an image that it lists: image_id is {first_few(orphans)}, "
            f"the images are {first_few(pictures)}: make the ids fit"
        )
    for one in content.annotations:
        if one.image_id in pictures:  # the others are counted below
            _check_outline(one.segmentation, pictures[one.image_id], path)
    never = [names[key] for key in names.keys() - {one.category_id for one in content.annotations}]
    boxes = sum(one.outline is None for one in content.annotations)
    kinds = (
        (len(never), f"categories that nobody annotated are no concepts here ({first_few(sorted(never))})"),
        (len(orphans), f"annotations are of images that are not listed (image_id {first_few(orphans)})"),
        (boxes, "annotations have a box alone: their image says nothing of their concept; draw an outline"),
    )
    return [f"{count} {text}" for count, text in kinds if count]


def _check_outline(outline: _Rle | list[_Ring] | None, picture: _CocoPicture, path: Path) -> None:
    """Compare an outline with its picture.

    Raises:
        InputError: An RLE of another size, or a coordinate that is further outside than the picture is long.
    """
    if isinstance(outline, _Rle):
        pixels = sum(outline.counts)
        if outline.size != picture.size or pixels != picture.height * picture.width:
            raise InputError(
                f"{path} has an RLE of {outline.size[0]} x {outline.size[1]} with {pixels} pixels in "
                f"{picture.file_name}, which is {picture.height} x {picture.width} (rows x columns): make it anew"
            )
        return
    length = max(picture.size)
    far = next((value for ring in outline or () for value in ring if not -length <= value <= 2 * length), None)
    if far is not None:
        raise InputError(
            f"{path} has the coordinate {far:g} in {picture.file_name}, which is {picture.height} x {picture.width} "
            "(rows x columns): coordinates are pixels of that picture; correct the annotation, or remove it"
        )


def _meant(phrase: str) -> str:
    """Give what spellings and synonyms of one concept share."""
    spelt = concepts.normalised(phrase.replace("_", " "))
    known = concepts.find(spelt)
    return spelt if known is None else known.name


@dataclass(frozen=True)
class _CocoConcept:
    """A concept of a COCO file: its phrase, its categories, and those that are below it by `supercategory`."""

    phrase: str
    ids: frozenset[str]
    parts: frozenset[str]


def _coco_concepts(content: _Coco) -> list[_CocoConcept]:
    """Find the concepts that the file annotates, each under the name of its first category."""
    annotated = {one.category_id for one in content.annotations}
    meant = {one.id: _meant(one.phrase) for one in content.categories}
    above = {meant[one.id]: _meant(one.supercategory) for one in content.categories if one.supercategory is not None}
    by_meaning: dict[str, list[_CocoCategory]] = defaultdict(list)
    below: dict[str, set[str]] = defaultdict(set)
    for category in content.categories:
        if category.id in annotated:
            by_meaning[meant[category.id]].append(category)
        for upper in _line(meant[category.id], above):
            below[upper].add(category.id)
    return [
        _CocoConcept(own[0].phrase, frozenset(one.id for one in own), frozenset(below[meaning]))
        for meaning, own in by_meaning.items()
    ]


def _line(meaning: str, above: Mapping[str, str]) -> list[str]:
    """List what a category is under, the nearest first."""
    line: list[str] = []
    while (upper := above.get(line[-1] if line else meaning)) is not None and upper not in (meaning, *line):
        line.append(upper)
    return line


def _coco_targets(
    picture: _CocoPicture, annotations: Sequence[_CocoAnnotation], named: Sequence[_CocoConcept]
) -> tuple[Target, ...]:
    targets = []
    shown = {annotation.category_id for annotation in annotations}
    for concept in named:
        own = [annotation.outline for annotation in annotations if annotation.category_id in concept.ids]
        outlines = [outline for outline in own if outline is not None]
        if len(outlines) == len(own) and (own or not shown & concept.parts):
            source = hashlib.sha256(f"{picture.size}{outlines}".encode()).hexdigest()
            targets.append(Target(concept.phrase, bool(own), _coco_loader(outlines, picture.size), (source,)))
    return tuple(targets)


def _coco_path(folders: Sequence[Path], name: str) -> Path:
    """Find an image.

    Raises:
        InputError: It is not there, or its name leaves the folder.
    """
    for folder in folders:
        path = path_inside(folder, name, "file_name")
        if path.is_file():
            return path
    raise InputError(f"{folders[0] / name} does not exist: name the folder that file_name is relative to with --images")


def _check_size(picture: _CocoPicture, path: Path) -> None:
    """Compare the size that the file claims with the picture's own, as it is shown or as it is stored.

    Raises:
        InputError: It is neither.
    """
    size, orientation = shown_size(path)
    if picture.size != size and not (picture.size == size[::-1] and orientation > _UPRIGHT_ORIENTATIONS):
        raise InputError(
            f"{path} is {size[0]} x {size[1]} (rows x columns), the COCO file says {picture.height} x {picture.width}: "
            "give the pictures that were annotated"
        )


def _fitting(load: Callable[[], Instances], path: Path) -> Callable[[], Instances]:
    return lambda: fitted(load(), path)


def _coco_loader(outlines: Sequence[_Rle | list[_Ring]], size: tuple[int, int]) -> Callable[[], Instances]:
    def load() -> Instances:
        instances = np.zeros(size, dtype=np.int32)
        for number, outline in enumerate(outlines, start=1):
            if isinstance(outline, _Rle):
                runs = np.repeat(np.arange(len(outline.counts)) % 2 == 1, outline.counts)  # column by column
                instances[runs.reshape(size[::-1]).T] = number
            else:
                _draw(outline, number, instances)
        return instances

    return load


def _decoded(rings: list[list[float]], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw n rings, (H, W, n)."""
    from pycocotools import mask as coco_mask  # noqa: PLC0415 - an optional package, checked by the caller

    decoded: NDArray[np.bool_] = coco_mask.decode(coco_mask.frPyObjects(rings, *size)).astype(np.bool_)
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
