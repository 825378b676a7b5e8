"""nnInteractive's server protocol: clicks, scribbles, lassos and boxes on one object of a volume, each answered.

Each client claims a lease, with one image and one object. Arrays are in the client's own order, whose first axis is
taken for that of the slices. An answer holds the box that changed and no more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from medsam3 import __version__
from medsam3.errors import InputError, require
from medsam3.image import ObjectMask
from medsam3.server.clients import arrays, desk
from medsam3.server.holdings import HeldImage, HeldSession, new_id
from medsam3.server.problems import RefusedError
from medsam3.server.routes import Owner, Served
from medsam3.server.schemas import Click, DrawBox, OnObject, Plain, Scribble, SessionAsked, Step
from medsam3.server.service import Service
from medsam3.store import JsonObject

MOST_LEASES = 50
router = APIRouter()


@dataclass
class Lease:
    """One client: its image, its session, and what it was told of the mask.

    Attributes:
        owner: Who claimed it.
        used: When it was used last.
        shown: The mask as the client has it.
        done: For each interaction, how many steps it took.
        queued: Steps that wait for the client to ask for a prediction.
    """

    owner: str
    used: float = field(default_factory=time.monotonic)
    image: HeldImage | None = None
    session: HeldSession | None = None
    shown: ObjectMask | None = None
    done: list[int] = field(default_factory=list)
    queued: list[Step] = field(default_factory=list)


def _lease(service: Served, owner: Owner, x_lease_token: Annotated[str, Header(max_length=100)] = "") -> Lease:
    """Find the client's lease; one that is gone is answered by 410, which the client knows."""
    leases: dict[str, Lease] = desk.desk_of(service).leases
    held = leases.get(x_lease_token)
    if held is None or held.owner != owner or time.monotonic() - held.used > service.settings.limits.kept_s:
        raise RefusedError(410, "the session has expired or is not known: connect again")
    if held.image is not None:
        try:
            service.holdings.image(owner, held.image.id)  # counts as used
        except RefusedError as error:
            raise RefusedError(410, "the image has expired: connect again, and set it anew") from error
    return held


Leased = Annotated[Lease, Depends(_lease)]


class NnInteractiveCapabilities(BaseModel):
    """The interactions that are taken, and the channels by which clients number them."""

    supported_interactions: dict[str, bool] = {
        "points": True,
        "scribble": True,
        "lasso": True,
        "bbox2d": True,
        "bbox3d": False,
    }
    channel_mapping: dict[str, int | list[int]] = {
        "prev_seg": 0,
        "bbox2d": [1, 2],
        "lasso": [1, 2],
        "points": [3, 4],
        "scribble": [5, 6],
    }
    num_interaction_channels: int = 7
    supports_initial_label: bool = False
    supports_zero_shot_label_refinement: bool = False
    preferred_scribble_thickness: list[int] = [1, 1, 1]
    interaction_decay: float | None = None
    patch_size: list[int] | None = None
    do_autozoom: bool = False
    inference_session_version: str = f"medsam3 {__version__}"
    license: str
    supports_undo: bool = True


class Claimed(BaseModel):
    """A client's place, and how long it lasts if nothing is done; it is not asked whether it still lives."""

    lease_token: str
    idle_timeout_seconds: float
    liveness_timeout_seconds: float = 0.0
    max_sessions: int = MOST_LEASES


@router.get("/healthz")
async def health() -> dict[str, bool]:
    """Tell that the server answers."""
    return {"ok": True}


@router.get("/capabilities")
async def capabilities(service: Served) -> NnInteractiveCapabilities:
    """Tell which interactions are taken."""
    told = f"model {service.settings.model} of medsam3: for research only, not a medical device"
    return NnInteractiveCapabilities(license=told)


@router.post("/claim")
async def claim(owner: Owner, service: Served) -> Claimed:
    """Begin."""
    require("blosc2", extra="napari")
    leases, kept_s = desk.desk_of(service).leases, service.settings.limits.kept_s
    for name in [name for name, one in leases.items() if time.monotonic() - one.used > kept_s]:
        del leases[name]  # its image has gone by itself
    if len(leases) >= MOST_LEASES:
        raise RefusedError(503, f"{MOST_LEASES} clients are connected, no more are allowed: wait", retry_after_s=10)
    name = new_id()
    leases[name] = Lease(owner)
    return Claimed(lease_token=name, idle_timeout_seconds=kept_s)


@router.post("/release")
async def release(
    owner: Owner, service: Served, x_lease_token: Annotated[str, Header(max_length=100)] = ""
) -> dict[str, bool]:
    """End, and remove the image."""
    leases = desk.desk_of(service).leases
    held = leases.get(x_lease_token)
    if held is not None and held.owner == owner:
        del leases[x_lease_token]
        if held.image is not None:
            await service.remove(held.image)
    return {"released": True}


