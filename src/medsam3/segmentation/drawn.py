"""Strokes and boxes of a session, and the objects that came of them: values that undo can go back to.

Positions are in the file's pixels, masks in those of the views. It knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from medsam3.errors import InputError
from medsam3.image import Masks
from medsam3.prompts import Box, Point
from medsam3.segmentation.fusion import Trail

MOST_CLICKS = 100
"""Clicks on one object of one frame."""
MOST_STROKE_CLICKS = 12
"""A scribble is shown to the model as this many clicks along it, and held to all of its pixels."""


@dataclass(frozen=True)
class FrameHints:
    """Strokes and a box on one object of one frame, in the file's pixels."""

    strokes: tuple[tuple[Point, ...], ...] = ()
    box: Box | None = None

    @property
    def clicks(self) -> tuple[Point, ...]:
        """The part of the strokes that the model is told."""
        return tuple(point for stroke in self.strokes for point in thinned(stroke))


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


ANYWHERE = Box(0.0, 0.0, 1.0, 1.0)
"""Lets clicks be carried in a prompt that has no box of its own."""


def check_inside(point: Point, shape: Sequence[int]) -> None:
    """Refuse a point outside an image of (H, W)."""
    if not (-0.5 <= point.x <= shape[1] - 0.5 and -0.5 <= point.y <= shape[0] - 0.5):
        raise InputError(f"click {point.x:g},{point.y:g} is outside the image of {shape[1]} x {shape[0]} pixels (x, y)")


def check_strokes(strokes: Sequence[Sequence[Point]], new: Sequence[Point]) -> None:
    """Refuse a stroke that says the contrary of an earlier one, or one too many."""
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
