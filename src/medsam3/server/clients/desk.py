"""What all dialects share: names that clients give to images, whole images as jobs, and clicks given all at once.

Every mask comes from the service's own sessions and jobs. It knows no dialect.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import pickle
import re
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from uuid import uuid4

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from medsam3 import concepts
from medsam3.errors import InputError
from medsam3.image import Masks
from medsam3.server.holdings import HeldImage, HeldJob, HeldResult, HeldSession
from medsam3.server.problems import RefusedError
from medsam3.server.schemas import JobAsked, OnObject, SessionAsked, Step
from medsam3.server.service import Service
from medsam3.store import JsonObject

if TYPE_CHECKING:
    from medsam3.server.clients.nninteractive import Lease

LISTEN_S = 0.5
IN_MEMORY_BYTES = 2**20
MOST_SENT = 20
"""Pictures of one client and owner that are kept for its next prompt."""
MOST_NOTES = 1000
MOST_JSON_BYTES = 256 * 2**20
ARCHIVE = "archive"
"""In place of a dialect's name: series of the archive are called by their UIDs in all of them."""
_UID = re.compile(r"(?=.{3,64}$)[0-9]+(\.[0-9]+)+")


@dataclass
class _ClickSession:
    """A session whose steps a client sends all at once, each time with more of them."""

    session: HeldSession
    done: list[Step] = field(default_factory=list)


@dataclass
class Desk:
    """Names of images and of click sessions, for each owner and dialect; what has expired is forgotten."""

    images: dict[tuple[str, str, str], HeldImage] = field(default_factory=dict)
    tracks: dict[tuple[str, str], _ClickSession] = field(default_factory=dict)
    notes: dict[str, tuple[list[str], bool]] = field(default_factory=dict)  # VoxTell's phrases of jobs, largest alone
    leases: dict[str, Lease] = field(default_factory=dict)  # of nnInteractive's clients
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    fetching: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = field(
        default_factory=weakref.WeakValueDictionary
    )


_desks: weakref.WeakKeyDictionary[Service, Desk] = weakref.WeakKeyDictionary()


def desk_of(service: Service) -> Desk:
    """Give the desk of a server, made when it is first asked for."""
    return _desks.setdefault(service, Desk())


def name_image(service: Service, dialect: str, name: str, image: HeldImage) -> None:
    """Let a client call an image by its own name; another image of that name is forgotten."""
    desk_of(service).images[image.owner, dialect, name] = image


def named_image(service: Service, owner: str, dialect: str, name: str) -> HeldImage | None:
    """Find the image that a client gave a name to; None if there is none, or it has expired."""
    key = (owner, dialect, name)
    held = desk_of(service).images.get(key)
    if held is None:
        return None
    try:
        return service.holdings.image(owner, held.id)
    except RefusedError:
        del desk_of(service).images[key]
        return None


async def archived_image(service: Service, owner: str, uid: str) -> HeldImage | None:
    """Give the series of a UID, fetched from the archive when it is first asked for; None if it may be in none.

    Raises:
        RefusedError: The archive has no such series, refuses, or does not answer.
    """
    if not may_be_archived(service, uid):
        return None
    turn = desk_of(service).fetching.setdefault((owner, uid), asyncio.Lock())
    async with turn:  # who asks while it is fetched waits for it
        held = named_image(service, owner, ARCHIVE, uid)
        if held is None:
            held = await service.hold_archived(uid, owner)
            name_image(service, ARCHIVE, uid, held)
    return held


def may_be_archived(service: Service, name: str) -> bool:
    """Tell whether there is an archive, and the name is one of a series."""
    return service.settings.archive is not None and _UID.fullmatch(name) is not None


async def hold_once(service: Service, owner: str, dialect: str, content: bytes) -> HeldImage:
    """Hold a picture that a client sends with every prompt; the same bytes again are the same image.

    Raises:
        InputError: It cannot be read, or it is no single picture.
    """
    name = hashlib.blake2b(content, digest_size=16).hexdigest()
    held = named_image(service, owner, dialect, name)
    if held is None:
        held = await service.hold([as_upload(content, "image")], owner)
        if held.about.frames > 1:
            await service.remove(held)
            raise InputError(f"the image has {held.about.frames} frames, allowed is one picture: send one alone")
        for key in [key for key in desk_of(service).images if key[:2] == (owner, dialect)][: 1 - MOST_SENT]:
            await service.remove(desk_of(service).images.pop(key))
        name_image(service, dialect, name, held)
    return held


