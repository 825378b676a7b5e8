"""The routes of `/v1`: images, sessions, jobs, results, and what may be asked for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Body, Depends, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from starlette.background import BackgroundTask

from medsam3 import concepts
from medsam3.agent.chat import parse_address
from medsam3.errors import InputError
from medsam3.server import reader
from medsam3.server.folders import segment_each, zip_of
from medsam3.server.guard import owner_of
from medsam3.server.holdings import HeldImage, HeldJob, HeldSession, new_id
from medsam3.server.problems import MEDIA_TYPE as PROBLEM_TYPE
from medsam3.server.problems import RefusedError, not_here
from medsam3.server.schemas import (
    AgentAsked,
    AgentStep,
    AnyJob,
    ConceptAnswer,
    EntryAnswer,
    FolderAsked,
    FrameMasks,
    ImageAnswer,
    JobAnswer,
    ModelAnswer,
    PhraseAnswer,
    PoliciesAnswer,
    PreviewAnswer,
    Problem,
    ResultAnswer,
    SampleAnswer,
    SessionAnswer,
    SessionAsked,
    Source,
    Step,
)
from medsam3.server.service import FOLLOWING, SAMPLES, Service, events_of, steps_of

MOST_CONCEPTS = 30
MOST_ENTRIES = 2000
_NO_IMAGES = (".md", ".txt", ".csv", ".json", ".py", ".pdf")
router = APIRouter(
    prefix="/v1",
    responses={
        "default": {
            "description": "What went wrong",
            "content": {PROBLEM_TYPE: {"schema": Problem.model_json_schema()}},
        }
    },
    dependencies=[Depends(HTTPBearer(auto_error=False, description="if the server has tokens"))],  # `guard` checks it
)


def service_of(request: Request) -> Service:
    """Give the server's state."""
    service: Service = request.app.state.service
    return service


Owner = Annotated[str, Depends(owner_of)]
Served = Annotated[Service, Depends(service_of)]
WindowName = Annotated[str | None, Query(max_length=60, description="a preset, or CENTRE,WIDTH")]


@router.post(
    "/images",
    status_code=201,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["files"],
                        "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                    }
                }
            },
        }
    },
)
async def upload(
    request: Request,
    owner: Owner,
    service: Served,
    frame: Annotated[int | None, Query(ge=0, description="of a file that is no one stack")] = None,
    series: Annotated[str | None, Query(max_length=80, description="number, or end of the UID, of several")] = None,
) -> ImageAnswer:
    """Upload one image: a file, the files of a series, or a zip of them."""
    return (await service.upload(request, owner, frame, series)).about


@router.get("/images/{image}")
async def about_image(image: str, owner: Owner, service: Served) -> ImageAnswer:
    """Tell what an image is."""
    return service.holdings.image(owner, image).about


@router.delete("/images/{image}", status_code=204)
async def remove_image(image: str, owner: Owner, service: Served) -> Response:
    """Remove an image with its sessions, jobs and results."""
    await service.remove(service.holdings.image(owner, image))
    return Response(status_code=204)


