"""Label Studio's ML backend: labels of a project are phrases; brush masks, polygons or boxes for each task.

Images are fetched from the Label Studio that `LABEL_STUDIO_URL` and `LABEL_STUDIO_API_KEY` name, and from nowhere else.
"""

from __future__ import annotations

import base64
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4
from xml.etree import ElementTree

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from medsam3.errors import InputError
from medsam3.geometry import BoolArray
from medsam3.image import Masks, ObjectMask
from medsam3.io.contours import outlines
from medsam3.server.clients import desk
from medsam3.server.holdings import HeldImage
from medsam3.server.problems import RefusedError
from medsam3.server.routes import Owner, Served
from medsam3.server.schemas import Click, DrawBox, JobAsked, Step
from medsam3.server.service import Service
from medsam3.store import JsonObject

NAME = "labelstudio"
FETCH_S = 60.0
MOST_TASKS = 100
MOST_CONFIG = 200_000
SIZES = (4, 8, 12, 16)
"""Bits by which Label Studio's run lengths may be written; two bits before each choose one."""
router = APIRouter()


@dataclass(frozen=True)
class Control:
    """A tag of the labelling interface that takes results.

    Attributes:
        name: Its name, the results' from_name.
        image: Name of the image tag, the results' to_name.
        kind: brushlabels, polygonlabels or rectanglelabels.
        phrases: From each label to the phrase that is asked for: the label itself, or its predicted_values.
    """

    name: str
    image: str
    kind: str
    phrases: Mapping[str, str]


@router.get("/")
@router.get("/health")
async def health(service: Served) -> dict[str, str]:
    """Tell that the backend is there."""
    return {"status": "UP", "model_class": "medsam3", "model_version": _version(service)}


@router.post("/setup")
async def setup(request: Request, service: Served) -> dict[str, str]:
    """Read a project's interface, and say what is missing in it."""
    asked = await desk.read_json(request, 4 * 2**20)
    if asked.get("schema"):
        control_in(str(asked["schema"]))
    return {"model_version": _version(service)}


@router.get("/versions")
async def versions(service: Served) -> dict[str, list[str]]:
    """List the one version that answers."""
    return {"versions": [_version(service)]}


@router.post("/webhook", status_code=201)
@router.post("/train", status_code=201)
async def event() -> dict[str, str]:
    """Take note of what happens in a project, which changes nothing here."""
    return {"status": "ignored: this server does not train, medsam3 train does"}


@router.post("/predict")
async def predict(request: Request, owner: Owner, service: Served) -> JSONResponse:
    """Segment tasks by the labels of their project, or one task by what was clicked or drawn on it."""
    asked = await desk.read_json(request)
    tasks = [task for task in asked.get("tasks") or [] if isinstance(task, dict)]
    if len(tasks) > MOST_TASKS:
        raise InputError(f"{len(tasks)} tasks were sent, allowed are {MOST_TASKS} at once: lower the batch size")
    config = str(asked.get("label_config") or "")
    control, source = control_in(config), source_in(config)
    context = (asked.get("params") or {}).get("context") or {}
    drawn = [one for one in context.get("result") or [] if isinstance(one, dict)]
    results = []
    for task in tasks:
        try:
            image = await _image(service, owner, (task.get("data") or {}).get(source))
            if drawn:
                result = await desk.click(
                    service, image, f"{NAME}/{task.get('id')}", steps_of(drawn, image), is_followed=False
                )
                label = _label_of(drawn, control)
                found = [(label, masks) for masks in await desk.masks_of(result)]
            else:
                phrases = list(dict.fromkeys(control.phrases.values()))
                result = await desk.find(request, service, image, JobAsked(image=image.id, phrases=phrases))
                found = _by_label(await desk.masks_of(result), control)
            results.append(await run_in_threadpool(_prediction, found, control, _version(service)))
        except (InputError, RefusedError) as error:
            if len(tasks) == 1:
                raise
            results.append({"result": [], "score": 0.0, "model_version": _version(service), "error": str(error)})
    return JSONResponse({"results": results, "model_version": _version(service)})


def control_in(config: str) -> Control:
    """Find the tag that takes masks: brush before polygon before rectangle.

    Raises:
        InputError: The interface is no XML, or has no such tag.
    """
    root = _parsed(config)
    for kind in ("BrushLabels", "PolygonLabels", "RectangleLabels"):
        for tag in root.iter(kind):
            labels = [label for label in tag.iter("Label") if label.get("value")]
            if labels:
                phrases = {
                    str(one.get("value")): one.get("predicted_values") or str(one.get("value")) for one in labels
                }
                return Control(tag.get("name", ""), tag.get("toName", ""), kind.lower(), phrases)
    raise InputError(
        "the labelling interface takes no masks: give it BrushLabels (or PolygonLabels, RectangleLabels) with labels "
        "that are phrases, such as <Label value='optic disc'/>"
    )


