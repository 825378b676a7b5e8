"""How slices are shown to a model: one window for the whole stack, square pixels, and neighbours as colours if wanted.

The view of a slice may be larger than the slice, where its pixels are not square; prompts go into the view, and masks
come back from it. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.geometry import BoolArray
from medsam3.image import Image, Window
from medsam3.io.stack import Stack
from medsam3.prompts import Box, Point, Prompt
from medsam3.render import SOFT_TISSUE_HU, to_rgb

RGB = NDArray[np.uint8]


def _window(centre: float, width: float) -> Window:
    return Window(centre - width / 2, centre + width / 2)


WINDOWS: Mapping[str, Window] = MappingProxyType(
    {
        "soft tissue": SOFT_TISSUE_HU,
        "abdomen": _window(60, 400),
        "liver": _window(90, 150),
        "lung": _window(-600, 1500),
        "mediastinum": _window(50, 350),
        "bone": _window(400, 1800),
        "brain": _window(40, 80),
        "subdural": _window(75, 215),
        "stroke": _window(40, 40),
        "spine": _window(50, 250),
        "angiography": _window(300, 600),
    }
)
"""Windows in Hounsfield units as they are in common use in radiology."""

LEAST_HU_OF_AIR = -500.0
"""Whole numbers below this are taken as Hounsfield units where a file tells no modality: no other kind goes there."""
SQUARE_WITHIN = 1.05
LARGEST_STRETCH = 8.0
_PERCENTILES = (0.5, 99.5)
_SAMPLED_SLICES = 24
_SAMPLED_PIXELS = 100_000


def window_named(text: str) -> Window:
    """A preset of `WINDOWS`, or `CENTRE,WIDTH` in stored units.

    Raises:
        InputError: Neither.
    """
    name = " ".join(text.lower().replace("-", " ").replace("_", " ").split())
    if name in WINDOWS:
        return WINDOWS[name]
    try:
        centre, width = (float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(
            f"window is {text!r}, allowed are {', '.join(WINDOWS)}, or CENTRE,WIDTH in the file's units"
        ) from error
    if not (np.isfinite([centre, width]).all() and width > 0):
        raise InputError(f"window is {text!r}, its width must be above 0 and both numbers finite")
    return _window(centre, width)


def automatic_window(stack: Stack) -> Window | None:
    """The file's own window; else soft tissue for CT, percentiles of the whole stack for the rest, None for 8 bits."""
    if stack.window is not None:
        return stack.window
    if stack.channels == 3:
        return None
    sample = _sampled(stack)
    if sample.dtype in (np.uint8, np.bool_):
        return None
    is_whole = bool((sample == np.rint(sample)).all())
    modality = stack.metadata.get("modality")
    if modality == "CT" or (modality is None and is_whole and float(sample.min()) < LEAST_HU_OF_AIR):
        return SOFT_TISSUE_HU
    low, high = (float(value) for value in np.percentile(sample, _PERCENTILES))
    if low >= high:
        low, high = float(sample.min()), float(sample.max())
    return Window(low, high) if low < high else Window(low, low + 1.0)


@dataclass(frozen=True)
class Presenter:
    """Views of a stack's slices.

    Attributes:
        stack: What is shown.
        window: The same for all slices; None shows 8-bit values as they are.
        has_neighbours: Red, green and blue are the slice before, the slice and the slice after; for grey stacks.
    """

    stack: Stack
    window: Window | None
    has_neighbours: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the views: those of the slices, the side with the larger pixels stretched until they are square."""
        _, height, width = self.stack.shape
        spacing = self.stack.spacing_mm
        if spacing is None or self.stack.kind == "video":
            return height, width
        _, along_rows, along_columns = spacing
        ratio = min(max(along_rows / along_columns, 1 / LARGEST_STRETCH), LARGEST_STRETCH)
        if 1 / SQUARE_WITHIN < ratio < SQUARE_WITHIN:
            return height, width
        return (round(height * ratio), width) if ratio > 1 else (height, round(width / ratio))

    def rgb(self, n: int) -> RGB:
        """The view of slice n, (H, W, 3) uint8 of `size`."""
        shown = self._shown(n)
        if self.has_neighbours and self.stack.channels == 1:
            last = self.stack.shape[0] - 1
            shown = np.stack(
                [self._shown(max(n - 1, 0))[..., 0], shown[..., 0], self._shown(min(n + 1, last))[..., 0]], -1
            )
        height, width = self.size
        if shown.shape[:2] == (height, width):
            return np.ascontiguousarray(shown)
        return np.asarray(PIL.Image.fromarray(shown).resize((width, height), PIL.Image.Resampling.BILINEAR))

    def prompt_in_view(self, prompt: Prompt) -> Prompt:
        """A prompt in slice pixels as one in view pixels."""
        _, height, width = self.stack.shape
        scale_x, scale_y = self.size[1] / width, self.size[0] / height
        if (scale_x, scale_y) == (1.0, 1.0):
            return prompt

        def moved(box: Box) -> Box:
            x0, x1 = ((x + 0.5) * scale_x - 0.5 for x in (box.x0, box.x1))
            y0, y1 = ((y + 0.5) * scale_y - 0.5 for y in (box.y0, box.y1))
            return Box(x0, y0, x1, y1, is_positive=box.is_positive)

        points = [replace(p, x=(p.x + 0.5) * scale_x - 0.5, y=(p.y + 0.5) * scale_y - 0.5) for p in prompt.points]
        return replace(
            prompt,
            boxes=tuple(moved(box) for box in prompt.boxes),
            points=tuple[Point, ...](points),
            exemplars=tuple(moved(box) for box in prompt.exemplars),
        )

    def mask_in_slice(self, mask: BoolArray) -> BoolArray:
        """A mask of the view as one of the slice: a pixel belongs to it where at least half of it is covered."""
        _, height, width = self.stack.shape
        if mask.shape == (height, width):
            return mask
        coverage = PIL.Image.fromarray(mask.astype(np.float32)).resize((width, height), PIL.Image.Resampling.BOX)
        covered: BoolArray = np.asarray(coverage) >= 0.5
        return covered

    def mask_in_view(self, mask: BoolArray) -> BoolArray:
        """A mask of the slice as one of the view, by nearest neighbour."""
        height, width = self.size
        if mask.shape == (height, width):
            return mask
        enlarged = PIL.Image.fromarray(mask.astype(np.uint8)).resize((width, height), PIL.Image.Resampling.NEAREST)
        seen: BoolArray = np.asarray(enlarged) > 0
        return seen

    def _shown(self, n: int) -> RGB:
        frame: Image = self.stack.frame(n)
        return to_rgb(replace(frame, window=self.window))


def _sampled(stack: Stack) -> NDArray[Any]:
    """Values of slices that are spread evenly over the stack."""
    frames = np.unique(np.linspace(0, stack.shape[0] - 1, _SAMPLED_SLICES).round().astype(int))
    parts = []
    for n in frames.tolist():
        values = stack.pixels(n).reshape(-1)
        parts.append(values[:: max(1, values.size // _SAMPLED_PIXELS)])
    return np.concatenate(parts)
