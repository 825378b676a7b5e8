"""A simulated person who corrects masks: what objects may be meant, how they are begun, and where is clicked next.

Objects begin on the frame, and go on in a window of it. Truths and masks are bool; a click is (x, y, 1 on the object or
0 off it). It knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.data.samples import Instances
from medsam3.geometry import BoolArray, FloatArray, box_of_mask
from medsam3.models.refiner import depth_in

RGB = NDArray[np.uint8]
Rng = np.random.Generator
Click = tuple[float, float, int]
Logits = NDArray[np.float32]
LEAST_PX = 24
"""Objects with fewer pixels of the square are not asked about."""
FEW = 3
"""Up to so many objects of a concept, a person often means all of them."""
BOX_NOISE = 0.08
OFF_CENTRE = 0.4
"""Share of the clicks that are anywhere in the error rather than in its middle."""


@dataclass(frozen=True)
class PersonConfig:
    """Shares of what a person may mean and begin with.

    Attributes:
        objects: Objects a view.
        rounds: Times that the decoder answers about each.
        made_up: Share of the objects that are a patch of the picture rather than an annotated one.
        part: Share of the objects that are a part of an annotated one.
        from_answer: Share that begin with what the model answers to a phrase or a box.
        from_box: Share that begin with a box.
        from_mask: Share that begin with a damaged mask; the rest begin with a click on nothing.
        forgets: Share of the rounds in which the mask so far is not shown.
    """

    objects: int = 2
    rounds: int = 2
    made_up: float = 0.1
    part: float = 0.08
    from_answer: float = 0.45
    from_box: float = 0.08
    from_mask: float = 0.37
    forgets: float = 0.03


@dataclass(frozen=True)
class Meant:
    """What a person means in a view, and what was said so far.

    Attributes:
        truth: (S, S) the object.
        mask: (S, S) the mask so far; None if there is none.
        clicks: In the order in which they were given.
        box: xyxy; None if none was drawn.
    """

    truth: BoolArray
    mask: BoolArray | None = None
    clicks: tuple[Click, ...] = field(default=())
    box: tuple[float, float, float, float] | None = None


def objects_meant(square: RGB, labels: Sequence[Instances], config: PersonConfig, rng: Rng) -> list[BoolArray]:
    """Draw objects that a person may mean in a view.

    Args:
        square: (S, S, 3) the view.
        labels: Of each concept that is there, instance numbers (S, S).
        config: Shares.
        rng: Random numbers.

    Returns:
        At most `config.objects` masks (S, S), each with `LEAST_PX` pixels at least.
    """
    found = []
    for _ in range(4 * config.objects):
        kind = rng.random()
        if kind < config.made_up or not labels:
            mask = patch_of(square, rng)
        else:
            mask = _annotated(labels[int(rng.integers(len(labels)))], rng)
            if kind < config.made_up + config.part:
                mask = part_of(mask, rng)
        if LEAST_PX <= np.count_nonzero(mask) <= 0.9 * mask.size:
            found.append(mask)
        if len(found) == config.objects:
            break
    return found


def _annotated(labels: Instances, rng: Rng) -> BoolArray:
    """One object, several, or all of them."""
    sizes = np.bincount(labels.ravel())
    numbers = np.flatnonzero(sizes[1:] >= LEAST_PX) + 1
    if not len(numbers):
        return labels > 0
    kind = rng.random()
    if len(numbers) <= FEW and kind < 0.6:
        return labels > 0
    if kind < 0.9 or len(numbers) == 1:
        chosen = numbers[[rng.integers(len(numbers))]]
    else:
        chosen = rng.choice(numbers, size=int(rng.integers(2, len(numbers) + 1)), replace=False)
    taken: BoolArray = np.isin(labels, chosen)
    return taken


def part_of(mask: BoolArray, rng: Rng) -> BoolArray:
    """Cut an object by a line through it, and take one side."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return mask
    at, angle = rng.integers(len(rows)), rng.uniform(0, 2 * np.pi)
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    side: BoolArray = (y - rows[at]) * np.sin(angle) + (x - columns[at]) * np.cos(angle) > 0
    return mask & side


