"""The state that all routes share: workers and holdings, and the ways from a request to a task and back."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from medsam3.errors import InputError
from medsam3.server import reader
from medsam3.server.holdings import HeldImage, HeldJob, HeldResult, HeldSession, Holdings, new_id
from medsam3.server.pool import StoppedError, Worker
from medsam3.server.problems import RefusedError
from medsam3.server.schemas import JobAsked, ModelAnswer, PhraseAnswer, SessionAnswer, SessionPlace, Step
from medsam3.server.settings import Settings

_log = logging.getLogger(__name__)
SWEEP_S = 30.0
MOST_RESULTS = 50
MOST_SESSIONS = 50
MOST_JOBS = 50
MOST_PHRASES = 2000
MODELLING = "medsam3.server.modelling"
"""Module of the model processes' tasks, which the HTTP layer must not import: it brings the models in."""


class Service:
    """One server's state."""

    def __init__(self, settings: Settings) -> None:
        self.settings, limits = settings, settings.limits
        self.holdings = Holdings(limits)
        self.reader = Worker("reader", 4 * limits.waiting)
        self.modellers = [
            Worker(
                f"model-{n}",
                limits.waiting,
                call,
                (MODELLING, "prepare", settings.load, settings.model, limits.sessions_in_memory),
            )
            for n in range(settings.workers)
        ]
        self.model: ModelAnswer | None = None
        self._read: dict[str, list[PhraseAnswer]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Begin to load the models, and to remove what is old."""
        self.spawn(self._load())
        self.spawn(self._sweep())

    async def stop(self) -> None:
        """End all work and remove everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in (self.reader, *self.modellers):
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

    async def ask(self, worker: Worker, function: str, *arguments: Any, job: HeldJob | None = None) -> Any:
        """Do a task of `medsam3.server.modelling` in a model process."""
        limits = self.settings.limits
        of_session = next((one for one in arguments if isinstance(one, SessionPlace)), None)
        is_long = job is not None or (of_session is not None and of_session.is_long)
        return await worker.run(
            call,
            MODELLING,
            function,
            *arguments,
            limit_s=limits.job_s if is_long else limits.step_s,
            progress=None if job is None else job.progress,
        )

    async def read_phrase(self, phrase: str) -> list[PhraseAnswer]:
        """Tell how a phrase is read; what was asked before waits for no worker."""
        if phrase not in self._read:
            worker = min(self.modellers, key=lambda one: one.waiting)
            self._read[phrase] = await self.ask(worker, "read_phrase", phrase)
            while len(self._read) > MOST_PHRASES:
                del self._read[next(iter(self._read))]
        return self._read[phrase]

    async def upload(self, request: Request, owner: str) -> HeldImage:
        """Take in the files of a form, and open them as one image."""
        limits = self.settings.limits
        folder = self.holdings.new_folder()
        try:
            async with request.form(max_files=limits.upload_files, max_fields=10) as form:
                files = [one for one in form.getlist("files") if isinstance(one, UploadFile)]
                if not files:
                    raise InputError("the form holds no file: send one or more as 'files' (multipart/form-data)")
                files.sort(key=lambda one: reader.natural_key(one.filename or ""))
                for number, one in enumerate(files):
                    target = folder / "files" / reader.stored_name(number, one.filename or "")
                    await run_in_threadpool(_save, one, target)
                name = _shown_name([one.filename or "image" for one in files])
            place, about = await self.read(reader.open_upload, folder / "files", name, limits)
        except BaseException:
            reader.remove(folder)
            raise
        return self.holdings.add(owner, folder, place, about)

    async def open_place(self, place: Path, name: str, owner: str) -> HeldImage:
        """Open a file that is on the server's disk already; it is left where it is."""
        folder = self.holdings.new_folder()
        try:
            about = await self.read(reader.describe, place, name, self.settings.limits)
        except BaseException:
            reader.remove(folder)
            raise
        return self.holdings.add(owner, folder, place, about)

    def new_session(self, image: HeldImage, window: str | None) -> HeldSession:
        """Begin a session on the worker that has the fewest."""
        if len(image.sessions) >= MOST_SESSIONS:
            raise RefusedError(409, f"the image has {MOST_SESSIONS} sessions, which is what is allowed: remove one")
        counts = self.holdings.sessions_by_worker()
        worker = min(self.modellers, key=lambda one: (counts.get(one.name, 0), one.waiting))
        session = HeldSession(new_id(), image, window, worker)
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

    def begin_job(self, image: HeldImage, worker: Worker, work: Callable[[HeldJob], Awaitable[None]]) -> HeldJob:
        """Begin long work; how it ends is noted in the job."""
        if worker.waiting >= worker.most_waiting:
            raise RefusedError(503, "the server has more to do than it takes on: try again", retry_after_s=30)
        finished = [name for name, one in image.jobs.items() if one.task is not None and one.task.done()]
        for name in finished[: max(0, len(image.jobs) - MOST_JOBS + 1)]:
            del image.jobs[name]
        job = HeldJob(new_id(), image, worker)
        image.jobs[job.id] = job
        job.task = self.spawn(self._watched(job, work))
        return job

    async def keep(self, session: HeldSession) -> HeldResult:
        """Keep the masks of a session as they stand."""
        result = self._new_result(session.image, session.window)
        async with session.lock:
            result.found = await self.ask(session.worker, "keep_session", session.place(), result.masks)
        session.image.results[result.id] = result
        return result

    async def segment(self, job: HeldJob, asked: JobAsked) -> None:
        """Segment a whole image, and keep the result."""
        result = self._new_result(job.image, asked.window)
        result.found = await self.ask(job.worker, "segment_image", job.image.place, asked, result.masks, job=job)
        job.image.results[result.id] = result
        job.result = result.id

    async def cancel(self, job: HeldJob) -> None:
        """Stop a job and wait until it has stopped."""
        await job.worker.cancel(job.progress)
        if job.task is not None:
            await asyncio.wait([job.task], timeout=self.settings.limits.step_s)

    async def remove(self, image: HeldImage) -> None:
        """Remove an image, stop its jobs, and let its sessions go."""
        self.holdings.remove(image)
        for job in image.jobs.values():
            await job.worker.cancel(job.progress)
        for session in image.sessions.values():
            self.spawn(self._drop(session))

    def _new_result(self, image: HeldImage, window: str | None) -> HeldResult:
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
class Sample:
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


SAMPLES = (
    Sample("retina.jpg", "Fundus photograph", "optic disc"),
    Sample("ihc.png", "Colonic tissue, stained", "nuclei"),
)


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


def progress_of(job: HeldJob) -> str:
    """Give a job as one server-sent event."""
    return f"data: {job.answer().model_dump_json()}\n\n"
