"""Calls of native decoders in a process of their own, so that their death, hang or greed is one file's error.

The process is started by the first call, kept for the next ones, and started anew after it has died. Nothing here
knows what is decoded.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Self, TypeVar

from medsam3.errors import InputError

try:
    import resource
except ImportError:  # Windows: memory is not limited there
    resource = None  # type: ignore[assignment]

MAX_BYTES = 2**31
"""Memory that one call may take beyond what the process takes at rest."""
MAX_SECONDS = 10
"""Processor time that one call may take beyond what its data take; six times as long by the clock."""
_CLOCK_RATIO = 6
_SLOWEST_BYTES = 10**6
"""Bytes that a decoder makes in a second at least."""
_PIPE_BYTES = 2**20  # holds a usual frame, so that both sides wait for each other once; Linux alone heeds it
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from medsam3.io.apart import serve; serve()"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # threads reserve memory that counts

_Value = TypeVar("_Value")


def run_apart(function: Callable[..., _Value], *arguments: object, data_bytes: int = 0) -> _Value:
    """Call a function of a module in the process apart.

    Args:
        function: What to call; it, the arguments and what it returns must be picklable.
        arguments: Its arguments.
        data_bytes: What the header tells that it makes, for which it gets more time and memory.

    Raises:
        InputError: The process died or took too long or too much memory. What the function raises is raised here.
    """
    if getattr(sys, "frozen", False) or not sys.executable:  # an application that is no Python
        return function(*arguments)
    value: _Value = _apart_of(os.getpid()).call((function, arguments, data_bytes), _seconds_for(data_bytes))
    return value


def end_with_parent() -> None:
    """End this process, which `multiprocessing` has started, when the one that started it ends, however it does."""
    import multiprocessing  # noqa: PLC0415  a hundredth of a second

    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _seconds_for(data_bytes: int) -> int:
    return MAX_SECONDS + data_bytes // _SLOWEST_BYTES


@cache
def _apart_of(pid: int) -> _Apart:
    """The one of this process; one that was forked gets its own."""
    del pid
    return _Apart()


class _Apart:
    """The process, and the pipes to it. Threads take turns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, asked: tuple[Callable[..., Any], tuple[object, ...], int], seconds: int) -> Any:
        with self._lock:
            process = self._started()
            is_late = threading.Event()
            with _Watch(process, _CLOCK_RATIO * seconds, is_late):
                try:
                    assert process.stdin is not None, "a pipe"
                    assert isinstance(process.stdout, BufferedReader), "a pipe"
                    pickle.dump(asked, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
                    process.stdin.flush()
                    is_good, value = _received(process.stdout)
                except (EOFError, OSError, pickle.UnpicklingError) as error:
                    self._stop()
                    raise InputError(_how_it_died(process, seconds, is_late=is_late.is_set())) from error
                except BaseException:  # an interrupt: the answer that is on its way belongs to no later call
                    self._stop()
                    raise
        if is_good:
            return value
        raise value

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._stop()
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | _ONE_THREAD,
                pipesize=_PIPE_BYTES,
            )
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        for stream in (process.stdin, process.stdout):
            with suppress(OSError):
                assert stream is not None, "a pipe"
                stream.close()
        process.wait()


class _Watch:
    """Kills a process that does not answer in time."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float, is_late: threading.Event) -> None:
        self._process, self._is_late = process, is_late
        self._timer = threading.Timer(seconds, self._kill)
        self._timer.daemon = True

    def _kill(self) -> None:
        self._is_late.set()
        self._process.kill()

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()


def _how_it_died(process: subprocess.Popen[bytes], seconds: int, *, is_late: bool) -> str:
    code = process.returncode
    if is_late or (resource is not None and code == -signal.SIGXCPU):
        return f"its decoder took longer than {seconds} seconds: the file is damaged, copy it again"
    try:
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    except ValueError:
        name = f"signal {-code}"
    return f"it ended its decoder ({name}): it is damaged or of a rare form, copy it again or save it in another form"


def serve() -> None:
    """Answer calls from stdin until it is closed; native messages go nowhere."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the caller, which then closes stdin
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    at_rest = _address_space()
    while True:
        try:
            function, arguments, data_bytes = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        _limit_memory(at_rest + MAX_BYTES + 2 * data_bytes)
        _limit_time(_seconds_for(data_bytes))
        _answer(answers, function, arguments)


def _answer(answers: IO[bytes], function: Callable[..., Any], arguments: tuple[object, ...]) -> None:
    try:
        answer = (True, function(*arguments))
    except MemoryError:
        answer = (False, InputError(f"decoding needs more than {MAX_BYTES:,} bytes: the file is damaged, or crop it"))
    except Exception as error:  # the edge of this process
        answer = (False, _portable(error))
    _send(answers, answer)


def _portable(error: Exception) -> Exception:
    """The error itself if it can be sent, else its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an exception's own constructor raises
        return RuntimeError(str(error))
    return error


def _send(stream: IO[bytes], value: object) -> None:
    """Write a value, the bytes of its arrays behind it, without another copy of them."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL, buffer_callback=buffers.append)
    raw = [buffer.raw() for buffer in buffers]
    pickle.dump((head, [one.nbytes for one in raw]), stream)
    for one in raw:
        stream.write(one)
    stream.flush()


def _received(stream: BufferedReader) -> Any:
    head, sizes = pickle.load(stream)
    buffers = [bytearray(size) for size in sizes]
    for buffer in buffers:
        view = memoryview(buffer)
        while view:
            count = stream.readinto(view)
            if not count:
                raise EOFError
            view = view[count:]
    return pickle.loads(head, buffers=buffers)


def _address_space() -> int:
    """Bytes of addresses that this process has taken; 0 where the system does not tell."""
    if resource is None:
        return 0
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return 0


def _limit_time(seconds: int) -> None:
    if resource is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        most = int(used.ru_utime + used.ru_stime) + 1 + seconds
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _limit_memory(most: int) -> None:
    if resource is not None and most > MAX_BYTES:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
