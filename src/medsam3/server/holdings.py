"""Images with their sessions, jobs and results, each under an id that cannot be guessed and belongs to its owner.

All of an image lies in one private folder, and goes with it: on demand, after its time, and when the server ends.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from medsam3.server.pool import Progress, Worker
from medsam3.server.problems import RefusedError, not_here
from medsam3.server.reader import remove
from medsam3.server.schemas import (
    AgentAnswer,
    Found,
    ImageAnswer,
    JobAnswer,
    SessionAnswer,
    SessionAsked,
    SessionPlace,
    Source,
    Step,
    WindowAsked,
)
from medsam3.server.settings import Limits
from medsam3.store import folder_in_use, remove_left

ID_BYTES = 24
_PREFIX = "medsam3-server-"


def new_id() -> str:
    """Make an id of 192 random bits."""
    return secrets.token_urlsafe(ID_BYTES)


@dataclass
class HeldResult:
    """Masks that were kept; `window` is that in which formats show the image."""

    id: str
    image: HeldImage
    masks: Path
    window: WindowAsked | None
    stem: str
    found: Found = field(default_factory=Found)


@dataclass
class HeldSession:
    """A session: the steps that were done, and the worker that has it ready."""

    id: str
    image: HeldImage
    asked: SessionAsked
    worker: Worker
    steps: list[Step] = field(default_factory=list)
    found: Found = field(default_factory=Found)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def place(self) -> SessionPlace:
        """Give what a worker needs to know."""
        return SessionPlace(self.id, self.image.source, self.asked, tuple(self.steps), self.image.about.frames > 1)

    def answer(self) -> SessionAnswer:
        """Give the session as it stands."""
        past, undone = self.depths()
        return SessionAnswer(
            id=self.id,
            image=self.image.id,
            can_undo=past > 0,
            can_redo=undone > 0,
            steps=len(self.steps),
            found=self.found,
        )

    def depths(self) -> tuple[int, int]:
        """Count the steps that can be taken back, and those that can be done again."""
        past = undone = 0
        for step in self.steps:
            if step.do == "undo":
                past, undone = past - 1, undone + 1
            elif step.do == "redo":
                past, undone = past + 1, undone - 1
            else:
                past, undone = past + 1, 0
        return past, undone


@dataclass
class HeldJob:
    """Long work; its task ends by setting the result, the session or the error.

    Work on many images is held with the first of them, counts images, and has a result or a failure of each by its id.
    """

    id: str
    image: HeldImage
    worker: Worker
    progress: Progress = field(default_factory=Progress)
    task: asyncio.Task[None] | None = None
    error: str | None = None
    result: str | None = None
    session: SessionAnswer | None = None
    agent: AgentAnswer | None = None
    transcript: Path | None = None
    of_images: tuple[int, int] | None = None
    results: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.task is None or self.task.done()

    def answer(self) -> JobAnswer:
        """Give how far it is."""
        told = self.progress
        done, count = self.of_images or (told.done, told.count)
        return JobAnswer.model_validate(
            {
                "id": self.id,
                "state": told.state,
                "done": done,
                "count": count,
                "error": self.error,
                "result": self.result,
                "session": self.session,
                "agent": self.agent,
                "results": self.results,
                "failures": self.failures,
            }
        )


@dataclass
class HeldImage:
    """An image in a folder of its own."""

    id: str
    owner: str
    folder: Path
    source: Source
    about: ImageAnswer
    used: float = field(default_factory=time.monotonic)
    sessions: dict[str, HeldSession] = field(default_factory=dict)
    jobs: dict[str, HeldJob] = field(default_factory=dict)
    results: dict[str, HeldResult] = field(default_factory=dict)

    @property
    def is_busy(self) -> bool:
        """Whether a job is at work on it."""
        return any(not job.is_over for job in self.jobs.values())


class Holdings:
    """All that is held, in a private folder that goes when the server ends."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        place = Path(tempfile.gettempdir())
        self._until_closed = ExitStack()
        self.folder = self._until_closed.enter_context(folder_in_use(place, _PREFIX))  # mode 0700
        remove_left(place, _PREFIX)
        self._images: dict[str, HeldImage] = {}

    def __len__(self) -> int:
        return len(self._images)

    @contextmanager
    def new_folder(self) -> Iterator[Path]:
        """Make a folder for an image to come, and remove it if none comes of it.

        Raises:
            RefusedError: As many images are held as may be.
        """
        if len(self._images) >= self._limits.images:
            raise RefusedError(503, "the server holds as many images as it may: remove one, or wait", retry_after_s=60)
        folder = self.folder / secrets.token_hex(16)
        (folder / "files").mkdir(parents=True, mode=0o700)
        try:
            yield folder
        except BaseException:
            remove(folder)
            raise

    def add(self, owner: str, folder: Path, source: Source, about: ImageAnswer) -> HeldImage:
        """Hold an image."""
        name = new_id()
        held = HeldImage(name, owner, folder, source, about.model_copy(update={"id": name}))
        self._images[name] = held
        return held

    def image(self, owner: str, name: str) -> HeldImage:
        """Find an image, and count it as used.

        Raises:
            RefusedError: There is none of that id, or it is another owner's.
        """
        held = self._images.get(name)
        if held is None or held.owner != owner:
            raise not_here("image")
        held.used = time.monotonic()
        return held

    def session(self, owner: str, image: str, name: str) -> HeldSession:
        """Find a session of an image; errors as `image`."""
        found = self.image(owner, image).sessions.get(name)
        if found is None:
            raise not_here("session")
        return found

    def job(self, owner: str, name: str) -> HeldJob:
        """Find a job; errors as `image`."""
        for held in self._images.values():
            if held.owner == owner and name in held.jobs:
                held.used = time.monotonic()
                return held.jobs[name]
        raise not_here("job")

    def result(self, owner: str, name: str) -> HeldResult:
        """Find a result; errors as `image`."""
        for held in self._images.values():
            if held.owner == owner and name in held.results:
                held.used = time.monotonic()
                return held.results[name]
        raise not_here("result")

    def remove(self, held: HeldImage) -> None:
        """Remove an image with all that came of it, and stop its jobs."""
        self._images.pop(held.id, None)
        for job in held.jobs.values():
            job.progress.is_cancelled = True
        remove(held.folder)

    def old(self) -> list[HeldImage]:
        """List the images whose time is over."""
        limit = time.monotonic() - self._limits.kept_s
        return [held for held in self._images.values() if held.used < limit and not held.is_busy]

    def sessions_by_worker(self) -> dict[str, int]:
        """Count the sessions of each worker by its name."""
        counts: dict[str, int] = {}
        for held in self._images.values():
            for session in held.sessions.values():
                counts[session.worker.name] = counts.get(session.worker.name, 0) + 1
        return counts

    def close(self) -> None:
        """Remove everything."""
        for held in list(self._images.values()):
            self.remove(held)
        self._until_closed.close()
