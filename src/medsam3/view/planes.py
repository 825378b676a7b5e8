"""Which way a volume is cut into slices: axial, coronal or sagittal by its geometry, turned as radiologists see it.

Axial slices have the patient's left at the right and the back at the bottom; coronal ones the left at the right and the
feet at the bottom; sagittal ones the back at the right and the feet at the bottom.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from medsam3.errors import InputError
from medsam3.geometry import Affine, BoolArray, FloatArray, spacing_mm
from medsam3.image import Image, LazyFrames, Masks, ObjectMask, Pixels
from medsam3.prompts import Box, Point, Prompt

Plane = Literal["axial", "coronal", "sagittal"]
PlaneChoice = Literal["auto", "native", "axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
CHOICES: tuple[PlaneChoice, ...] = ("auto", "native", *PLANES)
ANISOTROPIC_FROM = 1.5
"""A volume whose voxels are this many times longer along one axis than along the others is cut across that axis."""
_ROUNDING = 1e-3
"""Files keep positions in different precision: what is nearly the same counts as the same."""

# For each plane the world axis (0 left, 1 back, 2 up) and the sign that (n, row, col) should follow.
_VIEWS: dict[Plane, tuple[tuple[int, int], ...]] = {
    "axial": ((2, 1), (1, 1), (0, 1)),
    "coronal": ((1, 1), (2, -1), (0, 1)),
    "sagittal": ((0, 1), (2, -1), (1, 1)),
}


@dataclass(frozen=True)
class Turn:
    """A volume's axes in another order: new axis k is old axis `axes[k]`, run backwards where `is_flipped[k]`.

    Attributes:
        shape: (N, H, W) before the turn.
    """

    shape: tuple[int, int, int]
    axes: tuple[int, int, int]
    is_flipped: tuple[bool, bool, bool]

    @classmethod
    def none(cls, shape: tuple[int, int, int]) -> Self:
        """The turn that leaves a volume as it is."""
        return cls(shape, (0, 1, 2), (False, False, False))

    @property
    def new_shape(self) -> tuple[int, int, int]:
        """(N, H, W) after the turn."""
        n, row, col = (self.shape[axis] for axis in self.axes)
        return n, row, col

    @property
    def is_none(self) -> bool:
        """Nothing is turned."""
        return self.axes == (0, 1, 2) and not any(self.is_flipped)

    def affine(self, affine: Affine) -> Affine:
        """The affine of the turned volume."""
        turned = affine.copy()
        for new, (old, flipped) in enumerate(zip(self.axes, self.is_flipped, strict=True)):
            step = affine[:3, old]
            turned[:3, new] = -step if flipped else step
            if flipped:
                turned[:3, 3] += step * (self.shape[old] - 1)
        return turned

    def block_back(self, start: Sequence[int], crop: BoolArray) -> tuple[tuple[int, int, int], BoolArray]:
        """Start and crop of a block of the turned volume, in the volume before the turn."""
        stops = [first + length for first, length in zip(start, crop.shape, strict=True)]
        firsts = [self.new_shape[k] - stops[k] if self.is_flipped[k] else start[k] for k in range(3)]
        flipped = np.flip(crop, tuple(k for k in range(3) if self.is_flipped[k]))
        back = np.argsort(self.axes)
        n, row, col = (int(firsts[k]) for k in back)
        return (n, row, col), np.ascontiguousarray(flipped.transpose(back))

    def block_forth(self, start: Sequence[int], crop: BoolArray) -> tuple[tuple[int, int, int], BoolArray]:
        """Start and crop of a block of the volume before the turn, in the turned volume."""
        stops = [first + length for first, length in zip(start, crop.shape, strict=True)]
        n, row, col = (
            self.shape[old] - stops[old] if flipped else int(start[old])
            for old, flipped in zip(self.axes, self.is_flipped, strict=True)
        )
        flips = tuple(k for k in range(3) if self.is_flipped[k])
        return (n, row, col), np.ascontiguousarray(np.flip(crop.transpose(self.axes), flips))

    def masks_forth(self, found: Masks) -> Masks:
        """Masks over the volume before the turn, over the turned one."""
        objects = tuple(ObjectMask(*self.block_forth(item.start, item.crop), item.score) for item in found.objects)
        return replace(found, shape=self.new_shape, objects=objects)

    def masks_back(self, found: Masks) -> Masks:
        """Masks over the turned volume, over the volume before the turn."""
        objects = []
        for item in found.objects:
            start, crop = self.block_back(item.start, item.crop)
            objects.append(ObjectMask(start, crop, item.score))
        return replace(found, shape=self.shape, objects=tuple(objects))


def chosen_plane(image: Image, choice: PlaneChoice, *, keeps_slices: bool = False) -> Plane | None:
    """Find the plane that a choice means for this image; None leaves it as it lies.

    `auto` cuts across an axis of a single voxel, or across that with clearly the largest spacing, else axially: by the
    geometry alone, so that a volume is cut alike in whatever order its file keeps the voxels. Slices and pictures with
    a position are turned as radiologists see them.

    Args:
        image: A stack, or a picture.
        choice: What was asked for.
        keeps_slices: The file's own slices are needed, as something is drawn on one of them or some were chosen.

    Raises:
        InputError: A plane is named for a stack without position or for a video, or cuts across slices to be kept.
    """
    if choice not in CHOICES:
        raise InputError(f"plane is {choice!r}, allowed are {', '.join(CHOICES)}")
    has_place = image.affine is not None and image.kind != "video"
    if choice == "native" or (choice == "auto" and not has_place):
        return None
    if not has_place or image.affine is None:
        raise InputError(f"plane {choice!r} needs a volume with a position: leave the plane out, or take 'native'")
    axes = _axes_by_world(image.affine)
    own = next(plane for plane in PLANES if axes[_VIEWS[plane][0][0]] == 0)
    if choice != "auto":
        if keeps_slices and choice != own:
            raise InputError(
                f"boxes, points and frames are those of the file's own slices: take plane {own!r} with them"
            )
        return choice
    if keeps_slices:
        return own
    across = _across(image.shape, spacing_mm(image.affine))
    return "axial" if across is None else next(plane for plane in PLANES if axes[_VIEWS[plane][0][0]] == across)


def _across(shape: tuple[int, int, int], sizes: FloatArray) -> int | None:
    """The axis that a volume is cut across by its shape or spacing; None where these leave it open."""
    single = [axis for axis in range(3) if shape[axis] == 1]
    if len(single) == 1:
        return single[0]
    order = np.argsort(-sizes, kind="stable")
    is_longest = sizes[order[0]] >= (ANISOTROPIC_FROM - _ROUNDING) * sizes[order[1]]
    return int(order[0]) if is_longest else None


def turn_for(image: Image, choice: PlaneChoice, *, keeps_slices: bool = False) -> Turn:
    """Find the turn that cuts an image as chosen.

    Raises:
        InputError: See `chosen_plane`.
    """
    plane = chosen_plane(image, choice, keeps_slices=keeps_slices)
    return Turn.none(image.shape) if plane is None else turn_to(image, plane)


def turn_to(image: Image, plane: Plane) -> Turn:
    """Find the turn that cuts an image with a position along a plane."""
    assert image.affine is not None, "checked when the plane was chosen"
    by_world = _axes_by_world(image.affine)
    axes = [by_world[world] for world, _ in _VIEWS[plane]]
    flips = [bool(image.affine[world, by_world[world]] * sign < 0) for world, sign in _VIEWS[plane]]
    return Turn(image.shape, (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))


def turned(image: Image, turn: Turn) -> Image:
    """Cut an image along the turn's plane; across its own slices, it is first laid out on disk as a temporary file."""
    if turn.is_none:
        return image
    read = _InPlane(image, turn) if turn.axes[0] == 0 else _Across(image, turn)
    source = image.source
    if len(source) == image.shape[0] and turn.axes[0] == 0:
        source = source[::-1] if turn.is_flipped[0] else source
    affine = None if image.affine is None else turn.affine(image.affine)
    frames = LazyFrames((*turn.new_shape, image.channels), read)
    kind = "volume" if image.kind == "picture" and turn.new_shape[0] > 1 else image.kind
    return replace(image, frames=frames, kind=kind, affine=affine, source=source)


