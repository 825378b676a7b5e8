"""Worker processes: one task at a time each, with progress, a time limit and cancelling; a crash costs one task alone.

It knows nothing of images or HTTP: tasks are functions of modules with arguments that can be pickled.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

from medsam3.io.apart import end_with_parent
from medsam3.server.problems import RefusedError

T = TypeVar("T")
_log = logging.getLogger(__name__)

CANCEL_GRACE_S = 5.0
RETRY_AFTER_S = 5
FOLLOW_S = 0.1
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_DONE, _COUNT, _CANCELLED = range(3)
_shared: Any = None  # in a worker process: what it shares with the server


class StoppedError(Exception):
    """The task was told to stop."""


def report(done: int, count: int) -> None:
    """Tell the server how far this worker's task is.

    Raises:
        StoppedError: The task is to stop.
    """
    if _shared is None:
        return
    _shared[_DONE], _shared[_COUNT] = done, count
    if _shared[_CANCELLED]:
        raise StoppedError


def _begin(shared: Any, prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    """Set a new worker process up."""
    global _shared  # noqa: PLW0603  the process is this one worker
    _shared = shared
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends its workers
    end_with_parent()
    if prepare is not None:
        prepare(*arguments)


def _heard(future: asyncio.Future[Any]) -> None:
    """Take note of how a task ended that nobody waits for any more, so that asyncio does not complain."""
    if not future.cancelled():
        future.exception()


@dataclass
class Progress:
    """How far a task is, and whether it is to stop; shared by the task's caller and its worker."""

    state: str = "waiting"
    done: int = 0
    count: int = 0
    is_cancelled: bool = False
    is_too_large: bool = False  # it took more memory than a worker may


@dataclass
class Worker:
    """A process that does one task after the other, and is started again if it ends.

    Attributes:
        name: For messages and logs.
        most_waiting: Tasks that may wait; one more is refused.
        most_bytes: Memory that the process may take while it does a task; watched where the system tells it (Linux).
        prepare: Called once in every new process, with `arguments`.
    """

    name: str
    most_waiting: int
    most_bytes: int
    prepare: Callable[..., None] | None = None
    arguments: tuple[Any, ...] = ()
    waiting: int = 0
    restarts: int = 0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, repr=False)
    _executor: ProcessPoolExecutor | None = field(default=None, repr=False)
    _process: BaseProcess | None = field(default=None, repr=False)
    _shared: Any = field(default=None, repr=False)
    _running: Progress | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        """Number of the process; None if it was not started."""
        return None if self._process is None else self._process.pid

    async def run(
        self, function: Callable[..., T], *arguments: Any, limit_s: float, progress: Progress | None = None
    ) -> T:
        """Do a task when its turn has come; one with `progress` is of a job that was taken on, and is not refused.

        Raises:
            RefusedError: Too many are waiting, it took too long, or the process ended on the way.
            StoppedError: It was told to stop.
            Exception: What the function raises.
        """
        if progress is None and self.waiting >= self.most_waiting:
            raise RefusedError(
                503, "the server has more to do than it takes on: try again", retry_after_s=RETRY_AFTER_S
            )
        told = progress or Progress()
        self.waiting += 1
        try:
            async with self._lock:
                if told.is_cancelled:
                    raise StoppedError
                return await self._do(told, function, arguments, limit_s)
        finally:
            self.waiting -= 1

    async def cancel(self, progress: Progress) -> None:
        """Stop a task: one that waits is not begun, one that runs is asked to stop, and killed if it does not."""
        progress.is_cancelled = True
        if self._running is not progress:
            return
        self._shared[_CANCELLED] = 1
        deadline = time.monotonic() + CANCEL_GRACE_S
        while self._running is progress and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        if self._running is progress:
            self._kill()

    def close(self) -> None:
        """End the process, whatever it does."""
        executor, self._executor = self._executor, None
        if executor is not None:
            self._kill()
            executor.shutdown(wait=True, cancel_futures=True)

    async def _do(self, told: Progress, function: Callable[..., T], arguments: tuple[Any, ...], limit_s: float) -> T:
        executor = self._started()
        self._shared[_DONE] = self._shared[_COUNT] = self._shared[_CANCELLED] = 0
        told.state, self._running = "running", told
        follower = asyncio.create_task(self._follow(told))
        try:
            future = asyncio.wrap_future(self._submitted(executor, function, arguments))
            future.add_done_callback(_heard)
            return await asyncio.wait_for(asyncio.shield(future), limit_s)
        except BrokenProcessPool as error:
            self._forget()
            if told.is_cancelled:
                raise StoppedError from error
            if told.is_too_large:
                raise RefusedError(
                    413,
                    f"this took more than {self.most_bytes >> 20} MiB of memory and was stopped: ask for less at once",
                ) from error
            _log.warning("worker %s ended on the way and is started again", self.name)
            raise RefusedError(
                500, "the process that did this ended (out of memory, or a crash in a library): try a smaller file"
            ) from error
        except TimeoutError as error:
            self._kill()
            self._forget()
            raise RefusedError(
                504, f"this took longer than {limit_s:g} s and was stopped: ask for less at once"
            ) from error
        finally:
            follower.cancel()
            told.done, told.count = self._counted(told)
            self._running = None

    async def _follow(self, told: Progress) -> None:
        while True:
            told.done, told.count = self._counted(told)
            if not told.is_too_large and self.resident_bytes() > self.most_bytes:
                _log.warning("worker %s took more memory than it may and is ended", self.name)
                told.is_too_large = True
                self._kill()
            await asyncio.sleep(FOLLOW_S)

    def resident_bytes(self) -> int:
        """Memory that the process holds; 0 if there is none, or the system does not tell."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_bytes().split()[1])
        except (OSError, ValueError, IndexError):
            return 0
        return pages * _PAGE_BYTES

    def _counted(self, told: Progress) -> tuple[int, int]:
        return (told.done, told.count) if self._shared is None else (self._shared[_DONE], self._shared[_COUNT])

    def _started(self) -> ProcessPoolExecutor:
        if self._executor is None:
            context = multiprocessing.get_context("spawn")
            self._shared = context.RawArray("q", 3)
            self._executor = ProcessPoolExecutor(
                1, context, initializer=_begin, initargs=(self._shared, self.prepare, self.arguments)
            )
        return self._executor

    def _submitted(
        self, executor: ProcessPoolExecutor, function: Callable[..., T], arguments: tuple[Any, ...]
    ) -> Future[T]:
        """Hand the task over; the first one starts the process, which is noted, so that it can be ended at once."""
        before = set(multiprocessing.active_children()) if self._process is None else set()
        future = executor.submit(function, *arguments)
        if self._process is None:
            self._process = next(iter(set(multiprocessing.active_children()) - before), None)
        return future

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _forget(self) -> None:
        executor, self._executor, self._process, self._shared = self._executor, None, None, None
        self.restarts += 1
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)
