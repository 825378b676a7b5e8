"""What is kept of encoded frames: the latest in memory, up to a bound, older ones in a temporary file up to another.

A frame that is in neither is encoded again. It knows nothing of what it holds.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from typing import IO, Any

from medsam3.models.sam3.byte_cache import ByteCache


class KeptFrames:
    """Values by frame; `make` gives those that are not there any more."""

    def __init__(
        self, make: Callable[[int], Any], size_of: Callable[[Any], int], *, memory_bytes: int, disk_bytes: int
    ) -> None:
        self._make = make
        self._memory: ByteCache[int, Any] = ByteCache(memory_bytes, size_of)
        self._disk_bytes = disk_bytes
        self._file: IO[bytes] | None = None
        self._places: dict[int, tuple[int, int]] = {}
        self.made = 0

    def put(self, n: int, value: Any) -> None:
        """Keep what was made of frame n anyway."""
        self._memory.put(n, value)
        self._spill(n, value)

    def get(self, n: int) -> Any:
        """The value of frame n."""
        value = self._memory.get(n)
        if value is not None:
            return value
        if n in self._places and self._file is not None:
            start, length = self._places[n]
            self._file.seek(start)
            value = pickle.loads(self._file.read(length))
        else:
            value = self._make(n)
            self.made += 1
            self._spill(n, value)
        self._memory.put(n, value)
        return value

    def close(self) -> None:
        """Let memory and file go."""
        self._memory.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _spill(self, n: int, value: Any) -> None:
        if n in self._places or self._disk_bytes == 0:
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed in `close`, and nameless at once
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        start = self._file.seek(0, 2)
        if start + len(data) <= self._disk_bytes:
            self._file.write(data)
            self._places[n] = (start, len(data))
