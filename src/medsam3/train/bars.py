"""Where a training run is, on stderr: bars on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medsam3.train.loop import Progress

SECONDS_BETWEEN_LINES = 30.0


class Bars:
    """One bar a phase, or lines where stderr is not a terminal. A context manager."""

    def __enter__(self) -> Bars:
        from rich.console import Console  # noqa: PLC0415
        from rich.progress import (  # noqa: PLC0415
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self._has_bars = console.is_terminal
        self._progress = Progress(*columns, console=console, disable=not self._has_bars)
        self._progress.start()
        self._name, self._total, self._done, self._last_line = "", 0, 0, float("-inf")
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def phase(self, name: str, count: int) -> None:
        """Start a phase of `count` items."""
        self._name, self._total, self._done, self._last_line = name, count, 0, float("-inf")
        self._task = self._progress.add_task(name, total=count)

    def item(self) -> None:
        """Count one item."""
        self._done += 1
        self._progress.advance(self._task)
        self._line("")

    def step(self, progress: Progress) -> None:
        """Show where training is."""
        self._done = progress.step
        loss = f"loss {progress.loss:.2f}"
        self._progress.update(self._task, completed=progress.step, description=f"{self._name} {loss}")
        self._line(f", {loss}, {progress.seconds_left / 60:.0f} min left")

    def measured(self, step: int, dice: float) -> None:
        """Say what val measured."""
        self._progress.console.print(f"val after {step} steps: Dice {dice:.3f}")

    def _line(self, rest: str) -> None:
        now = time.monotonic()
        if self._has_bars or (now - self._last_line < SECONDS_BETWEEN_LINES and self._done != self._total):
            return
        self._last_line = now
        print(f"{self._name}: {self._done}/{self._total}{rest}", file=sys.stderr, flush=True)
