"""A person's hints about one object of a frame, and a model's answer to them: the place of interactive decoders.

A model with an interactive decoder of its own is a `Refines`; every other model is asked for boxes around the mask so
far and the clicks, and only the part of its answer that belongs to a click is taken over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.errors import InputError
from medsam3.geometry import BoolArray, FloatArray, box_of_mask
from medsam3.image import Masks, ObjectMask
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Box, Point, Prompt

MARGIN_SHARE = 0.1
"""A box is drawn around a click and the mask with this margin, of the box's own sides."""
HALF_SIDE_SHARES = (0.04, 0.08, 0.16)
"""Boxes around a click alone reach this far to each side, of the frame's longer side."""
DISC, WIDEST_DISC = 0.7, 0.05
"""Radius of the disc that a click changes for sure, as a share of its distance from the outline, and at most of the
frame's longer side."""
REACH, WIDEST_REACH, LEAST_REACH_PX = 2.0, 0.3, 4.0
"""A click changes nothing further away than so many times its distance from the outline, at most this share of the
longer side. Chosen with `DISC` on 40 validation images: Dice .664 by phrase, .716, .764, .777, .784, .790 by click."""
LONE_SHARE = 0.03
"""Distance that a click beside no outline counts as having, as a share of the frame's longer side."""


@dataclass(frozen=True)
class Hints:
    """A person's hints about one object of a frame, in pixels of the encoded frame.

    Attributes:
        mask: (H, W) the mask so far, from a phrase, a box or the last click; None if there is none yet.
        clicks: Points on the object and off it, in the order in which they were given.
        box: The box that was drawn around it; None if there is none.
        text: The concept; None if nobody named it.
        is_box_new: The box was drawn after the mask was made, and decides anew what the object is.
    """

    mask: BoolArray | None = None
    clicks: tuple[Point, ...] = ()
    box: Box | None = None
    text: str | None = None
    is_box_new: bool = False


Candidates = Callable[[BoolArray, Point], Iterable[BoolArray]]
"""From the mask so far and a click to masks (H, W) that the object may have."""


@runtime_checkable
class Refines(Protocol):
    """A segmenter that answers clicks with the mask so far in mind."""

    def refine(self, features: Any, hints: Hints) -> Masks:
        """Find the one object that is meant, over (1, H, W); empty if nothing is left of it.

        Args:
            features: What `encode` returned.
            hints: A mask, a positive click or a box at least, all inside the frame.
        """
        ...


def refine(segmenter: Segmenter, features: Any, hints: Hints) -> Masks:
    """Answer a person's hints about one object by the model's own means; see `Refines`."""
    if isinstance(segmenter, Refines):
        return segmenter.refine(features, hints)
    return refine_by_boxes(segmenter, features, hints, box_candidates(segmenter, features))


def refine_by_boxes(segmenter: Segmenter, features: Any, hints: Hints, candidates: Candidates) -> Masks:
    """Begin with the mask so far, or with a box; then change it click by click.

    Raises:
        InputError: There is no mask, no box and no positive click.
    """
    score = 1.0
    mask = None if hints.is_box_new else hints.mask
    check_begun(mask, hints)
    if mask is None:
        begun = segmenter.decode(features, _beginning(hints))
        mask, score = begun.union()[0], max(begun.scores, default=score)
    for click in hints.clicks:
        mask = follow_click(mask, click, candidates)
    found = ObjectMask.from_dense(mask[None], score)
    return Masks((1, *mask.shape), () if found is None else (found,), concept=hints.text or "")


def check_begun(mask: BoolArray | None, hints: Hints) -> None:
    """Refuse hints that begin no object.

    Raises:
        InputError: There is no mask, no box and no positive click.
    """
    if mask is None and hints.box is None and not any(click.is_positive for click in hints.clicks):
        raise InputError("there is no object yet that a negative click could be taken from: click on the object first")


def _beginning(hints: Hints) -> Prompt:
    if hints.box is not None:
        return Prompt(text=hints.text, boxes=(hints.box,))
    return Prompt(points=tuple(click for click in hints.clicks if click.is_positive))


def box_candidates(segmenter: Segmenter, features: Any) -> Candidates:
    """Ask a model that takes boxes for what is in those of `boxes_for`."""

    def ask(mask: BoolArray, click: Point) -> Iterable[BoolArray]:
        for box in boxes_for(mask, click):
            yield segmenter.decode(features, Prompt(boxes=(box,))).union()[0]

    return ask


