"""TensorBoard curves of a run: while it trains, or afterwards from its `curves.jsonl`, which stays the truth.

The curves lie in `OUT/board`; look at them with `tensorboard --logdir OUT`. The only module that uses tensorboard.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from medsam3.errors import InputError, require
from medsam3.store import read_lines

if TYPE_CHECKING:
    from medsam3.train.loop import StepReport

FOLDER = "board"


class Board:
    """Curves that are added to as a run goes; a context manager. Step n is the n-th update, counted from 0."""

    def __init__(self, out: Path) -> None:
        """Open, or go on with, the curves of the run in `out`.

        Raises:
            InputError: tensorboard is not installed.
        """
        require("tensorboard", extra="tensorboard")
        from torch.utils.tensorboard.writer import SummaryWriter  # noqa: PLC0415  it fails without tensorboard

        self._writer = SummaryWriter(str(out / FOLDER))

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, step: int, values: Mapping[str, float], *, group: str = "loss") -> None:
        """Add one value to each named curve."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def on_step(self, progress: StepReport) -> None:
        """Add what the loop tells after an update."""
        self.add(progress.step - 1, {"total": progress.loss, **progress.terms})


def write_board(out: Path) -> int:
    """Make the curves of a run anew from its `curves.jsonl` and `val.jsonl`, in place of those that are there.

    Returns:
        How many steps they have.

    Raises:
        InputError: No curves, or tensorboard is not installed.
    """
    curves = out / "curves.jsonl"
    if not curves.is_file():
        raise InputError(f"{out} holds no curves.jsonl: name the folder of a run of medsam3 train")
    require("tensorboard", extra="tensorboard")
    shutil.rmtree(out / FOLDER, ignore_errors=True)
    count = 0
    with Board(out) as board:
        for step, values in _entries(curves):
            board.add(step, values)
            count += 1
        if (out / "val.jsonl").is_file():
            for step, values in _entries(out / "val.jsonl"):
                board.add(step - 1, values, group="val")
    return count


def _entries(curves: Path) -> Iterator[tuple[int, dict[str, float]]]:
    with curves.open("rb") as stream:
        for entry in read_lines(stream)[0]:
            with suppress(KeyError, TypeError, ValueError):  # the heading
                yield int(entry.pop("step")), {name: float(value) for name, value in entry.items()}
