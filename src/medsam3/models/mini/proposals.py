"""Objects that a person may mean: what the detector finds that is like a box around the clicks, as an example.

The detector was trained with boxes around examples. A click says no size, so boxes of several sizes are drawn around
the positive clicks; a box that its own answer fills was of the right size. Answers are kept with the frame's features,
so a further click chooses anew among them. It knows no weights and no sessions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.geometry import BoolArray, box_iou, box_of_mask
from medsam3.models.refiner import depth_in, error_depth, follow_click, pixel_of
from medsam3.prompts import Box, Point
from medsam3.view.crops import Crop, closer_window

FRAME_SHARES, WINDOW_SHARES = (0.12, 0.24, 0.38), (0.015, 0.04, 0.09)
"""Boxes reach this far beyond the positive clicks to each side, as a share of the frame's longer side: those that the
whole frame is asked with, and those that a window around the clicks is."""
ASKED_AGAIN = 2
"""So many of the best answers are asked again, with their own boxes as examples."""
LEVELS = (0.5, 0.25, 0.75)
"""Probabilities above which an answer's part is offered; what is above the first is what it says."""
OTHER_LEVEL = 0.1
"""What speaks less for a part at another level."""
LIKENESS = 0.5
"""Weight of the overlap with the mask so far beside the fit to the box."""
GROSS = 0.3
"""A click this deep in an error, as a share of the object's radius, says that the mask is of something else there."""
APART = 1.5
"""A positive click this far from the mask, in the object's radii, is on a part that the mask does not have yet."""
CENTRAL = 0.7
"""People click in the middle of what is wrong: a change in which the click lies less central than so is not meant."""
MIDDLE = 0.9
"""A negative click at this share of the greatest depth of a part takes the part away, if nothing better is found."""
BOX_MARGIN = 0.05
"""An object may reach beyond its box by this share of the box's sides."""
LOOKED_AT_IOU = 0.4
"""A closer look that sees something else than this is not listened to."""

Probability = NDArray[np.float32]
Ask = Callable[[Crop | None, Box], Probability]
"""From a window (None: the whole frame) and a box around an example, in pixels of the frame, to the probability (H, W)
of what is like it; 0 outside the window."""
Guess = Callable[[Point], Box]
"""From a click on an object to the box that it may have, inside the frame."""
Change = Callable[[BoolArray, Point], BoolArray]
"""From a mask (H, W) and the newest click that it contradicts to a mask with which all clicks agree."""


@dataclass(frozen=True)
class Proposal:
    """A part of an answer, (H, W), and how much speaks for it: 1 where it fills the box that was asked with."""

    mask: BoolArray
    score: float


def questions(clicks: Sequence[Point], shape: tuple[int, int]) -> list[tuple[Crop | None, Box]]:
    """Draw boxes of several sizes around the positive clicks, small ones in a window; () where there is no click."""
    at = np.array([(p.x, p.y) for p in clicks if p.is_positive])
    if not len(at):
        return []
    low, high = at.min(axis=0), at.max(axis=0)
    limit = np.array([shape[1], shape[0]]) - 0.5
    window = closer_window((float(low[0]), float(low[1]), float(high[0]), float(high[1])), shape)
    asked: list[tuple[Crop | None, Box]] = []
    for place, shares in ((None, FRAME_SHARES), (window, () if window is None else WINDOW_SHARES)):
        for share in shares:
            half = max(share * max(shape), 1.0)
            (x0, y0), (x1, y1) = np.maximum(low - half, -0.5), np.minimum(high + half, limit)
            asked.append((place, Box(float(x0), float(y0), float(x1), float(y1))))
    return asked


def corrected(
    ask: Ask,
    mask: BoolArray | None,
    clicks: Sequence[Point],
    shape: tuple[int, int],
    *,
    change: Change | None = None,
    guess: Guess | None = None,
) -> BoolArray:
    """Find the object (H, W) that clicks mean.

    Args:
        ask: The detector.
        mask: The mask so far; None if there is none.
        clicks: What was said; the last click is the newest.
        shape: (H, W) of the frame.
        change: Changes a mask that is of the right object; None takes over parts of what the detector offers.
        guess: Guesses the box of what a click is on; None tries boxes of several sizes.
    """
    if mask is not None and agrees(mask, clicks):
        return mask
    if mask is None or not mask.any():
        return begun(ask, clicks, shape, guess)
    wrong = next(click for click in reversed(clicks) if mask[pixel_of(click, shape)] != click.is_positive)
    regrown = _regrown(ask, mask, clicks, wrong, guess)
    if regrown is not None:
        return _held(regrown, clicks, ())
    if change is not None:
        return change(mask, wrong)
    offered = [one.mask for one in proposals(ask, clicks, shape, mask, is_first=True)]
    return _held(mask, clicks, offered + _local(ask, mask, wrong))


