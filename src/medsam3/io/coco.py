"""COCO detection JSON out: masks as compressed RLE, boxes as xywh, one image a frame. Readable by pycocotools.

Beyond the standard's fields an annotation has `score` and `object_id` (the same through all frames of one object), an
image has `frame` (from 0), and a category has `presence` (null where no phrase was asked).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsam3.errors import InputError, require
from medsam3.geometry import BoolArray, box_of_mask, coco_xywh_from_xyxy
from medsam3.image import Image, Masks, ObjectMask
from medsam3.io.labels import check_masks
from medsam3.store import replacing

UNNAMED_CONCEPT = "object"


def write_coco(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write one COCO file for all frames and concepts; overlaps are kept.

    Raises:
        InputError: pycocotools is missing, masks of another shape, or the file cannot be written.
    """
    check_masks(masks, image.shape)
    names = list(dict.fromkeys(found.concept or UNNAMED_CONCEPT for found in masks))
    presence = {found.concept or UNNAMED_CONCEPT: found.presence for found in masks}
    annotations: list[dict[str, Any]] = []
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
    images: dict[tuple[str, int], dict[str, Any]] = {}
    categories: dict[str, int] = {}
    annotations: list[dict[str, Any]] = []
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


def _name_below(root: str, source: str, entry: dict[str, Any]) -> str:
    """Name an image's file from the root on; slices of a folder lie in it."""
    place = source if Path(source).exists() else source.rpartition(" series ")[0] or source
    below = Path(os.path.relpath(place, root))
    return (below / entry["file_name"] if Path(place).is_dir() else below).as_posix()


def _write(
    path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: list[dict[str, Any]]
) -> None:
    document = {
        "info": {"description": "masks by medsam3", "version": "1.0"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    with replacing(path, ".json") as temporary:
        temporary.write_text(json.dumps(document) + "\n", encoding="utf-8")


def _images(image: Image) -> list[dict[str, Any]]:
    frames, height, width = image.shape
    sources = image.source if len(image.source) == frames else image.source[:1] * frames
    names = [source.name for source in sources] or [""] * frames
    return [{"id": n + 1, "file_name": names[n], "frame": n, "height": height, "width": width} for n in range(frames)]


def _annotations(item: ObjectMask, shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    """One annotation for each frame that holds some of the object."""
    written: list[dict[str, Any]] = []
    n, row, column = item.start
    for offset, crop in enumerate(item.crop):
        box = box_of_mask(crop)
        if box is None:
            continue
        placed = (box[0] + column, box[1] + row, box[2] + column, box[3] + row)
        written.append(
            {
                "image_id": n + offset + 1,
                "segmentation": _rle(item.plane(n + offset, shape[1:])),
                "bbox": list(coco_xywh_from_xyxy(placed)),
                "area": int(crop.sum()),
                "iscrowd": 0,
                "score": round(item.score, 6),
            }
        )
    return written


def _rle(mask: BoolArray) -> dict[str, Any]:
    codec = require("pycocotools.mask", extra="coco")
    encoded = codec.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(size) for size in encoded["size"]], "counts": encoded["counts"].decode("ascii")}
