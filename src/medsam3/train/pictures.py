"""Pictures of a batch: a sample's square under a view, drawn at random or from cached features of a frozen encoder.

`LiveViews` is for a small model whose image encoder trains along: every draw is another view. `CachedViews` is for its
frozen encoder, whose features of a few views lie on disk. `StretchedViews` is SAM 3's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam3 import concepts
from medsam3.data.samples import RGB, Instances, Sample, Target, is_sided
from medsam3.geometry import box_of_mask
from medsam3.models.mini.letterbox import SIDE, letterbox, letterbox_labels
from medsam3.models.sam3.objects import stretched
from medsam3.train.augment import random_view, restain, view_generator, view_of, warp_labels, warp_pixels
from medsam3.train.cache import Features
from medsam3.view.crops import Crop, random_window

Value = TypeVar("Value", bound=np.generic)
RESTAINED_CONCEPT = "cell nucleus"
RESTAINED_SHARE = 0.4
FIRST_RESTAINED = 2
"""From this cached view on, microscopy is also shown under made-up stains."""
PLAIN_SHARE = 0.1
ONE_OBJECT_SHARE = 0.5
UPRIGHT_FREE = ("gastrointestinal endoscopy", "dermoscopy", "microscopy")
"""Image families without an up and down: they may be flipped and turned by quarters."""
MINI_FEATURES: np.dtype[Any] = np.dtype([("neck", "<f2", (256, 64, 64)), ("pixels", "u1", (SIDE, SIDE, 3))])
"""A cached view of the small model: the frozen encoder's features, and the square that it saw."""


@dataclass(frozen=True)
class Shown:
    """One drawn view of a sample.

    Attributes:
        square: (S, S, 3) uint8; None if the model takes the features alone.
        features: (D, H, W) of a frozen encoder; None if the encoder runs in the loop.
        labels: Gives a target's instance numbers (`Views.side`, `Views.side`) as the view shows them.
    """

    square: RGB | None
    features: Tensor | None
    labels: Callable[[Target], Instances]


class Views(Protocol):
    """Draws views of samples."""

    @property
    def side(self) -> int:
        """Side of the label maps."""
        ...

    def rows(self, sample: Sample) -> int:
        """Views that a sample has for the share of its data set; 1 if each draw is another one."""
        ...

    def draw(self, sample: Sample, rng: np.random.Generator) -> Shown:
        """Draw a view of the sample."""
        ...


def mini_view(sample: Sample, number: int, *, seed: int) -> RGB:
    """Make the square (256, 256, 3) of a view that is to be cached."""
    square, _ = letterbox(sample.load_rgb())
    nuclei = [target for target in sample.targets if target.concept == RESTAINED_CONCEPT]
    if number >= FIRST_RESTAINED and nuclei:
        mask = letterbox_labels(nuclei[0].load()) > 0
        square = restain(square, mask, view_generator(sample.name, number, seed=seed))
    return warp_pixels(square, view_of(sample.name, number, seed=seed))


class CachedViews:
    """Views whose frozen features are on disk; a draw picks one, and mirrors it half of the time."""

    side = SIDE

    def __init__(self, features: Features, *, seed: int) -> None:
        self._features, self._seed = features, seed

    def rows(self, sample: Sample) -> int:
        """Cached views of the sample."""
        return len(self._features.views(sample.name))

    def draw(self, sample: Sample, rng: np.random.Generator) -> Shown:
        """Draw one of the cached views."""
        usable = self._features.views(sample.name)
        number = usable[int(rng.integers(len(usable)))]
        is_mirrored = bool(rng.random() < 0.5) and not is_sided(sample)
        step = -1 if is_mirrored else 1
        found = self._features.get(sample.name, number)
        warp = view_of(sample.name, number, seed=self._seed)
        return Shown(
            square=found["pixels"][0, :, ::step],
            features=torch.from_numpy(found["neck"][0, :, :, ::step].copy()),
            labels=lambda target: warp_labels(letterbox_labels(target.load()), warp)[:, ::step],
        )