def patch_of(square: RGB, rng: Rng) -> BoolArray:
    """Take a patch of even brightness around a random pixel, its holes filled: an object that nobody named."""
    grey = ndimage.gaussian_filter(square.mean(axis=2, dtype=np.float32), rng.uniform(1.0, 4.0))
    row, column = rng.integers(square.shape[:2])
    near = np.abs(grey - grey[row, column]) < rng.uniform(6, 30)
    number, _ = ndimage.label(near)
    opened = ndimage.binary_opening(number == number[row, column], iterations=2)
    patch: BoolArray = ndimage.binary_fill_holes(opened)
    return patch if patch.mean() < 0.4 else np.zeros_like(patch)


def begun(truth: BoolArray, answer: BoolArray | None, config: PersonConfig, rng: Rng) -> Meant:
    """Begin with a model's answer, a box, a damaged mask with some earlier clicks perhaps, or a click on nothing."""
    kind = rng.random() * (1 - config.from_answer)
    if answer is None and kind < config.from_box:
        return replace(Meant(truth), box=_noisy_box(truth, rng))
    if answer is not None or kind < config.from_box + config.from_mask:
        mask = damaged(truth, rng) if answer is None else answer
        earlier = tuple(_anywhere(truth, mask == truth, rng) for _ in range(int(rng.integers(0, 7))))
        earlier = earlier if rng.random() < 0.5 else ()
        box = _noisy_box(truth, rng) if rng.random() < 0.1 else None
        return clicked_next(Meant(truth, mask, tuple(one for one in earlier if one), box), rng)
    return clicked_next(Meant(truth), rng)


def part_of_answer(truth: BoolArray, answers: Logits, config: PersonConfig, rng: Rng) -> Logits | None:
    """Take a model's answer about an object, or the part of it that lies most on the object.

    Args:
        truth: (H, W) the object on the frame.
        answers: (A, S, S) logits over the square that holds the frame.
        config: Shares.
        rng: Random numbers.

    Returns:
        Logits (S, S), far below 0 beyond the part; None if the person begins otherwise.
    """
    if rng.random() >= config.from_answer:
        return None
    logits = answers[int(rng.integers(len(answers)))]
    scale, side = max(truth.shape) / logits.shape[0], logits.shape[0]
    rows, columns = (((np.arange(side) + 0.5) * scale).astype(np.intp) for _ in range(2))
    own = np.zeros((side, side), dtype=np.bool_)
    inside = np.ix_(rows < truth.shape[0], columns < truth.shape[1])
    own[inside] = truth[rows[rows < truth.shape[0]][:, None], columns[columns < truth.shape[1]]]
    parts, count = ndimage.label(logits > 0)
    if not count:
        return None
    shared = np.bincount(parts[own], minlength=count + 1)[1:]
    number = int(shared.argmax()) + 1 if shared.any() else int(rng.integers(count)) + 1
    is_whole = own.sum() > 0 and rng.random() < 0.3
    if (is_whole and count > FEW) or (not shared.any() and rng.random() < 0.6):
        return None
    kept: Logits = logits if is_whole else np.where(parts == number, logits, np.minimum(logits, -1.0))
    return kept


def clicked_next(meant: Meant, rng: Rng | None) -> Meant:
    """Click into the largest error, in its middle, or with random numbers mostly there; nothing if there is none."""
    mask = np.zeros_like(meant.truth) if meant.mask is None else meant.mask
    missed, extra = (_half_depth(error) for error in (meant.truth & ~mask, mask & ~meant.truth))
    is_positive = bool(missed.max() >= extra.max())
    chosen = missed if is_positive else extra
    if chosen.max() <= 0:
        return meant
    at = int(chosen.argmax())
    if rng is not None and rng.random() < OFF_CENTRE:
        numbers, _ = ndimage.label(chosen > 0)
        inside = np.flatnonzero((numbers == numbers.ravel()[at]) & (chosen >= 0.3 * chosen.max()))
        at = int(inside[rng.integers(len(inside))])
    row, column = np.unravel_index(at, chosen.shape)
    beside = (0, 0) if rng is None else rng.integers(2, size=2)
    click = (float(2 * column + beside[0]), float(2 * row + beside[1]), int(is_positive))
    return replace(meant, clicks=(*meant.clicks, click))