def boxes_for(mask: BoolArray, click: Point) -> list[Box]:
    """Draw boxes of which one may hold what a click means.

    For a positive click: the mask's box widened to it, and some around the click alone. For a negative click: the
    mask's box with two of its sides moved past the click, those that keep most of it.
    """
    x, y, longest, around = click.x, click.y, max(mask.shape), box_of_mask(mask)
    edges: list[tuple[float, float, float, float]] = []
    if not click.is_positive and around is not None:
        x0, y0, x1, y1 = around
        cut = [(x + 0.5, y0, x1, y1), (x0, y + 0.5, x1, y1), (x0, y0, x - 0.5, y1), (x0, y0, x1, y - 0.5)]
        edges = sorted(cut, key=lambda one: -(one[2] - one[0]) * (one[3] - one[1]))[:2]
    elif click.is_positive:
        edges = [(x - half, y - half, x + half, y + half) for half in (share * longest for share in HALF_SIDE_SHARES)]
        if around is not None:
            x0, y0, x1, y1 = around
            dx, dy = MARGIN_SHARE * (x1 - x0), MARGIN_SHARE * (y1 - y0)
            edges.append((min(x0, x - dx), min(y0, y - dy), max(x1, x + dx), max(y1, y + dy)))
    high = np.array([mask.shape[1], mask.shape[0]] * 2) - 0.5
    clipped = [np.clip(one, -0.5, high).tolist() for one in edges]
    return [Box(*one) for one in clipped if one[2] - one[0] >= 1 and one[3] - one[1] >= 1]


def follow_click(mask: BoolArray, click: Point, candidates: Candidates) -> BoolArray:
    """Change a mask so that a click is right, by the part of a candidate that the click lies in, and no further.

    A click that is right already changes nothing. Of the parts that candidates offer, the one of middle size is taken;
    a disc that reaches towards the outline goes with it, and stands alone if no candidate agrees.
    """
    row, column = pixel_of(click, mask.shape)
    if mask[row, column] == click.is_positive:
        return mask
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    square = (rows - row) ** 2 + (columns - column) ** 2
    longest, distance = max(mask.shape), _distance(square, mask)
    changed: BoolArray = square <= min(max(DISC * distance, 1.0), WIDEST_DISC * longest) ** 2
    reach = square <= max(min(REACH * distance, WIDEST_REACH * longest), LEAST_REACH_PX) ** 2
    offered = [one for one in candidates(mask, click) if one[row, column] == click.is_positive]
    parts = sorted((_part_at((one ^ mask) & reach, row, column) for one in offered), key=np.count_nonzero)
    if parts:
        changed = changed | parts[len(parts) // 2]
    return mask | changed if click.is_positive else mask & ~changed


def depth_in(mask: BoolArray) -> FloatArray:
    """Measure how far each pixel of (H, W) is from what is not in the mask; the frame's rim is outside it."""
    inside: FloatArray = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return inside


def error_depth(mask: BoolArray, click: Point) -> float:
    """How far the outline of a mask (H, W) is from a click, in pixels."""
    row, column = pixel_of(click, mask.shape)
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    return _distance((rows - row) ** 2 + (columns - column) ** 2, mask)


def _distance(square: NDArray[np.int64], mask: BoolArray) -> float:
    """Distance in pixels from a click to the mask's outline; `square` is that to each pixel, squared."""
    row, column = np.unravel_index(int(square.argmin()), square.shape)
    others = square[mask != mask[row, column]]
    return float(np.sqrt(others.min())) - 0.5 if others.size else LONE_SHARE * max(mask.shape)


def _part_at(mask: BoolArray, row: int, column: int) -> BoolArray:
    """The connected part that a pixel lies in."""
    labels, _ = ndimage.label(mask)
    part: BoolArray = labels == labels[row, column]
    return part


def pixel_of(click: Point, shape: tuple[int, ...]) -> tuple[int, int]:
    """Find row and column of the pixel that a click lies in."""
    row, column = int(np.floor(click.y + 0.5)), int(np.floor(click.x + 0.5))
    return min(max(row, 0), shape[0] - 1), min(max(column, 0), shape[1] - 1)
