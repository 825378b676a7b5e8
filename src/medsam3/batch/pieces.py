"""What a batch is made of: files, and folders of DICOM files, in folders, lists and object stores (fsspec).

Pieces are found one folder at a time and never all held at once. No file is opened here but lists.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import fsspec

from medsam3.errors import InputError, reason_of
from medsam3.io.files import DICOM_SUFFIXES, RASTER_SUFFIXES, SLIDE_SUFFIXES, STACK_SUFFIXES
from medsam3.prompts import Box, Prompt
from medsam3.store import JsonObject, name_bytes

MARK = "medsam3-batch.json"
"""A folder that holds a file of this name is the target of a batch, and is not looked into for images."""
LIST_SUFFIXES = (".csv", ".jsonl")
_COLUMNS = ("file", "text", "box")
_STAMPS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "LastModified", "updated", "last_modified")
"""Names that file systems give to what changes with a file; the first one that is there is taken, with the size."""


@dataclass(frozen=True)
class Piece:
    """One file, or one folder whose DICOM files belong together.

    Attributes:
        url: Where it lies: a path of this machine, or a URL that fsspec knows.
        names: Of a folder, the names of the files in it that are meant; () for a file.
        stamp: Changes with the content; "" if the list that named it did not look.
        prompts: Asked of this piece alone; () asks those of the batch.
    """

    url: str
    names: tuple[str, ...] = ()
    stamp: str = ""
    prompts: tuple[Prompt, ...] = ()

    @property
    def number(self) -> int:
        """A number that the place of the piece alone decides, by which shards divide the work."""
        return int.from_bytes(hashlib.sha256(name_bytes(self.url)).digest()[:8], "big")


class Elsewhere(Protocol):
    """A place of pieces that fsspec does not know, such as an archive; it can be sent to other processes."""

    def knows(self, url: str) -> bool:
        """Tell whether a source, or the URL of a piece, is one of its own."""
        ...

    def pieces(self, source: str) -> Iterator[Piece]:
        """Find the pieces of a source, without their stamps."""
        ...

    def stamp(self, url: str) -> str:
        """Give what changes with the content of a piece."""
        ...

    def fetch(self, url: str, folder: Path) -> None:
        """Bring the files of a piece into an empty folder."""
        ...


def find_pieces(sources: Sequence[str], *, leave_out: str = "", elsewhere: Elsewhere | None = None) -> Iterator[Piece]:
    """Find the pieces of all sources, one after another; what two sources share comes twice.

    Args:
        sources: Folders, files, patterns and lists (.csv, .jsonl), here or at a URL (`s3://`, `https://` ...).
        leave_out: A folder that is not looked into: that of the results.
        elsewhere: Finds the pieces of sources that are its own.

    Raises:
        InputError: A source that is not there or holds no image, a list with a line that cannot be read.
    """
    for source in sources:
        if not source.strip():
            raise InputError("a source is empty: name a file, a folder, a pattern or a list")
        try:
            is_known = elsewhere is not None and elsewhere.knows(source)
            yield from elsewhere.pieces(source) if elsewhere and is_known else _pieces_of(source, leave_out)
        except InputError:
            raise
        except FileNotFoundError as error:
            raise InputError(f"{source} does not exist: correct the path") from error
        except ImportError as error:
            raise InputError(
                f"{source}: {error}; do: pip install 'medsam3[cluster]' and what the message names"
            ) from error
        except (OSError, ValueError) as error:
            raise InputError(
                f"{source} cannot be read ({reason_of(error)}): correct it, or the rights to it"
            ) from error


def place_of(url: str) -> tuple[Any, str]:
    """Give the file system of a URL or path, and the path on it.

    Raises:
        InputError: A protocol that is not known, or whose package is not installed.
    """
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InputError(f"{url} cannot be opened ({reason_of(error)}): correct it, or install that") from error
    return system, path


def url_of(system: Any, path: str) -> str:
    """Name a place so that `place_of` finds it: a plain path on this machine, else a URL."""
    return path if is_local(system) else str(system.unstrip_protocol(path))


def is_local(system: Any) -> bool:
    """Whether a file system is that of this machine."""
    return "file" in protocols_of(system)


def protocols_of(system: Any) -> set[str]:
    """Name the protocols that a file system is known by."""
    return {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)


def stamp_of(facts: Mapping[str, object]) -> str:
    """Tell one state of a file from another, by what its file system says of it."""
    known = next((facts[name] for name in _STAMPS if facts.get(name)), "")
    return f"{facts.get('size')}:{known}"


def _pieces_of(source: str, leave_out: str) -> Iterator[Piece]:
    system, path = place_of(source)
    if source.lower().endswith(LIST_SUFFIXES):
        yield from _listed(source, system, path)
        return
    if source.startswith(("http://", "https://")):
        yield Piece(source)
        return
    if any(sign in path for sign in "*?[") and not system.exists(path):
        found = system.glob(path, detail=True)
        paths = [name for name, facts in sorted(found.items()) if facts["type"] == "directory" or _is_image(name)]
        if not paths:
            raise InputError(f"pattern {source!r} matches no image: correct it, or name a folder")
    else:
        paths = [path]
    for one in paths:
        facts = system.info(one)
        if facts["type"] != "directory":
            yield Piece(url_of(system, one), stamp=stamp_of(facts))
            continue
        is_empty = True
        for piece in _walk(system, one, leave_out):
            is_empty = False
            yield piece
        if is_empty:
            raise InputError(f"folder {url_of(system, one)} holds no images: name another")


def _walk(system: Any, folder: str, leave_out: str) -> Iterator[Piece]:
    """Find the pieces in a folder and below, one folder after another, by name."""
    for root, folders, files in system.walk(folder, detail=True):
        hidden = [name for name in folders if name.startswith(".")]
        for name in hidden:
            del folders[name]
        if MARK in files or url_of(system, root).rstrip("/") == leave_out:
            folders.clear()
            continue
        yield from _in_folder(system, root, files)


def _in_folder(system: Any, root: str, files: Mapping[str, Mapping[str, Any]]) -> Iterator[Piece]:
    names = sorted(name for name in files if name and not name.startswith("."))
    slices = tuple(name for name in names if may_be_dicom(name))
    if slices:
        stamps = "\n".join(f"{name} {stamp_of(files[name])}" for name in slices)
        yield Piece(url_of(system, root), slices, hashlib.sha256(name_bytes(stamps)).hexdigest()[:32])
    for name in names:
        if name not in slices and _is_image(name):
            yield Piece(url_of(system, f"{root.rstrip('/')}/{name}"), stamp=stamp_of(files[name]))


def may_be_dicom(name: str) -> bool:
    """Whether a file is called as DICOM files are: by their ending, or by none, or by a UID."""
    ending = PurePosixPath(name).suffix.lower()
    return ending in DICOM_SUFFIXES or not ending or ending[1:].isdigit()


def _is_image(path: str) -> bool:
    return path.lower().endswith(RASTER_SUFFIXES + STACK_SUFFIXES + SLIDE_SUFFIXES + DICOM_SUFFIXES)


def _listed(source: str, system: Any, path: str) -> Iterator[Piece]:
    """Read a list; lines of one file that follow each other are one piece with several prompts."""
    base = source.rpartition("/")[0]
    with system.open(path, "rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as text:
        lines = csv.DictReader(text) if source.lower().endswith(".csv") else _json_lines(text, source)
        at, prompts = "", []  # type: str, list[Prompt]
        for number, line in enumerate(lines, start=1):
            try:
                file, prompt = _line(line)
            except (ValueError, TypeError) as error:
                raise InputError(f"{source}, row {number}: {error}") from error
            file = file if "://" in file or file.startswith("/") or not base else f"{base}/{file}"
            if file != at and at:
                yield Piece(at, prompts=tuple(prompts))
                prompts = []
            at = file
            prompts += [] if prompt is None else [prompt]
        if not at:
            raise InputError(f"{source} names no files: it takes the columns {', '.join(_COLUMNS)}")
        yield Piece(at, prompts=tuple(prompts))


def _json_lines(text: Iterable[str], source: str) -> Iterator[JsonObject]:
    for number, line in enumerate(text, start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{source}, line {number} is no JSON: write an object with file and text") from error
            if not isinstance(record, dict):
                raise InputError(f"{source}, line {number} is no object: write one with file and text")
            yield record


def _line(line: JsonObject) -> tuple[str, Prompt | None]:
    """Read one row: a file, and a phrase and a box if it has them.

    Raises:
        InputError: No file, or a prompt that is not allowed.
    """
    file = line.get("file")
    if not isinstance(file, str) or not file.strip():
        raise InputError(f"there is no file; the columns are {', '.join(_COLUMNS)}, the last two may be left out")
    text, box = line.get("text") or None, line.get("box") or None
    if text is not None and not isinstance(text, str):
        raise InputError(f"text is {text!r}, allowed is a phrase")
    if box is None:
        return file.strip(), None if text is None else Prompt(text)
    try:
        x0, y0, x1, y1 = (float(side) for side in (box.split(",") if isinstance(box, str) else box))
    except (ValueError, TypeError) as error:
        raise InputError(f"box is {box!r}, allowed is x0,y0,x1,y1 in pixels") from error
    return file.strip(), Prompt(text, (Box(x0, y0, x1, y1),))