def _regrown(ask: Ask, mask: BoolArray, clicks: Sequence[Point], wrong: Point, guess: Guess | None) -> BoolArray | None:
    """Change by the detector what a click far from the outline is about; None where it is near, or nothing fits."""
    shape = (mask.shape[0], mask.shape[1])
    depth, radius = error_depth(mask, wrong), np.sqrt(mask.sum() / np.pi)
    if wrong.is_positive and depth > APART * radius:
        there = (*(click for click in clicks if not click.is_positive), wrong)
        changed = changed_at(mask, [mask | begun(ask, there, shape, guess)], wrong)
        return changed if changed is not None else mask | _held(np.zeros(shape, dtype=np.bool_), (wrong,), ())
    if depth <= GROSS * radius:
        return None
    changed = changed_at(mask, (one.mask for one in proposals(ask, clicks, shape, mask)), wrong)
    if changed is None and not wrong.is_positive and is_wrong_part(mask, wrong, clicks):
        return mask & ~_part_at(mask, wrong)
    return changed


def begun(ask: Ask, clicks: Sequence[Point], shape: tuple[int, int], guess: Guess | None = None) -> BoolArray:
    """Find the object that clicks on nothing mean; discs where the detector finds none."""
    found = [] if guess is None else guessed(ask, clicks, guess)
    found = found or proposals(ask, clicks, shape, None)
    nothing = np.zeros(shape, dtype=np.bool_)
    return looked_at(ask, found[0].mask, clicks) if found else _held(nothing, clicks, ())


def guessed(ask: Ask, clicks: Sequence[Point], guess: Guess) -> list[Proposal]:
    """Give objects that agree with all clicks, of the size guessed at the first positive one, the best first."""
    at = [(click.x, click.y) for click in clicks if click.is_positive]
    if not at:
        return []
    x0, y0, x1, y1 = guess(next(click for click in clicks if click.is_positive)).xyxy
    low, high = np.min([*at, (x0, y0)], axis=0).tolist(), np.max([*at, (x1, y1)], axis=0).tolist()
    box = Box(low[0], low[1], high[0], high[1])
    return sorted(_parts(ask(None, box), box, clicks), key=lambda one: -one.score)


def changed_at(mask: BoolArray, others: Iterable[BoolArray], click: Point) -> BoolArray | None:
    """Take over from one of other masks only the connected change that a click lies in: elsewhere nobody blamed it.

    The first is taken in whose change the click lies central; None if there is none.
    """
    for other in others:
        parts, _ = ndimage.label(mask ^ other, structure=np.ones((3, 3)))
        number = parts[pixel_of(click, mask.shape)]
        if number and centrality(parts == number, click) >= CENTRAL:
            changed: BoolArray = np.where(parts == number, other, mask)
            return changed
    return None


def is_wrong_part(mask: BoolArray, click: Point, clicks: Sequence[Point]) -> bool:
    """Tell whether all of a mask's part is meant by a negative click in it.

    It is if the click is nearly as deep in the part as one can be, and no click was on the object there.
    """
    part = _part_at(mask, click)
    was_clicked = any(part[pixel] for pixel in _pixels(clicks, mask.shape, is_positive=True))
    return not was_clicked and centrality(part, click) >= MIDDLE


def centrality(part: BoolArray, click: Point) -> float:
    """How deep a click lies in a part (H, W), as a share of the greatest depth; 0 where the part is empty."""
    depth = depth_in(part)
    return float(depth[pixel_of(click, part.shape)] / max(depth.max(), 1.0))


def _part_at(mask: BoolArray, click: Point) -> BoolArray:
    return part_under(mask, (replace(click, is_positive=True),))


def _held(mask: BoolArray, clicks: Sequence[Point], offered: Sequence[BoolArray]) -> BoolArray:
    """Change a mask click by click, where it is wrong."""
    for click in clicks:
        mask = follow_click(mask, click, lambda so_far, at: offered)
    return mask


def _local(ask: Ask, mask: BoolArray, click: Point) -> list[BoolArray]:
    """What a window around a click shows of the object, at several levels."""
    edges, shape = box_of_mask(mask), (mask.shape[0], mask.shape[1])
    assert edges is not None, "the mask is not empty"
    x0, y0, x1, y1 = edges
    around = (min(x0, click.x), min(y0, click.y), max(x1, click.x), max(y1, click.y))
    probability = ask(closer_window(around, shape), Box(*edges))
    levels = (0.1, 0.25, 0.4) if click.is_positive else (0.6, 0.75, 0.9)
    return [probability > level for level in levels]


def proposals(
    ask: Ask, clicks: Sequence[Point], shape: tuple[int, int], mask: BoolArray | None, *, is_first: bool = False
) -> list[Proposal]:
    """Give objects that agree with all clicks, the best first.

    Args:
        ask: The detector.
        clicks: What was said.
        shape: (H, W) of the frame.
        mask: The mask so far, whose box is asked with too.
        is_first: Draw boxes around the first positive click alone, whose answers are there already.
    """
    positive = [click for click in clicks if click.is_positive]
    asked = questions(positive[:1] if is_first else positive, shape)
    own = None if mask is None else box_of_mask(mask)
    asked += [] if own is None else [(None, Box(*own))]
    found = [
        one for window, box in asked for one in _parts(ask(window, box), box, clicks) if _is_whole(one.mask, window)
    ]
    found = sorted((_beside(one, mask) for one in found), key=lambda one: -one.score)
    for one in found[:ASKED_AGAIN]:
        edges = box_of_mask(one.mask)
        assert edges is not None, "a part has pixels"
        again = _parts(ask(closer_window(edges, shape), Box(*edges)), Box(*edges), clicks)
        found += [replace(other, score=one.score + 0.01) for other in again[:1]]
    return sorted(found, key=lambda one: -one.score)


