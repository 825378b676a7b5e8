"""Multipart bodies of DICOMweb: parts to files as they come in, a file out as the one part of a body.

No part is held in memory. Source: RFC 2046 section 5.1 and DICOM PS3.18 section 8.6.1.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self
from uuid import uuid4

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from medsam3.errors import InputError
from medsam3.store import cannot_write

DICOM = "application/dicom"
BOUNDARY = "medsam3-part-of-an-upload"
_CHUNK_BYTES = 2**18


class PartFiles:
    """Writes each part of a body into a file of its own, and hands it over when it is whole. A context manager.

    What is not whole when the block ends, because the connection was cut, is removed.
    """

    def __init__(self, content_type: str, folder: Path, keep: Callable[[Path], None], *, most_bytes: int) -> None:
        """Prepare for a body.

        Args:
            content_type: The answer's header; a body that is no multipart is one part.
            folder: Where the files go.
            keep: Given each whole file, which it moves or removes.
            most_bytes: More in one body are refused.

        Raises:
            InputError: A body of another type.
        """
        kind, options = parse_options_header(content_type)
        self._folder, self._keep, self._left = folder, keep, most_bytes
        self._file: IO[bytes] | None = None
        self._path = folder
        self._parser: MultipartParser | None = None
        if kind == b"multipart/related" and options.get(b"boundary"):
            callbacks = {"on_part_begin": self._begin, "on_part_data": self._add, "on_part_end": self._end}
            self._parser = MultipartParser(options[b"boundary"], callbacks)  # type: ignore[arg-type]
        elif kind != DICOM.encode():
            raise InputError(
                f"the archive answered with {content_type[:80] or 'nothing'} in place of DICOM files: is the address "
                "that of its DICOMweb service?"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._drop()

    def write(self, chunks: Iterable[bytes]) -> None:
        """Take a whole body.

        Raises:
            InputError: It is too large or broken, or the disk is full.
        """
        try:
            for chunk in chunks:
                self._left -= len(chunk)
                if self._left < 0:
                    raise InputError("the archive sends more than a series may hold: choose a smaller one")
                if self._parser is not None:
                    self._parser.write(chunk)
                else:
                    if self._file is None:
                        self._begin()
                    self._add(chunk, 0, len(chunk))
        except MultipartParseError as error:
            raise InputError(
                "the archive sends parts that cannot be told apart: try again, or tell its keeper"
            ) from error
        except OSError as error:
            raise cannot_write(self._folder, error) from error
        if self._parser is None and self._file is not None:
            self._end()

    def _begin(self) -> None:
        self._drop()
        self._path = self._folder / f".{uuid4().hex}"
        self._file = self._path.open("xb")

    def _add(self, data: bytes, start: int, end: int) -> None:
        assert self._file is not None, "a part has begun"
        self._file.write(memoryview(data)[start:end])

    def _end(self) -> None:
        assert self._file is not None, "a part has begun"
        self._file.close()
        self._file = None
        try:
            self._keep(self._path)
        finally:
            self._path.unlink(missing_ok=True)

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            with suppress(OSError):
                self._path.unlink()


class Upload:
    """A file as the one part of a body, read in pieces; it can be sent again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._head = f"--{BOUNDARY}\r\nContent-Type: {DICOM}\r\n\r\n".encode()
        self._tail = f"\r\n--{BOUNDARY}--\r\n".encode()

    @property
    def headers(self) -> dict[str, str]:
        """Type and length of the body."""
        length = len(self._head) + self._path.stat().st_size + len(self._tail)
        return {
            "Content-Type": f'multipart/related; type="{DICOM}"; boundary={BOUNDARY}',
            "Content-Length": str(length),
        }

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        with self._path.open("rb") as stream:
            while piece := stream.read(_CHUNK_BYTES):
                yield piece
        yield self._tail
