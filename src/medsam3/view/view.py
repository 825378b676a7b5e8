"""The one way in which an image is shown to a model: orientation, grey window and square pixels, and the way back.

Training, evaluation, the agent and use show their frames through it. The view of a slice may be turned, and larger than
the slice where its pixels are not square; prompts go into the view, and masks come back from it. It knows no model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medsam3.geometry import BoolArray
from medsam3.image import Image, Masks, ObjectMask, Window
from medsam3.prompts import Box, Prompt
from medsam3.view.grey import automatic_window, shown_grey
from medsam3.view.planes import PlaneChoice, Turn, prompt_turned, turn_for, turned

RGB = NDArray[np.uint8]

SQUARE_WITHIN = 1.05
LARGEST_STRETCH = 8.0


@dataclass(frozen=True, eq=False)
class View:
    """Views of an image's frames. Make it with `view_of`.

    Attributes:
        image: What is shown, as its file has it.
        turn: From the file's frames to those that are shown.
        window: The same for all frames; None shows 8-bit values as they are.
        has_neighbours: Red, green and blue are the slice before, the slice and the slice after; for grey stacks.
    """

    image: Image
    turn: Turn
    window: Window | None
    has_neighbours: bool = False

    @cached_property
    def cut(self) -> Image:
        """The image with its axes turned, pixels not yet square."""
        return turned(self.image, self.turn)

    @property
    def count(self) -> int:
        """How many frames are shown."""
        return self.turn.new_shape[0]

    @cached_property
    def size(self) -> tuple[int, int]:
        """(H, W) of the views: those of the turned frames, the side with the larger pixels stretched to be square."""
        _, height, width = self.turn.new_shape
        spacing = self.cut.pixel_size_mm
        if spacing is None or self.image.kind == "video":
            return height, width
        along_rows, along_columns = spacing
        ratio = min(max(along_rows / along_columns, 1 / LARGEST_STRETCH), LARGEST_STRETCH)
        if 1 / SQUARE_WITHIN < ratio < SQUARE_WITHIN:
            return height, width
        return (round(height * ratio), width) if ratio > 1 else (height, round(width / ratio))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W) of all views."""
        return self.count, *self.size

    @cached_property
    def scale(self) -> tuple[float, float]:
        """View pixels for each pixel of the turned frame, along (row, col)."""
        _, height, width = self.turn.new_shape
        return self.size[0] / height, self.size[1] / width

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Along (n, row, col) of the views; None where no position is known."""
        spacing = self.cut.spacing_mm
        return None if spacing is None else (spacing[0], spacing[1] / self.scale[0], spacing[2] / self.scale[1])

    def rgb(self, n: int) -> RGB:
        """Show frame n of the views, (H, W, 3) uint8 of `size`.

        Raises:
            InputError: As `Image.pixels`.
        """
        shown = self._shown(n)
        if self.has_neighbours and self.image.channels == 1:
            last = self.count - 1
            shown = np.stack(
                [self._shown(max(n - 1, 0))[..., 0], shown[..., 0], self._shown(min(n + 1, last))[..., 0]], -1
            )
        height, width = self.size
        if shown.shape[:2] == (height, width):
            return np.ascontiguousarray(shown)
        return np.asarray(PIL.Image.fromarray(shown).resize((width, height), PIL.Image.Resampling.BILINEAR))

    def number(self, n: int) -> int:
        """Find the view of the file's frame n, and the other way round, among views that keep the slices."""
        return self.count - 1 - n if self.turn.is_flipped[0] else n

    def prompt(self, prompt: Prompt) -> Prompt:
        """A prompt in pixels of a file's frame, as one in view pixels."""
        scale_y, scale_x = self.scale
        in_plane = prompt_turned(prompt, self.turn)
        if (scale_x, scale_y) == (1.0, 1.0):
            return in_plane

        def moved(box: Box) -> Box:
            x0, x1 = ((x + 0.5) * scale_x - 0.5 for x in (box.x0, box.x1))
            y0, y1 = ((y + 0.5) * scale_y - 0.5 for y in (box.y0, box.y1))
            return Box(x0, y0, x1, y1, is_positive=box.is_positive)

        points = (replace(p, x=(p.x + 0.5) * scale_x - 0.5, y=(p.y + 0.5) * scale_y - 0.5) for p in in_plane.points)
        return replace(
            in_plane,
            boxes=tuple(moved(box) for box in in_plane.boxes),
            points=tuple(points),
            exemplars=tuple(moved(box) for box in in_plane.exemplars),
        )

    def mask_to_slice(self, mask: BoolArray) -> BoolArray:
        """A mask of a view as one of the turned frame: a pixel belongs to it if at least half of it is covered."""
        _, height, width = self.turn.new_shape
        if mask.shape == (height, width):
            return mask
        share = mask.size / (height * width)
        covered: BoolArray = _areas(_areas(mask, height, 0), width, 1) >= share / 2 - 1e-9
        return covered

    def mask_to_view(self, mask: BoolArray) -> BoolArray:
        """A mask of a turned frame as one of its view, by nearest neighbour; `mask_to_slice` gives the mask again."""
        height, width = self.size
        if mask.shape == (height, width):
            return mask
        enlarged = PIL.Image.fromarray(mask.astype(np.uint8)).resize((width, height), PIL.Image.Resampling.NEAREST)
        seen: BoolArray = np.asarray(enlarged) > 0
        return seen

    def masks_back(self, found: Masks) -> Masks:
        """Masks over all views, as masks over the file's frames."""
        return self.turn.masks_back(self._resized(found, self.size, self.turn.new_shape, self.mask_to_slice))

    def masks_forth(self, found: Masks) -> Masks:
        """Masks over the file's frames, as masks over all views; `masks_back` gives the masks again."""
        return self._resized(self.turn.masks_forth(found), self.turn.new_shape[1:], self.shape, self.mask_to_view)

    def _shown(self, n: int) -> RGB:
        return shown_grey(self.cut.pixels(n), self.window, self.image.padding)

    def _resized(
        self,
        found: Masks,
        size: tuple[int, int],
        shape: tuple[int, int, int],
        resize: Callable[[BoolArray], BoolArray],
    ) -> Masks:
        """Masks whose planes of `size` are each resized to those of `shape`."""
        if size == shape[1:]:
            return found
        objects = [_resized_object(item, size, resize) for item in found.objects]
        return replace(found, shape=shape, objects=tuple(item for item in objects if item is not None))