def _is_whole(mask: BoolArray, window: Crop | None) -> bool:
    """Tell whether a window shows a mask (H, W) to its end: no side cuts it that is not the frame's own."""
    edges = box_of_mask(mask)
    if window is None or edges is None:
        return True
    height, width = mask.shape
    low = edges[0] > window.left or window.left == 0, edges[1] > window.top or window.top == 0
    high = edges[2] < window.right - 1 or window.right == width, edges[3] < window.bottom - 1 or window.bottom == height
    return all(low) and all(high)


def _beside(one: Proposal, mask: BoolArray | None) -> Proposal:
    """Count what is like the mask so far as the better."""
    if mask is None or not mask.any():
        return one
    return replace(one, score=one.score + LIKENESS * iou(one.mask, mask))


def iou(first: BoolArray, second: BoolArray) -> float:
    """Intersection over union of masks of which one at least is not empty."""
    return float(np.count_nonzero(first & second) / np.count_nonzero(first | second))


def _parts(probability: Probability, box: Box, clicks: Sequence[Point]) -> list[Proposal]:
    """Take the part of an answer that the clicks lie in, at each level at which it holds with all of them."""
    found = []
    for level in LEVELS:
        mask = part_under(probability > level, clicks)
        if mask.any() and agrees(mask, clicks):
            edges = box_of_mask(mask)
            fit = float(box_iou(np.array([edges]), np.array([box.xyxy]))[0, 0])
            found.append(Proposal(mask, fit - (0.0 if level == LEVELS[0] else OTHER_LEVEL)))
    return found


def part_under(mask: BoolArray, clicks: Sequence[Point]) -> BoolArray:
    """Take the connected parts of (H, W) that a positive click lies in; the largest where there is no such click."""
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    chosen = [labels[pixel] for pixel in _pixels(clicks, mask.shape, is_positive=True)]
    if not chosen:
        chosen = [int(np.bincount(labels.ravel())[1:].argmax()) + 1]
    part: BoolArray = np.isin(labels, [number for number in chosen if number])
    return part


def agrees(mask: BoolArray, clicks: Sequence[Point]) -> bool:
    """Tell whether all positive clicks lie in a mask, and no negative one."""
    return all(mask[pixel] for pixel in _pixels(clicks, mask.shape, is_positive=True)) and not any(
        mask[pixel] for pixel in _pixels(clicks, mask.shape, is_positive=False)
    )


def _pixels(clicks: Sequence[Point], shape: tuple[int, ...], *, is_positive: bool) -> list[tuple[int, int]]:
    return [pixel_of(click, shape) for click in clicks if click.is_positive == is_positive]


def boxed(ask: Ask, box: Box, shape: tuple[int, int]) -> tuple[Probability, float]:
    """Outline the object in a box, and tell how well it fills the box.

    Returns:
        Probability (H, W), 0 beyond the box and a small margin; intersection over union of the box and the object's.
    """
    x0, y0, x1, y1 = box.xyxy
    probability = ask(closer_window((x0, y0, x1, y1), shape), box).copy()
    dx, dy = BOX_MARGIN * (x1 - x0), BOX_MARGIN * (y1 - y0)
    inside = np.zeros(shape, dtype=np.bool_)
    rows = slice(max(0, int(y0 - dy)), max(0, int(np.ceil(y1 + dy)) + 1))
    inside[rows, max(0, int(x0 - dx)) : max(0, int(np.ceil(x1 + dx)) + 1)] = True
    probability[~inside] = 0
    edges = box_of_mask(probability > LEVELS[0])
    return probability, 0.0 if edges is None else float(box_iou(np.array([edges]), np.array([box.xyxy]))[0, 0])


def looked_at(ask: Ask, mask: BoolArray, clicks: Sequence[Point]) -> BoolArray:
    """Outline an object again in a window around it, where that shows it larger and it is the same object there."""
    edges = box_of_mask(mask)
    window = None if edges is None else closer_window(edges, (mask.shape[0], mask.shape[1]))
    if edges is None or window is None:
        return mask
    inside = [click for click in clicks if _is_in(click, window)]
    part = part_under(ask(window, Box(*edges)) > LEVELS[0], inside)
    is_same = part.any() and iou(part, mask) >= LOOKED_AT_IOU and agrees(part, inside)
    return part if is_same else mask


def _is_in(click: Point, window: Crop) -> bool:
    return window.left <= click.x < window.right and window.top <= click.y < window.bottom
