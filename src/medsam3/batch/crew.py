"""Who does the work of a batch: this process alone, or Ray's actors on one machine or many.

Pieces are handed out a few at a time, and only when a worker is free, so that a million of them never lie in memory.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medsam3.batch.pieces import Piece
from medsam3.batch.target import Known, OutputTarget, Row
from medsam3.batch.worker import BatchWork, BatchWorker, Report
from medsam3.errors import InputError, reason_of, require
from medsam3.store import name_bytes

MOST_TRIES = 3
"""A piece whose worker dies so many times is set aside."""
_MOST_PIECES, _AIMED_S = 256, 15.0
"""A worker gets as many pieces at once as take it this long, and at most so many."""
_OBJECT_STORE_BYTES = 100 << 20
_START_ERRORS = (ConnectionError, ValueError, RuntimeError, TimeoutError)


@dataclass(frozen=True)
class Cluster:
    """Where the workers run.

    Attributes:
        address: `none` for this process alone; `auto` for a running Ray cluster, or one on this machine; or `ray://...`.
        workers: How many; None takes one for each core that Ray has.
        gpus: Share of a GPU that each worker takes.
        memory_bytes: Each worker's limit; None leaves it open.
        timeout_s: Longest time for one piece; then its worker is ended, and it counts as dead.
    """

    address: str = "auto"
    workers: int | None = None
    gpus: float = 0.0
    memory_bytes: int | None = None
    timeout_s: float = 3600.0


class Pieces:
    """Hands out pieces in chunks whose size follows the time that they take."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._size = 1
        self.has_more = True

    def take(self) -> tuple[Piece, ...]:
        """Give the next few pieces; () at the end."""
        chunk: list[Piece] = []
        while len(chunk) < self._size:
            piece = next(self._pieces, None)
            if piece is None:
                self.has_more = False
                break
            chunk.append(piece)
        return tuple(chunk)

    def learn(self, pieces: int, seconds: float) -> None:
        """Take note of how long pieces took; a size at most doubles at once."""
        fitting = int(_AIMED_S * pieces / max(seconds, 1e-3))
        self._size = max(1, min(fitting, 2 * max(self._size, pieces), _MOST_PIECES))


def part_name(pieces: tuple[Piece, ...], work: BatchWork) -> str:
    """Name the part of the manifest that holds these pieces, always alike."""
    text = "\n".join(f"{piece.url} {piece.stamp} {work.job(piece)}" for piece in pieces)
    return f"part-{hashlib.sha256(name_bytes(text)).hexdigest()[:20]}.parquet"


def work_here(pieces: Iterator[Piece], work: BatchWork, target: str, known: Known) -> Iterator[Report]:
    """Do the work in this process, and report after every few pieces.

    Raises:
        InputError: The model cannot be loaded, or the target cannot be written.
    """
    worker, source = BatchWorker(work, target, known), Pieces(pieces)
    while chunk := source.take():
        report = worker.do(chunk, part_name(chunk, work))
        source.learn(len(chunk), report.seconds)
        yield report


@dataclass
class _Chunk:
    pieces: tuple[Piece, ...]
    tries: int = 0


@dataclass
class _Task:
    """What an actor is busy with: a chunk, or loading its model (None)."""

    actor: Any
    chunk: _Chunk | None
    deadline: float


