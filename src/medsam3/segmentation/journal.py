"""What a run has found so far, on disk as it is found, so that a killed run goes on where it was.

Each line is one record with its checksum. A line that was cut off, or that does not fit its checksum, ends the reading:
what comes after is found again. A journal of other work (another image, prompt, model or setting) is begun anew.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from medsam3.errors import InputError

Value = TypeVar("Value")
Key = tuple[str | int, ...]


class Journal:
    """Records by key; without a path they are neither kept nor found."""

    def __init__(self, path: Path | None, work: str) -> None:
        """Open a journal.

        Args:
            path: The file; None keeps nothing.
            work: What tells this work from any other, such as a hash of image, prompts, model and settings.

        Raises:
            InputError: The file cannot be read or written.
        """
        self._records: dict[Key, Any] = {}
        self._stream: IO[bytes] | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            good = self._read(path, work) if path.exists() else 0
            self._stream = path.open("r+b" if path.exists() else "w+b")
            self._stream.truncate(good)
            self._stream.seek(good)
            if good == 0:
                self._append({"work": work})
        except OSError as error:
            raise InputError(
                f"{path} cannot be written ({error.strerror}): name another folder to resume from"
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def get_or_make(
        self,
        key: Key,
        make: Callable[[], Value],
        *,
        to_fields: Callable[[Value], Mapping[str, Any]],
        from_fields: Callable[[dict[str, Any]], Value],
    ) -> Value:
        """The value of a key from an earlier run, else what `make` gives, which is then written down."""
        if key in self._records:
            return from_fields(self._records[key])
        value = make()
        if self._stream is not None:
            self._append({"key": list(key), "value": to_fields(value)})
        return value

    def close(self) -> None:
        """Close the file; it stays."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _append(self, record: dict[str, Any]) -> None:
        assert self._stream is not None, "asked for only where there is a file"
        text = json.dumps(record, separators=(",", ":")).encode()
        self._stream.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _read(self, path: Path, work: str) -> int:
        """Take the records of the file; the number of bytes that are good."""
        good = 0
        with path.open("rb") as stream:
            for line in stream:
                record = _checked(line)
                if record is None or (good == 0 and record.get("work") != work):
                    break
                if good:
                    self._records[tuple(record["key"])] = record["value"]
                good += len(line)
        return good


def _checked(line: bytes) -> dict[str, Any] | None:
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    record: dict[str, Any] = json.loads(text)
    return record