def prompt_turned(prompt: Prompt, turn: Turn) -> Prompt:
    """A prompt in pixels of the file's slices, in pixels of the same slices turned in their own plane."""
    if turn.is_none or turn.axes[0] != 0:
        return prompt
    is_swapped = turn.axes[1] == 2
    _, height, width = turn.new_shape

    def moved(x: float, y: float) -> tuple[float, float]:
        x, y = (y, x) if is_swapped else (x, y)
        return (width - 1 - x if turn.is_flipped[2] else x), (height - 1 - y if turn.is_flipped[1] else y)

    def moved_box(box: Box) -> Box:
        (xa, ya), (xb, yb) = moved(box.x0, box.y0), moved(box.x1, box.y1)
        return Box(min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb), is_positive=box.is_positive)

    points = [(*moved(point.x, point.y), point.is_positive) for point in prompt.points]
    return replace(
        prompt,
        boxes=tuple(moved_box(box) for box in prompt.boxes),
        points=tuple(Point(x, y, is_positive=is_positive) for x, y, is_positive in points),
        exemplars=tuple(moved_box(box) for box in prompt.exemplars),
    )


def _axes_by_world(affine: Affine) -> list[int]:
    """For each world axis the volume axis that runs most along it, each used once."""
    share = np.round(np.abs(affine[:3, :3] / spacing_mm(affine)), 4)
    found = [-1, -1, -1]
    for _ in range(3):
        world, axis = np.unravel_index(int(share.argmax()), share.shape)
        found[int(world)] = int(axis)
        share[world, :] = share[:, axis] = -1.0
    return found