class Crew:
    """Ray's actors, each with one model. One that dies is replaced, and its pieces are tried again one by one."""

    def __init__(self, work: BatchWork, target: str, known: Known, cluster: Cluster) -> None:
        """Start Ray, or connect to it.

        Raises:
            InputError: Ray is not installed, or the cluster cannot be reached.
        """
        self._ray = require("ray", extra="cluster")
        self._work, self._target, self._cluster = work, target, cluster
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            self._start()
        self._given = self._ray.put((work, target, known))
        self._busy: dict[Any, _Task] = {}
        self._idle: list[Any] = []
        self._again: deque[_Chunk] = deque()
        self._dead_loads = 0
        self.workers = cluster.workers or max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def run(self, pieces: Iterator[Piece]) -> Iterator[Report]:
        """Do the work, and report after every few pieces.

        Raises:
            InputError: The model cannot be loaded, the target cannot be written, or workers die while they load.
        """
        source = Pieces(pieces)
        while True:
            self._hire(source)
            self._hand_out(source)
            if not any(task.chunk for task in self._busy.values()) and not self._again and not source.has_more:
                return
            ready, _ = self._ray.wait(list(self._busy), timeout=1.0)
            for reference in ready:
                report = self._finished(reference, source)
                if report is not None:
                    yield report
            yield from self._overdue()

    def close(self) -> None:
        """End the actors, and Ray if this started it."""
        for actor in [*self._idle, *(task.actor for task in self._busy.values())]:
            self._ray.kill(actor)
        if self._is_ours:
            self._ray.shutdown()

    def _start(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
        is_new = self._cluster.address == "auto" and not os.environ.get("RAY_ADDRESS")
        try:
            if not is_new:
                del options["include_dashboard"]
                self._ray.init(None if self._cluster.address == "auto" else self._cluster.address, **options)
                return
            try:
                self._ray.init("auto", log_to_driver=False, logging_level="ERROR")
            except ConnectionError:
                self._ray.init("local", object_store_memory=_OBJECT_STORE_BYTES, **options)
        except Exception as error:  # a node that does not come up is a bare Exception
            if type(error) is not Exception and not isinstance(error, _START_ERRORS):
                raise
            what = "Ray cannot be started here" if is_new else f"the cluster {self._cluster.address} cannot be reached"
            reason = " ".join(reason_of(error).split())[:300]
            raise InputError(
                f"{what} ({reason}): free memory and disk, correct --cluster, or give none, which needs no Ray"
            ) from error

    def _hire(self, source: Pieces) -> None:
        """Start actors up to the number that is wanted, while there is work."""
        wanted = self.workers if source.has_more else min(self.workers, len(self._again) + self._chunks_at_work())
        while len(self._idle) + len(self._busy) < wanted:
            options: dict[str, Any] = {"num_cpus": 1, "num_gpus": self._cluster.gpus, "max_restarts": 0}
            if self._cluster.memory_bytes is not None:
                options["memory"] = self._cluster.memory_bytes
            actor = self._ray.remote(_Actor).options(**options).remote(self._given, self._cluster.memory_bytes)
            self._busy[actor.ready.remote()] = _Task(actor, None, float("inf"))

    def _chunks_at_work(self) -> int:
        return sum(task.chunk is not None for task in self._busy.values())

    def _hand_out(self, source: Pieces) -> None:
        while self._idle:
            chunk = self._again.popleft() if self._again else _Chunk(source.take())
            if not chunk.pieces:
                return
            actor = self._idle.pop()
            deadline = time.monotonic() + self._cluster.timeout_s * len(chunk.pieces)
            reference = actor.do.remote(chunk.pieces, part_name(chunk.pieces, self._work))
            self._busy[reference] = _Task(actor, chunk, deadline)

    def _finished(self, reference: Any, source: Pieces) -> Report | None:
        task = self._busy.pop(reference)
        try:
            answer = self._ray.get(reference)
        except InputError:  # what the worker says of the model or the target
            self._ray.kill(task.actor)
            raise
        except self._ray.exceptions.RayError as error:  # the worker or its node died, or broke in a way nobody foresaw
            self._ray.kill(task.actor)
            return self._died(task, f"its worker died ({_reason(error)})")
        self._idle.append(task.actor)
        if task.chunk is None:
            return None
        assert isinstance(answer, Report)
        source.learn(len(task.chunk.pieces), answer.seconds)
        return answer

    def _overdue(self) -> Iterator[Report]:
        """End the workers that have taken too long."""
        for reference, task in list(self._busy.items()):
            if time.monotonic() > task.deadline:
                del self._busy[reference]
                self._ray.kill(task.actor)
                report = self._died(task, f"it took longer than {self._cluster.timeout_s:g} s")
                if report is not None:
                    yield report

    def _died(self, task: _Task, reason: str) -> Report | None:
        """Try a dead worker's pieces again, each by itself; set one aside that has killed too many."""
        if task.chunk is None:
            self._dead_loads += 1
            if self._dead_loads >= MOST_TRIES:
                raise InputError(f"workers die while they start ({reason}): give them more memory, or fewer workers")
            return None
        pieces, tries = task.chunk.pieces, task.chunk.tries + 1
        target = OutputTarget(self._target)
        if target.has(f"manifest/{part_name(pieces, self._work)}"):  # it died after the last stroke
            return Report(done=len(pieces))
        if len(pieces) > 1 or tries < MOST_TRIES:
            self._again.extend(_Chunk((piece,), tries) for piece in pieces)
            return None
        piece, said = pieces[0], f"{reason}, {tries} times: look at this file by itself"
        row = Row(piece.url, "", piece.stamp, "", self._work.job(piece), error=said, finished=time.time())
        target.write_part(part_name(pieces, self._work), [row])
        return Report(failed=1, errors=[f"{piece.url}: {said}"])


def _reason(error: Exception) -> str:
    text = str(error)
    for sign, said in (("OOM", "out of memory"), ("SIGKILL", "killed"), ("SIGABRT", "aborted"), ("SIGSEGV", "crashed")):
        if sign in text:
            return said
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if "creation task" in text and lines else "its process ended"


class _Actor:
    """One worker process of Ray."""

    def __init__(self, given: tuple[BatchWork, str, Known], memory_bytes: int | None) -> None:
        if memory_bytes is not None:
            import resource  # noqa: PLC0415  not on Windows

            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
        work, target, known = given
        self._worker = BatchWorker(work, target, known)
        self._counter = _counters()

    def ready(self) -> bool:
        return self._worker.ready()

    def do(self, pieces: tuple[Piece, ...], part: str) -> Report:
        report = self._worker.do(pieces, part)
        for name, counter in self._counter.items():
            if getattr(report, name):
                counter.inc(getattr(report, name))
        return report


def _counters() -> dict[str, Any]:
    """Make the metrics that Ray shows for the batch."""
    from ray.util.metrics import Counter  # noqa: PLC0415

    told = {
        "done": "pieces that were segmented",
        "skipped": "pieces that were done before",
        "failed": "pieces with an error",
        "objects": "objects that were found",
        "seconds": "seconds of work",
    }
    return {name: Counter(f"medsam3_batch_{name}", description=text) for name, text in told.items()}
