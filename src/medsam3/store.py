"""Files that outlive a killed process: replaced in one step, or appended line by line.

It knows nothing of images, models or runs.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self
from uuid import uuid4

from medsam3.errors import InputError

try:
    import fcntl
except ImportError:  # Windows: two runs in one folder are not told apart there
    fcntl = None  # type: ignore[assignment]

JsonObject = dict[str, Any]
"""A JSON object whose keys others choose, or that is written and read back whole; known keys get a type."""
_CHUNK_BYTES = 2**20
_NEW_S = 2.0
_SCRATCH = "medsam3-scratch-"
_UNWRITTEN = b"nothing was written here"
LONGEST_SLUG = 60
"""Bytes of the longest part of a file name that `slug` makes."""


@contextmanager
def replacing(path: Path, suffix: str = "", *, folder: Path | None = None) -> Iterator[Path]:
    """Give a temporary path beside `path` that replaces it if the block ends well, and is removed if it does not.

    What a killed process left of it is written over by whoever writes `path` next.

    Args:
        path: The file to be; one that exists is replaced.
        suffix: Ending of the temporary name, for libraries that choose the format by it.
        folder: Where the temporary file lies, on the same file system; None: beside `path`.

    Raises:
        InputError: The folder or the file cannot be written.
    """
    place = path.parent if folder is None else folder
    temporary, handle = _own_temporary(place, path.name, suffix)
    try:
        if handle is not None:
            os.write(handle, _UNWRITTEN)
        yield temporary
        with temporary.open("rb") as stream:
            if stream.read(len(_UNWRITTEN) + 1) == _UNWRITTEN:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _own_temporary(place: Path, name: str, suffix: str) -> tuple[Path, int | None]:
    """Name the temporary file of a file always alike, and lock it; where it is locked already, or cannot be, otherwise.

    Returns:
        The path, and the open lock; None if there is none, and then no file.
    """
    if fcntl is not None:
        temporary = place / f".{hashlib.sha256(name_bytes(name)).hexdigest()[:32]}{suffix}"
        with suppress(OSError):
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(handle), temporary.lstat()):  # else it has just become another's file
                    os.truncate(handle, 0)
                    return temporary, os.dup(handle)
            finally:
                os.close(handle)
    return place / f".{uuid4().hex}{suffix}", None


@contextmanager
def folder_in_use(place: Path, prefix: str) -> Iterator[Path]:
    """Give a temporary folder, private to this user, that `remove_left` leaves alone while this process lives."""
    with tempfile.TemporaryDirectory(dir=place, prefix=prefix, ignore_cleanup_errors=True) as name:
        handle = os.open(name, os.O_RDONLY) if fcntl is not None else None
        try:
            if handle is not None:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            yield Path(name)
        finally:
            if handle is not None:
                os.close(handle)


def remove_left(place: Path, prefix: str) -> None:
    """Remove folders of `folder_in_use` that killed processes left; very new ones may not be locked yet, and stay."""
    for folder in place.glob(f"{prefix}*") if fcntl is not None else ():
        with suppress(OSError):
            about = folder.lstat()
            is_new = time.time() - about.st_mtime < _NEW_S
            if is_new or not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                continue
            handle = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give a folder for intermediate files in the system's temporary place; a killed one goes with a later process."""
    place = Path(tempfile.gettempdir())
    _remove_scratch(place)
    with folder_in_use(place, _SCRATCH) as folder:
        yield folder


@cache
def _remove_scratch(place: Path) -> None:
    """Remove what killed processes left, once in this process."""
    remove_left(place, _SCRATCH)


def check_format(found: object, known: int, what: str) -> None:
    """Refuse by name what a newer version wrote; what says nothing of its format is of the first one.

    Args:
        found: The number that it carries; None for none.
        known: The newest one that this version reads.
        what: Name of the thing, for the message.

    Raises:
        InputError: It is no such number.
    """
    number = 1 if found is None else found
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= known:
        reads = "1" if known == 1 else f"1 to {known}"
        raise InputError(f"{what} is in format {str(number)[:20]}, this version reads {reads}: update medsam3")


