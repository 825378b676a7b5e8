"""Arrays on the wire of nnInteractive and VoxTell, both in pieces packed by blosc2; and what the reader does with them.

What a header says is held against limits before anything is unpacked.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.errors import InputError, require
from medsam3.image import Masks, ObjectMask
from medsam3.server.reader import opened
from medsam3.server.schemas import Source
from medsam3.server.settings import Limits

Frame = Literal["NNIA", "VXA2"]
Stroke = tuple[int, list[tuple[float, float]]]
"""A frame, and points (x, y) along a line on it."""
PIECE_BYTES = 1 << 30
_NNIA_ZSTD = 1
_KINDS = "bui"
_OLDEST_FIRST = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def packed(values: NDArray[Any], frame: Frame) -> bytes:
    """Pack an array, least byte first."""
    blosc2 = require("blosc2", extra="napari")
    held = np.ascontiguousarray(values)
    raw = held.tobytes()
    count = max(1, math.ceil(len(raw) / PIECE_BYTES)) if raw else 0
    if frame == "NNIA":
        name = held.dtype.name.encode()
        head = struct.pack("<4sBBBB", b"NNIA", 1, _NNIA_ZSTD, held.ndim, len(name)) + name
        head += struct.pack(f"<{held.ndim}qI", *held.shape, count)
    else:
        name = held.dtype.str.encode()
        head = b"VXA2" + struct.pack("<B", len(name)) + name
        head += struct.pack(f"<B{held.ndim}QQ", held.ndim, *held.shape, len(raw))
    pieces = [head]
    for start in range(0, len(raw), PIECE_BYTES):
        piece = raw[start : start + PIECE_BYTES]
        small = blosc2.compress2(piece, typesize=held.itemsize, codec=blosc2.Codec.ZSTD, clevel=1)
        pieces += [struct.pack("<QQ", len(piece), len(small)), small]
    return b"".join(pieces)


def unpacked(content: bytes, frame: Frame, most_bytes: int) -> NDArray[Any]:
    """Unpack an array.

    Raises:
        InputError: Not of that form, cut short, or larger than `most_bytes`.
    """
    blosc2 = require("blosc2", extra="napari")
    try:
        dtype, shape, at = (_nnia_head if frame == "NNIA" else _vxa2_head)(content)
        total = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "buif" or min(shape, default=0) < 1 or total > most_bytes:
            raise InputError(
                f"the array is {dtype} of shape {shape}, allowed are numbers in at most {most_bytes} bytes: send less"
            )
        values = bytearray()
        while at < len(content):
            size, length = struct.unpack_from("<QQ", content, at)
            piece = content[at + 16 : at + 16 + length]
            at += 16 + length
            if len(piece) < length or len(values) + size > total or blosc2.get_cbuffer_sizes(piece)[0] != size:
                raise InputError("the array is cut short or damaged: send it again")
            values += blosc2.decompress2(piece)
    except (struct.error, UnicodeDecodeError, TypeError, ValueError, RuntimeError) as error:
        raise error if isinstance(error, InputError) else InputError("the array is damaged: send it again") from error
    if len(values) != total:
        raise InputError(f"the array holds {len(values)} bytes, its header tells of {total}: send it again")
    return np.frombuffer(values, dtype=dtype).reshape(shape)


def _nnia_head(content: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    magic, version, _, count, length = struct.unpack_from("<4sBBBB", content)
    if magic != b"NNIA" or version != 1:
        raise ValueError
    shape = struct.unpack_from(f"<{count}q", content, 8 + length)
    return np.dtype(content[8 : 8 + length].decode("ascii")), shape, 8 + length + 8 * count + 4


def _vxa2_head(content: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    magic, length = struct.unpack_from("<4sB", content)
    if magic != b"VXA2":
        raise ValueError
    (count,) = struct.unpack_from("<B", content, 5 + length)
    shape = struct.unpack_from(f"<{count}Q", content, 6 + length)
    return np.dtype(content[5 : 5 + length].decode("ascii")), shape, 6 + length + 8 * count + 8


def fill_volume(path: Path, spacing_mm: Sequence[float], limits: Limits, folder: Path) -> None:
    """Put nnInteractive's image (1, N, H, W) into a folder as a volume.

    Raises:
        InputError: Damaged, of another number of axes, several channels, or too large.
    """
    from medsam3.io.itk import write_volume  # noqa: PLC0415  SimpleITK

    values = unpacked(path.read_bytes(), "NNIA", 4 * limits.upload_bytes)
    if values.ndim != 4 or values.shape[0] != 1:
        raise InputError(f"the image has shape {values.shape}, allowed is (1, slices, rows, columns): send one channel")
    if len(spacing_mm) != 3 or not all(math.isfinite(size) and size > 0 for size in spacing_mm):
        raise InputError(f"spacing is {list(spacing_mm)[:5]}, allowed are three sizes above 0")
    if values.dtype in (np.float16, np.bool_):
        values = values.astype(np.float32 if values.dtype == np.float16 else np.uint8)
    write_volume(values[0], spacing_mm, folder / "image.mha")


def strokes_in(path: Path, box: Sequence[Sequence[int]] | None, shape: tuple[int, int, int]) -> list[Stroke]:
    """Find the lines of a scribble mask on each slice: the longest way through each part that touches nothing else.

    Raises:
        InputError: Damaged, empty, or not over the image or its box.
    """
    mask, first = _drawn(path, box, shape)
    strokes: list[Stroke] = []
    for n in np.flatnonzero(mask.any(axis=(1, 2))):
        parts, count = ndimage.label(mask[n], structure=np.ones((3, 3)))
        for number in range(1, count + 1):
            pixels = {(int(row), int(column)) for row, column in np.argwhere(parts == number)}
            line = _longest_way(pixels)
            points = [(float(column + first[2]), float(row + first[1])) for row, column in line]
            strokes.append((int(n) + first[0], points))
    return strokes


def boxes_in(
    path: Path, box: Sequence[Sequence[int]] | None, shape: tuple[int, int, int]
) -> list[tuple[int, tuple[float, float, float, float]]]:
    """Find the slices of a lasso mask and the box around it on each; errors as `strokes_in`."""
    mask, first = _drawn(path, box, shape)
    found = []
    for n in np.flatnonzero(mask.any(axis=(1, 2))):
        rows, columns = np.flatnonzero(mask[n].any(axis=1)) + first[1], np.flatnonzero(mask[n].any(axis=0)) + first[2]
        edges = (columns[0] - 0.5, rows[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5)
        found.append((int(n) + first[0], (float(edges[0]), float(edges[1]), float(edges[2]), float(edges[3]))))
    return found


def _drawn(
    path: Path, box: Sequence[Sequence[int]] | None, shape: tuple[int, int, int]
) -> tuple[NDArray[np.bool_], tuple[int, int, int]]:
    """Unpack what was drawn: a mask over the image, or over a box of it, and the box's first voxel."""
    mask = unpacked(path.read_bytes(), "NNIA", 8 * math.prod(shape)) > 0
    edges = [(0, size) for size in shape] if box is None else [(int(low), int(high)) for low, high in box]
    sizes = tuple(high - low for low, high in edges)
    is_inside = len(edges) == 3 and all(
        low >= 0 and high <= size for (low, high), size in zip(edges, shape, strict=True)
    )
    if mask.shape != sizes or not is_inside:
        raise InputError(f"what was drawn is over {mask.shape} voxels at {edges}, the image has {shape}: draw on it")
    if not mask.any():
        raise InputError("nothing was drawn: draw at least one voxel")
    return mask, (edges[0][0], edges[1][0], edges[2][0])


