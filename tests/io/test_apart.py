"""What a call in the process apart gives back, and what its death, hang or greed becomes."""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing import get_context

import numpy as np
import pytest
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.io import apart
from medsam3.io.apart import run_apart


def ramp(count: int) -> NDArray[np.int16]:
    return np.arange(count, dtype=np.int16).reshape(-1, 2)


def refuse(what: str) -> None:
    raise InputError(f"{what} is refused")


class OddError(Exception):
    """Cannot be made again from its arguments alone, as pickle wants to."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def fail_oddly() -> None:
    raise OddError("a", "b")


def spin() -> None:
    while True:
        pass


def pid_of_child() -> int:
    return run_apart(os.getpid)


def test_arrays_come_back_whole_and_the_process_is_kept() -> None:
    first = run_apart(os.getpid)
    assert np.array_equal(run_apart(ramp, 6000), np.arange(6000, dtype=np.int16).reshape(3000, 2))
    assert first == run_apart(os.getpid) != os.getpid()


def test_what_a_function_raises_is_raised_here() -> None:
    with pytest.raises(InputError, match=r"^the file is refused$"):
        run_apart(refuse, "the file")
    with pytest.raises(RuntimeError, match=r"^a b$"):
        run_apart(fail_oddly)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGABRT, "SIGABRT"), (signal.SIGSEGV, "SIGSEGV")])
def test_a_death_is_one_line_and_the_next_call_gets_another_process(number: int, name: str) -> None:
    dead = run_apart(os.getpid)
    with pytest.raises(InputError, match=f"it ended its decoder \\({name}\\)"):
        run_apart(signal.raise_signal, number)
    assert run_apart(os.getpid) != dead


def test_a_hang_ends_by_processor_time_and_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "MAX_SECONDS", 1)
    monkeypatch.setattr(apart, "_CLOCK_RATIO", 2)
    started = time.monotonic()
    with pytest.raises(InputError, match="took longer than 1 seconds"):
        run_apart(time.sleep, 60)
    assert time.monotonic() - started < 30
    with pytest.raises(InputError, match="took longer than 1 seconds"):
        run_apart(spin)


def test_memory_beyond_two_gib_is_refused_and_the_process_lives_on() -> None:
    before = run_apart(os.getpid)
    with pytest.raises(InputError, match="decoding needs more than 2,147,483,648 bytes"):
        run_apart(bytes, 3 * 2**30)
    assert run_apart(os.getpid) == before


def test_threads_take_turns() -> None:
    found: dict[int, int] = {}

    def ask(k: int) -> None:
        found[k] = int(run_apart(abs, -k))

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {k: k for k in range(8)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_its_own() -> None:
    own = run_apart(os.getpid)
    with get_context("fork").Pool(1) as pool:
        assert pool.apply(pid_of_child) != own
    assert run_apart(os.getpid) == own
