"""The data of `medsam3 train`: the arguments that name it, the report on it, and the curves of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from medsam3.cli.job import FROM_0, Help, names_in
from medsam3.cli.terminal import tell
from medsam3.errors import InputError

if TYPE_CHECKING:
    from medsam3.data.folders import FolderSource
    from medsam3.data.samples import Sample
    from medsam3.data.sources import CocoSource, Sources
    from medsam3.train.loop import StepReport

SECONDS_BETWEEN_LINES = 30.0
_OF_FOLDER = ("--concept", "--labels", "--group-pattern")


@dataclass(frozen=True)
class DataChoice:
    """The data of a run. What is said of a `--folder` begins with its number and a colon; see `number_folders`."""

    coco: Annotated[Path | None, Help("COCO JSON to train on")] = None
    coco_val: Annotated[Path | None, Help("COCO JSON to choose thresholds on")] = None
    images: Annotated[Path | None, Help("folder of the COCO files' pictures (default: their own)")] = None
    folder: Annotated[
        tuple[tuple[Path, Path], ...],
        Help(
            "IMAGES MASKS: folders of pictures and their masks, of the same names; may be given several times, "
            "each with the next three options after it"
        ),
    ] = ()
    concept: Annotated[tuple[str, ...], Help("what the masks of the last --folder show")] = ()
    labels: Annotated[tuple[str, ...], Help("1=PHRASE,2=PHRASE: what the values of its label maps mean")] = ()
    group_pattern: Annotated[tuple[str, ...], Help("REGEX: finds in a name what stays in one split")] = ()
    datasets: Annotated[str, Help("only these data sets, joined by commas")] = ""
    leave_out: Annotated[str, Help("keep these data sets out of every split, joined by commas")] = ""
    fold: Annotated[
        str | None, Help("K/N: split each data set anew by group and keep fold K of N for medsam3 eval --fold")
    ] = None
    only_open: Annotated[bool, Help("only data sets with an open licence")] = False
    weight: Annotated[tuple[str, ...], Help("SET=W: draw a data set W times as often as by its size")] = ()
    no_data_report: Annotated[bool, Help("do not look through the data first")] = False
    slices_every: Annotated[int, FROM_0, Help("every Nth slice of volumes (default: 2; 0: no volumes)")] = 2

    def sources(self, indexes: Sequence[Path]) -> Sources:
        """Give the data as one value, with folders that hold an index.csv.

        Raises:
            InputError: An argument that lacks another, or one of a wrong form.
        """
        from medsam3.data.index import Fold  # noqa: PLC0415  numpy, not for --help
        from medsam3.data.sources import Sources  # noqa: PLC0415
        from medsam3.data.volumes import SlicePlan  # noqa: PLC0415

        return Sources(
            indexes=tuple(indexes),
            coco=self._coco(),
            folders=tuple(self._folders()),
            slices=SlicePlan(every=self.slices_every) if self.slices_every else None,
            only=names_in(self.datasets),
            left_out=names_in(self.leave_out),
            is_only_open=self.only_open,
            weights=tuple(_weight(text) for text in self.weight),
            fold=None if self.fold is None else Fold.from_text(self.fold),
        )

    def _coco(self) -> tuple[CocoSource, ...]:
        from medsam3.data.sources import CocoSource  # noqa: PLC0415

        found = [CocoSource(self.coco, self.images)] if self.coco else []
        return (*found, CocoSource(self.coco_val, self.images, "val")) if self.coco_val else tuple(found)

    def _folders(self) -> Iterator[FolderSource]:
        from medsam3.data.folders import FolderSource, parse_labels  # noqa: PLC0415

        said = [dict(text.split(":", 1) for text in texts) for texts in (self.concept, self.labels, self.group_pattern)]
        for number, (images, masks) in enumerate(self.folder, start=1):
            concept, labels, group_pattern = (texts.get(str(number), "") for texts in said)
            yield FolderSource(images, masks, concept, parse_labels(labels) if labels else (), group_pattern)


def number_folders(tokens: Sequence[str]) -> list[str]:
    """Write before each value of `--concept`, `--labels` and `--group-pattern` which `--folder` it follows, as `2:`.

    Raises:
        InputError: One of these stands before every `--folder`.
    """
    numbered: list[str] = []
    count, is_value = 0, False
    for token in tokens:
        option, equals, value = token.partition("=")
        count += option == "--folder"
        if option in _OF_FOLDER and not count:
            raise InputError(f"{option} belongs to a --folder: give it after --folder IMAGES MASKS")
        if option in _OF_FOLDER and equals:
            numbered.append(f"{option}={count}:{value}")
        elif is_value and not token.startswith("--"):
            numbered.append(f"{count}:{token}")
        else:
            numbered.append(token)
        is_value = option in _OF_FOLDER and not equals
    return numbered


def _weight(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not name or not 0 < weight < float("inf"):
        raise InputError(f"--weight is {text!r}, allowed is SET=W with W above 0")
    return name, weight


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

    def step(self, progress: StepReport) -> None:
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
        tell(f"{self._name}: {self._done}/{self._total}{rest}")


@dataclass(frozen=True)
class StepCalls:
    """Functions that a run calls after each update, and after each measurement on val."""

    on_step: Callable[[StepReport], None]
    on_measured: Callable[[int, float], None]


@contextmanager
def steps_shown(bars: Bars, out: Path, *, has_board: bool) -> Iterator[StepCalls]:
    """Give what to call after each step and measurement: the bar, and TensorBoard's curves if they are wanted.

    Curves of a run that is resumed are made anew first, without the steps that were lost.

    Raises:
        InputError: tensorboard is not installed.
    """
    if not has_board:
        yield StepCalls(bars.step, bars.measured)
        return
    from medsam3.train.board import Board, write_board  # noqa: PLC0415

    if (out / "curves.jsonl").exists():
        write_board(out)
    with Board(out) as board:

        def show(progress: StepReport) -> None:
            bars.step(progress)
            board.on_step(progress)

        def show_val(step: int, dice: float) -> None:
            bars.measured(step, dice)
            board.add(step - 1, {"dice": dice}, group="val")

        yield StepCalls(show, show_val)


def show_report(samples: tuple[Sample, ...], out: Path) -> None:
    """Print the report on the data, and leave it in the run's folder; a report on just these data is not made again.

    Raises:
        InputError: An image or mask cannot be read, or the folder cannot be written.
    """
    from medsam3.data.report import digest_of, report_on  # noqa: PLC0415
    from medsam3.train.data_page import report_lines, write_page, written_lines  # noqa: PLC0415

    lines = written_lines(out, digest_of(samples))
    if lines is None:
        with Bars() as bars:
            bars.phase("data", len(samples))
            report = report_on(samples, on_image=bars.item)
        write_page(report, samples, out)
        lines = report_lines(report)
    for line in [*lines, f"report on the data: {out / 'data.html'}"]:
        tell(line)