def _longest_way(pixels: set[tuple[int, int]]) -> list[tuple[int, int]]:
    """Find a shortest way between two pixels of a connected set that are far from each other."""
    end = _walk(min(pixels), pixels)[0]
    far, came_from = _walk(end, pixels)
    way = [far]
    while (before := came_from[way[-1]]) is not None:
        way.append(before)
    return way


def _walk(
    start: tuple[int, int], pixels: set[tuple[int, int]]
) -> tuple[tuple[int, int], dict[tuple[int, int], tuple[int, int] | None]]:
    """Walk through all pixels from one on: the last one reached, and from where each was reached."""
    came_from: dict[tuple[int, int], tuple[int, int] | None] = {start: None}
    waiting, last = deque([start]), start
    while waiting:
        last = waiting.popleft()
        for row, column in _OLDEST_FIRST:
            beside = (last[0] + row, last[1] + column)
            if beside in pixels and beside not in came_from:
                came_from[beside] = last
                waiting.append(beside)
    return last, came_from


def canonical_image(source: Source, is_wanted: bool) -> tuple[list[int], list[float], bytes]:
    """Give shape and spacing (Z, Y, X) of an image as VoxTell turns it, and its voxels if they are wanted."""
    from medsam3.io.nifti import canonical_axes, to_canonical  # noqa: PLC0415  nibabel

    image = opened(source)
    if image.kind != "volume" or image.channels != 1:
        raise InputError(f"the image is a {image.kind}, allowed is a grey volume: send a .nii.gz of one")
    sizes = image.spacing_mm or (1.0, 1.0, 1.0)
    axes = canonical_axes(image.affine)
    body = packed(to_canonical(image.array()[..., 0], image.affine), "VXA2") if is_wanted else b""
    return [image.shape[axis] for axis in axes], [sizes[axis] for axis in axes], body