def _areas(values: NDArray[Any], count: int, axis: int) -> NDArray[np.float64]:
    """Sum values over `count` equal stretches of an axis; one that a stretch holds in part counts by that part."""
    sums = np.insert(np.cumsum(values, axis=axis, dtype=np.float64), 0, 0, axis=axis)
    ends = np.arange(count + 1) * (values.shape[axis] / count)
    before = np.minimum(ends.astype(np.intp), values.shape[axis] - 1)
    shape = (-1, 1) if axis == 0 else (1, -1)
    part = (ends - before).reshape(shape)
    reached = np.take(sums, before, axis) * (1 - part) + np.take(sums, before + 1, axis) * part
    areas: NDArray[np.float64] = np.diff(reached, axis=axis)
    return areas


def view_of(
    image: Image,
    plane: PlaneChoice = "auto",
    *,
    window: Window | None = None,
    has_neighbours: bool = False,
    keeps_slices: bool = False,
) -> View:
    """Show an image: cut and turned by its geometry, in one window for all of its frames.

    Args:
        image: A picture, a volume or a video.
        plane: How a volume is cut; see `planes.chosen_plane`.
        window: The grey window; None takes `grey.automatic_window`.
        has_neighbours: See `View`.
        keeps_slices: The views must be the file's own slices, turned in their plane at most.

    Raises:
        InputError: See `planes.chosen_plane`; a frame that cannot be read.
    """
    view = View(image, turn_for(image, plane, keeps_slices=keeps_slices), window, has_neighbours)
    return view if window is not None else replace(view, window=automatic_window(view.cut))


def _resized_object(
    item: ObjectMask, size: tuple[int, int], resize: Callable[[BoolArray], BoolArray]
) -> ObjectMask | None:
    first = item.start[0]
    planes = [resize(item.plane(n, size)) for n in range(first, first + len(item.crop))]
    moved = ObjectMask.from_dense(np.stack(planes), item.score)
    if moved is None:
        return None
    return replace(moved, start=(moved.start[0] + first, *moved.start[1:]))
