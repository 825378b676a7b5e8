"""COCO detection JSON out and in: masks as polygons or RLE, boxes as xywh, one image a frame. Readable by pycocotools.

Beyond the standard's fields an annotation has `score` and `object_id` (the same through all frames of one object), an
image has `frame` (from 0), and a category has `presence` (null where no phrase was asked).
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsam3.errors import InputError, printable, require
from medsam3.geometry import BoolArray, box_of_mask, coco_xywh_from_xyxy
from medsam3.image import Image, Masks, ObjectMask
from medsam3.io.contours import outlines
from medsam3.io.labels import check_masks
from medsam3.store import JsonObject, write_json

_log = logging.getLogger(__name__)

_UNKNOWN = "unknown category"
_LEAST_NUMBERS = 8
"""Of a polygon: pycocotools takes four numbers for a box."""
_LONGEST_SHIFT = 60
"""Bits of a run length, of which no image needs more."""
_LISTS = ("images", "categories", "annotations")

UNNAMED_CONCEPT = "object"


def write_coco(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write one COCO file for all frames and concepts; overlaps are kept.

    Raises:
        InputError: pycocotools is missing, masks of another shape, or the file cannot be written.
    """
    check_masks(masks, image.shape)
    names = list(dict.fromkeys(found.concept or UNNAMED_CONCEPT for found in masks))
    presence = {found.concept or UNNAMED_CONCEPT: found.presence for found in masks}
    annotations: list[JsonObject] = []
    object_id = 0
    for found in masks:
        category = names.index(found.concept or UNNAMED_CONCEPT) + 1
        for item in found.objects:
            object_id += 1
            for about in _annotations(item, image.shape):
                annotations.append(
                    {"id": len(annotations) + 1, "category_id": category, "object_id": object_id} | about
                )
    categories = [
        {"id": number, "name": name, "supercategory": "", "presence": presence[name]}
        for number, name in enumerate(names, start=1)
    ]
    _write(path, _images(image), annotations, categories)


def join_coco(parts: Sequence[tuple[Path, str]], path: Path) -> None:
    """Write one COCO file for many images, of the files that `write_coco` has made for each of them.

    File names are relative to the folder that all images lie in. An image tells the `presence` of each concept that it
    was asked for, since a category of many images has none of its own.

    Args:
        parts: Each file, and the image or the folder of slices that it is about.
        path: The file to be.

    Raises:
        InputError: A part is no such file, or `path` cannot be written.
    """
    root = os.path.commonpath([Path(source).parent for _, source in parts])
    images: dict[tuple[str, int], JsonObject] = {}
    categories: dict[str, int] = {}
    annotations: list[JsonObject] = []
    objects: dict[tuple[str, str, int], int] = {}
    for part, source in parts:
        try:
            content = json.loads(part.read_text(encoding="utf-8"))
            asked = {entry["id"]: entry for entry in content["categories"]}
            numbers = {}
            for entry in content["images"]:
                about = entry | {"id": len(images) + 1, "file_name": _name_below(root, source, entry), "presence": {}}
                image = images.setdefault((source, entry["frame"]), about)
                image["presence"] |= {one["name"]: one["presence"] for one in asked.values()}
                numbers[entry["id"]] = image["id"]
            for entry in content["annotations"]:
                name = asked[entry["category_id"]]["name"]
                category = categories.setdefault(name, len(categories) + 1)
                thing = objects.setdefault((source, name, entry["object_id"]), len(objects) + 1)
                placed = {"id": len(annotations) + 1, "image_id": numbers[entry["image_id"]], "category_id": category}
                annotations.append(entry | placed | {"object_id": thing})
            for entry in asked.values():
                categories.setdefault(entry["name"], len(categories) + 1)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{part} is damaged: remove it, and run the command again") from error
    named = [{"id": number, "name": name, "supercategory": ""} for name, number in categories.items()]
    _write(path, list(images.values()), annotations, named)


def _name_below(root: str, source: str, entry: JsonObject) -> str:
    """Name an image's file from the root on; slices of a folder lie in it."""
    place = source if Path(source).exists() else re.sub(r" (series|part) .*$", "", source)
    below = Path(os.path.relpath(place, root))
    return (below / entry["file_name"] if Path(place).is_dir() else below).as_posix()