def canonical_masks(source: Source, masks: Path, prompts: Sequence[str], is_largest: bool) -> bytes:
    """Give a mask (Z, Y, X) for each prompt, as VoxTell turns them, packed as (P, Z, Y, X) uint8."""
    from medsam3.io.nifti import to_canonical  # noqa: PLC0415  nibabel

    image = opened(source)
    kept: list[Masks] = pickle.loads(masks.read_bytes())
    found = []
    for number, prompt in enumerate(prompts):
        own = [kept[number]] if len(kept) == len(prompts) else [one for one in kept if one.concept in prompt]
        dense = np.zeros(image.shape, dtype=np.bool_)
        for one in own:
            dense |= one.union()
        found.append(to_canonical(_largest(dense) if is_largest else dense, image.affine))
    return packed(np.stack(found).astype(np.uint8), "VXA2")


def export_labels(source: Source, path: Path, most_bytes: int) -> bytes:
    """Give a label map (Z, Y, X) of VoxTell as NIfTI in the image's own order and place.

    Raises:
        InputError: Damaged, or not over the image.
    """
    from medsam3.io.itk import write_numbers  # noqa: PLC0415  SimpleITK
    from medsam3.io.nifti import canonical_axes, from_canonical  # noqa: PLC0415  nibabel

    image = opened(source)
    labels = unpacked(path.read_bytes(), "VXA2", most_bytes)
    wanted = tuple(image.shape[axis] for axis in canonical_axes(image.affine))
    if labels.shape != wanted or labels.dtype.kind not in _KINDS:
        raise InputError(f"the label map is {labels.dtype} of {labels.shape}, allowed are whole numbers over {wanted}")
    out = path.with_suffix(".nii.gz")
    whole = labels.astype(np.uint16 if labels.max() > np.iinfo(np.uint8).max else np.uint8)
    write_numbers(np.ascontiguousarray(from_canonical(whole, image.affine)), image, out)
    return out.read_bytes()


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    kept: NDArray[np.bool_] = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return kept


def changed_box(before: ObjectMask | None, after: ObjectMask | None) -> list[list[int]] | None:
    """Find the box (first, past the last) along each axis that holds all that two masks differ by, or a little more."""
    blocks = [one.block for one in (before, after) if one is not None]
    if before == after or not blocks:
        return None
    return [[min(one[k].start for one in blocks), max(one[k].stop for one in blocks)] for k in range(3)]


def packed_part(mask: ObjectMask | None, box: Sequence[Sequence[int]]) -> bytes:
    """Pack the part of a mask that lies in a box, as uint8."""
    low = [edges[0] for edges in box]
    part = np.zeros([high - first for first, high in box], dtype=np.uint8)
    if mask is not None:
        block = tuple(slice(one.start - first, one.stop - first) for one, first in zip(mask.block, low, strict=True))
        part[block] = mask.crop
    return packed(part, "NNIA")
