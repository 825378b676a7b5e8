"""What a person has drawn in a session, and the objects that came of it: values that undo can go back to.

Positions are in the file's pixels, masks in those of the views. It knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medsam3.errors import InputError
from medsam3.geometry import BoolArray, FloatArray
from medsam3.image import Masks
from medsam3.prompts import Box, Point, Prompt
from medsam3.segmentation.fusion import Trail
from medsam3.segmentation.packed import PackedMask, overlap
from medsam3.view.view import View

MOST_CLICKS = 100
"""Clicks on one object of one frame."""
MOST_STROKE_CLICKS = 12
"""A scribble is shown to the model as this many clicks along it, and held to all of its pixels."""
LARGEST_RADIUS = 500.0
SAME_IOU = 0.3
"""Least overlap of what is found on a frame with what was found there before, for both to be one object."""


@dataclass(frozen=True)
class Stroke:
    """A line that was drawn on an object, or off it, at least one point.

    Attributes:
        points: Along it, all positive or all negative.
        radius: That of a brush, of which no model is told; None for clicks and scribbles, which the model heeds.
    """

    points: tuple[Point, ...]
    radius: float | None = None

    @property
    def is_positive(self) -> bool:
        """On the object."""
        return self.points[0].is_positive


@dataclass(frozen=True)
class FrameHints:
    """What was drawn on one object of one frame, in the file's pixels; a later stroke holds against an earlier one."""

    strokes: tuple[Stroke, ...] = ()
    box: Box | None = None

    @property
    def clicks(self) -> tuple[Point, ...]:
        """What the model is told of the strokes."""
        return tuple(point for stroke in self.strokes if stroke.radius is None for point in thinned(stroke.points))

    def painted(self, stroke: Stroke, view: View) -> FrameHints:
        """Add a brush's stroke; earlier ones that it contradicts still hold elsewhere, but the model is not told."""
        mine = pixels_of(stroke, view)
        kept = tuple(
            replace(one, radius=0.0)
            if one.radius is None and one.is_positive != stroke.is_positive and (pixels_of(one, view) & mine).any()
            else one
            for one in self.strokes
        )
        return replace(self, strokes=(*kept, stroke))


@dataclass(frozen=True)
class SessionObject:
    """One object of a session.

    Attributes:
        number: Its name in the session, from 0, never given twice.
        concept: The phrase that found it; "" if it was only drawn.
        score: Confidence in 0..1 of the frames that were asked about.
        is_accepted: A person said that it is right; it is not changed any more.
    """

    number: int
    concept: str
    is_accepted: bool = False
    trail: Trail = field(default_factory=Trail, repr=False)  # by number of the view
    hints: Mapping[int, FrameHints] = field(default_factory=dict, repr=False)
    unspread: frozenset[int] = frozenset()  # corrected, and not yet followed from

    @property
    def score(self) -> float:
        """Mean of the frames that were asked about."""
        return self.trail.score