class LiveViews:
    """Views made as they are drawn. Whole squares and their labels are read once and kept, about 0.4 MB a sample.

    A share `closer` of the draws shows a window around an object, enlarged from the picture's own pixels: what is small
    in the square is then learnt at a size that shows its outline, and the model can be asked to look again.
    """

    side = SIDE

    def __init__(self, closer: float = 0.0) -> None:
        self.closer = closer
        self._squares: dict[str, RGB] = {}
        self._labels: dict[tuple[str, str], NDArray[np.unsignedinteger[Any]]] = {}

    def rows(self, sample: Sample) -> int:
        """Count 1, as each draw is another view."""
        del sample
        return 1

    def draw(self, sample: Sample, rng: np.random.Generator) -> Shown:
        """Draw a random view: a window, warp, tones, stains, and flips and turns as the picture allows."""
        window = _window_of(sample, rng) if self.closer and rng.random() < self.closer else None

        def labels(target: Target) -> Instances:
            return self._whole_labels(sample, target) if window is None else letterbox_labels(window.cut(target.load()))

        square = self._square(sample) if window is None else letterbox(window.cut(sample.load_rgb()))[0]
        nuclei = [target for target in sample.targets if target.concept == RESTAINED_CONCEPT]
        if nuclei and rng.random() < RESTAINED_SHARE:
            square = restain(square, labels(nuclei[0]) > 0, rng)
        if rng.random() >= PLAIN_SHARE:
            view = random_view(rng)
            turn = _random_turn(sample, rng)
            return Shown(turn(warp_pixels(square, view)), None, lambda target: turn(warp_labels(labels(target), view)))
        return Shown(square, None, labels)

    def _whole_labels(self, sample: Sample, target: Target) -> Instances:
        key = (sample.name, target.concept)
        if key not in self._labels:
            labels = letterbox_labels(target.load())
            self._labels[key] = labels.astype(np.min_scalar_type(int(labels.max())))
        return self._labels[key].astype(np.int32)

    def _square(self, sample: Sample) -> RGB:
        if sample.name not in self._squares:
            self._squares[sample.name] = letterbox(sample.load_rgb())[0]
        return self._squares[sample.name]


def _window_of(sample: Sample, rng: np.random.Generator) -> Crop | None:
    """Draw a window around a concept that is there, or around one object of it; None if it fills the picture."""
    present = [target for target in sample.targets if target.is_present]
    if not present:
        return None
    labels = present[rng.integers(len(present))].load()
    numbers = np.unique(labels[labels > 0])
    is_one = rng.random() < ONE_OBJECT_SHARE and len(numbers) > 0
    box = box_of_mask(labels == numbers[rng.integers(len(numbers))] if is_one else labels > 0)
    return None if box is None else random_window(box, (labels.shape[0], labels.shape[1]), rng)


class PlaneTurn(Protocol):
    """Mirrors and turns an array (H, W, ...)."""

    def __call__(self, values: NDArray[Value]) -> NDArray[Value]:
        """Give the array in its new position."""
        ...


def _random_turn(sample: Sample, rng: np.random.Generator) -> PlaneTurn:
    is_mirrored = bool(rng.random() < 0.5) and not is_sided(sample)
    known = concepts.find(sample.targets[0].concept) if sample.targets else None
    is_free = known is not None and known.family in UPRIGHT_FREE
    quarters = int(rng.integers(4)) if is_free else 0

    def turn(values: NDArray[Value]) -> NDArray[Value]:
        mirrored = values[:, ::-1] if is_mirrored else values
        return np.ascontiguousarray(np.rot90(mirrored, quarters))

    return turn


@dataclass(frozen=True)
class StretchedViews:
    """Views for SAM 3: the picture stretched to a square, or the cached output of the frozen encoder's trunk.

    Attributes:
        image: Side of the network's input in pixels.
        side: Side of the label maps, twice that of the network's masks.
        count: Views a sample, the plain one included.
        seed: Seed of the random views.
        features: Cached bfloat16 features; None if the image encoder runs in the loop.
    """

    image: int
    side: int
    count: int
    seed: int
    features: Features | None = None

    def rows(self, sample: Sample) -> int:
        """Count 1: a data set's share does not depend on the views."""
        del sample
        return 1

    def draw(self, sample: Sample, rng: np.random.Generator) -> Shown:
        """Draw one of the views."""
        view = int(rng.integers(self.count))

        def labels(target: Target) -> Instances:
            return stretched_labels(target.load(), sample, view, seed=self.seed, side=self.side)

        if self.features is None:
            return Shown(stretched_view(sample, view, seed=self.seed, side=self.image), None, labels)
        bits = torch.from_numpy(self.features.get(sample.name, view))
        return Shown(None, bits.view(torch.bfloat16), labels)


def stretched_view(sample: Sample, view: int, *, seed: int, side: int) -> RGB:
    """Make a view of the sample's image, stretched to (side, side, 3)."""
    square = np.array(stretched(sample.load_rgb(), side))  # a copy that may be written to, as torch wants it
    mirrored = np.ascontiguousarray(square[:, ::-1]) if is_mirrored(sample, view) else square
    return warp_pixels(mirrored, view_of(sample.name, view, seed=seed))


def stretched_labels(labels: Instances, sample: Sample, view: int, *, seed: int, side: int) -> Instances:
    """Make the same view of a map of instance numbers (H, W), as (side, side) by nearest neighbour."""
    rows, columns = (((np.arange(side) + 0.5) * length / side).astype(np.intp) for length in labels.shape)
    square = labels[rows[:, None], columns[None]]
    mirrored = np.ascontiguousarray(square[:, ::-1]) if is_mirrored(sample, view) else square
    return warp_labels(mirrored, view_of(sample.name, view, seed=seed))


def is_mirrored(sample: Sample, view: int) -> bool:
    """Tell whether a view is mirrored: odd ones are, unless a concept of the sample has a side."""
    return view % 2 == 1 and not is_sided(sample)
