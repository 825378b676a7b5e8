"""Many items by several processes that share this one's memory: what each gives comes back in the items' order.

The processes are forked, so a model that was loaded here lies in memory once. What they log is logged here. One that
dies is replaced, and its item tried once more. It knows nothing of images.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from medsam3.io.apart import end_with_parent

Item = TypeVar("Item")
Asked = TypeVar("Asked")
Given = TypeVar("Given")

MOST_TRIES = 2
_AHEAD = 4
"""Items for each process that may be begun while an earlier one is not done."""


@dataclass(frozen=True)
class Died:
    """An item's process died, and so did the next one that was given it; the text tells how."""

    how: str


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_fork() -> bool:
    """Tell whether processes can be forked safely: on Linux, and if PyTorch starts no threads here."""
    torch = sys.modules.get("torch")
    return sys.platform == "linux" and (torch is None or torch.get_num_threads() == 1)


@dataclass
class _Turn(Generic[Item, Asked, Given]):
    """An item, what of it is asked, and what came of it."""

    item: Item
    asked: Asked | None
    tries: int = 0
    answer: Given | Died | None = None
    is_done: bool = False


@dataclass
class _Process(Generic[Item, Asked, Given]):
    process: Any
    connection: Connection
    turn: _Turn[Item, Asked, Given] | None = None


class SideBySide(Generic[Item, Asked, Given]):
    """Processes that each do one item at a time. A context manager, which ends them."""

    def __init__(self, begin: Callable[[], Callable[[Asked], Given]], count: int) -> None:
        """Remember how they begin, which they do at the first item that asks for something.

        Args:
            begin: Called here, once; gives what is then called in the processes. What is asked and given must be
                picklable.
            count: How many.
        """
        self._begin, self._count = begin, count
        self._work: Callable[[Asked], Given] | None = None
        self._crew: list[_Process[Item, Asked, Given]] = []
        self._waiting: deque[_Turn[Item, Asked, Given]] = deque()
        self._turns: deque[_Turn[Item, Asked, Given]] = deque()  # in order, those that were not given back

    def __enter__(self) -> SideBySide[Item, Asked, Given]:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._crew:
            one.connection.close()
            one.process.kill()
        for one in self._crew:
            one.process.join()

    def run(self, items: Iterable[tuple[Item, Asked | None]]) -> Iterator[tuple[Item, Given | Died | None]]:
        """Do what is asked of each item, and give it with what came of it, in order; None if nothing was asked."""
        source, has_more = iter(items), True
        while has_more or self._turns:
            while has_more and len(self._turns) < _AHEAD * self._count and not self._waiting:
                new = next(source, None)
                has_more = new is not None
                if new is not None:
                    self._take_on(_Turn(*new))
                self._hand_out()
            while self._turns and self._turns[0].is_done:
                done = self._turns.popleft()
                yield done.item, done.answer
            self._receive()
            self._hand_out()

    def _take_on(self, turn: _Turn[Item, Asked, Given]) -> None:
        self._turns.append(turn)
        turn.is_done = turn.asked is None
        if not turn.is_done:
            self._waiting.append(turn)

    def _hand_out(self) -> None:
        if self._waiting and self._work is None:
            self._work = self._begin()
            for _ in range(self._count):
                self._start()
        for one in self._crew:
            if one.turn is None and self._waiting:
                one.turn = self._waiting.popleft()
                with suppress(OSError):  # it died; `_receive` finds that
                    one.connection.send(one.turn.asked)

    def _receive(self) -> None:
        """Wait for an answer of any process, if one is busy."""
        busy: dict[Any, _Process[Item, Asked, Given]] = {one.connection: one for one in self._crew if one.turn}
        for connection in wait(list(busy)) if busy else ():
            one = busy[connection]
            assert one.turn is not None
            try:
                one.turn.answer, records = one.connection.recv()
            except (EOFError, OSError):
                self._replace(one, one.turn)
                continue
            one.turn.is_done, one.turn = True, None
            for record in records:
                logging.getLogger(record.name).handle(record)

    def _replace(self, one: _Process[Item, Asked, Given], turn: _Turn[Item, Asked, Given]) -> None:
        """Start another process in the place of one that died."""
        one.process.join()
        one.connection.close()
        self._crew.remove(one)
        turn.tries += 1
        if turn.tries < MOST_TRIES:
            self._waiting.appendleft(turn)
        else:
            turn.answer, turn.is_done = Died(_how(one.process.exitcode)), True
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe()
        others = [here, *(one.connection for one in self._crew)]
        threads = max(1, cores() // self._count)
        process = context.Process(target=_serve, args=(there, others, self._work, threads), daemon=True)
        process.start()
        there.close()
        self._crew.append(_Process(process, here))


def _how(code: int) -> str:
    try:
        name = f"by {signal.Signals(-code).name}" if code < 0 else f"with {code}"
    except ValueError:
        name = f"by signal {-code}"
    return f"its process ended {name}"


def _serve(connection: Connection, others: Sequence[Connection], work: Callable[[Any], object], threads: int) -> None:
    """Do what is asked until the other side is closed or dies."""
    for other in others:  # copies of the other side's ends, which would keep the pipes open
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that started this ends it
    end_with_parent()
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    logging.getLogger().handlers = [QueueHandler(records)]
    logging.getLogger("medsam3").handlers = []
    while True:
        try:
            asked = connection.recv()
        except (EOFError, OSError):
            os._exit(0)
        given = work(asked)
        connection.send((given, [records.get() for _ in range(records.qsize())]))