def cannot_write(path: Path, error: OSError) -> InputError:
    """The one-line error for a file that cannot be written."""
    reason = error.strerror or type(error).__name__
    return InputError(f"{path} cannot be written ({reason}): give a folder that you may write to")


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step, as UTF-8.

    Raises:
        InputError: The folder or the file cannot be written.
    """
    with replacing(path, path.suffix) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object, *, indent: int | None = 1) -> None:
    """Replace a JSON file in one step; a number that is not finite is refused, as JSON has none.

    Raises:
        InputError: The folder or the file cannot be written.
        ValueError: `content` holds NaN or an infinity.
    """
    write_text(path, json.dumps(content, indent=indent, allow_nan=False) + "\n")


def without_nan(value: Any) -> Any:
    """Give a value as strict JSON takes it: numbers that are not finite become None, reals keep six digits."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Give rows as CSV under their columns; texts that a spreadsheet would run as formulas are quoted by a leading '.

    Source: OWASP, CSV Injection.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_inert(cell) for cell in row] for row in rows)
    return stream.getvalue()


def _inert(cell: object) -> object:
    if not isinstance(cell, str) or not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return cell
    try:
        float(cell)  # -0.5 is a number, and no formula
    except ValueError:
        return f"'{cell}"
    return cell


def sha256_of(path: Path) -> str:
    """SHA-256 of a file as 64 hex digits, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def sha256_of_all(paths: Iterable[Path], folder: Path) -> str:
    """SHA-256 of the lines "SHA-256  name" of files in a folder or below it, as sha256sum writes them, by name."""
    lines = (f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in sorted(paths))
    return hashlib.sha256(name_bytes("".join(lines))).hexdigest()


def slug(concept: str) -> str:
    """Make a part of a file name of a concept: lower case, letters and digits of any script, the rest single dashes."""
    words = "".join(letter if letter.isalnum() else " " for letter in concept.lower()).split()
    return shortened("-".join(words), LONGEST_SLUG)


def shortened(name: str, longest: int) -> str:
    """Give a name, or if it has more bytes its start and a hash of it, so that long names stay apart."""
    if len(name_bytes(name)) <= longest:
        return name
    start = name_bytes(name)[: longest - 9].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(name_bytes(name)).hexdigest()[:8]}"


def name_bytes(name: str) -> bytes:
    """Give the bytes of a file's name, which need be no UTF-8."""
    return name.encode(errors="surrogateescape")


def cache_folder() -> Path:
    """The folder for what can be made or fetched again: `$MEDSAM3_HOME`, else `medsam3` in the user's cache folder."""
    home = os.environ.get("MEDSAM3_HOME")
    if home:
        return Path(home).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "medsam3"


def remembered_sha256(path: Path, *, least_bytes: int = 2**28) -> str:
    """Hash a file; a large one anew only if its size or time of change differ from when it was last hashed.

    Args:
        path: The file.
        least_bytes: Smaller files are hashed at every use; those below the default take less than a fifth of a second.
    """
    state = path.stat()
    if state.st_size < least_bytes:
        return sha256_of(path)
    key, stamp = str(path.resolve()), f"{state.st_size}:{state.st_mtime_ns}"
    ledger = cache_folder() / "sha256.json"
    known = _read_ledger(ledger)
    if known.get(key, "").startswith(f"{stamp}:"):
        return known[key].rpartition(":")[2]
    digest = sha256_of(path)
    with suppress(OSError, InputError):  # a cache that cannot be written only costs the hashing
        ledger.parent.mkdir(parents=True, exist_ok=True)
        write_json(ledger, {**_read_ledger(ledger), key: f"{stamp}:{digest}"})
    return digest


