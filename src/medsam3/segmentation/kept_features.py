"""Features of the frames that were encoded last, bounded by their memory, for all who ask one model.

A frame is known by its pixels, so a second session on the same image encodes nothing.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from types import FunctionType
from typing import Any

from medsam3.models.segmenter import RGB, Segmenter

MOST_BYTES = 512 * 2**20


class KeptFeatures:
    """Features by what a frame shows. What was asked last stays, and that which is asked now, however large it is."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self._held: OrderedDict[tuple[int, bytes], tuple[Segmenter, Any]] = OrderedDict()

    def get(self, model: Segmenter, rgb: RGB) -> Any:
        """Give the features of a frame (H, W, 3), encoded if they are not there."""
        digest = hashlib.blake2b(rgb.tobytes() + repr(rgb.shape).encode(), digest_size=16).digest()
        key = (id(model), digest)  # the model is held beside its features, so its id stays its own
        if key not in self._held:
            self._held[key] = (model, model.encode(rgb))
        self._held.move_to_end(key)
        self._trim()
        return self._held[key][1]

    @property
    def nbytes(self) -> int:
        """Bytes that all features take now; they grow with what is asked of them."""
        return sum(bytes_of(features) for _, features in self._held.values())

    def __len__(self) -> int:
        return len(self._held)

    def _trim(self) -> None:
        sizes = {key: bytes_of(features) for key, (_, features) in self._held.items()}
        excess = sum(sizes.values()) - self.most_bytes
        for key in list(self._held)[:-1]:
            if excess <= 0:
                return
            excess -= sizes[key]
            del self._held[key]


def bytes_of(value: Any) -> int:
    """Count the bytes of all arrays and tensors that a model's features hold, each memory once.

    Containers, dataclasses and what functions close over are looked through; other objects, such as the model itself,
    are not.
    """
    sizes: dict[int, int] = {}
    waiting, seen = [value], set[int]()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if hasattr(one, "untyped_storage"):
            storage = one.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        elif hasattr(one, "nbytes"):
            sizes[id(one)] = one.nbytes
        else:
            waiting.extend(_parts(one))
    return sum(sizes.values())


def _parts(one: Any) -> Iterator[Any]:
    if isinstance(one, Mapping):
        yield from one.values()
    elif isinstance(one, list | tuple | set | frozenset):
        yield from one
    elif is_dataclass(one) and not isinstance(one, type):
        yield from vars(one).values()  # its fields, and what was computed and cached
    elif isinstance(one, FunctionType):
        yield from vars(one).values()
        yield from (cell.cell_contents for cell in one.__closure__ or ())
