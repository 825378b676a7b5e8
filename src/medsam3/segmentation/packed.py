"""Masks of single frames at one bit a pixel, so that a thousand frames of them stay small."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypedDict

import numpy as np
from numpy.typing import NDArray

from medsam3.geometry import BoolArray


class PackedFields(TypedDict):
    """The fields of a packed mask in a journal; `bits` in hexadecimal digits."""

    frame: Sequence[int]
    start: Sequence[int]
    crop: Sequence[int]
    bits: str


@dataclass(frozen=True)
class PackedMask:
    """A mask of one frame (H, W): its crop as bits. An empty mask has a crop of 0 x 0.

    Attributes:
        frame: (H, W).
        start: (row, col) of the crop.
        crop: (H', W') of the crop.
        bits: The crop's pixels in rows, eight a byte.
    """

    frame: tuple[int, int]
    start: tuple[int, int]
    crop: tuple[int, int]
    bits: NDArray[np.uint8]

    @classmethod
    def of(cls, mask: BoolArray) -> Self:
        """Pack a mask (H, W)."""
        frame = (mask.shape[0], mask.shape[1])
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size == 0:
            return cls(frame, (0, 0), (0, 0), np.zeros(0, dtype=np.uint8))
        block = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return cls(frame, (int(rows[0]), int(columns[0])), (block.shape[0], block.shape[1]), np.packbits(block))

    @property
    def is_empty(self) -> bool:
        """No pixel is set."""
        return self.crop[0] == 0

    @property
    def area(self) -> int:
        """Pixels that are set."""
        return int(self.block().sum())

    def block(self) -> BoolArray:
        """The crop as (H', W') bool."""
        count = self.crop[0] * self.crop[1]
        flat: BoolArray = np.unpackbits(self.bits, count=count).astype(np.bool_)
        return flat.reshape(self.crop)

    def dense(self) -> BoolArray:
        """The whole frame as (H, W) bool."""
        mask = np.zeros(self.frame, dtype=np.bool_)
        row, column = self.start
        mask[row : row + self.crop[0], column : column + self.crop[1]] = self.block()
        return mask

    def to_fields(self) -> PackedFields:
        """For a journal; `from_fields` reads it back."""
        return {"frame": self.frame, "start": self.start, "crop": self.crop, "bits": self.bits.tobytes().hex()}

    @classmethod
    def from_fields(cls, fields: PackedFields, frame: tuple[int, int]) -> Self:
        """Read what `to_fields` gave of a frame of this size.

        Raises:
            KeyError, ValueError, TypeError: It is of another form or frame.
        """
        bits = np.frombuffer(bytes.fromhex(fields["bits"]), dtype=np.uint8)
        row, column, height, width = map(operator.index, (*fields["start"], *fields["crop"]))
        is_inside = 0 <= row <= row + height <= frame[0] and 0 <= column <= column + width <= frame[1]
        if tuple(fields["frame"]) != frame or not is_inside or bits.size != -(-height * width // 8):
            raise ValueError(f"no mask of {frame}: {height} x {width} from ({row}, {column}) in {bits.size} bytes")
        return cls(frame, (row, column), (height, width), bits)


def overlap(first: PackedMask, second: PackedMask) -> float:
    """Intersection over union in 0..1; 0 where either is empty."""
    both = _shared(first, second)
    return both / (first.area + second.area - both) if both else 0.0


def inside(first: PackedMask, second: PackedMask) -> float:
    """Share of the smaller one that both have, in 0..1; 0 where either is empty."""
    both = _shared(first, second)
    return both / min(first.area, second.area) if both else 0.0


def _shared(first: PackedMask, second: PackedMask) -> int:
    """Pixels of both."""
    (row_a, col_a), (row_b, col_b) = first.start, second.start
    top, left = max(row_a, row_b), max(col_a, col_b)
    bottom = min(row_a + first.crop[0], row_b + second.crop[0])
    right = min(col_a + first.crop[1], col_b + second.crop[1])
    if top >= bottom or left >= right:
        return 0
    shared_a = first.block()[top - row_a : bottom - row_a, left - col_a : right - col_a]
    shared_b = second.block()[top - row_b : bottom - row_b, left - col_b : right - col_b]
    return int(np.count_nonzero(shared_a & shared_b))
