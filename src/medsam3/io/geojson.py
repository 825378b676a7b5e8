"""Masks out as GeoJSON in the pixels of their image, as QuPath and other viewers of slides take it; and in again.

A feature is one object on one frame: its parts with their holes, exact along pixel edges, where (0, 0) is the upper
left corner of the first pixel. Of a part or a level of a slide the pixels are those of the whole slide at its finest
level. Source: RFC 7946; QuPath's `objectType`, `classification`, `measurements` and `plane`.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np

from medsam3.errors import InputError, printable
from medsam3.geometry import BoolArray, FloatArray
from medsam3.image import Image, Masks, ObjectMask
from medsam3.io.contours import filled, rings
from medsam3.io.files import SLIDE_PLACE
from medsam3.io.labels import check_masks
from medsam3.store import JsonObject, replacing
from medsam3.view.draw import COLOURS

_log = logging.getLogger(__name__)
UNNAMED = "object"


class _Place(NamedTuple):
    """Where the image lies in its slide."""

    x: float = 0.0
    y: float = 0.0
    scale: float = 1.0


_WHOLE = _Place()


class PlaneName(TypedDict):
    """QuPath's name for a slice or a time point; c is -1 for all channels."""

    c: int
    z: int
    t: int


class Geometry(TypedDict):
    """A mask in GeoJSON: rings of [x, y], the outer one first; of a MultiPolygon, one list of rings for each part."""

    type: Literal["Polygon", "MultiPolygon"]
    coordinates: list[Any]
    plane: NotRequired[PlaneName]


class Feature(TypedDict):
    """An object in GeoJSON; its properties are what the program that takes it wants."""

    type: Literal["Feature"]
    geometry: Geometry | None
    properties: JsonObject


