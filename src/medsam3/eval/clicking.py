"""Masks corrected by a simulated person, click by click, through the session that people use.

The next click goes to the middle of the largest error. Where an image shows more than a few objects of a concept, one
of them is meant, else the whole concept. It knows values and sessions, no files.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from medsam3.errors import InputError
from medsam3.eval.cases import EvalQuestion, Truth, object_numbers
from medsam3.geometry import BoolArray
from medsam3.image import Masks
from medsam3.measure.outline import dice
from medsam3.models.refiner import depth_in
from medsam3.prompts import Point
from medsam3.segmentation.session import Session

MOST_CLICKS = 20
"""A person gives up here."""
COUNTED_CLICKS = 10
"""So many are always given; the further ones only until `ENOUGH` is reached."""
ENOUGH = 0.9
FEW_OBJECTS = 3
SLICE_CLICKS = 3
"""Clicks on a slice of a volume before the object is followed from there."""


@dataclass(frozen=True)
class Clicked:
    """What a person and a model reached together.

    Attributes:
        truth: What was meant.
        masks: The masks in the end.
        dices: Before the first click and after each one, of pictures.
        followed: Of volumes: after `SLICE_CLICKS` on one slice were followed, and after as many on the worst one.
        seconds: Of all steps.
    """

    truth: Truth
    masks: Masks
    dices: tuple[float, ...]
    followed: tuple[float, ...]
    seconds: float


def meant(truth: Truth) -> Truth:
    """Take the largest of more than a few objects, else the whole concept."""
    numbers = object_numbers(truth)
    if len(numbers) <= FEW_OBJECTS or truth.mask.ndim == 3:
        return truth
    sizes = np.bincount(truth.objects.ravel())
    largest = max(numbers, key=lambda number: int(sizes[number]))
    mask = truth.objects == largest
    return replace(truth, mask=mask, objects=mask.astype(truth.objects.dtype))


def clicked(session: Session, question: EvalQuestion, truth: Truth) -> Clicked:
    """Correct until it is right or patience ends; a session is begun anew first."""
    session.reset()
    started, goal = time.perf_counter(), meant(truth)
    if truth.mask.ndim == 3:
        followed = _through_slices(session, goal.mask)
        return Clicked(goal, session.masks, (), followed, time.perf_counter() - started)
    is_one = goal is not truth
    if question.mode == "TC":
        session.segment(question.phrase)
        _choose(session, goal.mask, is_one=is_one)
    dices = _through_clicks(session, goal.mask, is_one=is_one)
    is_told = is_one and session.current is not None
    masks = session.object_masks(session.current or 0) if is_told else session.masks
    return Clicked(goal, masks, dices, (), time.perf_counter() - started)


def _choose(session: Session, goal: BoolArray, *, is_one: bool) -> None:
    """Select the object that fits best, as a person would, before one of many is corrected."""
    if not is_one:
        return
    fits = {one.number: dice(goal, session.object_masks(one.number).union()[0]) for one in session.objects}
    best = max(fits, key=lambda number: fits[number], default=None)
    session.select(best if best is not None and fits[best] > 0 else None)


def _shown(session: Session, n: int, *, is_one: bool) -> BoolArray:
    """What stands on a frame: the current object where one is meant, else all."""
    if is_one and session.current is None:
        return np.zeros(session.image.shape[1:3], dtype=np.bool_)
    shown = session.object_masks(session.current or 0) if is_one else session.masks
    mask: BoolArray = shown.union()[n]
    return mask


def _through_clicks(session: Session, goal: BoolArray, *, is_one: bool) -> tuple[float, ...]:
    """Dice before the first click and after each one."""
    mask = _shown(session, 0, is_one=is_one)
    dices = [dice(goal, mask)]
    for count in range(MOST_CLICKS):
        if count >= COUNTED_CLICKS and dices[-1] >= ENOUGH:
            break
        if _click(session, goal, mask, 0):
            mask = _shown(session, 0, is_one=is_one)
        dices.append(dice(goal, mask))
    return tuple(dices)


def _through_slices(session: Session, goal: BoolArray) -> tuple[float, ...]:
    """Dice of a volume after clicks on its fullest slice were followed, and after more on the slice that is worst."""
    dices: list[float] = []
    n = int(goal.sum(axis=(1, 2)).argmax())
    for _ in range(2):
        given = [_click(session, goal[n], session.masks.union()[n], n) for _ in range(SLICE_CLICKS)]
        if any(given):
            session.propagate(session.current)
        found = session.masks.union()
        dices.append(dice(goal, found))
        n = int((goal ^ found).sum(axis=(1, 2)).argmax())
    return tuple(dices)


def next_click(reference: BoolArray, predicted: BoolArray) -> Point | None:
    """Find the pixel that lies deepest in what is missed, or in what is too much; None if the masks (H, W) agree.

    Source: the centre of the largest error, as by Sofiiuk et al., ICIP 2022; which error is the largest is told by how
    far its middle lies from its rim.
    """
    missed, extra = depth_in(reference & ~predicted), depth_in(predicted & ~reference)
    is_positive = bool(missed.max() >= extra.max())
    chosen = missed if is_positive else extra
    if chosen.max() <= 0:
        return None
    row, column = np.unravel_index(int(chosen.argmax()), chosen.shape)
    return Point(float(column), float(row), is_positive=is_positive)


def _click(session: Session, goal: BoolArray, mask: BoolArray, n: int) -> bool:
    """Click once; False where nothing is wrong, or the session has to refuse."""
    point = next_click(goal, mask)
    if point is None:
        return False
    try:
        session.click(point.x, point.y, positive=point.is_positive, frame=n)
    except InputError:  # a pixel that was said to be the contrary before
        return False
    return True
