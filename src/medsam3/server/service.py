"""The state that all routes share: workers and holdings, and the ways from a request to a task and back."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from medsam3.errors import InputError
from medsam3.io.files import natural_key
from medsam3.server import reader
from medsam3.server.holdings import HeldImage, HeldJob, HeldResult, HeldSession, Holdings, new_id
from medsam3.server.pool import StoppedError, Worker
from medsam3.server.problems import RefusedError
from medsam3.server.schemas import (
    AgentAsked,
    AgentStep,
    JobAsked,
    ModelAnswer,
    PhraseAnswer,
    PreviewAnswer,
    SessionAnswer,
    SessionAsked,
    SessionPlace,
    Source,
    Step,
    WindowAsked,
)
from medsam3.server.settings import Settings
from medsam3.store import read_lines

_log = logging.getLogger(__name__)
SWEEP_S = 30.0
EVENT_S = 0.2
MOST_RESULTS = 50
MOST_SESSIONS = 50
MOST_JOBS = 50
MOST_PHRASES = 2000
FOLLOWING = "medsam3.server.following"
MODELLING = "medsam3.server.modelling"
"""Module of the model processes' tasks, which the HTTP layer must not import: it brings the models in."""


class Service:
    """One server's state."""

    def __init__(self, settings: Settings) -> None:
        self.settings, limits = settings, settings.limits
        self.holdings = Holdings(limits)
        self.reader = Worker("reader", 4 * limits.waiting, limits.worker_bytes)
        self.modellers = [
            Worker(
                f"model-{n}",
                limits.waiting,
                limits.worker_bytes,
                call,
                (MODELLING, "prepare", settings.load, settings.model, limits.sessions_in_memory, limits.feature_bytes),
            )
            for n in range(settings.workers)
        ]
        self.archivist = Worker("archive", limits.waiting, limits.worker_bytes)
        self.model: ModelAnswer | None = None
        self._secret = secrets.token_bytes(32)
        self._read: dict[str, list[PhraseAnswer]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def workers(self) -> tuple[Worker, ...]:
        """All processes."""
        return (self.reader, self.archivist, *self.modellers)

    @property
    def freest(self) -> Worker:
        """The model process that the fewest tasks wait for."""
        return min(self.modellers, key=lambda one: one.waiting)

    @property
    def taught(self) -> frozenset[str]:
        """Names of the concepts that the model was taught; none until it is loaded."""
        return frozenset(self.model.concepts) if self.model else frozenset()

    async def start(self) -> None:
        """Begin to load the models, and to remove what is old."""
        self.spawn(self._load())
        self.spawn(self._sweep())

    async def stop(self) -> None:
        """End all work and remove everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self.workers:
            await run_in_threadpool(worker.close)
        self.holdings.close()

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """Run a coroutine beside the requests until the server ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def read(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Do a task in the reading process."""
        return await self.reader.run(function, *arguments, limit_s=self.settings.limits.step_s)

    async def ask(
        self, worker: Worker, function: str, *arguments: Any, job: HeldJob | None = None, module: str = MODELLING
    ) -> Any:
        """Do a task of `medsam3.server.modelling`, or of another module, in a model process."""
        limits = self.settings.limits
        of_session = next((one for one in arguments if isinstance(one, SessionPlace)), None)
        is_long = job is not None or (of_session is not None and of_session.is_long)
        return await worker.run(
            call,
            module,
            function,
            *arguments,
            limit_s=limits.job_s if is_long else limits.step_s,
            progress=None if job is None else job.progress,
        )

    async def read_phrase(self, phrase: str) -> list[PhraseAnswer]:
        """Tell how a phrase is read; what was asked before waits for no worker."""
        if phrase not in self._read:
            self._read[phrase] = await self.ask(self.freest, "read_phrase", phrase)
            while len(self._read) > MOST_PHRASES:
                del self._read[next(iter(self._read))]
        return self._read[phrase]

    async def upload(
        self, request: Request, owner: str, frame: int | None = None, series: str | None = None
    ) -> HeldImage:
        """Take in the files of a form, and open them as one image."""
        limits = self.settings.limits
        async with request.form(max_files=limits.upload_files, max_fields=10) as form:
            files = [one for one in form.getlist("files") if isinstance(one, UploadFile)]
            if not files:
                raise InputError("the form holds no file: send one or more as 'files' (multipart/form-data)")
            return await self.hold(files, owner, frame, series)

    async def hold(
        self, files: Sequence[UploadFile], owner: str, frame: int | None = None, series: str | None = None
    ) -> HeldImage:
        """Hold files that have come in as one image."""
        with self.holdings.new_folder() as folder:
            ordered = sorted(files, key=lambda one: natural_key(one.filename or ""))
            for number, one in enumerate(ordered):
                target = folder / "files" / reader.stored_name(number, one.filename or "")
                await run_in_threadpool(_save, one, target)
            name = _shown_name([one.filename or "image" for one in ordered])
            limits = self.settings.limits
            source, about = await self.read(reader.open_upload, folder / "files", name, limits, frame, series)
        return self.holdings.add(owner, folder, source, about)

    async def open_place(self, source: Source, name: str, owner: str) -> HeldImage:
        """Open a file that is on the server's disk already; it is left where it is."""
        with self.holdings.new_folder() as folder:
            about = await self.read(reader.describe, source, name, self.settings.limits)
        return self.holdings.add(owner, folder, source, about)

    async def hold_archived(self, uid: str, owner: str) -> HeldImage:
        """Fetch the series of a UID from the archive, and hold it as an image.

        Raises:
            RefusedError: The archive has none, refuses, or does not answer.
        """
        archive = self.settings.archive
        assert archive is not None, "it was asked whether there is one"
        with self.holdings.new_folder() as folder:
            if not await self.by_archive(archive.fetch, uid, folder / "files"):
                raise RefusedError(404, f"the archive has no series {uid}: correct it, or send the series there")
            source, about = await self.read(reader.open_upload, folder / "files", "series", self.settings.limits)
        return self.holdings.add(owner, folder, source, about)

    async def by_archive(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Do a task of the archive in a process of its own, so that a slow archive holds up nothing else.

        Raises:
            RefusedError: The archive refuses, or does not answer.
        """
        try:
            return await self.archivist.run(function, *arguments, limit_s=self.settings.limits.job_s)
        except InputError as error:
            raise RefusedError(502, str(error)) from error

    async def hold_filled(
        self, fill: Callable[..., Any], arguments: tuple[Any, ...], name: str, owner: str
    ) -> HeldImage:
        """Hold one image whose files the reading process puts into a folder: `fill(*arguments, folder)`."""
        with self.holdings.new_folder() as folder:
            await self.read(fill, *arguments, folder / "files")
            source, about = await self.read(reader.open_upload, folder / "files", name, self.settings.limits)
        return self.holdings.add(owner, folder, source, about)

    def new_session(self, image: HeldImage, asked: SessionAsked) -> HeldSession:
        """Begin a session on the worker that has the fewest."""
        if len(image.sessions) >= MOST_SESSIONS:
            raise RefusedError(409, f"the image has {MOST_SESSIONS} sessions, which is what is allowed: remove one")
        counts = self.holdings.sessions_by_worker()
        worker = min(self.modellers, key=lambda one: (counts.get(one.name, 0), one.waiting))
        session = HeldSession(new_id(), image, asked, worker)
        image.sessions[session.id] = session
        return session

    async def step(self, session: HeldSession, step: Step, job: HeldJob | None = None) -> SessionAnswer:
        """Do one step of a session; steps of one session wait for each other."""
        async with session.lock:
            if len(session.steps) >= self.settings.limits.steps:
                raise RefusedError(
                    409, f"the session has {len(session.steps)} steps, no more are allowed: begin a new one"
                )
            session.found = await self.ask(session.worker, "do_step", session.place(), step, job=job)
            session.steps.append(step)
        return session.answer()

    def begin_job(
        self, image: HeldImage, work: Callable[[HeldJob], Awaitable[None]], worker: Worker | None = None
    ) -> HeldJob:
        """Begin long work in a model process, the freest if none is named; how it ends is noted in the job."""
        worker = worker or self.freest
        if worker.waiting >= worker.most_waiting:
            raise RefusedError(503, "the server has more to do than it takes on: try again", retry_after_s=30)
        finished = [name for name, one in image.jobs.items() if one.is_over]
        for name in finished[: max(0, len(image.jobs) - MOST_JOBS + 1)]:
            del image.jobs[name]
        job = HeldJob(new_id(), image, worker)
        image.jobs[job.id] = job
        job.task = self.spawn(self._watched(job, work))
        return job

    async def keep(self, session: HeldSession) -> HeldResult:
        """Keep the masks of a session as they stand."""
        result = self._new_result(session.image, session.asked.window)
        async with session.lock:
            result.found = await self.ask(session.worker, "keep_session", session.place(), result.masks)
        session.image.results[result.id] = result
        return result

    async def segment(self, job: HeldJob, asked: JobAsked) -> None:
        """Segment a whole image, and keep the result."""
        job.result = (await self.segment_one(job, job.image, asked)).id

    async def segment_one(self, job: HeldJob, image: HeldImage, asked: JobAsked) -> HeldResult:
        """Segment an image as a part of a job, and keep the result."""
        result = self._new_result(image, asked.window)
        result.found = await self.ask(job.worker, "segment_image", image.source, asked, result.masks, job=job)
        image.results[result.id] = result
        return result

    async def preview(self, image: HeldImage, asked: AgentAsked) -> PreviewAnswer:
        """Tell what a run of the agent would send where; consent to it is what the run then needs."""
        llm = self._llm(asked)
        if llm is None:
            return PreviewAnswer()
        found: PreviewAnswer = await self.ask(self.freest, "preview", image.source, asked, llm, module=FOLLOWING)
        return found.model_copy(update={"consent": self._consent(image, asked)})

    def check_consent(self, image: HeldImage, asked: AgentAsked) -> None:
        """Refuse to ask an LLM without the consent that the preview of the same run gave."""
        if self._llm(asked) is None:
            return
        if not hmac.compare_digest((asked.consent or "").encode(), self._consent(image, asked).encode()):
            raise InputError(
                "this would send to an LLM: show what is sent by POST /v1/agent/preview, and give its consent"
            )

    def _llm(self, asked: AgentAsked) -> str | None:
        """Name the LLM that would be asked; None for the rules that need none."""
        if asked.policy == "offline":
            return None
        if self.settings.llm is None:
            raise InputError("no LLM was set up: start the server with --llm, or take the policy 'offline'")
        if asked.send_images and not self.settings.sends_images:
            raise InputError(
                "pictures may not leave this server: start it with --send-images, or leave send_images out"
            )
        return self.settings.llm

    def _consent(self, image: HeldImage, asked: AgentAsked) -> str:
        said = asked.model_copy(update={"consent": None}).model_dump_json()
        return hmac.new(self._secret, f"{image.id} {said}".encode(), "sha256").hexdigest()

    async def follow(self, job: HeldJob, asked: AgentAsked) -> None:
        """Run the agent, and keep what it found."""
        result, llm = self._new_result(job.image, None), self._llm(asked)
        job.transcript = result.masks.parent / "transcript"
        about = (job.image.source, asked, llm, result.masks, job.transcript)
        job.agent, result.found = await self.ask(job.worker, "follow", *about, job=job, module=FOLLOWING)
        job.image.results[result.id] = result
        job.result = result.id

    async def cancel(self, job: HeldJob) -> None:
        """Stop a job and wait until it has stopped; one that is over stays as it is."""
        if job.task is None or job.is_over:
            return
        await job.worker.cancel(job.progress)
        await asyncio.wait([job.task], timeout=self.settings.limits.step_s)

    async def remove(self, image: HeldImage) -> None:
        """Remove an image, stop its jobs, and let its sessions go."""
        self.holdings.remove(image)
        for job in image.jobs.values():
            await job.worker.cancel(job.progress)
        for session in image.sessions.values():
            self.spawn(self._drop(session))

    def _new_result(self, image: HeldImage, window: WindowAsked | None) -> HeldResult:
        while len(image.results) >= MOST_RESULTS:
            reader.remove(image.results.pop(next(iter(image.results))).masks.parent)
        name = new_id()
        folder = image.folder / f"result-{new_id()}"
        folder.mkdir(mode=0o700)
        return HeldResult(name, image, folder / "masks.pickle", window, _stem(image.about.name))

    async def _watched(self, job: HeldJob, work: Callable[[HeldJob], Awaitable[None]]) -> None:
        try:
            await work(job)
            job.progress.state = "done"
        except StoppedError:
            job.progress.state = "cancelled"
        except (RefusedError, InputError) as error:
            job.progress.state, job.error = "failed", str(error)
        except Exception as error:
            _log.exception("a job failed")
            job.progress.state, job.error = "failed", f"the server failed ({type(error).__name__}): its log says more"

    async def _drop(self, session: HeldSession) -> None:
        try:
            await self.ask(session.worker, "drop_session", session.id)
        except RefusedError:
            return  # the worker is busy or ended; its memory is bounded anyway

    async def _load(self) -> None:
        for worker in self.modellers:
            try:
                self.model = await worker.run(call, MODELLING, "about_model", limit_s=self.settings.limits.job_s)
            except (RefusedError, InputError) as error:
                _log.error("the model cannot be loaded: %s", error)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_S, self.settings.limits.kept_s))
            for image in self.holdings.old():
                await self.remove(image)


@dataclass(frozen=True)
class OfferedSample:
    """A picture that comes with scikit-image, and a phrase that fits it."""

    name: str
    title: str
    phrase: str

    @property
    def path(self) -> Path | None:
        """The file in scikit-image; None if that is not installed."""
        from importlib.util import find_spec  # noqa: PLC0415

        found = find_spec("skimage")
        if found is None or found.origin is None:
            return None
        path = Path(found.origin).parent / "data" / self.name
        return path if path.is_file() else None


SAMPLES = (OfferedSample("retina.jpg", "Fundus photograph", "optic disc"),)
"""Pictures that the shipped weights answer well; of scikit-image's stained tissue they miss half the nuclei."""


def call(module: str, function: str, *arguments: Any) -> Any:
    """Call a function of a module that is imported where this runs."""
    import importlib  # noqa: PLC0415

    return getattr(importlib.import_module(module), function)(*arguments)


def _save(one: UploadFile, target: Path) -> None:
    with target.open("xb") as stream:
        shutil.copyfileobj(one.file, stream, 2**20)


def _shown_name(names: list[str]) -> str:
    """Name an image by its file, or by the folder of its files."""
    first = names[0].replace("\\", "/")
    if len(names) == 1:
        return first.rsplit("/", 1)[-1][:200] or "image"
    return (first.split("/")[0] if "/" in first else f"{len(names)} files")[:200]


def _stem(name: str) -> str:
    """Give the part of a name that files are named by: plain letters, no ending."""
    base = name.removesuffix(".gz").rsplit(".", 1)[0]
    plain = "".join(one if one.isascii() and (one.isalnum() or one in "_-") else "-" for one in base).strip("-")
    return plain[:60] or "image"


async def events_of(job: HeldJob) -> AsyncIterator[str]:
    """Tell a job as server-sent events until it ends: the steps of an agent, named `step`, and how far it is."""
    told, steps = "", 0
    while True:
        is_over = job.is_over  # before it is told, so that its end is
        if job.transcript is not None:
            for step in steps_of(job.transcript)[steps:]:
                yield f"event: step\nid: {step.number}\ndata: {step.model_dump_json()}\n\n"
                steps += 1
        event = progress_of(job)
        if event != told:
            yield event
            told = event
        if is_over:
            return
        await asyncio.sleep(EVENT_S)


def steps_of(transcript: Path) -> list[AgentStep]:
    """Read the steps that an agent's run has written so far."""
    try:
        with (transcript / "transcript.jsonl").open("rb") as stream:
            lines, _ = read_lines(stream)
    except OSError:
        return []
    return [
        AgentStep(
            number=one["number"],
            turn=one["turn"],
            call=one["call"]["name"],
            arguments=one["call"]["arguments"],
            text=one["seen"]["text"],
            is_mistake=one["seen"]["is_mistake"],
            seconds=one["seconds"],
        )
        for one in (line["step"] for line in lines if "step" in line)
    ]


def progress_of(job: HeldJob) -> str:
    """Give a job as one server-sent event."""
    return f"data: {job.answer().model_dump_json()}\n\n"
