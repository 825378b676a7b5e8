"""Starts of a program whose imports are done: a process that has made them forks a child for each start.

A program of medsam3 imports for seconds before it does anything that a kill could break. `kills.py` starts programs
some hundred times, so it lets them begin where their imports end. A child is a process of its own, in a session of its
own; all that it opens, locks and writes is its own. One child lives at a time. Needs Linux.

    python warm_starts.py     # the other end: reads what to do as lines of JSON
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_WITH_THREADS = ("pyarrow", "pandas", "medsam3.batch", "medsam3.cli.batch")
"""Modules that start threads when they are imported, or import one that does, which a fork would lose: each program
imports them itself."""


class WarmProgram:
    """A program that was started."""

    def __init__(self, pid: int, told: Any) -> None:
        self.pid, self._told = pid, told
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Give the exit code, minus the signal that ended it; None while it runs."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self._read()
        return self.returncode

    def wait(self, timeout_s: float) -> int:
        """Wait for its end.

        Raises:
            TimeoutError: It is still running.
        """
        if self.returncode is None and not select.select([self._told], [], [], timeout_s)[0]:
            raise TimeoutError(f"process {self.pid} did not end in {timeout_s:g} s")
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs; its number is not given away before the next start."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _read(self) -> None:
        self.returncode = json.loads(self._told.readline())["code"]


class WarmStarts:
    """Starts programs, one after the other, each with the imports of those before it."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._parent = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            bufsize=0,  # so that `select` sees every line
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(60)

    def start(self, command: Sequence[str], log: Path, modules: Path | None = None) -> WarmProgram:
        """Start a script.

        Args:
            command: This Python, the script, its arguments.
            log: Takes what it prints, after what is there.
            modules: If given, takes the names of the modules that it had imported when it ended by itself.
        """
        asked = {"run": list(command[1:]), "log": str(log), "modules": None if modules is None else str(modules)}
        return WarmProgram(self._ask(asked)["pid"], self._parent.stdout)

    def warm(self, modules: Path) -> None:
        """Import what a program had imported."""
        names = json.loads(modules.read_text(encoding="utf-8"))
        threads = self._ask({"import": [one for one in names if not one.startswith(_WITH_THREADS)]})["threads"]
        assert threads == 1, f"imports have started {threads - 1} threads, which no fork has"

    def _ask(self, content: dict[str, Any]) -> dict[str, Any]:
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.write(json.dumps(content).encode() + b"\n")
        answer: dict[str, Any] = json.loads(self._parent.stdout.readline())
        return answer


def serve() -> None:
    """Do what is asked until nobody asks any more; a child returns at once, and then runs its program to its end."""
    last: int | None = None
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        if last is not None:
            os.waitpid(last, 0)
            last = None
        if "import" in asked:
            _import(asked["import"])
            _answer({"threads": len([*Path("/proc/self/task").iterdir()])})
            continue
        last = os.fork()
        if last == 0:
            _become(asked)
            return
        _answer({"pid": last})
        ended = os.waitid(os.P_PID, last, os.WEXITED | os.WNOWAIT)  # its number stays taken
        assert ended is not None
        _answer({"code": ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status})


def _import(names: Sequence[str]) -> None:
    for name in names:
        with suppress(Exception):  # what was made by another module, and is no file
            importlib.import_module(name)
    gc.freeze()


def _answer(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


def _become(asked: dict[str, Any]) -> None:
    """Be the program from here on."""
    os.setsid()
    with Path(os.devnull).open("rb") as nothing, Path(asked["log"]).open("ab") as log:
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source.fileno(), target)
    sys.argv = asked["run"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        if asked["modules"] is not None:
            Path(asked["modules"]).write_text(json.dumps([*sys.modules]), encoding="utf-8")


def until_told(log: Path, text: str, program: WarmProgram, most_s: float = 120.0) -> None:
    """Wait until a program has printed a text."""
    deadline = time.monotonic() + most_s
    while not log.exists() or text not in log.read_text(encoding="utf-8", errors="replace"):
        assert program.poll() is None, f"it ended with {program.returncode}: {log}"
        assert time.monotonic() < deadline, f"it did not say {text!r} in {most_s:g} s: {log}"
        time.sleep(0.02)


if __name__ == "__main__":
    serve()
