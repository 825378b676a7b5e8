"""What the command line shows: tables on stdout, progress and complaints on stderr. Knows nothing of their content."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from medsam3.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_WIDTH_OF_A_FILE = 160  # columns, where stdout is not a terminal and so has no width of its own


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """Print rows of text under headings; text is shown as it is, brackets are no markup."""
    from rich import box  # noqa: PLC0415  rich takes a tenth of a second to import
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(title=None if title is None else Text(title), box=box.SIMPLE_HEAD, title_justify="left")
    for heading in headings:
        table.add_column(Text(heading), overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    width = None if sys.stdout.isatty() else _WIDTH_OF_A_FILE
    Console(file=sys.stdout, width=width).print(table)


class ProgressBar:
    """A bar over files, and a second one over the slices of the file at hand where it has more than one."""

    def __init__(self, progress: Progress, count: int) -> None:
        self._progress = progress
        self._files = progress.add_task("files", total=count)
        self._slices: TaskID | None = None

    def start_file(self, name: str) -> None:
        """Show which file is at hand."""
        from rich.markup import escape  # noqa: PLC0415

        self._progress.update(self._files, description=escape(name))

    def show_slices(self, done: int, count: int) -> None:
        """Show how many of the file's slices are done."""
        if count < 2:
            return
        if self._slices is None:
            self._slices = self._progress.add_task("  slices", total=count)
        self._progress.update(self._slices, completed=done, total=count)

    def end_file(self) -> None:
        """Count the file as dealt with, well or ill."""
        if self._slices is not None:
            self._progress.remove_task(self._slices)
            self._slices = None
        self._progress.advance(self._files)

    def tell(self, message: str) -> None:
        """Print one line above the bar that is no error."""
        self._progress.console.print(f"medsam3: {message}", markup=False, highlight=False, soft_wrap=True)

    def complain(self, message: str) -> None:
        """Print one error line above the bar."""
        self._progress.console.print(error_line(message), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(count: int) -> Iterator[ProgressBar]:
    """A progress bar over `count` files on stderr while the block runs."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield ProgressBar(progress, count)


def error_line(message: str) -> str:
    """An error as its one line on stderr; what the library calls `frame=` is an option here."""
    return f"medsam3: error: {in_options(printable(' '.join(message.split())))}"


def in_options(message: str) -> str:
    """A message of the library in the command line's terms: `choose one with frame=` becomes `... with --frame`."""
    return re.sub(r"(?<![\w-])(frame|series|vocabulary)=(?=[\s,;:)]|$)", r"--\1", message)


def unexpected(error: Exception) -> str:
    """What to say of an error that is not the user's."""
    kind = type(error).__name__
    return f"unexpected {kind}: {error}; run again with --debug and report the traceback, without patient data"
