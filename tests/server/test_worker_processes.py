"""Processes of the server that are still starting: they import for seconds, and must be ended at any moment of it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time

import pytest

from medsam3.server.pool import Worker
from medsam3.server.problems import RefusedError

STARTING_S = 60.0
ENOUGH_S = 20.0
"""Far less than the process would take to start, far more than it takes to be ended on a busy machine."""


def starting() -> Worker:
    return Worker("starting", 4, 1 << 33, time.sleep, (STARTING_S,))


def test_a_server_that_ends_does_not_wait_for_a_process_that_is_starting() -> None:
    async def seconds_to_close() -> float:
        worker = starting()
        asked = asyncio.create_task(worker.run(os.getpid, limit_s=2 * STARTING_S))
        await asyncio.sleep(0)  # the process is begun, and has run nothing yet
        begun = time.monotonic()
        await asyncio.to_thread(worker.close)
        taken = time.monotonic() - begun
        await asyncio.gather(asked, return_exceptions=True)
        return taken

    assert asyncio.run(seconds_to_close()) < ENOUGH_S


def test_a_process_that_does_not_start_in_time_is_ended_and_not_left() -> None:
    async def timed_out() -> int:
        worker = starting()
        with pytest.raises(RefusedError, match=r"longer than 0\.01 s"):
            await worker.run(os.getpid, limit_s=0.01)
        return worker.restarts

    before = set(multiprocessing.active_children())
    assert asyncio.run(timed_out()) == 1
    deadline = time.monotonic() + ENOUGH_S
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(multiprocessing.active_children()) <= before
