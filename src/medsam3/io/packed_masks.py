"""Masks as one JSON document that loses nothing: every object by itself, at one bit a voxel of its crop.

For programs that hand masks to each other; people take a format of `medsam3.io.FORMATS`.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypedDict

import numpy as np

from medsam3.errors import InputError
from medsam3.image import Masks, ObjectMask
from medsam3.io.files import MAX_STACK_VOXELS
from medsam3.store import JsonObject

FORMAT = 1
LOSSLESS = "masks"
"""Name by which a server is asked for this form."""


class PackedObject(TypedDict):
    """An object in JSON: first voxel and size (N, H, W) of its crop, and the crop's bits, compressed, in base64."""

    start: Sequence[int]
    shape: Sequence[int]
    score: float
    bits: str


def packed(item: ObjectMask) -> PackedObject:
    """Give an object as JSON takes it."""
    bits = base64.b64encode(zlib.compress(np.packbits(item.crop).tobytes())).decode()
    return {"start": item.start, "shape": item.crop.shape, "score": item.score, "bits": bits}


def unpacked(entry: Any) -> ObjectMask:
    """Read what `packed` gave.

    Raises:
        ArithmeticError, KeyError, TypeError, ValueError, zlib.error: It is of another form.
    """
    n_size, height, width = (int(size) for size in entry["shape"])
    count = n_size * height * width
    if not 0 < count <= MAX_STACK_VOXELS:
        raise ValueError(f"the crop has {count} voxels")
    held = zlib.decompressobj().decompress(base64.b64decode(entry["bits"]), (count + 7) // 8)
    if 8 * len(held) < count:
        raise ValueError(f"the crop has {count} voxels, {8 * len(held)} are there")
    flat = np.unpackbits(np.frombuffer(held, dtype=np.uint8), count=count).astype(np.bool_)
    crop = flat.reshape(n_size, height, width)
    n, row, column = (int(place) for place in entry["start"])
    return ObjectMask((n, row, column), crop, float(entry["score"]))


def about(masks: Masks) -> JsonObject:
    """Give what is said of a concept, without its objects and their image."""
    return {one.name: getattr(masks, one.name) for one in fields(masks) if one.name not in ("objects", "image")}


def from_about(entry: Any, objects: Sequence[ObjectMask] = ()) -> Masks:
    """Read what `about` gave, with the objects that belong to it; errors as `unpacked`."""
    n, height, width = (int(size) for size in entry["shape"])
    said = {name: value for name, value in entry.items() if name not in ("shape", "objects")}
    return Masks((n, height, width), tuple(objects), **said)


def dumped(masks: Sequence[Masks]) -> str:
    """Write masks as JSON."""
    entries = [about(one) | {"objects": [packed(item) for item in one.objects]} for one in masks]
    return json.dumps({"format": FORMAT, "masks": entries})


def loaded(text: str | bytes) -> list[Masks]:
    """Read what `dumped` wrote.

    Raises:
        InputError: It is of another form.
    """
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise InputError(f"the masks are in format {document['format']}, allowed is {FORMAT}: update medsam3")
        return [from_about(entry, [unpacked(one) for one in entry["objects"]]) for entry in document["masks"]]
    except InputError:
        raise
    except (ArithmeticError, KeyError, TypeError, ValueError, AttributeError, RecursionError, zlib.error) as error:
        raise InputError(f"the masks are not in the form that medsam3 writes ({error!r})") from error
