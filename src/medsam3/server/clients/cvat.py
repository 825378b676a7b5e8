"""CVAT's serverless functions without Nuclio: the server answers CVAT's calls to Nuclio's dashboard itself.

One detector for each kind of image of which concepts were taught, and one interactor. What `cvat-cli` runs is in
`medsam3.clients.cvat`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from medsam3.errors import InputError
from medsam3.geometry import BoolArray
from medsam3.image import Masks
from medsam3.io.contours import outlines
from medsam3.server.clients import desk
from medsam3.server.holdings import HeldImage
from medsam3.server.problems import RefusedError
from medsam3.server.routes import Owner, Served
from medsam3.server.schemas import Click, DrawBox, JobAsked, Step
from medsam3.server.service import Service
from medsam3.store import JsonObject

NAME = "cvat"
INTERACTOR = "medsam3-clicks"
router = APIRouter()


class FunctionMetadata(BaseModel):
    """The name of a function, and what CVAT wants to know of it."""

    name: str
    namespace: str = "nuclio"
    annotations: dict[str, str]


class CvatFunction(BaseModel):
    """A function as Nuclio's dashboard describes it."""

    metadata: FunctionMetadata
    spec: dict[str, str] = {"description": "Segmentation by concept. For research only.", "eventTimeout": "120s"}
    status: dict[str, str | int] = {"state": "ready", "httpPort": 0}


@router.get("/functions")
async def functions(service: Served) -> dict[str, CvatFunction]:
    """List the functions as Nuclio's dashboard does."""
    await desk.wait_for_model(service)
    return _functions(service)


@router.get("/functions/{name}")
async def function(name: str, service: Served) -> CvatFunction:
    """Describe one function."""
    await desk.wait_for_model(service)
    return _known(service, name)


@router.post("/function_invocations")
async def invoke(
    request: Request, owner: Owner, service: Served, x_nuclio_function_name: Annotated[str, Header(max_length=200)]
) -> JSONResponse:
    """Call a function: a detector gives shapes, the interactor a mask."""
    about = _known(service, x_nuclio_function_name)
    asked = await desk.read_json(request)
    image = await _image(service, owner, asked.get("image"))
    if x_nuclio_function_name == INTERACTOR:
        result = await desk.click(service, image, NAME, steps_of(asked), is_followed=False)
        (masks,) = await desk.masks_of(result)
        return JSONResponse({"mask": masks.union()[0].astype(int).tolist()})
    labels = [one["name"] for one in json.loads(about.metadata.annotations["spec"])]
    threshold = asked.get("threshold")
    if threshold is not None and not (isinstance(threshold, int | float) and 0 <= threshold <= 1):
        raise InputError(f"threshold is {threshold!r}, allowed is 0 to 1")
    job = JobAsked(image=image.id, phrases=labels, threshold=threshold)
    found = await desk.masks_of(await desk.find(request, service, image, job))
    await service.remove(image)  # every frame comes once
    return JSONResponse(await run_in_threadpool(_shapes, found))


def steps_of(asked: JsonObject) -> list[Step]:
    """Read the box, the clicks on the object and those beside it; CVAT counts from the corner of the first pixel.

    Raises:
        InputError: None of them, or not in CVAT's form.
    """
    steps: list[Step] = []
    try:
        if asked.get("obj_bbox"):
            (x0, y0), (x1, y1) = asked["obj_bbox"]
            steps.append(DrawBox(do="box", box=(x0 - 0.5, y0 - 0.5, x1 - 0.5, y1 - 0.5)))
        for name in ("pos_points", "neg_points"):
            for x, y in asked.get(name) or []:
                steps.append(Click(do="click", x=x - 0.5, y=y - 0.5, positive=name == "pos_points"))
    except (TypeError, ValueError) as error:
        raise InputError("points are pairs [x, y], a box two of them: send them so") from error
    if not steps or (isinstance(steps[0], Click) and not steps[0].positive):
        raise InputError("there is neither a box nor a click on an object: give one")
    return steps


def _functions(service: Service) -> dict[str, CvatFunction]:
    found = {}
    for family, labels in desk.taught_families(service).items():
        name = f"medsam3-{re.sub('[^a-z0-9]+', '-', family.lower())}"
        spec = json.dumps([{"id": k, "name": label, "type": "mask"} for k, label in enumerate(labels)])
        found[name] = _described(name, f"medsam3: {family}", {"type": "detector", "spec": spec})
    clicks = {"type": "interactor", "spec": "[]", "min_pos_points": "1", "min_neg_points": "0"}
    clicks |= {"help_message": "Click on the object, then beside it where too much is taken"}
    return found | {INTERACTOR: _described(INTERACTOR, "medsam3: clicks", clicks)}


def _described(name: str, shown: str, annotations: dict[str, str]) -> CvatFunction:
    about = {"name": shown, "framework": "medsam3", "version": "1"}
    return CvatFunction(metadata=FunctionMetadata(name=name, annotations=about | annotations))


def _known(service: Service, name: str) -> CvatFunction:
    known = _functions(service)
    if name not in known:
        raise RefusedError(404, f"there is no function {name!r}, allowed are {', '.join(known)}")
    return known[name]


def _shapes(found: Sequence[Masks]) -> list[JsonObject]:
    shapes = []
    for masks in found:
        for item in masks.objects:
            mask = item.plane(0, masks.shape[1:])
            longest = max(outlines(mask), key=lambda line: np.ptp(line[:, 0]) * np.ptp(line[:, 1]))
            shapes.append(
                {
                    "confidence": f"{item.score:.4f}",
                    "label": masks.concept,
                    "type": "mask",
                    "points": (longest + 0.5).ravel().tolist(),  # of the largest part: for who wants polygons
                    "mask": cropped(mask),
                }
            )
    return shapes


def cropped(mask: BoolArray) -> list[int]:
    """Give a mask as CVAT's serverless detectors do: each pixel of its box, then the box's first and last pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, low, left, right = (int(one) for one in (rows[0], rows[-1], columns[0], columns[-1]))
    return [*mask[top : low + 1, left : right + 1].astype(int).ravel().tolist(), left, top, right, low]


async def _image(service: Service, owner: str, packed: Any) -> HeldImage:
    """Unpack an image, or take it from those that came before, as each click sends it again."""
    try:
        content = base64.b64decode(packed, validate=True)
    except (TypeError, ValueError) as error:
        raise InputError("the field image is no base64: send the bytes of a picture so") from error
    if not content:
        raise InputError("the field image is empty: send the bytes of a picture as base64")
    return await desk.hold_once(service, owner, NAME, content)
