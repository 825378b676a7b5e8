"""samapi's dialect, which the SAM extension of QuPath speaks: regions come as PNG, objects go as GeoJSON.

Positions are pixels of the region that was sent, counted from its upper left corner, so that pixel 0 spans 0 to 1.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.concurrency import run_in_threadpool

from medsam3 import __version__
from medsam3.errors import InputError
from medsam3.image import Masks
from medsam3.io.geojson import Feature, geometry_of
from medsam3.server.clients import desk
from medsam3.server.holdings import HeldImage
from medsam3.server.problems import RefusedError
from medsam3.server.routes import Owner, Served
from medsam3.server.schemas import Click, Corners, DrawBox, JobAsked, PromptAsked, Step
from medsam3.server.service import Service
from medsam3.store import JsonObject

NAME = "qupath"
router = APIRouter()


@router.get("/version/")
async def version() -> PlainTextResponse:
    """Tell the version, by which the extension knows that the server is there."""
    return PlainTextResponse(__version__)


@router.get("/weights/")
async def weights(service: Served, type: str = "sam3") -> list[dict[str, str]]:
    """List the one model that answers, whatever the kind of weights."""
    name = service.settings.model
    return [{"type": type[:20], "name": f"medsam3 {name}", "url": f"medsam3:{name}"}]


@router.post("/sam3/")
async def by_phrase(request: Request, owner: Owner, service: Served) -> JSONResponse:
    """Find all objects of a phrase in a region, and what is like the boxes that were drawn."""
    asked = await desk.read_json(request)
    image = await _image(service, owner, asked)
    text = str(asked.get("text_prompt") or "").strip()
    exemplars = [
        (*_corners(box), name == "positive_bboxes")
        for name in ("positive_bboxes", "negative_bboxes")
        for box in asked.get(name) or []
    ]
    if not text and not any(one[4] for one in exemplars):
        raise InputError("nothing is asked for: type a text prompt, or draw a positive box around one of the objects")
    threshold = asked.get("confidence_threshold")
    if threshold is not None and not (_is_number(threshold) and 0 <= threshold <= 1):
        raise InputError(f"confidence_threshold is {threshold!r}, allowed is 0 to 1")
    prompt = PromptAsked(text=text or None, exemplars=exemplars)
    job = JobAsked(image=image.id, prompts=[prompt], threshold=threshold)
    found = await desk.masks_of(await desk.find(request, service, image, job))
    return JSONResponse(await run_in_threadpool(features, found, str(asked.get("type") or "sam3")))


@router.post("/")
async def by_prompt(request: Request, owner: Owner, service: Served) -> JSONResponse:
    """Outline the one object that a box or points mean."""
    asked = await desk.read_json(request)
    image = await _image(service, owner, asked)
    result = await desk.click(service, image, NAME, steps_of(asked, image), is_followed=False)
    found = await desk.masks_of(result)
    return JSONResponse(await run_in_threadpool(features, found, str(asked.get("type") or "")))


@router.post("/automask/")
@router.post("/upload/")
@router.post("/video/")
@router.post("/sam3/upload/")
@router.post("/sam3/video/")
@router.post("/weights/")
async def not_done() -> Response:
    """Refuse what needs no prompt, sequences, and other weights."""
    raise RefusedError(501, "this is not done here: ask by a text prompt, a box or points, on one plane of the image")


def steps_of(asked: JsonObject, image: HeldImage) -> list[Step]:
    """Read a box and points, which the extension sends as pixels of the region.

    Raises:
        InputError: None of them, or not in samapi's form.
    """
    height, width = image.about.height, image.about.width
    steps: list[Step] = []
    if asked.get("bbox"):
        box = asked["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise InputError(f"bbox is {str(box)[:100]}, allowed is [x0, y0, x1, y1]")
        steps.append(DrawBox(do="box", box=_shifted(box, width, height)))
    points, labels = asked.get("point_coords") or [], asked.get("point_labels") or []
    if len(points) != len(labels):
        raise InputError(f"{len(points)} points and {len(labels)} labels were sent: send one label for each")
    clicks: list[Click] = []
    for point, label in zip(points, labels, strict=True):
        if not (isinstance(point, list) and len(point) == 2 and all(map(_is_number, point))):
            raise InputError(f"a point is {str(point)[:100]}, allowed is [x, y]")
        x, y = min(max(math.floor(point[0]), 0), width - 1), min(max(math.floor(point[1]), 0), height - 1)
        clicks.append(Click(do="click", x=x, y=y, positive=bool(label)))
    clicks.sort(key=lambda click: not click.positive)
    steps += clicks
    if not steps or (isinstance(steps[0], Click) and not steps[0].positive):
        raise InputError("there is neither a box nor a point on an object: draw one")
    return steps


def features(found: Sequence[Masks], kind: str) -> list[Feature]:
    """Give objects as GeoJSON: a polygon with its holes, several where an object has several parts."""
    made: list[Feature] = []
    for masks in found:
        for item in masks.objects:
            _, row, column = item.start
            geometry = geometry_of(item.crop[0], np.array([column, row], dtype=np.float64))
            about = {
                "object_idx": len(made),
                "label": masks.concept or "object",
                "quality": round(item.score, 6),
                "sam_model": kind[:20],
            }
            made.append({"type": "Feature", "geometry": geometry, "properties": about})
    return made


def _corners(box: Any) -> Corners:
    """Edges of a box [x, y, width, height], with pixel centres at whole numbers."""
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) > 0):
        raise InputError(f"a box is {str(box)[:100]}, allowed is [x, y, width, height] with a size above 0")
    x, y, width, height = (float(one) for one in box)
    return x - 0.5, y - 0.5, x + width - 0.5, y + height - 0.5


def _shifted(box: Sequence[float], width: int, height: int) -> Corners:
    x0, y0, x1, y1 = box
    return max(x0, 0) - 0.5, max(y0, 0) - 0.5, min(x1, width) - 0.5, min(y1, height) - 0.5


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


async def _image(service: Service, owner: str, asked: JsonObject) -> HeldImage:
    """Unpack a region, or take it from those that came before, as the extension sends it with each prompt."""
    try:
        content = base64.b64decode(asked["b64img"], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("the field b64img holds no base64: send a PNG of the region so") from error
    return await desk.hold_once(service, owner, NAME, content)
