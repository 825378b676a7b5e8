"""VoxTell's server protocol, which napari-voxtell speaks: a volume and phrases in, a mask for each phrase out.

Its arrays run (Z, Y, X) to superior, anterior and right, whatever the order in which the file keeps its voxels.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from medsam3.errors import InputError, require
from medsam3.server.clients import arrays, desk
from medsam3.server.holdings import HeldImage, HeldJob
from medsam3.server.problems import RefusedError
from medsam3.server.routes import Owner, Served
from medsam3.server.schemas import JobAsked

NAME = "voxtell"
LOOK_S = 0.2
MOST_PHRASES = 50
_ENDS = {"done": "done", "cancelled": "cancelled", "failed": "error"}
router = APIRouter()


class VoxTellCapabilities(BaseModel):
    """The model, and the phrases that it was taught."""

    model: str
    patch_size: tuple[int, int, int] = (1, 256, 256)
    available_embeddings: list[str]


@router.get("/healthz")
async def health() -> dict[str, bool]:
    """Tell that the server answers."""
    return {"ok": True}


@router.get("/capabilities")
async def capabilities(service: Served) -> VoxTellCapabilities:
    """Name the model, and the concepts that it was taught in place of prepared phrases."""
    require("blosc2", extra="napari")
    await desk.wait_for_model(service)
    return VoxTellCapabilities(model=f"medsam3 {service.settings.model}", available_embeddings=sorted(service.taught))


@router.post("/images")
async def take_image(request: Request, owner: Owner, service: Served, include_image: bool = True) -> Response:
    """Take a volume in, and give it back turned if it is asked for."""
    held = await service.hold([await desk.body_file(request, "image.nii.gz")], owner)
    try:
        shape, spacing, body = await service.read(arrays.canonical_image, held.source, include_image)
    except (InputError, RefusedError):
        await service.remove(held)
        raise
    about = {"image_id": held.id, "spacing": spacing, "shape": shape}
    return Response(body, media_type="application/octet-stream", headers={"X-Meta": json.dumps(about)})


@router.post("/jobs")
async def begin(
    owner: Owner,
    service: Served,
    image_id: Annotated[str, Body(max_length=100)],
    prompts: Annotated[list[str] | str, Body()],
    keep_largest: Annotated[bool, Body()] = False,
) -> dict[str, str]:
    """Begin to find the phrases."""
    phrases = [prompts] if isinstance(prompts, str) else prompts
    if not 1 <= len(phrases) <= MOST_PHRASES or not all(one.strip() for one in phrases):
        raise InputError(f"{len(phrases)} prompts were given, allowed are 1 to {MOST_PHRASES}, none of them empty")
    image = service.holdings.image(owner, image_id)
    asked = JobAsked(image=image.id, phrases=list(dict.fromkeys(phrases)))
    job = service.begin_job(image, partial(service.segment, asked=asked))
    notes = desk.desk_of(service).notes
    notes[job.id] = (phrases, keep_largest)
    while len(notes) > desk.MOST_NOTES:
        notes.pop(next(iter(notes)))
    return {"job_id": job.id}


@router.get("/jobs/{job}/events")
async def events(job: str, owner: Owner, service: Served) -> StreamingResponse:
    """Tell how far a job is, a line of JSON each time, until it ends."""
    return StreamingResponse(_lines(service.holdings.job(owner, job)), media_type="application/x-ndjson")


async def _lines(job: HeldJob) -> AsyncIterator[str]:
    told = (-1, -1)
    while True:
        is_over = job.is_over  # before it is told, so that its end is
        now = (job.progress.done, job.progress.count)
        if now != told and now[1]:
            yield json.dumps({"done": now[0], "total": now[1]}) + "\n"
            told = now
        if is_over:
            end = {"status": _ENDS.get(job.progress.state, "error")}
            yield json.dumps(end | ({"message": job.error} if job.error else {})) + "\n"
            return
        await asyncio.sleep(LOOK_S)


@router.get("/jobs/{job}/result")
async def result(job: str, owner: Owner, service: Served) -> Response:
    """Give the masks of a job that is done."""
    held = service.holdings.job(owner, job)
    if held.error is not None:
        raise RefusedError(500, held.error)
    if held.result is None:
        raise RefusedError(409, f"the job is not done, it is {held.progress.state}: wait for its events to end")
    phrases, is_largest = desk.desk_of(service).notes[job]
    kept = held.image.results[held.result]
    body = await service.read(arrays.canonical_masks, held.image.source, kept.masks, phrases, is_largest)
    return Response(body, media_type="application/octet-stream")


@router.post("/jobs/{job}/cancel")
async def cancel(job: str, owner: Owner, service: Served) -> dict[str, bool]:
    """Stop a job."""
    await service.cancel(service.holdings.job(owner, job))
    return {"cancelling": True}


@router.post("/images/{image}/export")
async def export(request: Request, image: str, owner: Owner, service: Served) -> Response:
    """Give a label map back as NIfTI in the order and place of the file that was uploaded."""
    held: HeldImage = service.holdings.image(owner, image)
    most = 8 * held.about.frames * held.about.height * held.about.width
    path = await desk.body_path(request, held.folder)
    try:
        body = await service.read(arrays.export_labels, held.source, path, most)
    finally:
        path.unlink()
        path.with_suffix(".nii.gz").unlink(missing_ok=True)
    return Response(body, media_type="application/octet-stream")
