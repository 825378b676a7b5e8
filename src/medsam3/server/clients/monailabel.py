"""MONAI Label's dialect, which 3D Slicer's module and OHIF's mode speak: models, a data store, sessions, labels.

Three kinds of model: phrases typed into the options, all taught concepts of one kind of image, and clicks.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import uuid4

from fastapi import APIRouter, Body, File, Form, Query, Request, UploadFile
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from pydantic import BaseModel

from medsam3 import __version__
from medsam3.errors import InputError
from medsam3.server import reader
from medsam3.server.clients import desk
from medsam3.server.clients.store import Store, StoreCounts
from medsam3.server.holdings import HeldImage, HeldResult
from medsam3.server.problems import RefusedError, not_here
from medsam3.server.routes import Owner, Served
from medsam3.server.schemas import Click, ImageAnswer, JobAsked, Source, Step
from medsam3.server.service import Service
from medsam3.store import JsonObject

NAME = "monailabel"
PHRASE, CLICKS, CLICKS_ON_SLICE = "phrase", "clicks", "clicks_on_slice"
PHRASE_LABELS = [f"phrase {k}" for k in range(1, 6)]
"""OHIF knows the labels of a model before it asks; phrase k of the box becomes label k."""
_ENDINGS = (".nrrd", ".nii.gz", ".nii", ".mha")
_STRATEGIES = {"first": "The first image without a label", "random": "Any image without a label"}
router = APIRouter()

Answered = Literal["image", "json", "all", "dicom_seg"]


class MonaiModel(BaseModel):
    """A model: its labels with their numbers, and options with what stands in them at first."""

    type: Literal["segmentation", "deepgrow"]
    labels: dict[str, int]
    dimension: Literal[2, 3] = 3
    description: str
    config: dict[str, str] = {}


class SessionBegun(BaseModel):
    """The name of a session, and of its image."""

    session_id: str
    session_info: dict[str, str]


class MonaiStrategy(BaseModel):
    """A way to choose the next image."""

    description: str
    config: dict[str, str] = {}


class MonaiInfo(BaseModel):
    """All that a client asks for first; nothing is trained or scored here."""

    name: str = "medsam3"
    description: str
    version: str = __version__
    labels: list[str]
    models: dict[str, MonaiModel]
    trainers: dict[str, str] = {}
    strategies: dict[str, MonaiStrategy]
    scoring: dict[str, str] = {}
    train_stats: dict[str, str] = {}
    datastore: StoreCounts


@router.get("/info/")
async def info(service: Served) -> MonaiInfo:
    """Tell which models there are, once they are loaded, and how many images have a label."""
    await desk.wait_for_model(service)
    models = _models(service)
    labels = sorted({name for model in models.values() for name in model.labels})
    return MonaiInfo(
        description=f"Segmentation by concept, model {service.settings.model}. For research only.",
        labels=labels,
        models=models,
        strategies={name: MonaiStrategy(description=told) for name, told in _STRATEGIES.items()},
        datastore=Store.of(service.settings).counts(),
    )


@router.get("/auth/")
async def ask_for_token(service: Served) -> dict[str, bool]:
    """Tell whether a token is needed."""
    return {"enabled": bool(service.settings.tokens)}


@router.post("/auth/token")
async def give_token(service: Served, password: Annotated[str, Form(max_length=1000)] = "") -> dict[str, str]:
    """Take the password for the token, which is what it has to be."""
    if service.settings.owner_of(password) is None:
        raise RefusedError(401, "the password is no token of this server: give one of its token file")
    return {"access_token": password, "token_type": "Bearer"}


@router.get("/auth/token/valid")
async def check_token() -> dict[str, str]:
    """Answer whoever got past the guard."""
    return {"username": "medsam3"}


@router.get("/datastore/")
async def datastore(service: Served, output: str = "stats") -> Any:
    """List images and labels, or count them."""
    store = Store.of(service.settings)
    return store.listing() if output == "all" else store.datalist() if output == "train" else store.counts()


@router.put("/datastore/")
@router.put("/datastore/image")
async def add_image(
    owner: Owner, service: Served, file: Annotated[UploadFile, File()], image: str = ""
) -> dict[str, str]:
    """Take an image in under a name; it is kept for as long as any upload, and never put into the data folder."""
    name = image or reader.stem_of(file.filename or "image")
    desk.name_image(service, NAME, name, await service.hold([file], owner))
    return {"image": name}


@router.delete("/datastore/")
@router.delete("/datastore/image")
async def remove_image(owner: Owner, service: Served, id: str) -> dict[str, str]:
    """Remove an image that was taken in; files of the data folder are not removed."""
    held = desk.named_image(service, owner, NAME, id)
    if held is None:
        raise not_here("uploaded image")
    await service.remove(held)
    return {}


@router.head("/datastore/image")
@router.get("/datastore/image")
async def give_image(owner: Owner, service: Served, image: str) -> FileResponse:
    """Give an image as a file; a DICOM series that lies in a folder is not packed for it."""
    held = desk.named_image(service, owner, NAME, image)
    path = held.source.path if held is not None else Store.of(service.settings).image(image)
    if path is None or not path.is_file():
        raise not_here("image file")
    return FileResponse(path, filename=path.name)


@router.get("/datastore/image/info", response_model_exclude={"id", "display"})
async def image_info(owner: Owner, service: Served, image: str) -> ImageAnswer:
    """Tell what an image is."""
    return (await _image(service, owner, image)).about


@router.put("/datastore/label")
async def save_label(
    owner: Owner,
    service: Served,
    image: str,
    label: Annotated[UploadFile, File()],
    tag: Annotated[str, Query(pattern="^[A-Za-z0-9_-]{0,40}$")] = "final",
    params: Annotated[str, Form(max_length=1_000_000)] = "{}",
) -> dict[str, str]:
    """Keep a label that is masks over that image: in the archive that the image is from, else in the data folder."""
    store = Store.of(service.settings)
    target = None if desk.may_be_archived(service, image) else store.label_to_be(image, tag or "final")
    held, told = await _image(service, owner, image), _object(params)
    if target is None and desk.named_image(service, owner, desk.ARCHIVE, image) is not held:
        target = store.label_to_be(image, tag or "final")
    names = {
        int(one["idx"]): str(one["name"])
        for one in told.get("label_info") or []
        if isinstance(one, dict) and str(one.get("idx", "")).isdecimal() and "name" in one
    }
    folder = held.folder / f"label-{uuid4().hex}"
    folder.mkdir(mode=0o700)
    try:
        path = folder / reader.stored_name(0, label.filename or "label.nii.gz")
        path.write_bytes(await label.read())
        await service.read(reader.keep_label, held.source, path, names, target or folder / "label.dcm")
        if target is None:
            assert service.settings.archive is not None, "the image is from it"
            await service.by_archive(service.settings.archive.store, folder / "label.dcm")
    finally:
        reader.remove(folder)
    return {"image": image, "label": image}


@router.head("/datastore/label")
@router.get("/datastore/label")
async def give_label(service: Served, label: str = "", tag: str = "final", image: str = "") -> FileResponse:
    """Give a label that was kept."""
    path = Store.of(service.settings).label(label or image, tag)
    return FileResponse(path, filename=path.name)


@router.delete("/datastore/label")
async def remove_label(service: Served, id: str, tag: str = "final") -> dict[str, str]:
    """Remove a label that was kept."""
    Store.of(service.settings).label(id, tag).unlink()
    return {}


@router.put("/session/")
async def begin_session(owner: Owner, service: Served, files: Annotated[list[UploadFile], File()]) -> SessionBegun:
    """Take in the image that is clicked on."""
    held = await service.hold(files, owner)
    return SessionBegun(session_id=held.id, session_info={"image": held.about.name})


@router.get("/session/{session}")
async def about_session(owner: Owner, service: Served, session: str) -> dict[str, str]:
    """Tell whether the image of a session is still there."""
    return {"name": session, "image": service.holdings.image(owner, session).about.name}


@router.delete("/session/{session}")
async def end_session(owner: Owner, service: Served, session: str) -> dict[str, str]:
    """Remove the image of a session."""
    await service.remove(service.holdings.image(owner, session))
    return {"name": session}


@router.post("/activelearning/{strategy}")
async def next_sample(
    service: Served, strategy: str, params: Annotated[JsonObject | None, Body()] = None
) -> dict[str, str]:
    """Name an image of the data folder that has no label yet; nothing if all have one."""
    if strategy not in _STRATEGIES:
        raise RefusedError(404, f"there is no strategy {strategy!r}, allowed are {', '.join(_STRATEGIES)}")
    left = Store.of(service.settings).without_label()
    if not left:
        return {}
    name = random.choice(sorted(left)) if strategy == "random" else min(left)
    return {"id": name, "name": left[name].name, "path": str(left[name])}


@router.get("/train/")
async def training() -> Response:
    """Say that nothing is trained here, in the way that the clients understand."""
    raise RefusedError(404, "no training is at work: this server does not train, medsam3 train does")


@router.post("/train/")
@router.post("/train/{model}")
@router.delete("/train/")
async def no_training(model: str = "") -> Response:
    """Refuse to train."""
    raise RefusedError(501, "this server does not train: use medsam3 train, and serve its weights")


@router.get("/logs/")
async def logs(request: Request, lines: Annotated[int, Query(ge=1, le=1000)] = 300) -> PlainTextResponse:
    """Give the last lines of the log, which hold no names, ids or phrases."""
    return PlainTextResponse("".join(f"{line}\n" for line in list(request.app.state.metrics.lines)[-lines:]))


@router.post("/infer/wsi/{model}")
async def no_slides(model: str) -> Response:
    """Refuse whole slides."""
    raise RefusedError(501, "whole slides are not segmented in this dialect: QuPath's (--enable qupath) sends regions")


@router.post("/infer/{model}")
async def infer(
    request: Request, owner: Owner, service: Served, model: str, image: str = "", session_id: str = "",
    output: Answered = "all",
) -> Response:  # fmt: skip
    """Segment an image by a model."""
    known = _models(service)
    if model not in known:
        raise RefusedError(404, f"there is no model {model!r}, allowed are {', '.join(known)}")
    if output == "dicom_seg":
        raise RefusedError(501, "DICOM SEG is not written in this dialect: take image, json or all")
    async with request.form(max_files=2, max_fields=10) as form:
        params, file = _object(form.get("params") or "{}"), form.get("file")
        if session_id:
            held = service.holdings.image(owner, session_id)
        elif not isinstance(file, (str, type(None))):
            held = await service.hold([file], owner)
        else:
            held = await _image(service, owner, image)
    if model in (CLICKS, CLICKS_ON_SLICE):
        result, names = await _click(service, held, model, params), [""]
        told = {str(params.get("label") or "object"): 1}
    else:
        phrases = _phrases(model, known[model], params)
        result = await desk.find(request, service, held, JobAsked(image=held.id, phrases=phrases))
        found = list(dict.fromkeys(one.phrase for one in result.found.concepts))
        names = found if model == PHRASE else list(dict.fromkeys([*known[model].labels, *found]))
        told = {name: k for k, name in enumerate(names, start=1)}
    answer = {"label_names": told, "concepts": [one.model_dump() for one in result.found.concepts]}
    if output == "json":
        return JSONResponse(answer)
    return await _file_answer(service, result, names, params, answer if output == "all" else None)


def _models(service: Service) -> dict[str, MonaiModel]:
    """Describe the models: by phrase, by clicks, and one for each kind of image of which concepts were taught."""
    phrase = _model("segmentation", PHRASE_LABELS, "Finds what is typed as text in the options; several: liver, spleen")
    models = {PHRASE: phrase.model_copy(update={"config": {"text": ""}})}
    for family, names in desk.taught_families(service).items():
        told = f"All taught concepts of {family}: {', '.join(names)}"
        models[re.sub(r"[^a-z0-9]+", "_", family.lower())] = _model("segmentation", names, told)
    models[CLICKS] = _model("deepgrow", ["object"], "Outlines what is clicked on, and follows it through the slices")
    slice_alone = _model("deepgrow", ["object"], "Outlines what is clicked on, on that slice alone")
    models[CLICKS_ON_SLICE] = slice_alone.model_copy(update={"dimension": 2})
    return models


def _model(kind: Literal["segmentation", "deepgrow"], labels: list[str], description: str) -> MonaiModel:
    numbers = {name: k for k, name in enumerate(labels, start=1)}
    return MonaiModel(type=kind, labels=numbers, description=description)


def _object(text: Any) -> JsonObject:
    try:
        content = json.loads(text)
    except (TypeError, ValueError) as error:
        raise InputError("the field params is no JSON: send a JSON object") from error
    if not isinstance(content, dict):
        raise InputError("the field params is no JSON object: send one")
    return content


def _phrases(model: str, about: MonaiModel, params: JsonObject) -> list[str]:
    if model == PHRASE:
        phrases = desk.phrases_in(str(params.get("text") or ""))
        if not phrases:
            raise InputError("no phrase was given: type one as text in the options of the model, such as liver, spleen")
        if len(phrases) > len(PHRASE_LABELS):
            raise InputError(f"{len(phrases)} phrases were given, allowed are {len(PHRASE_LABELS)}: ask twice")
        return phrases
    wanted = params.get("label_prompt")
    if not isinstance(wanted, list) or not wanted:
        return list(about.labels)
    chosen = [name for name, number in about.labels.items() if number in wanted]
    if not chosen:
        raise InputError(f"label_prompt is {wanted}, allowed are 1 to {len(about.labels)}")
    return chosen


async def _click(service: Service, held: HeldImage, model: str, params: JsonObject) -> HeldResult:
    steps: list[Step] = []
    for name in ("foreground", "background"):
        for point in params.get(name) or []:
            steps.append(_click_at(point, name == "foreground", held.about.frames))
    if not any(isinstance(one, Click) and one.positive for one in steps):
        raise InputError("there is no click on the object: click on it first, then beside it")
    key = f"{NAME}/{model}/{params.get('label') or ''}"
    return await desk.click(service, held, key, steps, is_followed=model == CLICKS)


def _click_at(point: Any, is_positive: bool, frames: int) -> Click:
    """Read a click (i, j, k): column, row and slice."""
    if not isinstance(point, list) or not 2 <= len(point) <= 3 or not all(type(one) in (int, float) for one in point):
        raise InputError(f"a click is {point!r}, allowed is [column, row, slice]"[:300])
    x, y, frame = (*point, 0)[:3]
    if not 0 <= frame < frames:
        raise InputError(f"a click is on slice {frame}, allowed is 0 to {frames - 1}")
    return Click(do="click", x=x, y=y, frame=int(frame), positive=is_positive)


async def _image(service: Service, owner: str, name: str) -> HeldImage:
    """Find an image by the name that the client gave it, by its file, or by the UID of its DICOM series."""
    held = desk.named_image(service, owner, NAME, name)
    if held is not None:
        return held
    place, root = Store.of(service.settings).image(name), service.settings.data
    if place is not None:
        held = await service.open_place(Source(place), name, owner)
    elif root is not None and re.fullmatch(r"[0-9.]{9,64}", name):
        with contextlib.suppress(InputError):  # it may lie in the archive
            held = await service.open_place(Source(root, series=name), name, owner)
    held = held or await desk.archived_image(service, owner, name)
    if held is None:
        raise RefusedError(
            404,
            f"there is no image {name[:100]!r}: upload it, put it into the folder of --data, or into the archive of "
            "--archive",
        )
    desk.name_image(service, NAME, name, held)
    return held


async def _file_answer(
    service: Service, result: HeldResult, names: list[str], params: JsonObject, about: JsonObject | None
) -> Response:
    """Give the masks as a file; with `about`, as a form of both, which is what 3D Slicer takes."""
    ending = str(params.get("result_extension") or ".nrrd")
    if ending not in _ENDINGS:
        raise InputError(f"result_extension is {ending[:20]!r}, allowed are {', '.join(_ENDINGS)}")
    is_packed = params.get("result_compress", True) is not False
    path: Path = await service.read(
        reader.write_numbers, result.image.source, result.masks, names, ending, is_packed
    )  # fmt: skip
    if about is None:
        return FileResponse(path, filename=path.name)
    mark = uuid4().hex
    head = (
        f'--{mark}\r\nContent-Disposition: form-data; name="params"\r\nContent-Type: application/json\r\n\r\n'
        f'{json.dumps(about)}\r\n--{mark}\r\nContent-Disposition: form-data; name="image"; '
        f'filename="{path.name}"\r\nContent-Type: application/octet-stream\r\n\r\n'
    )
    body = head.encode() + path.read_bytes() + f"\r\n--{mark}--\r\n".encode()
    return Response(body, media_type=f"multipart/form-data; boundary={mark}")
