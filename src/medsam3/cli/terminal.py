"""Everything that the command line prints: results on stdout, progress and complaints on stderr.

Each text passes `printable`, so that no file name or DICOM header can send control sequences to a terminal.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO

from medsam3.errors import InputError, printable

if TYPE_CHECKING:
    from cyclopts import App
    from rich.progress import Progress, TaskID

_WIDTH_OF_A_FILE = 160  # columns, where stdout is not a terminal and so has no width of its own
_OPTIONS = ("frame", "series", "level", "region", "vocabulary", "format", "at")
"""Arguments of the library that messages name, and options of the commands."""
_WITHOUT: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "frame": (r"choose one( \w+)? with frame=(, from 0 to \d+)?", r"save one\1 as a file of its own"),
        "series": (r"choose one by series=, its number or the UID's end", "give each a folder of its own"),
        "level": (r"choose another with level=, or a part with region=", "save the part that is meant as a file"),
        "region": (r", or a part of it by region=", ""),
        "vocabulary": (r", with vocabulary=", ", beside the weights"),
    }
)
"""What a message advises where the command has no such option."""
_lacking: set[str] = set()


def prepare_streams() -> None:
    """Let stdout and stderr take any text, whatever their encoding, and be there even if they were closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  stays open to the end
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def finish_stdout() -> None:
    """Write what is still buffered; nothing is left for Python to complain of when it ends.

    Raises:
        BrokenPipeError: The reader has gone.
        InputError: The place that stdout leads to is full.
    """
    try:
        with _writable():
            sys.stdout.flush()
    except (InputError, BrokenPipeError):
        drop_stdout()
        raise


def drop_stdout() -> None:
    """Send what is still to be printed nowhere."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _writable() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"the output cannot be written ({error.strerror or error}): send it elsewhere") from error


def _page() -> io.TextIOWrapper:
    """Give rich a page in stdout's encoding to write on; on stdout itself it ends the program if the reader is gone."""
    return io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding, errors="backslashreplace", newline="")


def _text_of(page: io.TextIOWrapper) -> str:
    page.seek(0)
    return page.read()


def write(text: str) -> None:
    """Write a text on stdout as it is.

    Raises:
        BrokenPipeError: The reader has gone.
        InputError: The place that stdout leads to is full.
    """
    with _writable():
        sys.stdout.write(text)


def say(text: str) -> None:
    """Print a line of results on stdout."""
    write(printable(text) + "\n")


def say_json(value: object) -> None:
    """Print a value as JSON on stdout, in ASCII; what JSON does not know becomes its text."""
    write(json.dumps(value, indent=2, default=str) + "\n")


def tell(text: str, stream: TextIO | None = None) -> None:
    """Print a line of progress on stderr; nobody hears of a stderr that cannot be written."""
    with suppress(OSError):
        print(printable(text), file=stream or sys.stderr)


def say_help(app: App, examples: str) -> None:
    """Print the help of a command and its examples on stdout."""
    from rich.console import Console  # noqa: PLC0415

    page = _page()
    app.help_print([], console=Console(file=page, force_terminal=sys.stdout.isatty()))
    write(f"{_text_of(page)}{examples}\n")


def complain(message: str) -> None:
    """Print an error as its one line on stderr."""
    tell(error_line(message))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "", note: str = "") -> None:
    """Print rows of text under headings on stdout; brackets in a text are no markup."""
    from rich import box  # noqa: PLC0415  rich takes a tenth of a second to import
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(
        title=Text(printable(title)) if title else None,
        caption=Text(printable(note)) if note else None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    for heading in headings:
        table.add_column(Text(printable(heading)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    page = _page()
    is_terminal = sys.stdout.isatty()
    Console(file=page, force_terminal=is_terminal, width=None if is_terminal else _WIDTH_OF_A_FILE).print(table)
    write(_text_of(page))


class ProgressBar:
    """A bar over items, and a second one over the slices of the item at hand if it has more than one."""

    def __init__(self, progress: Progress, count: int | None) -> None:
        self._progress = progress
        self._items = progress.add_task("starting", total=count)
        self._slices: TaskID | None = None

    @property
    def is_shown(self) -> bool:
        """Whether there is a terminal to show it on."""
        return not self._progress.disable

    def start(self, name: str) -> None:
        """Show what is at hand."""
        self._progress.update(self._items, description=_escaped(name))

    def show(self, done: int, count: int | None, name: str) -> None:
        """Show how many of all items are done, and which one is at hand."""
        self._progress.update(self._items, completed=done, total=count, description=_escaped(name or "images"))

    def show_slices(self, done: int, count: int) -> None:
        """Show how many of the item's slices are done."""
        if count < 2:
            return
        if self._slices is None:
            self._slices = self._progress.add_task("  slices", total=count)
        self._progress.update(self._slices, completed=done, total=count)

    def end(self) -> None:
        """Count the item as dealt with, well or ill."""
        if self._slices is not None:
            self._progress.remove_task(self._slices)
            self._slices = None
        self._progress.advance(self._items)

    def tell(self, message: str) -> None:
        """Print a line above the bar."""
        with suppress(OSError):
            self._progress.console.print(printable(message), markup=False, highlight=False, soft_wrap=True)

    def complain(self, message: str) -> None:
        """Print an error line above the bar."""
        self.tell(error_line(message))


def _escaped(name: str) -> str:
    from rich.markup import escape  # noqa: PLC0415

    return escape(printable(name))


@contextmanager
def progress_bar(count: int | None = None) -> Iterator[ProgressBar]:
    """Show a progress bar over `count` items on stderr while the block runs, if stderr is a terminal."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns: Any = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield ProgressBar(progress, count)


class WarningLines(logging.Handler):
    """Prints what the library warns of, a line each, on stderr."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        tell(f"medsam3: {record.levelname.lower()}: {in_options(' '.join(record.getMessage().split()))}")


def error_line(message: str) -> str:
    """Give an error as one line; what the library calls `frame=` is an option here."""
    return printable(f"medsam3: error: {in_options(' '.join(message.split()))}")


def speak_for(options: Collection[str]) -> None:
    """Let messages advise options that the command has, such as `--frame`, and no others."""
    _lacking.clear()
    _lacking.update(name for name in _OPTIONS if f"--{name}" not in options)


def in_options(message: str) -> str:
    """Say a message of the library in the command line's terms: `choose one with frame=` becomes `... with --frame`.

    Of a command without that option, it says what can be done instead.
    """
    for name in _lacking & _WITHOUT.keys():
        message = re.sub(*_WITHOUT[name], message)
    return re.sub(rf"(?<![\w-])({'|'.join(_OPTIONS)})=(?=[\s,;:)]|$)", r"--\1", message)


def unexpected(error: Exception) -> str:
    """Say that an error is not the user's, and what to do."""
    kind = type(error).__name__
    return f"unexpected {kind}: {error}; run again with --debug and report the traceback, without patient data"
