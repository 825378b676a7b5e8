"""The image on the table: its frames, encoded when first asked for, and answers of the segmenter about them.

Knows no tool and no policy. Soft answers are used where a segmenter offers them, and done without where it does not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.image import Image, Masks, ObjectMask, Window
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Box, Prompt
from medsam3.segmentation.run import Report, segment
from medsam3.view.crops import Crop
from medsam3.view.view import view_of

RGB = NDArray[np.uint8]
Map = NDArray[np.float32]
KEPT_FEATURES = 12
LEAST_OBJECT_SHARE = 0.0001


@runtime_checkable
class SoftSegmenter(Protocol):
    """What a segmenter may offer beside `encode` and `decode`."""

    def probability_map(self, features: Any, prompt: Prompt) -> Map:
        """Probability (H, W) in 0..1 that a pixel belongs to the concept, given that it is there."""
        ...


@dataclass(frozen=True)
class Answer:
    """What the segmenter says about a phrase in a frame.

    Attributes:
        masks: Over (1, H, W), kept even where the concept counts as absent, so that it can be looked at.
        soft: (H, W) in 0..1; hard 0 and 1 of a segmenter that gives no probabilities.
    """

    masks: Masks
    soft: Map

    @property
    def presence(self) -> float:
        """Of the phrase; a segmenter without one is taken by its best object."""
        return self.masks.stated_presence

    @property
    def is_present(self) -> bool:
        """The calibrated yes or no; of a segmenter without one, whether anything was found."""
        return self.masks.says_present


class Bench:
    """One image as `medsam3.segment` shows it, and one segmenter. The last dozen of encoded frames and crops are kept.

    All places are in pixels of the views; `view.masks_back` brings masks back to the file's frames.
    """

    def __init__(self, image: Image, segmenter: Segmenter, progress: Report | None = None) -> None:
        self.image, self.segmenter, self.view = image, segmenter, view_of(image)
        self._progress = progress
        self._whole: dict[str, Masks] = {}
        self.encodings = 0
        self._features: OrderedDict[tuple[int, Crop | None], Any] = OrderedDict()
        self._answers: dict[tuple[int, str, Crop | None], Answer] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W) of the views."""
        return self.view.shape

    def rgb(self, n: int, grey: Window | None = None) -> RGB:
        """Frame n as it is shown, in its own grey window or another."""
        return (self.view if grey is None else replace(self.view, window=grey)).rgb(n)

    def ask_whole(self, phrase: str) -> Masks:
        """What `medsam3.segment` finds of a phrase in all frames, over the views."""
        if phrase not in self._whole:
            (found,) = segment(self.image, phrase, self.segmenter, progress=self._progress)
            self._whole[phrase] = self.view.masks_forth(found)
        return self._whole[phrase]

    def features(self, n: int, window: Crop | None = None) -> Any:
        """Of frame n, or of a window of it."""
        key = (n, window)
        if key not in self._features:
            rgb = self.rgb(n)
            shown = rgb if window is None else np.ascontiguousarray(window.cut(rgb))
            self._features[key] = self.segmenter.encode(shown)
            self.encodings += 1
            if len(self._features) > KEPT_FEATURES:
                self._features.popitem(last=False)
        return self._features[key]

    def ask(self, n: int, phrase: str, window: Crop | None = None) -> Answer:
        """About a phrase, in frame n or a window of it; the answer is of the size of what was shown."""
        key = (n, phrase, window)
        if key not in self._answers:
            self._answers[key] = self._asked(self.features(n, window), Prompt(text=phrase))
        return self._answers[key]

    def decode(self, n: int, prompt: Prompt) -> Masks:
        """Any prompt about frame n, over (1, H, W)."""
        return self.segmenter.decode(self.features(n), prompt)

    def _asked(self, features: Any, prompt: Prompt) -> Answer:
        said = self.segmenter.decode(features, prompt)
        shown = said
        if not len(said):  # what would be there, if it were there
            anyway = self.segmenter.decode(features, prompt, threshold=0.0)
            shown = replace(anyway, presence=said.presence, is_present=said.is_present)
        if isinstance(self.segmenter, SoftSegmenter):
            soft = self.segmenter.probability_map(features, prompt)
        else:
            soft = shown.union()[0].astype(np.float32)
        return Answer(shown, soft)


def averaged(answers: Sequence[Answer]) -> Map:
    """Mean of soft maps of one size."""
    mean: Map = np.mean([answer.soft for answer in answers], axis=0, dtype=np.float32)
    return mean


def pasted(base: Map, windows: Sequence[Crop], maps: Sequence[Map], share: float) -> Map:
    """A soft map with what was seen in windows mixed in at `share`; where windows overlap, their mean."""
    total, count = np.zeros_like(base), np.zeros_like(base)
    for window, seen in zip(windows, maps, strict=True):
        window.cut(total)[...] += seen
        window.cut(count)[...] += 1
    inside = count > 0
    mixed = base.copy()
    mixed[inside] = (1 - share) * base[inside] + share * total[inside] / count[inside]
    return mixed


def objects_of(soft: Map, level: float, presence: float, n: int = 0) -> tuple[ObjectMask, ...]:
    """The 8-connected parts above a level, without specks, best first; scores are presence times the mean inside."""
    labels, count = ndimage.label(soft > level, structure=np.ones((3, 3)))
    if not count:
        return ()
    numbers = np.arange(1, count + 1)
    sizes = ndimage.sum_labels(np.ones_like(labels), labels, numbers)
    means = ndimage.mean(soft, labels, numbers)
    least = min(max(4.0, LEAST_OBJECT_SHARE * soft.size), float(sizes.max()))
    found = [
        ObjectMask((n, rows.start, columns.start), (labels[rows, columns] == number)[None], presence * float(mean))
        for number, size, mean, (rows, columns) in zip(numbers, sizes, means, ndimage.find_objects(labels), strict=True)
        if size >= least
    ]
    return tuple(sorted(found, key=lambda part: -part.score))


def as_box(mask: ObjectMask) -> Box:
    """The box around an object, as a prompt."""
    return box_from(mask.box)


def box_from(edges: Sequence[float]) -> Box:
    """Four edges xyxy as a prompt."""
    x0, y0, x1, y1 = map(float, edges)
    return Box(x0, y0, x1, y1)