def source_in(config: str) -> str:
    """Name the field of a task that holds its image.

    Raises:
        InputError: As `control_in`, or there is no Image tag.
    """
    for tag in _parsed(config).iter("Image"):
        value = tag.get("value", "")
        if value.startswith("$"):
            return value[1:]
    raise InputError("the labelling interface shows no image: give it <Image name='image' value='$image'/>")


def _parsed(config: str) -> ElementTree.Element:
    if len(config) > MOST_CONFIG or "<!" in config.replace("<!--", ""):  # no document types: they can grow without end
        raise InputError("the labelling interface is too long, or holds more than tags: simplify it")
    try:
        return ElementTree.fromstring(config)
    except ElementTree.ParseError as error:
        raise InputError("the labelling interface is no XML: open it in the project's settings and save it") from error


def steps_of(drawn: Sequence[JsonObject], image: HeldImage) -> list[Step]:
    """Read what was drawn: rectangles first, then clicks on the object, then clicks beside it; percents become pixels.

    Raises:
        InputError: None of it is a click or a rectangle.
    """
    height, width = image.about.height, image.about.width
    boxes: list[Step] = []
    clicks: list[Click] = []
    for one in drawn:
        value = one.get("value") or {}
        try:
            x, y = float(value["x"]) / 100 * width - 0.5, float(value["y"]) / 100 * height - 0.5
            if one.get("type") == "rectanglelabels":
                right, low = x + float(value["width"]) / 100 * width, y + float(value["height"]) / 100 * height
                boxes.append(DrawBox(do="box", box=(x, y, right, low)))
            elif one.get("type") == "keypointlabels":
                is_positive = bool(int(one.get("is_positive", True)))
                x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
                clicks.append(Click(do="click", x=x, y=y, positive=is_positive))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"a click or rectangle is not in Label Studio's form ({error!r})") from error
    if not boxes and not any(click.positive for click in clicks):
        raise InputError("there is no click on an object and no rectangle: click on it with a keypoint or draw one")
    return [*boxes, *sorted(clicks, key=lambda click: not click.positive)]


def _label_of(drawn: Sequence[JsonObject], control: Control) -> str:
    """Name the label that was chosen for what was drawn last, if the interface has it; else the first one."""
    for one in reversed(drawn):
        labels = (one.get("value") or {}).get(one.get("type"))
        if isinstance(labels, list) and labels and labels[0] in control.phrases:
            return str(labels[0])
    return next(iter(control.phrases))


def _by_label(found: Sequence[Masks], control: Control) -> list[tuple[str, Masks]]:
    labels = {phrase: label for label, phrase in control.phrases.items()}
    return [(labels.get(masks.concept, masks.concept), masks) for masks in found]


def _prediction(found: Sequence[tuple[str, Masks]], control: Control, version: str) -> JsonObject:
    results = [
        region
        for label, masks in found
        for item in masks.objects
        for region in _regions(label, item, masks.shape, control)
    ]
    score = min((region["score"] for region in results), default=0.0)
    return {"result": results, "score": score, "model_version": version}


def _regions(label: str, item: ObjectMask, shape: tuple[int, int, int], control: Control) -> list[JsonObject]:
    """Give one object as regions of the control's kind: one brush or box, or a polygon for each part."""
    _, height, width = shape
    mask = item.plane(0, (height, width))
    values: list[JsonObject]
    if control.kind == "brushlabels":
        values = [{"format": "rle", "rle": brush_of(mask)}]
    elif control.kind == "polygonlabels":
        scale = np.array([100 / width, 100 / height])
        values = [{"points": ((line + 0.5) * scale).tolist(), "closed": True} for line in outlines(mask)]
    else:
        x0, y0, x1, y1 = item.box
        edges = {"x": x0 + 0.5, "width": x1 - x0}, {"y": y0 + 0.5, "height": y1 - y0}
        across, down = (
            {key: value * 100 / size for key, value in one.items()}
            for one, size in zip(edges, (width, height), strict=True)
        )
        values = [{**across, **down, "rotation": 0}]
    about = {
        "from_name": control.name,
        "to_name": control.image,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "type": control.kind,
        "score": round(item.score, 6),
    }
    return [about | {"id": uuid4().hex[:10], "value": value | {control.kind: [label]}} for value in values]


