"""What a batch shows of a sample: its square, drawn anew under a random warp and random tones, or from cached features.

`LiveViews` is for an image encoder that trains along: every draw is another view. `CachedViews` is for a frozen one,
whose features of a few views lie on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from medsam3 import concepts
from medsam3.data.samples import Sample, Target, is_sided
from medsam3.geometry import box_of_mask
from medsam3.models.mini.letterbox import letterbox, letterbox_labels
from medsam3.train.augment import random_view, view_of, warp_labels, warp_pixels
from medsam3.train.cache import RESTAINED_CONCEPT, CachedView
from medsam3.train.stain import restain
from medsam3.view.crops import Crop, random_window

RGB = NDArray[np.uint8]
Labels = NDArray[np.int32]
Value = TypeVar("Value", bound=np.generic)
RESTAINED_SHARE = 0.4
PLAIN_SHARE = 0.1
ONE_OBJECT_SHARE = 0.5
UPRIGHT_FREE = ("gastrointestinal endoscopy", "dermoscopy", "microscopy")
"""Image families without an up and down: they may be flipped and turned by quarters."""


@dataclass(frozen=True)
class Shown:
    """One drawn view of a sample.

    Attributes:
        square: (256, 256, 3) uint8.
        neck: (256, 64, 64) float16 of a cached view; None where the encoder runs in the loop.
        labels: Gives a target's instance numbers (256, 256) as the view shows them.
    """

    square: RGB
    neck: NDArray[np.float16] | None
    labels: Callable[[Target], Labels]


class Views(Protocol):
    """Draws views of samples."""

    def rows(self, sample: Sample) -> int:
        """Views that a sample has for the share of its data set; 1 where each draw is another one."""
        ...

    def draw(self, sample: Sample, rng: np.random.Generator) -> Shown:
        """A view of the sample."""
        ...


class CachedViews:
    """Views whose frozen features are on disk; a draw picks one, and mirrors it half of the time."""

    def __init__(self, views: Sequence[CachedView]) -> None:
        self._views = views

    def rows(self, sample: Sample) -> int:
        """Cached views of the sample."""
        return sum(sample.name in view.rows for view in self._views)

    def draw(self, sample: Sample, rng: np.random.Generator) -> Shown:
        """One of the cached views."""
        usable = [view for view in self._views if sample.name in view.rows]
        view = usable[rng.integers(len(usable))]
        is_mirrored = bool(rng.random() < 0.5) and not is_sided(sample)
        step = -1 if is_mirrored else 1
        row = view.rows[sample.name]
        warp = view_of(sample.name, view.number, seed=view.seed)
        return Shown(
            square=np.array(view.pixels[row][:, ::step]),
            neck=np.array(view.neck[row][:, :, ::step]),
            labels=lambda target: warp_labels(letterbox_labels(target.load()), warp)[:, ::step],
        )


class LiveViews:
    """Views made when they are drawn. Whole squares and their labels are read once and kept, about 0.4 MB a sample.

    A share `closer` of the draws shows a window around an object, enlarged from the picture's own pixels: what is small
    in the square is then learnt at a size that shows its outline, and the model can be asked to look again.
    """

    def __init__(self, closer: float = 0.0) -> None:
        self.closer = closer
        self._squares: dict[str, RGB] = {}
        self._labels: dict[tuple[str, str], NDArray[np.int16]] = {}

    def rows(self, sample: Sample) -> int:
        """1."""
        del sample
        return 1

    def draw(self, sample: Sample, rng: np.random.Generator) -> Shown:
        """A random view: window, warp, tones, flips and quarter turns as the picture allows, stains of microscopy."""
        window = _window_of(sample, rng) if self.closer and rng.random() < self.closer else None

        def labels(target: Target) -> Labels:
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

    def _whole_labels(self, sample: Sample, target: Target) -> Labels:
        key = (sample.name, target.concept)
        if key not in self._labels:
            self._labels[key] = letterbox_labels(target.load()).astype(np.int16)
        return self._labels[key].astype(np.int32)

    def _square(self, sample: Sample) -> RGB:
        if sample.name not in self._squares:
            self._squares[sample.name] = letterbox(sample.load_rgb())[0]
        return self._squares[sample.name]


def _window_of(sample: Sample, rng: np.random.Generator) -> Crop | None:
    """A window around a concept that is there, or around one object of it; None where all fill the picture."""
    present = [target for target in sample.targets if target.is_present]
    if not present:
        return None
    labels = present[rng.integers(len(present))].load()
    numbers = np.unique(labels[labels > 0])
    is_one = rng.random() < ONE_OBJECT_SHARE and len(numbers) > 0
    box = box_of_mask(labels == numbers[rng.integers(len(numbers))] if is_one else labels > 0)
    return None if box is None else random_window(box, (labels.shape[0], labels.shape[1]), rng)


class Turn(Protocol):
    """Mirrors and turns an array (H, W, ...)."""

    def __call__(self, values: NDArray[Value]) -> NDArray[Value]:
        """The same in the new position."""
        ...


def _random_turn(sample: Sample, rng: np.random.Generator) -> Turn:
    is_mirrored = bool(rng.random() < 0.5) and not is_sided(sample)
    known = concepts.find(sample.targets[0].concept) if sample.targets else None
    is_free = known is not None and known.family in UPRIGHT_FREE
    quarters = int(rng.integers(4)) if is_free else 0

    def turn(values: NDArray[Value]) -> NDArray[Value]:
        mirrored = values[:, ::-1] if is_mirrored else values
        return np.ascontiguousarray(np.rot90(mirrored, quarters))

    return turn