def write_geojson(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write one feature for each object and frame; overlaps are kept.

    Raises:
        InputError: Masks of another shape, or the file cannot be written.
    """
    check_masks(masks, image.shape)
    place, features = _place_of(image), list[Feature]()
    number = 0
    for m, found in enumerate(masks):
        for item in found.objects:
            number += 1
            about = {
                "objectType": "annotation",
                "name": f"{found.concept or UNNAMED} {number}",
                "classification": {"name": found.concept or UNNAMED, "color": list(COLOURS[m % len(COLOURS)])},
                "measurements": {"score": round(item.score, 6)},
                "object_id": number,
            }
            features += _features(item, image, place, about)
    with replacing(path, ".geojson") as temporary:
        content = {"type": "FeatureCollection", "features": features}
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


def read_geojson(path: Path, image: Image) -> list[Masks]:
    """Read the polygons as masks over an image, one `Masks` for each class; other geometries are counted and logged.

    Raises:
        InputError: Not GeoJSON, a coordinate that is no number, or no polygon on the image.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("the file is not JSON, or damaged: give GeoJSON") from error
    features = content.get("features", [content]) if isinstance(content, dict) else content
    if not isinstance(features, list) or not all(isinstance(one, dict) for one in features):
        raise InputError("the file is not GeoJSON, which has a list of features: give one")
    place, left_out = _place_of(image), 0
    objects: dict[tuple[str, str], tuple[BoolArray, float]] = {}
    for number, feature in enumerate(features):
        about = feature.get("properties") or {}
        geometry = feature.get("geometry") or {}
        if not (isinstance(about, dict) and isinstance(geometry, dict)):
            raise InputError(f"feature {number} of the GeoJSON is damaged: correct or remove it")
        polygons = _polygons(geometry, number, place)
        frame = _frame_of(geometry, image.shape[0])
        if not polygons or frame is None:
            left_out += 1
            continue
        key = (_name_of(about), str(about.get("object_id", f"of its own {number}")))
        dense, _ = objects.setdefault(key, (np.zeros(image.shape, dtype=np.bool_), _score_of(about)))
        for polygon in polygons:
            dense[frame] |= filled(polygon, *image.shape[1:])
    if left_out:
        _log.warning("%s: %d features that are no polygon on the image are left out", printable(str(path)), left_out)
    if not objects:
        raise InputError("the GeoJSON holds no polygon on the image: give the image that it was drawn on")
    found: dict[str, list[ObjectMask]] = {}
    for (name, _), (dense, score) in objects.items():
        item = ObjectMask.from_dense(dense, score)
        found.setdefault(name, []).extend([] if item is None else [item])
    return [
        Masks(image.shape, tuple(sorted(items, key=lambda item: -item.score)), "" if name == UNNAMED else name)
        for name, items in found.items()
    ]


def _place_of(image: Image) -> _Place:
    told = image.metadata.get(SLIDE_PLACE)
    return _Place() if told is None else _Place(*(float(part) for part in told.split()))


def _features(item: ObjectMask, image: Image, place: _Place, about: JsonObject) -> list[Feature]:
    """Describe one object on each frame that holds some of it."""
    made: list[Feature] = []
    first, row, column = item.start
    for offset, crop in enumerate(item.crop):
        corner = np.array([column, row], dtype=np.float64)
        geometry = geometry_of(crop, corner, place)
        if geometry is None:
            continue
        if image.shape[0] > 1:
            n = first + offset
            geometry["plane"] = {"c": -1, "z": 0, "t": n} if image.kind == "video" else {"c": -1, "z": n, "t": 0}
        made.append({"type": "Feature", "geometry": geometry, "properties": dict(about)})
    return made


def geometry_of(crop: BoolArray, corner: FloatArray, place: _Place = _WHOLE) -> Geometry | None:
    """Describe a mask whose first pixel is `corner` (x, y): a polygon, several for several parts, None for none."""
    polygons = [[_closed((ring + corner + 0.5) * place.scale, place) for ring in part] for part in rings(crop)]
    if not polygons:
        return None
    is_single = len(polygons) == 1
    kind: Literal["Polygon", "MultiPolygon"] = "Polygon" if is_single else "MultiPolygon"
    return {"type": kind, "coordinates": polygons[0] if is_single else polygons}


def _closed(ring: FloatArray, place: _Place) -> list[list[float]]:
    points: list[list[float]] = (ring + np.array([place.x, place.y])).tolist()
    return [*points, points[0]]


def _polygons(geometry: JsonObject, number: int, place: _Place) -> list[list[FloatArray]]:
    """Read the rings of each polygon, in pixels of the image; empty for other geometries.

    Raises:
        InputError: A ring that is none, or a coordinate that is no number.
    """
    kind, held = geometry.get("type"), geometry.get("coordinates")
    parts: Any = [held] if kind == "Polygon" else held if kind == "MultiPolygon" else []
    try:
        found = [[np.array([point[:2] for point in ring], dtype=np.float64) for ring in part] for part in parts or []]
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise InputError(f"feature {number} of the GeoJSON has a damaged polygon: correct or remove it") from error
    if not all(
        ring.ndim == 2 and ring.shape[1:] == (2,) and np.isfinite(ring).all() for part in found for ring in part
    ):
        raise InputError(f"feature {number} of the GeoJSON has a damaged polygon: correct or remove it")
    return [[(ring - np.array([place.x, place.y])) / place.scale - 0.5 for ring in part] for part in found]


def _frame_of(geometry: JsonObject, count: int) -> int | None:
    """Which frame a feature is on; None for one that the image lacks."""
    plane = geometry.get("plane")
    if count == 1:
        return 0
    places = [plane.get(name) for name in ("z", "t")] if isinstance(plane, dict) else [0]
    told = [value for value in places if isinstance(value, int) and value >= 0]
    frame = max(told, default=0)
    return frame if frame < count else None


def _name_of(about: JsonObject) -> str:
    named = about.get("classification")
    name = named.get("name") if isinstance(named, dict) else None
    return str(name or about.get("class") or UNNAMED)


def _score_of(about: JsonObject) -> float:
    held = about.get("measurements")
    score = held.get("score") if isinstance(held, dict) else None
    is_score = isinstance(score, int | float) and math.isfinite(score) and 0 <= score <= 1
    return float(score) if is_score and score is not None else 1.0