def _half_depth(error: BoolArray) -> FloatArray:
    """How deep each cell of half the resolution lies in an error; one of a pixel's width counts too."""
    rows, columns = error.shape
    halved: BoolArray = np.asarray(error.reshape(rows // 2, 2, columns // 2, 2).all(axis=(1, 3)))
    return depth_in(halved)


def _anywhere(truth: BoolArray, is_right: BoolArray, rng: Rng) -> Click | None:
    """A click that was given before: anywhere on the object, or near it, where the mask is right by now."""
    is_positive = bool(rng.random() < 0.6)
    near = truth if is_positive else ~truth & _box_mask(truth, 0.4)
    places = np.flatnonzero(near & is_right)
    if not len(places):
        return None
    row, column = np.unravel_index(int(places[rng.integers(len(places))]), truth.shape)
    return float(column), float(row), int(is_positive)


def _box_mask(mask: BoolArray, margin: float) -> BoolArray:
    """The mask's box with a margin of its sides."""
    inside = np.zeros_like(mask)
    box = box_of_mask(mask)
    if box is not None:
        dx, dy = margin * (box[2] - box[0]) + 4, margin * (box[3] - box[1]) + 4
        inside[max(0, int(box[1] - dy)) : int(box[3] + dy) + 1, max(0, int(box[0] - dx)) : int(box[2] + dx) + 1] = True
    return inside


def _noisy_box(truth: BoolArray, rng: Rng) -> tuple[float, float, float, float]:
    """The object's box with edges moved, rather outwards."""
    box = box_of_mask(truth)
    assert box is not None, "a person means something"
    sides = np.array([box[2] - box[0], box[3] - box[1]] * 2)
    outwards = np.array([-0.01, -0.01, 0.01, 0.01])
    moved = np.asarray(box) + (rng.normal(0, BOX_NOISE / 2, size=4) + outwards) * sides
    low, high = moved[:2], np.maximum(moved[2:], moved[:2] + 2)
    edges = np.clip(np.concatenate([low, high]), -0.5, truth.shape[0] - 0.5)
    return float(edges[0]), float(edges[1]), float(edges[2]), float(edges[3])


def damaged(truth: BoolArray, rng: Rng) -> BoolArray:
    """Move an object's outline in and out by a smooth random field, and now and then lose or add a piece."""
    half = truth[::2, ::2]
    distance = ndimage.distance_transform_edt(half) - ndimage.distance_transform_edt(~half)
    radius = max(2.0, float(np.sqrt(half.sum() / np.pi)))
    strength = rng.uniform(0.1, 0.8) ** 1.5 * radius
    coarse = rng.normal(size=(8, 8)) if rng.random() < 0.6 else rng.normal(size=(16, 16))
    wave = ndimage.zoom(coarse, half.shape[0] / coarse.shape[0], order=1)
    mask = distance + strength * (wave + rng.normal(0, 0.4)) > 0
    if rng.random() < 0.2:
        mask &= ~part_of(mask, rng)
    if rng.random() < 0.3:
        row, column = rng.integers(half.shape[0], size=2)
        y, x = np.ogrid[: half.shape[0], : half.shape[1]]
        mask |= (y - row) ** 2 + ((x - column) * rng.uniform(0.5, 2)) ** 2 < (rng.uniform(0.2, 0.8) * radius) ** 2
    whole: BoolArray = mask.repeat(2, axis=0).repeat(2, axis=1)
    return whole