def brush_of(mask: BoolArray) -> list[int]:
    """Encode a mask as Label Studio's brush: runs of equal values over (row, column, red-green-blue-alpha), as bytes.

    The bits are: the count of values (32), bits of a value less 1 (5), four sizes less 1 (4 each); then for each run a
    1, the size's number (2), the length less 1 in that many bits, and the value.
    """
    flat = mask.ravel()
    ends = np.concatenate([np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    bits = [f"{flat.size * 4:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    first = 0
    for end in ends.tolist():
        value = "11111111" if flat[first] else "00000000"
        left, first = (end - first) * 4, end
        while left:
            run = min(left, 2 ** SIZES[-1])
            kind = next(k for k, size in enumerate(SIZES) if run <= 2**size)
            bits.append(f"1{kind:02b}{run - 1:0{SIZES[kind]}b}{value}")
            left -= run
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


async def _image(service: Service, owner: str, source: Any) -> HeldImage:
    """Fetch the image of a task, or take it from those that were fetched before."""
    if not isinstance(source, str) or not source:
        raise InputError("the task holds no image: name its field in <Image value='$FIELD'/>")
    held = desk.named_image(service, owner, NAME, source) if len(source) < 5000 else None
    if held is None:
        content, name = await run_in_threadpool(fetched, source, service.settings.limits.upload_bytes)
        held = await service.hold([desk.as_upload(content, name)], owner)
        if len(source) < 5000:
            desk.name_image(service, NAME, source, held)
    if held.about.frames > 1:
        raise InputError(f"the task's image has {held.about.frames} frames, allowed is one: make a task of each")
    return held


def fetched(source: str, most: int) -> tuple[bytes, str]:
    """Fetch an image from Label Studio, or unpack a data URI; gives bytes and a name.

    Raises:
        InputError: The image lies elsewhere, or cannot be had.
    """
    if source.startswith("data:"):
        head, _, packed = source.partition(",")
        try:
            ending = re.sub(r"[^a-z0-9]", "", head.partition("/")[2].partition(";")[0].lower())
            return base64.b64decode(packed, validate=True), f"image.{ending or 'png'}"
        except ValueError as error:
            raise InputError("the task's image is a data URI without base64: send base64") from error
    root = os.environ.get("LABEL_STUDIO_URL", "").rstrip("/")
    if not root:
        raise InputError(
            "images cannot be fetched: start the server with LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY set"
        )
    url = urllib.parse.urljoin(f"{root}/", source)
    if url.startswith(("s3:", "gs:", "azure-blob:")) or _host(url) != _host(root):
        raise InputError(
            f"the image lies at {_host(url) or 'another store'}, allowed is Label Studio's own {_host(root)}: "
            "upload it there, or switch pre-signed links of its storage off"
        )
    request = urllib.request.Request(url, headers=_authorization(root))
    try:
        with _opener(root).open(request, timeout=FETCH_S) as answer:
            content = _read(answer, most)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "code", None) or getattr(error, "reason", error)
        raise InputError(
            f"Label Studio does not give the image ({reason}): look at the task's image, and at LABEL_STUDIO_API_KEY"
        ) from error
    if len(content) > most:
        raise InputError(f"the image is larger than {most} bytes, which are allowed: give a smaller one")
    return content, urllib.parse.unquote(urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1]) or "image"


def _read(answer: Any, most: int) -> bytes:
    """Read a body up to one byte more than `most`, which may not trickle in for longer than an answer may take.

    Raises:
        TimeoutError: It does.
    """
    content, deadline = bytearray(), time.monotonic() + FETCH_S
    while len(content) <= most and (piece := answer.read1(min(2**20, most + 1 - len(content)))):
        content += piece
        if time.monotonic() > deadline:
            raise TimeoutError("timed out")
    return bytes(content)


def _authorization(root: str) -> dict[str, str]:
    """Give the header for an access token, which may be one that has to be traded for a short-lived one."""
    key = os.environ.get("LABEL_STUDIO_API_KEY", "")
    if key.count(".") != 2:
        return {"Authorization": f"Token {key}"} if key else {}
    import json  # noqa: PLC0415

    body = json.dumps({"refresh": key}).encode()
    request = urllib.request.Request(f"{root}/api/token/refresh", body, {"Content-Type": "application/json"})
    try:
        with _opener(root).open(request, timeout=FETCH_S) as answer:
            return {"Authorization": f"Bearer {json.loads(answer.read(10_000))['access']}"}
    except (urllib.error.URLError, OSError, ValueError, KeyError) as error:
        raise InputError(
            "Label Studio does not take LABEL_STUDIO_API_KEY: copy the access token of an account"
        ) from error


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects to one host alone, so that neither the token nor the request gets elsewhere."""

    def __init__(self, host: str) -> None:
        self._only = host

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if _host(newurl) != self._only:
            raise urllib.error.HTTPError(newurl, code, f"it lies at {_host(newurl)}", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(root: str) -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_SameHost(_host(root)))


def _host(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return parts.netloc.rpartition("@")[2].lower() if parts.scheme in ("http", "https") else ""


def _version(service: Service) -> str:
    return f"medsam3 {service.model.name if service.model else service.settings.model}"