@router.post("/heartbeat")
async def heartbeat(lease: Leased, service: Served) -> dict[str, float]:
    """Tell how long the lease lasts if nothing is done."""
    return {"remaining_seconds": max(0.0, service.settings.limits.kept_s - (time.monotonic() - lease.used))}


@router.get("/lease_status")
async def lease_status(lease: Leased, service: Served) -> dict[str, float]:
    """Tell how long the lease lasts."""
    return await heartbeat(lease, service) | {"idle_timeout_seconds": service.settings.limits.kept_s}


@router.post("/set_image")
async def set_image(request: Request, lease: Leased, service: Served) -> dict[str, list[int]]:
    """Take the volume in; what was drawn on another one is gone."""
    spacing = (_meta(request).get("image_properties") or {}).get("spacing") or [1.0, 1.0, 1.0]
    if not isinstance(spacing, list) or not all(isinstance(size, int | float) for size in spacing):
        raise InputError("spacing is no list of numbers: send three sizes in mm")
    path = await desk.body_path(request, service.holdings.folder)
    try:
        limits = service.settings.limits
        held = await service.hold_filled(arrays.fill_volume, (path, spacing, limits), "volume", lease.owner)
    finally:
        path.unlink()
    if lease.image is not None:
        await service.remove(lease.image)
    lease.image, lease.used = held, time.monotonic()
    _begin_anew(lease, service)
    return {"original_image_shape": [1, *_shape(held)]}


@router.post("/set_target_buffer")
async def set_target_buffer(request: Request, lease: Leased) -> dict[str, str]:
    """Take note that the client's mask is empty."""
    shape = (await desk.read_json(request)).get("shape")
    if lease.image is not None and shape != list(_shape(lease.image)):
        raise InputError(f"the buffer is {str(shape)[:100]}, the image {list(_shape(lease.image))}: make it as large")
    lease.shown = None
    return {}


@router.post("/set_do_autozoom")
async def set_do_autozoom(lease: Leased) -> dict[str, str]:
    """Take note of a setting that has no meaning here."""
    return {}


@router.post("/reset_interactions")
async def reset(lease: Leased, service: Served) -> dict[str, str]:
    """Begin with the next object."""
    _begin_anew(lease, service)
    return {}


@router.post("/undo")
async def undo(lease: Leased, service: Served) -> Response:
    """Take the last interaction back."""
    session = _session(lease)
    if not lease.done:
        return await _changed(lease, service, has_run=False)
    for _ in range(lease.done.pop()):
        await service.step(session, Plain(do="undo"))
    return await _changed(lease, service, has_run=True)


@router.post("/predict")
async def predict(lease: Leased, service: Served) -> Response:
    """Answer the interactions that were added without being answered, and follow the object through the slices."""
    return await _answered(lease, service, [], is_run=True, is_followed=True)


@router.post("/add_point_interaction")
async def add_point(request: Request, lease: Leased, service: Served) -> Response:
    """Answer a click (n, row, column)."""
    asked, (count, height, width) = await desk.read_json(request), _shape(_image(lease))
    at = asked.get("coordinates")
    if not isinstance(at, list) or len(at) != 3 or not all(isinstance(one, int | float) for one in at):
        raise InputError(f"the point is {str(at)[:100]}, allowed are three numbers")
    if not all(0 <= one < size for one, size in zip(at, (count, height, width), strict=True)):
        raise InputError(f"the point {at} is outside the volume of {count} x {height} x {width} voxels: click in it")
    step = Click(do="click", x=at[2], y=at[1], frame=int(at[0]), positive=_is_positive(asked))
    return await _answered(lease, service, [step], is_run=_is_run(asked))


