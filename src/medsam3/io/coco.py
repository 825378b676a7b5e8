"""COCO detection JSON out: masks as compressed RLE, boxes as xywh, one image a frame. Readable by pycocotools.

Beyond the standard's fields an annotation has `score` and `object_id` (the same through all frames of one object), an
image has `frame` (from 0), and a category has `presence` (null where no phrase was asked).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsam3.errors import require
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
    document = {
        "info": {"description": "masks by medsam3", "version": "1.0"},
        "images": _images(image),
        "annotations": annotations,
        "categories": [
            {"id": number, "name": name, "supercategory": "", "presence": presence[name]}
            for number, name in enumerate(names, start=1)
        ],
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