@dataclass(frozen=True)
class State:
    """All that undo takes back."""

    objects: tuple[SessionObject, ...] = ()
    current: int | None = None
    answers: tuple[Masks, ...] = ()  # what was said of each phrase, without objects
    touched: tuple[int, ...] = ()
    next_number: int = 0
    exemplars: Mapping[tuple[str, int], tuple[Box, ...]] = field(default_factory=dict)  # by phrase and the file's frame

    def object(self, number: int | None) -> SessionObject:
        """Find an object by its number, or the current one.

        Raises:
            InputError: There is none.
        """
        chosen = self.current if number is None else number
        for one in self.objects:
            if one.number == chosen:
                return one
        known = ", ".join(str(one.number) for one in self.objects) or "none yet"
        raise InputError(f"there is no object {chosen}, known are {known}")

    def with_object(self, changed: SessionObject) -> State:
        """Put an object in its own place, or at the end, and make it the current one."""
        objects = {one.number: one for one in self.objects} | {changed.number: changed}
        return replace(
            self,
            objects=tuple(objects.values()),
            current=changed.number,
            next_number=max(self.next_number, changed.number + 1),
        )

    def open_object(self, number: int | None) -> SessionObject:
        """Find an object that may be changed, by its number, or the current one.

        Raises:
            InputError: There is none, or it was accepted.
        """
        one = self.object(number)
        if one.is_accepted:
            raise InputError(f"object {one.number} was accepted: undo that first, or begin a new one by select(None)")
        return one

    def meant(self, number: int | None, n: int, stroke: Stroke, view: View) -> SessionObject:
        """Find the object that a stroke on view n is about: that of a number, a new one, or the one that it touches.

        Raises:
            InputError: As `open_object`, or nothing that a negative stroke could be taken from.
        """
        if number is None and stroke.is_positive and self.current is None:
            return SessionObject(self.next_number, "")
        if number is not None or stroke.is_positive:
            return self.open_object(number)
        pixels = pixels_of(stroke, view)
        candidates = [one for one in self.objects if one.number == self.current]
        candidates += [one for one in reversed(self.objects) if not one.is_accepted]
        for one in candidates:
            if n in one.trail.masks and (one.trail.masks[n].dense() & pixels).any():
                return self.open_object(one.number)
        if self.current is None:
            raise InputError(
                "there is no object that a negative click could be taken from: name a phrase, draw a box, or click on "
                "the object first"
            )
        return self.open_object(None)

    def removed(self, number: int | None) -> State:
        """Take an object out, the current one if none is named."""
        gone = self.object(number)
        left = tuple(one for one in self.objects if one is not gone)
        return replace(self, objects=left, current=None, touched=())

    def accepted(self, number: int | None) -> State:
        """Mark an object as right, the current one if none is named."""
        return replace(self.with_object(replace(self.object(number), is_accepted=True)), current=None, touched=())

    def without_frame(self, one: SessionObject, n: int) -> State:
        """Take an object off a frame; one that is on no other frame goes."""
        masks = {k: mask for k, mask in one.trail.masks.items() if k != n}
        scores = {k: score for k, score in one.trail.scores.items() if k != n}
        left = replace(one, trail=Trail(masks, scores), unspread=one.unspread - {n})
        objects = tuple(left if other is one else other for other in self.objects if masks or other is not one)
        return replace(self, objects=objects)


ANYWHERE = Box(0.0, 0.0, 1.0, 1.0)
"""Lets clicks be carried in a prompt that has no box of its own."""


def check_inside(point: Point, shape: Sequence[int]) -> None:
    """Refuse a point outside an image of (H, W)."""
    if not (-0.5 <= point.x <= shape[1] - 0.5 and -0.5 <= point.y <= shape[0] - 0.5):
        raise InputError(f"click {point.x:g},{point.y:g} is outside the image of {shape[1]} x {shape[0]} pixels (x, y)")


def check_strokes(hints: FrameHints, new: Sequence[Point]) -> None:
    """Refuse a stroke that says the contrary of an earlier one, or one too many."""
    strokes = [one.points for one in hints.strokes if one.radius is None]
    count = sum(len(thinned(stroke)) for stroke in (*strokes, new))
    if count > MOST_CLICKS:
        raise InputError(
            f"object and frame would have {count} clicks, allowed are {MOST_CLICKS}: draw a box, or accept the object"
        )
    mine = {_pixel(point) for point in dense_stroke(new)}
    for stroke in strokes:
        if stroke[0].is_positive == new[0].is_positive:
            continue
        both = sorted(mine & {_pixel(point) for point in dense_stroke(stroke)})
        if both:
            said = ("off", "on") if new[0].is_positive else ("on", "off")
            raise InputError(
                f"pixel {both[0][0]},{both[0][1]} was said to be {said[0]} the object, and now {said[1]} it: undo one"
            )


def _pixel(point: Point) -> tuple[int, int]:
    return int(np.floor(point.x + 0.5)), int(np.floor(point.y + 0.5))


def thinned(stroke: Sequence[Point]) -> list[Point]:
    """A few points of a stroke, evenly along it."""
    dense = dense_stroke(stroke)
    if len(dense) <= MOST_STROKE_CLICKS:
        return dense
    chosen = np.linspace(0, len(dense) - 1, MOST_STROKE_CLICKS).round().astype(int)
    return [dense[k] for k in chosen]


def dense_stroke(stroke: Sequence[Point]) -> list[Point]:
    """A stroke with no gap of more than a pixel."""
    dense = [stroke[0]]
    for end in stroke[1:]:
        start = dense[-1]
        steps = max(1, int(np.ceil(max(abs(end.x - start.x), abs(end.y - start.y)))))
        dense += [
            replace(end, x=start.x + (end.x - start.x) * k / steps, y=start.y + (end.y - start.y) * k / steps)
            for k in range(1, steps + 1)
        ]
    return dense