@dataclass(frozen=True)
class _InPlane:
    """Reads the file's slices, each turned in its own plane."""

    image: Image
    turn: Turn

    def __call__(self, n: int) -> Pixels:
        old = self.image.shape[0] - 1 - n if self.turn.is_flipped[0] else n
        return _oriented(self.image.pixels(old), self.turn)


class _Across:
    """Reads slices across the file's own; all of these are laid out when the first one is asked for."""

    def __init__(self, image: Image, turn: Turn) -> None:
        self._image, self._turn = image, turn
        self._voxels: Pixels | None = None

    def __call__(self, n: int) -> Pixels:
        if self._voxels is None:
            self._voxels = _laid_out(self._image)
        voxels, turn = self._voxels, self._turn
        axis = turn.axes[0]
        plane = np.take(voxels, voxels.shape[axis] - 1 - n if turn.is_flipped[0] else n, axis=axis)
        rest = [old for old in range(3) if old != axis]
        if rest[0] != turn.axes[1]:
            plane = plane.swapaxes(0, 1)
        flips = tuple(k for k in (0, 1) if turn.is_flipped[k + 1])
        return np.ascontiguousarray(np.flip(plane, flips))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_voxels": None}


def _laid_out(image: Image) -> Pixels:
    """All voxels (N, H, W, C); those of a file in a temporary one, of which memory holds only what is in use."""
    if isinstance(image.frames, np.ndarray):
        return image.frames
    first = image.pixels(0)
    is_narrowed = first.dtype.kind == "f" or image.metadata.get("format") == "DICOM"  # slice by slice
    dtype = np.dtype(np.float32) if is_narrowed and first.dtype != np.uint8 else first.dtype
    shape = (*image.shape, image.channels)
    with tempfile.TemporaryFile() as file:
        file.truncate(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        voxels = np.memmap(file, dtype=dtype, mode="r+", shape=shape)
    for n in range(image.shape[0]):
        voxels[n] = image.pixels(n)
    return voxels


def _oriented(pixels: Pixels, turn: Turn) -> Pixels:
    plane = pixels if turn.axes[1] == 1 else pixels.swapaxes(0, 1)
    return np.ascontiguousarray(np.flip(plane, tuple(k for k in (0, 1) if turn.is_flipped[k + 1])))