def _write(path: Path, images: list[JsonObject], annotations: list[JsonObject], categories: list[JsonObject]) -> None:
    document = {
        "info": {"description": "masks by medsam3", "version": "1.0"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    write_json(path, document, indent=None)


def _images(image: Image) -> list[JsonObject]:
    frames, height, width = image.shape
    sources = image.source if len(image.source) == frames else image.source[:1] * frames
    names = [source.name for source in sources] or [""] * frames
    return [{"id": n + 1, "file_name": names[n], "frame": n, "height": height, "width": width} for n in range(frames)]


def _annotations(item: ObjectMask, shape: tuple[int, int, int]) -> list[JsonObject]:
    """One annotation for each frame that holds some of the object."""
    written: list[JsonObject] = []
    n, row, column = item.start
    for offset, crop in enumerate(item.crop):
        box = box_of_mask(crop)
        if box is None:
            continue
        placed = (box[0] + column, box[1] + row, box[2] + column, box[3] + row)
        written.append(
            {
                "image_id": n + offset + 1,
                "segmentation": _segmentation(item.plane(n + offset, shape[1:])),
                "bbox": list(coco_xywh_from_xyxy(placed)),
                "area": int(crop.sum()),
                "iscrowd": 0,
                "score": round(item.score, 6),
            }
        )
    return written


def _segmentation(mask: BoolArray) -> list[list[float]] | JsonObject:
    """Describe a mask by polygons, which all annotation tools read, if they give it back exactly, else by RLE."""
    codec = require("pycocotools.mask", extra="coco")
    polygons = [(outline + 0.5).ravel().tolist() for outline in outlines(mask)]  # COCO counts from the pixel's edge
    if all(len(polygon) >= _LEAST_NUMBERS for polygon in polygons):
        drawn = codec.decode(codec.merge(codec.frPyObjects(polygons, *mask.shape))).astype(bool)
        if np.array_equal(drawn, mask):
            return polygons
    return _rle(mask)


def _rle(mask: BoolArray) -> JsonObject:
    codec = require("pycocotools.mask", extra="coco")
    encoded = codec.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(size) for size in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def read_coco(path: Path, image: Image) -> list[Masks]:
    """The annotations of an image as masks over it, one `Masks` for each category that it has.

    Of a data set's file those are taken whose `file_name` is that of the image. Masks may be polygons, compressed or
    uncompressed RLE; annotations without a mask are left out, counted and logged.

    Raises:
        InputError: Not COCO JSON, no annotations of this image, or a mask that is damaged or of another size.
    """
    try:
        content = json.loads(path.read_bytes())  # of bytes it tells UTF-8 from UTF-16
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("the file is not JSON, or damaged: give COCO JSON") from error
    lists = [content.get(name) if isinstance(content, dict) else None for name in _LISTS]
    if not all(isinstance(one, list) and all(isinstance(entry, dict) for entry in one) for one in lists):
        raise InputError("the file is not COCO JSON, which has lists of images, categories and annotations: give one")
    images, categories, annotations = lists
    ids = [entry.get(key) for one in lists for entry in one or [] for key in ("id", "image_id", "category_id")]
    if any(isinstance(one, list | dict) for one in ids):
        raise InputError("the file has identifiers that are lists or objects: allowed are numbers and text")
    frames = _frames_of(images or [], image)
    names = {entry.get("id"): str(entry.get("name", "")) for entry in categories or []}
    objects: dict[tuple[str, Any], tuple[BoolArray, float]] = {}
    left_out = 0
    for number, entry in enumerate(annotations or []):
        if entry.get("image_id") not in frames:
            continue
        plane = _mask(entry, image.shape[1:])
        if plane is None:
            left_out += 1
            continue
        key = (
            names.get(entry.get("category_id"), _UNKNOWN),
            str(entry.get("object_id", f"of its own {number}")),
        )
        dense, _ = objects.setdefault(key, (np.zeros(image.shape, dtype=np.bool_), _score(entry)))
        dense[frames[entry["image_id"]]] |= plane
    if left_out:
        _log.warning("%s: %d annotations without a mask are left out", printable(str(path)), left_out)
    if annotations and not objects and not left_out:
        _log.warning("%s: its %d annotations are all of other images", printable(str(path)), len(annotations))
    own = (
        sorted({name for name, _ in objects}, key=[*names.values(), _UNKNOWN].index)
        if objects
        else list(names.values())[:1]
    )
    found: list[Masks] = []
    for name in own:
        items = [ObjectMask.from_dense(dense, score) for (of, _), (dense, score) in objects.items() if of == name]
        kept = sorted((item for item in items if item is not None), key=lambda item: -item.score)
        found.append(Masks(image.shape, tuple(kept), "" if name == UNNAMED_CONCEPT else name))
    return found or [Masks(image.shape)]


def _frames_of(images: Sequence[JsonObject], image: Image) -> dict[Any, int]:
    """From identifiers of a file's images to frames of this one, by their file names.

    Raises:
        InputError: None of them is this image, or a frame that it does not have.
    """
    sources = [source.name for source in image.source]
    listed = [str(entry.get("file_name") or "").replace("\\", "/").rsplit("/", 1)[-1] for entry in images]
    own = [(entry, name) for entry, name in zip(images, listed, strict=True) if not sources or name in (*sources, "")]
    if not own:
        held = ", ".join(list(dict.fromkeys(listed))[:3]) or "no image"
        raise InputError(f"the masks are of {held}, and not of {sources[0] if sources else 'this image'}: give its own")
    frames: dict[Any, int] = {}
    for k, (entry, name) in enumerate(own):
        n = entry.get("frame", sources.index(name) if len(sources) == image.shape[0] and name else k)
        if not isinstance(n, int) or not 0 <= n < image.shape[0]:
            raise InputError(
                f"frame {n!r} has masks, the image has frames 0 to {image.shape[0] - 1}: give its own image"
            )
        size = (entry.get("height", image.shape[1]), entry.get("width", image.shape[2]))
        if size != image.shape[1:]:
            raise InputError(
                f"the masks are over {size} pixels (rows, columns), the image has {image.shape[1:]}: give its own"
            )
        frames[entry.get("id")] = n
    repeated = [n for n, count in Counter(frames.values()).items() if count > 1]
    if repeated:
        raise InputError(f"several of the file's images are frame {repeated[0]} of this one: keep one of them")
    return frames


def _mask(entry: JsonObject, size: tuple[int, int]) -> BoolArray | None:
    """An annotation's mask (H, W), checked before pycocotools sees it; None if it has none.

    Raises:
        InputError: Damaged, or over another size.
    """
    held, (height, width) = entry.get("segmentation"), size
    wrong = InputError(f"annotation {entry.get('id')!r} has a damaged mask: correct or remove it")
    if not held:
        return None
    if isinstance(held, list):
        polygons = [polygon for polygon in _flat(held) if len(polygon) >= 6]
        reach = 10 * (height + width)
        if any(len(polygon) % 2 for polygon in polygons) or not all(
            _is_number(value, reach) for polygon in polygons for value in polygon
        ):
            raise wrong
        return _decoded(polygons, height, width) if polygons else None
    counts = held.get("counts") if isinstance(held, dict) else None
    if not isinstance(counts, list | str) or list(held.get("size") or []) != [height, width]:
        raise InputError(
            f"annotation {entry.get('id')!r} is no mask over {height} x {width} pixels: give its own image"
        )
    try:
        runs = counts if isinstance(counts, list) else run_lengths(counts)
    except ValueError as error:
        raise wrong from error
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != height * width:
        raise wrong
    try:
        return _decoded({"size": [height, width], "counts": counts}, height, width)
    except (ValueError, UnicodeError) as error:
        raise wrong from error


def _flat(held: list[Any]) -> list[list[Any]]:
    """Polygons as lists of numbers: some tools write one without a list around it, or points as pairs."""
    if held and not isinstance(held[0], list):
        return [held]
    polygons = [polygon for polygon in held if isinstance(polygon, list)]
    return [
        [value for point in polygon for value in point] if all(isinstance(one, list) for one in polygon) else polygon
        for polygon in polygons
    ]


def run_lengths(counts: str) -> list[int]:
    """Read compressed run lengths as numbers, so that no other library sees them unchecked.

    Source: the code of COCO's masks, base 32 in characters from "0", every number from the third on a difference to the
    one before the last.

    Raises:
        ValueError: A character or number that means nothing, or an end within a number.
    """
    numbers: list[int] = []
    number = shift = 0
    for character in counts.encode():
        code = character - 48
        if not 0 <= code < 64 or shift > _LONGEST_SHIFT:
            raise ValueError("an RLE has a character that means nothing")
        number |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            number -= 1 << shift
        numbers.append(number + (numbers[-2] if len(numbers) > 2 else 0))
        number = shift = 0
    if shift:
        raise ValueError("an RLE ends within a number")
    return numbers


def _decoded(held: Any, height: int, width: int) -> BoolArray:
    codec = require("pycocotools.mask", extra="coco")
    if isinstance(held, dict) and isinstance(held["counts"], str):
        coded = held
    else:
        coded = codec.frPyObjects(held, height, width)
    mask: BoolArray = codec.decode(codec.merge(coded) if isinstance(coded, list) else coded).astype(np.bool_)
    return mask


def _is_number(value: Any, reach: float) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) <= reach


def _score(entry: JsonObject) -> float:
    score = entry.get("score", 1.0)
    return float(score) if _is_number(score, 1.0) and score >= 0 else 1.0