def pixels_of(stroke: Stroke, view: View) -> BoolArray:
    """Give the pixels of the file that a stroke covers, as a mask (H, W) of the view.

    They are those under its line; a brush also covers those whose centre is at most its radius away from the line.
    """
    height, width = view.turn.new_shape[1:]
    line = _turned(dense_stroke(stroke.points), view)
    cells = np.floor(line + 0.5).astype(int)
    if stroke.radius is None:
        cells = cells.clip(0, (width - 1, height - 1))
    cells = cells[((cells >= 0) & (cells < (width, height))).all(axis=1)]
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[cells[:, 1], cells[:, 0]] = True
    if stroke.radius:
        corners = _turned(stroke.points, view)
        for start, end in zip(corners, [*corners[1:], corners[-1]], strict=True):
            _brush(mask, start, end, stroke.radius)
    return view.mask_to_view(mask)


def _turned(points: Sequence[Point], view: View) -> FloatArray:
    """Points of the file as (P, 2) x, y in pixels of the turned frame."""
    shown = view.prompt(Prompt(boxes=(ANYWHERE,), points=tuple(points))).points
    scale_y, scale_x = view.scale
    return np.array([((one.x + 0.5) / scale_x - 0.5, (one.y + 0.5) / scale_y - 0.5) for one in shown])


def _brush(mask: BoolArray, start: FloatArray, end: FloatArray, radius: float) -> None:
    """Set the pixels of (H, W) whose centre is at most a radius away from a piece of line."""
    low = np.ceil(np.minimum(start, end) - radius).astype(int).clip(0)
    high = np.floor(np.maximum(start, end) + radius).astype(int)
    rows, columns = np.ogrid[low[1] : min(high[1] + 1, mask.shape[0]), low[0] : min(high[0] + 1, mask.shape[1])]
    along = end - start
    length = float(along @ along)
    share = ((columns - start[0]) * along[0] + (rows - start[1]) * along[1]) / length if length else np.zeros((1, 1))
    share = share.clip(0, 1)
    away = (columns - start[0] - share * along[0]) ** 2 + (rows - start[1] - share * along[1]) ** 2
    mask[low[1] : high[1] + 1, low[0] : high[0] + 1] |= away <= radius**2


def check_brush(stroke: Stroke, shape: Sequence[int]) -> None:
    """Refuse a brush that is too large, or that is moved beyond an image of (H, W)."""
    radius = stroke.radius or 0.0
    if not 0 < radius <= LARGEST_RADIUS:
        raise InputError(f"radius of the brush is {radius:g}, allowed is above 0 to {LARGEST_RADIUS:g} pixels")
    for point in stroke.points:
        if not (-radius <= point.x <= shape[1] - 1 + radius and -radius <= point.y <= shape[0] - 1 + radius):
            raise InputError(
                f"stroke at {point.x:g},{point.y:g} is outside the image of {shape[1]} x {shape[0]} pixels (x, y)"
            )


def with_found(state: State, found: Masks, n: int) -> State:
    """Put what an answer finds on view n in the place of what was found there by the same phrase.

    An object keeps its number if it overlaps. One that was accepted, or drawn on there, stays as it is.

    Args:
        state: Before.
        found: The answer, over all views.
        n: Number of the view.
    """
    before = [one for one in state.objects if one.concept == found.concept and n in one.trail.masks]
    parts = [(PackedMask.of(item.plane(n, found.shape[1:])), item.score) for item in found.objects]
    homes = _homes([part for part, _ in parts], before, n)
    gone = set(range(len(before))) - set(homes.values())
    for one in (before[k] for k in gone):
        if not _is_fixed(one, n):
            state = state.without_frame(one, n)
    current = None
    for k, (mask, score) in enumerate(parts):
        one = before[homes[k]] if k in homes else SessionObject(state.next_number, found.concept)
        if not _is_fixed(one, n):
            trail = Trail({**one.trail.masks, n: mask}, {**one.trail.scores, n: score})
            state = state.with_object(replace(one, trail=trail, unspread=one.unspread | {n}))
        current = one.number if current is None else current
    return replace(state, current=current)


def _homes(parts: Sequence[PackedMask], before: Sequence[SessionObject], n: int) -> dict[int, int]:
    """From the numbers of masks to those of the objects that they are, the largest overlaps first."""
    pairs = [(overlap(part, one.trail.masks[n]), k, b) for k, part in enumerate(parts) for b, one in enumerate(before)]
    homes: dict[int, int] = {}
    for iou, k, b in sorted(pairs, key=lambda pair: -pair[0]):
        if iou >= SAME_IOU and k not in homes and b not in homes.values():
            homes[k] = b
    return homes


def _is_fixed(one: SessionObject, n: int) -> bool:
    return one.is_accepted or n in one.hints
