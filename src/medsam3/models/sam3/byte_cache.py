"""A cache that is bounded in bytes and drops what was used longest ago. It knows nothing of what it holds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class ByteCache(Generic[Key, Value]):
    """Values by key, at most `limit_bytes` of them; threads may share it.

    A value above the limit is not kept, so that a limit of 0 keeps nothing.
    """

    def __init__(self, limit_bytes: int, size_of: Callable[[Value], int]) -> None:
        self._limit_bytes = limit_bytes
        self._size_of = size_of
        self._values: OrderedDict[Key, Value] = OrderedDict()
        self._lock = threading.Lock()
        self._used_bytes = 0

    @property
    def used_bytes(self) -> int:
        """What the values now kept take."""
        return self._used_bytes

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Key) -> Value | None:
        """The value of `key`, None if it is not kept."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: Key, value: Value) -> None:
        """Keep a value, and drop those used longest ago until all fit."""
        size = self._size_of(value)
        with self._lock:
            if key in self._values or size > self._limit_bytes:
                return
            self._values[key] = value
            self._used_bytes += size
            while self._used_bytes > self._limit_bytes:
                _, dropped = self._values.popitem(last=False)
                self._used_bytes -= self._size_of(dropped)

    def get_or_make(self, key: Key, make: Callable[[], Value]) -> Value:
        """The value of `key`, made and kept if it is not there."""
        value = self.get(key)
        if value is None:
            value = make()
            self.put(key, value)
        return value

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._values.clear()
            self._used_bytes = 0