def _read_ledger(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and all(isinstance(text, str) for text in content.values()) else {}


class Journal:
    """JSON objects in a file, one a line, each on disk before `append` returns.

    The first line is the heading, which says what the records belong to, and its `version` the format of the records:
    a newer one is refused, and none counts as 1. A line that a killed run left half written is
    cut off when the file is opened again. While one process has the file open, another one is refused.
    """

    def __init__(
        self, path: Path | None, heading: Mapping[str, object], *, other: Literal["refuse", "replace", "keep"]
    ) -> None:
        """Open a journal, and read its records if it has the same heading.

        Args:
            path: The file; None keeps the records in memory alone.
            heading: What must be equal for the work to be resumed, such as hashes of the input and the settings.
            other: Refuse a file of another heading, begin it anew, or keep it with all its records; damaged lines are
                then passed over.

        Raises:
            InputError: The file belongs to other work, is no journal, is open in another process, or cannot be written.
        """
        self.path = path
        self.heading: JsonObject = json.loads(json.dumps(heading))
        self.records: list[JsonObject] = []
        self._stream: IO[bytes] | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.is_file():
                raise InputError(f"{path} is no file: choose another place")
            self._stream = path.open("r+b" if path.exists() else "w+b")
            _lock(self._stream, path)
            if other == "keep":
                self._read_all(self._stream, path)
            else:
                self._read(self._stream, path, is_replaced=other == "replace")
        except OSError as error:
            self.close()
            raise cannot_write(path, error) from error
        except InputError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def append(self, record: Mapping[str, object]) -> None:
        """Write a record so that it outlives this process.

        Raises:
            InputError: The disk is full, or the file cannot be written any more.
        """
        kept: JsonObject = json.loads(self._write(record))  # as a resumed run would read it
        self.records.append(kept)

    def truncate(self, count: int) -> None:
        """Keep the first `count` records alone; the file is cut in one step, so that a kill loses none of them."""
        self.records = self.records[:count]
        if self._stream is not None:
            self._stream.seek(0)
            for _ in range(1 + len(self.records)):
                self._stream.readline()
            self._stream.truncate(self._stream.tell())

    def close(self) -> None:
        """Close the file; it stays."""
        if self._stream is not None:
            with suppress(OSError):  # what could not be written was refused when it was appended
                self._stream.close()
            self._stream = None

    def _write(self, record: Mapping[str, object]) -> str:
        text = json.dumps(record, allow_nan=False)
        if self._stream is not None:
            assert self.path is not None
            start = self._stream.tell()
            try:
                self._stream.write(text.encode() + b"\n")
                self._stream.flush()
                os.fsync(self._stream.fileno())
            except OSError as error:
                self._forget_from(start)
                raise cannot_write(self.path, error) from error
        return text

    def _forget_from(self, start: int) -> None:
        """Cut a line off again that a full disk left half written."""
        assert self._stream is not None
        try:
            os.ftruncate(self._stream.fileno(), start)
        except OSError:
            return

    def _read(self, stream: IO[bytes], path: Path, *, is_replaced: bool) -> None:
        """Take the records of whole lines, cut off what follows, and write the heading of a new file."""
        records, good = read_lines(stream)
        is_same = bool(records) and self._fits(records[0], path)
        if records and not is_same and not is_replaced:
            raise InputError(f"{path} belongs to other work (other settings, weights or data): choose another folder")
        if not records and stream.seek(0, os.SEEK_END) > 0 and not is_replaced and good == 0 and _has_line(stream):
            raise InputError(f"{path} is damaged in its first line: choose another folder, or remove it")
        self.records = records[1:] if is_same else []
        stream.seek(good if is_same else 0)
        stream.truncate()
        if not is_same:
            self._write(self.heading)

    def _fits(self, found: JsonObject, path: Path) -> bool:
        """Tell whether a heading is this one; one that a newer version wrote of the same things is refused."""
        known = self.heading.get("version", 1)
        if found.keys() | {"version"} == self.heading.keys() | {"version"}:
            check_format(found.get("version"), known, str(path))
        return {"version": 1, **found} == {"version": 1, **self.heading}

    def _read_all(self, stream: IO[bytes], path: Path) -> None:
        """Take each whole line that is a record, and go on after whatever the file holds."""
        text = stream.read()
        read = [_record(line) for line in text.splitlines(keepends=True)]
        records = [record for record in read if record is not None]
        is_headed = bool(records) and self._fits(records[0], path)
        self.records = records[1:] if is_headed else records
        if not text:
            self._write(self.heading)
        elif not text.endswith(b"\n"):
            stream.write(b"\n")


def read_lines(stream: IO[bytes]) -> tuple[list[JsonObject], int]:
    """Read JSON objects up to the first line that is cut off or is none, and say how many bytes they take."""
    records: list[JsonObject] = []
    good = 0
    for line in stream:
        record = _record(line)
        if record is None:
            break
        records.append(record)
        good += len(line)
    return records, good


def _record(line: bytes) -> JsonObject | None:
    """Read one whole line; None if it is cut off or holds no JSON object."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):  # no JSON, or no UTF-8
        return None
    return record if isinstance(record, dict) else None


def _has_line(stream: IO[bytes]) -> bool:
    """Whether a first line is whole, and so was not cut off by a kill."""
    stream.seek(0)
    return stream.readline().endswith(b"\n")


def _lock(stream: IO[bytes], path: Path) -> None:
    """Take the file for this process until it is closed."""
    if fcntl is None:
        return
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{path} is open in another run: wait for it to end, or choose another folder") from error
    except OSError:  # a file system without locks
        return