@router.post("/add_bbox_interaction")
async def add_box(request: Request, lease: Leased, service: Served) -> Response:
    """Answer a box on one slice: [first, past the last] along each axis."""
    asked = await desk.read_json(request)
    try:
        (n0, n1), (y0, y1), (x0, x1) = ((int(low), int(high)) for low, high in asked["bbox_coords"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("the box is not in its form: send [first, past the last] along three axes") from error
    if n1 - n0 != 1 or not 0 <= n0 < _shape(_image(lease))[0]:
        raise InputError(
            f"the box spans {n1 - n0} slices from {n0} on, allowed is one slice of the first axis: draw it on one"
        )
    box = DrawBox(do="box", box=(x0 - 0.5, y0 - 0.5, x1 - 0.5, y1 - 0.5), frame=n0, object=_object(lease))
    if not _is_positive(asked):
        raise InputError("a box says where the object is: draw scribbles or clicks for what it is not")
    return await _answered(lease, service, [box], is_run=_is_run(asked))


@router.post("/add_scribble_interaction")
async def add_scribble(request: Request, lease: Leased, service: Served) -> Response:
    """Answer a scribble, which may run over several slices."""
    meta = _meta(request)
    drawn: list[arrays.Stroke] = await _read_drawn(request, lease, service, arrays.strokes_in)
    is_positive = _is_positive(meta)
    steps: list[Step] = [Scribble(do="scribble", points=line, frame=n, positive=is_positive) for n, line in drawn]
    return await _answered(lease, service, steps, is_run=_is_run(meta))


@router.post("/add_lasso_interaction")
async def add_lasso(request: Request, lease: Leased, service: Served) -> Response:
    """Answer a lasso as the box around it on each slice."""
    meta = _meta(request)
    if not _is_positive(meta):
        raise InputError("a lasso says where the object is: draw scribbles or clicks for what it is not")
    drawn = await _read_drawn(request, lease, service, arrays.boxes_in)
    steps: list[Step] = []
    for n, box in drawn:
        number = _object(lease) if not steps else 0
        steps.append(DrawBox(do="box", box=box, frame=n, object=number))
    return await _answered(lease, service, steps, is_run=_is_run(meta))


@router.post("/add_initial_seg_interaction")
async def add_initial(lease: Leased) -> Response:
    """Refuse a mask to begin with."""
    raise RefusedError(400, "a mask to begin with is not taken here: click on the object, or draw a box around it")


async def _read_drawn(request: Request, lease: Lease, service: Service, task: Callable[..., Any]) -> Any:
    image = _image(lease)
    path = await desk.body_path(request, image.folder)
    try:
        return await service.read(task, path, _meta(request).get("interaction_bbox"), _shape(image))
    finally:
        path.unlink()


async def _answered(
    lease: Lease, service: Service, steps: list[Step], *, is_run: bool, is_followed: bool = False
) -> Response:
    """Do steps, and follow the object from them if that is asked for; one that is refused undoes those before it."""
    session = _session(lease)
    lease.used = time.monotonic()
    lease.queued += steps
    if not is_run:
        return await _changed(lease, service, has_run=False)
    wanted, lease.queued, count = lease.queued, [], 0
    try:
        for step in wanted:
            await service.step(session, step)
            count += 1
        if is_followed and session.found.objects and session.image.about.frames > 1:
            await service.step(session, OnObject(do="propagate"))
            count += 1
    except (InputError, RefusedError):
        for _ in range(count):
            await service.step(session, Plain(do="undo"))
        raise
    lease.done.append(count)
    return await _changed(lease, service, has_run=True)


async def _changed(lease: Lease, service: Service, *, has_run: bool) -> Response:
    """Give what changed since the client was told last."""
    about: JsonObject = {"ran_prediction": has_run, "bbox": None}
    body = b""
    if has_run:
        session = _session(lease)
        items = [item for masks in await desk.masks_of(await service.keep(session)) for item in masks.objects]
        now = items[0] if items else None
        box = arrays.changed_box(lease.shown, now)
        lease.shown = now
        if box is not None:
            body = await run_in_threadpool(arrays.packed_part, now, box)
            about |= {"bbox": box, "dtype": "uint8", "shape": [high - low for low, high in box]}
    return Response(body, media_type="application/octet-stream", headers={"X-Meta": json.dumps(about)})


def _begin_anew(lease: Lease, service: Service) -> None:
    image = _image(lease)
    if lease.session is not None:
        image.sessions.pop(lease.session.id, None)
    lease.session, lease.shown, lease.done, lease.queued = service.new_session(image, SessionAsked()), None, [], []


def _meta(request: Request) -> JsonObject:
    try:
        meta = json.loads(request.headers.get("x-meta") or "{}")
    except ValueError as error:
        raise InputError("the header X-Meta is no JSON") from error
    if not isinstance(meta, dict):
        raise InputError("the header X-Meta is no JSON object")
    return meta


def _image(lease: Lease) -> HeldImage:
    if lease.image is None:
        raise InputError("there is no image yet: set one first")
    return lease.image


def _session(lease: Lease) -> HeldSession:
    _image(lease)
    assert lease.session is not None, "it comes with the image"
    return lease.session


def _object(lease: Lease) -> int | None:
    """Number of the one object of a session; None if it is still to be begun."""
    return 0 if _session(lease).found.objects else None


def _shape(image: HeldImage) -> tuple[int, int, int]:
    return image.about.frames, image.about.height, image.about.width


def _is_positive(asked: JsonObject) -> bool:
    return bool(asked.get("include_interaction", True))


def _is_run(asked: JsonObject) -> bool:
    return bool(asked.get("run_prediction", True))
