"""Which way a volume is cut into slices: axial, coronal or sagittal by its geometry, turned as radiologists see it.

Axial slices have the patient's left at the right and the back at the bottom; coronal ones the left at the right and the
feet at the bottom; sagittal ones the back at the right and the feet at the bottom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.geometry import Affine, BoolArray
from medsam3.image import Masks, ObjectMask, Pixels
from medsam3.io.stack import ReadFrame, Stack
from medsam3.prompts import Box, Point, Prompt

Plane = Literal["axial", "coronal", "sagittal"]
PlaneChoice = Literal["auto", "native", "axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
CHOICES: tuple[PlaneChoice, ...] = ("auto", "native", *PLANES)
ANISOTROPIC_FROM = 1.5
"""A volume whose voxels are this many times longer along one axis than along the others is cut across that axis."""

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

    def masks_back(self, found: Masks) -> Masks:
        """Masks over the turned volume, over the volume before the turn."""
        objects = []
        for item in found.objects:
            start, crop = self.block_back(item.start, item.crop)
            objects.append(ObjectMask(start, crop, item.score))
        return replace(found, shape=self.shape, objects=tuple(objects))


def chosen_plane(stack: Stack, choice: PlaneChoice) -> Plane | None:
    """The plane that a choice means for this stack; None cuts it as it lies.

    `auto` cuts across the axis with the clearly largest spacing, else along the stack's own slices.

    Raises:
        InputError: A plane is named for a stack without position or for a video.
    """
    if choice not in CHOICES:
        raise InputError(f"plane is {choice!r}, allowed are {', '.join(CHOICES)}")
    has_place = stack.affine is not None and stack.kind != "video"
    if choice == "native" or (choice == "auto" and (not has_place or stack.shape[0] == 1)):
        return None
    if not has_place or stack.affine is None:
        raise InputError(f"plane {choice!r} needs a volume with a position: leave the plane out, or take 'native'")
    if choice != "auto":
        return choice
    sizes = np.linalg.norm(stack.affine[:3, :3], axis=0)
    order = np.argsort(-sizes)
    across = int(order[0]) if sizes[order[0]] >= ANISOTROPIC_FROM * sizes[order[1]] else 0
    axes = _axes_by_world(stack.affine)
    return next(plane for plane in PLANES if axes[_VIEWS[plane][0][0]] == across)


def turn_for(stack: Stack, choice: PlaneChoice) -> Turn:
    """The turn that cuts a stack as chosen.

    Raises:
        InputError: See `chosen_plane`.
    """
    plane = chosen_plane(stack, choice)
    return Turn.none(stack.shape) if plane is None else turn_to(stack, plane)


def turn_to(stack: Stack, plane: Plane) -> Turn:
    """The turn that cuts a stack with a position along a plane."""
    assert stack.affine is not None, "checked when the plane was chosen"
    by_world = _axes_by_world(stack.affine)
    axes = [by_world[world] for world, _ in _VIEWS[plane]]
    flips = [bool(stack.affine[world, by_world[world]] * sign < 0) for world, sign in _VIEWS[plane]]
    return Turn(stack.shape, (axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))


def turned(stack: Stack, turn: Turn) -> Stack:
    """The stack cut along the turn's plane; across its own slices, it is first laid out on disk as a temporary file."""
    if turn.is_none or stack.affine is None:
        return stack
    read = _in_plane_reader(stack, turn) if turn.axes[0] == 0 else _across_reader(stack, turn)
    source = stack.source
    if len(source) == stack.shape[0] and turn.axes[0] == 0:
        source = source[::-1] if turn.is_flipped[0] else source
    return replace(stack, shape=turn.new_shape, read_frame=read, affine=turn.affine(stack.affine), source=source)


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
    share = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    found = [-1, -1, -1]
    for _ in range(3):
        world, axis = np.unravel_index(int(share.argmax()), share.shape)
        found[int(world)] = int(axis)
        share[world, :] = share[:, axis] = -1.0
    return found


def _in_plane_reader(stack: Stack, turn: Turn) -> ReadFrame:
    def read(n: int) -> Pixels:
        old = stack.shape[0] - 1 - n if turn.is_flipped[0] else n
        return _oriented(stack.pixels(old), turn)

    return read


def _across_reader(stack: Stack, turn: Turn) -> ReadFrame:
    voxels: NDArray[Any] | None = None

    def read(n: int) -> Pixels:
        nonlocal voxels
        if voxels is None:
            voxels = stack.on_disk().pixels
        axis = turn.axes[0]
        plane = np.take(voxels, voxels.shape[axis] - 1 - n if turn.is_flipped[0] else n, axis=axis)
        rest = [old for old in range(3) if old != axis]
        if rest[0] != turn.axes[1]:
            plane = plane.swapaxes(0, 1)
        flips = tuple(k for k in (0, 1) if turn.is_flipped[k + 1])
        return np.ascontiguousarray(np.flip(plane, flips))

    return read


def _oriented(pixels: Pixels, turn: Turn) -> Pixels:
    plane = pixels if turn.axes[1] == 1 else pixels.swapaxes(0, 1)
    return np.ascontiguousarray(np.flip(plane, tuple(k for k in (0, 1) if turn.is_flipped[k + 1])))