@router.get("/images/{image}/thumbnail.png", response_class=Response)
async def thumbnail(image: str, owner: Owner, service: Served) -> Response:
    """Give the middle frame, small."""
    held = service.holdings.image(owner, image)
    return await _png(service, held, held.about.frames // 2, None, reader.THUMBNAIL_PIXELS)


@router.get("/images/{image}/frames/{frame}.png", response_class=Response)
async def frame_png(image: str, frame: int, owner: Owner, service: Served, window: WindowName = None) -> Response:
    """Give a frame or slice as it is shown: turned as radiologists see it, in a grey window, with square pixels."""
    return await _png(service, service.holdings.image(owner, image), frame, window)


@router.get("/images/{image}/frames/{frame}.npy", response_class=Response)
async def frame_npy(image: str, frame: int, owner: Owner, service: Served) -> Response:
    """Give a frame or slice as a NumPy file: the values of the file, such as HU, in its own rows and columns."""
    values: bytes = await service.read(reader.npy_of, service.holdings.image(owner, image).source, frame)
    return Response(values, media_type="application/octet-stream")


@router.get("/images/{image}/volume.{ending}", response_class=FileResponse)
async def volume(
    image: str, ending: Annotated[str, PathParameter(pattern=r"^nii(\.gz)?$")], owner: Owner, service: Served
) -> FileResponse:
    """Give the whole image as NIfTI, its values and grid those of the file; unpacked is faster on one machine."""
    held = service.holdings.image(owner, image)
    limits = service.settings.limits
    path = await service.read(reader.write_volume, held.source, held.folder / f"volume.{ending}", limits)
    return FileResponse(path, media_type="application/octet-stream")


async def _png(
    service: Service, held: HeldImage, frame: int, window: str | None, longest: int | None = None
) -> Response:
    png: bytes = await service.read(reader.png_of, held.source, frame, window, longest)
    return Response(png, media_type="image/png")


@router.post("/images/{image}/sessions", status_code=201)
async def begin_session(image: str, asked: SessionAsked, owner: Owner, service: Served) -> SessionAnswer:
    """Begin a session: masks that are corrected step by step."""
    reader.window_of(asked.window)
    return service.new_session(service.holdings.image(owner, image), asked).answer()


@router.get("/images/{image}/sessions/{session}")
async def about_session(image: str, session: str, owner: Owner, service: Served) -> SessionAnswer:
    """Tell how a session stands."""
    return service.holdings.session(owner, image, session).answer()


@router.delete("/images/{image}/sessions/{session}", status_code=204)
async def end_session(image: str, session: str, owner: Owner, service: Served) -> Response:
    """End a session."""
    held = service.holdings.session(owner, image, session)
    del held.image.sessions[session]
    return Response(status_code=204)


@router.post("/images/{image}/sessions/{session}/steps")
async def do_step(
    image: str, session: str, step: Annotated[Step, Body()], owner: Owner, service: Served
) -> SessionAnswer:
    """Do one step, and give the session as it then stands; what is refused changes nothing."""
    held = service.holdings.session(owner, image, session)
    _check_depth(held, step)
    return await service.step(held, step)


@router.get("/images/{image}/sessions/{session}/steps")
async def list_steps(image: str, session: str, owner: Owner, service: Served) -> list[Step]:
    """List all steps that were done, undo among them: the same steps make the same session on any server."""
    return service.holdings.session(owner, image, session).steps


@router.post("/images/{image}/sessions/{session}/steps/job", status_code=202)
async def begin_step(
    image: str, session: str, step: Annotated[Step, Body()], owner: Owner, service: Served
) -> JobAnswer:
    """Do one long step, such as a phrase in a whole volume, as a job."""
    held = service.holdings.session(owner, image, session)
    _check_depth(held, step)

    async def work(job: HeldJob) -> None:
        job.session = await service.step(held, step, job)

    return service.begin_job(held.image, work, held.worker).answer()


def _check_depth(session: HeldSession, step: Step) -> None:
    past, undone = session.depths()
    if (step.do == "undo" and past < 1) or (step.do == "redo" and undone < 1):
        raise InputError(f"there is nothing to {step.do}")


@router.get("/images/{image}/sessions/{session}/masks")
async def masks_of_frame(
    image: str,
    session: str,
    owner: Owner,
    service: Served,
    frame: Annotated[int, Query(ge=0)] = 0,
    grid: Annotated[str, Query(pattern="^(display|file)$")] = "display",
) -> FrameMasks:
    """Give the masks of one frame as runs, over the pixels of the display or of the file."""
    held = service.holdings.session(owner, image, session)
    async with held.lock:
        found: FrameMasks = await service.ask(held.worker, "frame_masks", held.place(), frame, grid)
    return found


@router.get("/images/{image}/sessions/{session}/objects", response_class=FileResponse)
async def session_objects(image: str, session: str, owner: Owner, service: Served) -> FileResponse:
    """Give all that a session has found, each object by itself, as `medsam3.Client` reads it."""
    held = service.holdings.session(owner, image, session)
    return await _written(service, held, "session_objects", ".json", "application/json")


@router.get("/images/{image}/sessions/{session}/masks.nii.gz", response_class=FileResponse)
async def masks_as_nifti(image: str, session: str, owner: Owner, service: Served) -> FileResponse:
    """Give all objects as one label map over the file's grid: object k as k + 1, later ones on top."""
    held = service.holdings.session(owner, image, session)
    return await _written(service, held, "session_labels", ".nii.gz", "application/octet-stream")


async def _written(service: Service, held: HeldSession, task: str, ending: str, media_type: str) -> FileResponse:
    """Let a session's worker write a file, and give it."""
    path = held.image.folder / f"{task}-{new_id()}{ending}"
    async with held.lock:
        await service.ask(held.worker, task, held.place(), path)
    return FileResponse(path, media_type=media_type, background=BackgroundTask(path.unlink, True))


@router.post("/images/{image}/sessions/{session}/results", status_code=201)
async def keep_session(image: str, session: str, owner: Owner, service: Served) -> ResultAnswer:
    """Keep the masks as they stand, to take them away in any format."""
    kept = await service.keep(service.holdings.session(owner, image, session))
    return ResultAnswer(id=kept.id, image=image, found=kept.found, formats=reader.formats())


@router.post("/jobs", status_code=202)
async def begin_job(asked: Annotated[AnyJob, Body()], owner: Owner, service: Served) -> JobAnswer:
    """Segment an image or many, as `medsam3 segment` does, or follow an instruction, as `medsam3 agent` does."""
    if isinstance(asked, FolderAsked):
        reader.window_of(asked.window)
        images = [service.holdings.image(owner, name) for name in dict.fromkeys(asked.images)]
        work = partial(segment_each, service, images=images, asked=asked)
        return service.begin_job(images[0], work).answer()
    image = service.holdings.image(owner, asked.image)
    if isinstance(asked, AgentAsked):
        service.check_consent(image, asked)
        return service.begin_job(image, partial(service.follow, asked=asked)).answer()
    if not asked.asked:
        raise InputError("nothing is asked for: give phrases, boxes, points or prompts")
    reader.window_of(asked.window)
    return service.begin_job(image, partial(service.segment, asked=asked)).answer()


@router.get("/jobs/{job}")
async def about_job(job: str, owner: Owner, service: Served) -> JobAnswer:
    """Tell how far a job is."""
    return service.holdings.job(owner, job).answer()


@router.get("/jobs/{job}/events", response_class=StreamingResponse)
async def job_events(job: str, owner: Owner, service: Served) -> StreamingResponse:
    """Tell how far a job is as server-sent events, until it ends."""
    held = service.holdings.job(owner, job)
    return StreamingResponse(events_of(held), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@router.get("/jobs/{job}/steps")
async def job_steps(job: str, owner: Owner, service: Served, after: Annotated[int, Query(ge=0)] = 0) -> list[AgentStep]:
    """Give the steps of an agent's run, those after a number that was told already."""
    held = service.holdings.job(owner, job)
    return [] if held.transcript is None else [one for one in steps_of(held.transcript) if one.number > after]


@router.get("/jobs/{job}/transcript", response_class=FileResponse)
async def job_transcript(job: str, owner: Owner, service: Served) -> FileResponse:
    """Give the transcript of an agent's run as one HTML page that needs nothing else, to be saved."""
    held = service.holdings.job(owner, job)
    if held.transcript is None:
        raise not_here("transcript")
    page = await service.ask(held.worker, "transcript_page", held.transcript, module=FOLLOWING)
    return FileResponse(page, filename="transcript.html", media_type="text/html", content_disposition_type="attachment")


@router.get("/agent")
async def list_policies(service: Served) -> PoliciesAnswer:
    """Tell who may decide for the agent beside the rules that need no LLM."""
    settings = service.settings
    sent_to = None if settings.llm is None else parse_address(settings.llm).provider
    return PoliciesAnswer(llm=settings.llm, sent_to=sent_to, may_send_images=settings.sends_images)


@router.post("/agent/preview")
async def preview(asked: AgentAsked, owner: Owner, service: Served) -> PreviewAnswer:
    """Tell what a run of the agent would send where, its first text and pictures; nothing is sent."""
    return await service.preview(service.holdings.image(owner, asked.image), asked)


@router.delete("/jobs/{job}")
async def cancel_job(job: str, owner: Owner, service: Served) -> JobAnswer:
    """Stop a job; one that is done stays done."""
    held = service.holdings.job(owner, job)
    await service.cancel(held)
    return held.answer()


@router.get(
    "/results.zip",
    response_class=FileResponse,
    responses={200: {"description": "The files", "content": {"application/zip": {}}}},
)
async def take_results(
    result: Annotated[list[str], Query(min_length=1, max_length=1000)],
    format: Annotated[str, Query(max_length=20)],
    owner: Owner,
    service: Served,
) -> FileResponse:
    """Give several results in a format as one zip, with a table of what was found."""
    path = await zip_of(service, [service.holdings.result(owner, one) for one in result], format)
    return FileResponse(
        path, filename="medsam3.zip", media_type="application/zip", background=BackgroundTask(path.unlink, True)
    )


@router.get(
    "/results/{result}",
    response_model=ResultAnswer,
    responses={200: {"description": "The file, or what it is", "content": {"application/octet-stream": {}}}},
)
async def take_result(
    result: str, owner: Owner, service: Served, format: Annotated[str | None, Query(max_length=20)] = None
) -> Response:
    """Give a result as a file in a format of the command line; without a format, tell what it is."""
    held = service.holdings.result(owner, result)
    if format is None:
        about = ResultAnswer(id=held.id, image=held.image.id, found=held.found, formats=reader.formats())
        return JSONResponse(about.model_dump())
    path: Path = await service.read(reader.write_result, held.image.source, held.masks, format, held.stem, held.window)
    return FileResponse(path, filename=path.name, content_disposition_type="attachment")


@router.get("/concepts")
async def list_concepts(service: Served, q: Annotated[str, Query(max_length=300)] = "") -> list[ConceptAnswer]:
    """List concepts that fit a query, the taught ones first; any other phrase may be asked for too."""
    taught = service.taught
    found = [
        ConceptAnswer(name=one.name, synonyms=list(one.synonyms), is_taught=one.name in taught if taught else None)
        for one in concepts.search(q)
    ]
    return sorted(found, key=lambda one: one.is_taught is False)[:MOST_CONCEPTS]


@router.get("/phrases")
async def read_phrase(service: Served, q: Annotated[str, Query(min_length=1, max_length=300)]) -> list[PhraseAnswer]:
    """Tell how the model reads a phrase, one answer for each concept that it joins, before anything is segmented."""
    return await service.read_phrase(q)


@router.get("/models")
async def list_models(service: Served) -> list[ModelAnswer]:
    """List the models that answer: the one that the server was started with, once it is loaded."""
    model = service.model or ModelAnswer(name=service.settings.model, concepts=[], is_ready=False)
    return [model.model_copy(update={"weights_sha256": dict(service.settings.weights_sha256)})]


@router.get("/samples")
async def list_samples() -> list[SampleAnswer]:
    """List the sample pictures that are installed, each with a phrase that fits it."""
    return [SampleAnswer(name=one.name, title=one.title, phrase=one.phrase) for one in SAMPLES if one.path is not None]


@router.post("/samples/{name}", status_code=201)
async def open_sample(name: str, owner: Owner, service: Served) -> ImageAnswer:
    """Open a sample picture."""
    for one in SAMPLES:
        if one.name == name and one.path is not None:
            return (await service.open_place(Source(one.path), name, owner)).about
    raise not_here("sample")


@router.get("/data")
async def list_data(service: Served, path: Annotated[str, Query(max_length=1000)] = "") -> list[EntryAnswer]:
    """List a folder below the data folder that the server was started with; nothing without one."""
    if service.settings.data is None:
        return []
    folder = _below(service.settings.data, path)
    if not folder.is_dir():
        raise not_here("folder")
    entries = sorted(one for one in folder.iterdir() if not one.name.startswith(".") and one.suffix not in _NO_IMAGES)
    del entries[MOST_ENTRIES:]
    root = service.settings.data.resolve()
    return [
        EntryAnswer(name=one.name, path=str((folder / one.name).relative_to(root)), is_folder=one.is_dir())
        for one in entries
        if one.resolve().is_relative_to(root)
    ]


@router.post("/data", status_code=201)
async def open_data(
    path: Annotated[str, Body(embed=True, max_length=1000)], owner: Owner, service: Served
) -> ImageAnswer:
    """Open a file or folder of the data folder, where it lies."""
    if service.settings.data is None:
        raise RefusedError(404, "the server was started without a data folder: give one with --data")
    place = _below(service.settings.data, path)
    if not place.exists():
        raise not_here("file")
    return (await service.open_place(Source(place), place.name, owner)).about


def _below(root: Path, path: str) -> Path:
    """The real place of a path below a folder; links may not lead out of it."""
    if "\0" in path:
        raise not_here("file")
    place = (root / path).resolve()
    if not place.is_relative_to(root.resolve()):
        raise not_here("file")
    return place
