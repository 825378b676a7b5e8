"""Pictures of masks to look at: an overlay, a montage of slices, the three planes, and a video with overlays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medsam3.image import Image, Masks, ObjectMask
from medsam3.io.labels import check_masks
from medsam3.io.video import write_mp4
from medsam3.store import replacing
from medsam3.view.draw import COLOURS, FILL_OPACITY, fullest_frame, overlay
from medsam3.view.view import View, view_of

RGB = NDArray[np.uint8]

MONTAGE_TILES = 20
TILE_PX = 256
"""Longest side of a tile of the montage, and of a slice in the picture of three planes."""
_GAP_PX = 4


def write_overlay_png(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write the picture as a model sees it with its masks drawn over it; of a stack, the frame that holds most of them.

    Raises:
        InputError: Masks of another shape, or the file cannot be written.
    """
    view, shown = _viewed(masks, image)
    n = fullest_frame(shown, view.count)
    _save(overlay(view.rgb(n), shown, n), path)


def write_overlay_mp4(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write all frames with their masks drawn over them, at the video's own rate, a volume at 10 slices a second.

    Raises:
        InputError: PyAV is missing, masks of another shape, or the file cannot be written.
    """
    view, shown = _viewed(masks, image)
    write_mp4(_overlays(view, shown, range(view.count)), path, fps=image.fps if image.kind == "video" else 10.0)


def write_montage(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write one PNG of at most 20 slices, spread evenly over those that hold something, or over all.

    Raises:
        InputError: Masks of another shape, or the file cannot be written.
    """
    view, shown = _viewed(masks, image)
    frames = _spread(_held_frames(shown) or list(range(view.count)), MONTAGE_TILES)
    tiles = [_tile(drawn, 1.0) for drawn in _overlays(view, shown, frames)]
    columns = int(np.ceil(np.sqrt(len(tiles))))
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    step_y, step_x = height + _GAP_PX, width + _GAP_PX
    sheet = np.zeros((rows * step_y - _GAP_PX, columns * step_x - _GAP_PX, 3), dtype=np.uint8)
    for k, tile in enumerate(tiles):
        top, left = (k // columns) * step_y, (k % columns) * step_x
        sheet[top : top + height, left : left + width] = tile
    _save(sheet, path)


def write_three_planes(masks: Sequence[Masks], image: Image, path: Path) -> None:
    """Write one PNG with the three cuts through the middle of what was found, or of the volume, in true proportion.

    Raises:
        InputError: Masks of another shape, or the file cannot be written.
    """
    view, shown = _viewed(masks, image)
    centre = _centre(shown, view.shape)
    across, side = [], []
    for n in range(view.count):
        rgb = view.rgb(n)
        across.append(rgb[centre[1]])  # (W, 3)
        side.append(rgb[:, centre[2]])  # (H, 3)
    sizes = view.spacing_mm or (1.0, 1.0, 1.0)
    cuts = (
        (view.rgb(centre[0]), 0, sizes[1] / sizes[2]),
        (np.stack(across), 1, sizes[0] / sizes[2]),
        (np.stack(side), 2, sizes[0] / sizes[1]),
    )
    tiles = [_tile(_tinted(rgb, shown, axis, centre[axis]), aspect) for rgb, axis, aspect in cuts]
    height = max(tile.shape[0] for tile in tiles)
    width = sum(tile.shape[1] for tile in tiles) + _GAP_PX * (len(tiles) - 1)
    sheet, left = np.zeros((height, width, 3), dtype=np.uint8), 0
    for tile in tiles:
        sheet[: tile.shape[0], left : left + tile.shape[1]] = tile
        left += tile.shape[1] + _GAP_PX
    _save(sheet, path)


def _viewed(masks: Sequence[Masks], image: Image) -> tuple[View, list[Masks]]:
    """The image as a model sees it, and the masks over that.

    Raises:
        InputError: Masks of another shape.
    """
    check_masks(masks, image.shape)
    view = view_of(image)
    return view, [view.masks_forth(found) for found in masks]


def _overlays(view: View, masks: Sequence[Masks], frames: Iterable[int]) -> Iterator[RGB]:
    for n in frames:
        yield overlay(view.rgb(n), [_on_frame(found, n) for found in masks])


def _on_frame(found: Masks, n: int) -> Masks:
    """All objects on one frame as masks over (1, H, W); one that is elsewhere keeps its number and colour, unseen."""
    objects = []
    for item in found.objects:
        offset = n - item.start[0]
        is_here = 0 <= offset < item.crop.shape[0]
        crop = item.crop[offset : offset + 1] if is_here else np.zeros((1, 1, 1), dtype=np.bool_)
        objects.append(ObjectMask((0, *(item.start[1:] if is_here else (0, 0))), crop, item.score))
    return Masks((1, *found.shape[1:]), tuple(objects), found.concept, found.presence, found.is_present, found.is_sure)


def _held_frames(masks: Sequence[Masks]) -> list[int]:
    frames: set[int] = set()
    for found in masks:
        for item in found.objects:
            frames.update((item.start[0] + np.flatnonzero(item.crop.any(axis=(1, 2)))).tolist())
    return sorted(frames)


def _spread(frames: Sequence[int], count: int) -> list[int]:
    places = np.unique(np.linspace(0, len(frames) - 1, min(count, len(frames))).round().astype(int))
    return [frames[k] for k in places.tolist()]


def _tile(rgb: RGB, aspect: float) -> RGB:
    """Scaled to `TILE_PX`; `aspect` is a row's height over a column's width."""
    height, width = rgb.shape[0] * aspect, float(rgb.shape[1])
    scale = TILE_PX / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(PIL.Image.fromarray(rgb).resize(size, PIL.Image.Resampling.BILINEAR))


def _centre(masks: Sequence[Masks], shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The middle of the largest object's block, or of the stack."""
    largest = max((item for found in masks for item in found.objects), key=lambda item: item.voxels, default=None)
    if largest is None:
        return shape[0] // 2, shape[1] // 2, shape[2] // 2
    n, row, col = (first + size // 2 for first, size in zip(largest.start, largest.crop.shape, strict=True))
    return n, row, col


def _tinted(rgb: RGB, masks: Sequence[Masks], axis: int, at: int) -> RGB:
    """A cut with the masks laid over it, coloured as in overlays."""
    drawn = rgb.astype(np.float32)
    for m, found in enumerate(masks):
        for k, item in enumerate(found.objects):
            cut = item.plane(at, [size for k, size in enumerate(found.shape) if k != axis], axis)
            colour = np.array(COLOURS[(m if len(masks) > 1 else k) % len(COLOURS)], dtype=np.float32)
            drawn[cut] += FILL_OPACITY * (colour - drawn[cut])
    return drawn.round().astype(np.uint8)


def _save(sheet: RGB, path: Path) -> None:
    with replacing(path, ".png") as temporary:
        PIL.Image.fromarray(sheet).save(temporary)
