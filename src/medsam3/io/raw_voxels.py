"""Voxels that lie in a file as plain numbers, compressed or not, as an array that is read from disk as it is used."""

from __future__ import annotations

import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from medsam3.errors import InputError

Packing = Literal["raw", "gzip", "zlib"]

_BLOCK_BYTES = 1 << 20
_WINDOW_BITS = {"gzip": 31, "zlib": 15}


def map_voxels(path: Path, *, offset: int, packing: Packing, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array of `shape`, C order, over the file's bytes from `offset`; packed ones go to a temporary file first.

    Raises:
        InputError: Fewer bytes than the shape wants, or compressed bytes that are damaged.
    """
    wanted = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if packing == "raw":
        held = path.stat().st_size - offset
        if held < wanted:
            raise InputError(f"the file is cut short: it holds {max(held, 0)} of {wanted} voxel bytes, copy it again")
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
    unpacked = _unpacked(path, offset, packing, wanted)
    return np.memmap(unpacked, dtype=dtype, mode="r", shape=shape)


@dataclass(frozen=True)
class RawSlices:
    """Reads slices (H, W, C) of an array (N, H, W, C) on disk, in this machine's byte order."""

    voxels: NDArray[Any]

    def __call__(self, n: int) -> NDArray[Any]:
        """Slice n."""
        return np.ascontiguousarray(self.voxels[n].astype(self.voxels.dtype.newbyteorder("=")))


def check_finite(voxels: NDArray[Any]) -> None:
    """Look for NaN and infinity before the work begins, one slice (the first axis) at a time.

    Raises:
        InputError: With the first slice that holds some.
    """
    if voxels.dtype.kind != "f":
        return
    for n, plane in enumerate(voxels):
        if not np.isfinite(plane).all():
            raise InputError(f"slice {n} holds NaN or infinity: replace them before reading the file")


def _unpacked(path: Path, offset: int, packing: Packing, wanted: int) -> IO[bytes]:
    """A nameless temporary file with the unpacked bytes; it goes when the last array over it does."""
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as the array over it
    decoder = zlib.decompressobj(_WINDOW_BITS[packing])
    count = 0
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            while count < wanted and (block := stream.read(_BLOCK_BYTES)):
                plain = decoder.decompress(block)
                count += len(plain)
                unpacked.write(plain)
    except zlib.error as error:
        unpacked.close()
        raise InputError(f"the compressed voxels are damaged ({error}): copy the file again") from error
    if count < wanted:
        unpacked.close()
        raise InputError(f"the file is cut short: it holds {count} of {wanted} voxel bytes, copy it again")
    unpacked.flush()
    return unpacked