def taught_families(service: Service) -> dict[str, list[str]]:
    """List the concepts that the model was taught by the kind of image that they are of."""
    taught = service.taught
    families: dict[str, list[str]] = {}
    for one in concepts.CONCEPTS:
        if one.name in taught:
            families.setdefault(one.family, []).append(one.name)
    return families


async def wait_for_model(service: Service) -> None:
    """Wait while the model is loaded, so that what it was taught can be told; not if that failed."""
    while service.model is None and any(worker.waiting for worker in service.modellers):
        await asyncio.sleep(LISTEN_S)


async def find(request: Request, service: Service, image: HeldImage, asked: JobAsked) -> HeldResult:
    """Segment a whole image as a job, and stop it if the client goes away.

    Raises:
        InputError: As `medsam3.segment`.
        RefusedError: The server is busy, or the work was stopped.
    """
    failed: list[Exception] = []

    async def work(job: HeldJob) -> None:
        try:
            await service.segment(job, asked)
        except (InputError, RefusedError) as error:
            failed.append(error)
            raise

    job = service.begin_job(image, work)
    assert job.task is not None, "it was just begun"
    while not job.task.done():
        await asyncio.wait([job.task], timeout=LISTEN_S)
        if await request.is_disconnected():
            await service.cancel(job)
    if failed:
        raise failed[0]
    if job.result is None:
        raise RefusedError(500, job.error or "the work was stopped before its end: ask again")
    return image.results[job.result]


async def click(
    service: Service, image: HeldImage, key: str, steps: Sequence[Step], *, is_followed: bool
) -> HeldResult:
    """Do the steps that were not done yet on one object, and keep its mask; fewer steps than before begin it anew.

    Args:
        service: The server's state.
        image: The image.
        key: Name of the object.
        steps: All steps, positive ones first.
        is_followed: Follow the object through the volume afterwards.

    Raises:
        InputError: A step that is refused, such as a click outside the image.
    """
    desk, name = desk_of(service), (image.id, key)
    async with desk.lock:
        track = desk.tracks.get(name)
        left = None if track is None or track.session.id not in image.sessions else _without(track.done, steps)
        if track is None or left is None:
            if track is not None:
                image.sessions.pop(track.session.id, None)
            track, left = _ClickSession(service.new_session(image, SessionAsked())), list(steps)
            desk.tracks[name] = track
    for step in left:
        await service.step(track.session, step)
        track.done.append(step)
    if is_followed and left and image.about.frames > 1:
        await service.step(track.session, OnObject(do="propagate"))
    return await service.keep(track.session)


def _without(done: Sequence[Step], steps: Sequence[Step]) -> list[Step] | None:
    """Give the steps that were not done yet; None if one was done that is not among them."""
    left = list(steps)
    for step in done:
        if step not in left:
            return None
        left.remove(step)
    return left


async def masks_of(result: HeldResult) -> list[Masks]:
    """Read kept masks, which the server's own worker wrote."""
    return cast(list[Masks], await run_in_threadpool(lambda: pickle.loads(result.masks.read_bytes())))


async def read_json(request: Request, most: int = MOST_JSON_BYTES) -> JsonObject:
    """Read the body as a JSON object.

    Raises:
        InputError: It is no JSON object.
        RefusedError: It is larger than `most` bytes.
    """
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise RefusedError(413, f"the request is larger than {most} bytes, which are allowed: send a smaller image")
    try:
        content = json.loads(bytes(body) or b"{}")
    except ValueError as error:
        raise InputError("the request is no JSON: send a JSON object") from error
    if not isinstance(content, dict):
        raise InputError(f"the request is a JSON {type(content).__name__}, allowed is an object")
    return content


async def body_file(request: Request, name: str) -> UploadFile:
    """Take the body of a request in as a file."""
    file = spooled()
    async for piece in request.stream():
        file.write(piece)
    file.seek(0)
    return UploadFile(cast(Any, file), filename=name)


async def body_path(request: Request, folder: Path) -> Path:
    """Take the body of a request in as a file of its own in a private folder, for the reading process."""
    path = folder / f"body-{uuid4().hex}"
    try:
        with path.open("xb") as file:
            async for piece in request.stream():
                file.write(piece)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def as_upload(content: bytes, name: str) -> UploadFile:
    """Give bytes as a file that came in."""
    file = spooled()
    file.write(content)
    file.seek(0)
    return UploadFile(cast(Any, file), filename=name)


def spooled() -> IO[bytes]:
    """Make a file that stays in memory while it is small."""
    return cast(IO[bytes], tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES))


def phrases_in(text: str) -> list[str]:
    """Split a text box into phrases, which commas, semicolons or lines separate."""
    for mark in (";", "\n"):
        text = text.replace(mark, ",")
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
