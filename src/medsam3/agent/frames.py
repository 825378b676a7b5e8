"""The image on the table: what a segmenter answers about its frames, how they are shown, and what can be measured.

It knows no tool and no policy. Places are in two units: pixels of the view, and for whoever looks at pictures 0 to 1000
along each side of what is shown, whatever its size; `Place` converts between them exactly.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

import numpy as np
import PIL.Image
from cachetools import LRUCache
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.agent.chat import ShownPicture
from medsam3.agent.redact import hide_burnt_in_text
from medsam3.agent.values import Mark
from medsam3.concepts import find
from medsam3.geometry import BoolArray
from medsam3.image import Image, Masks, ObjectMask, Window
from medsam3.models.objects import split_objects
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Box, Point, Prompt
from medsam3.segmentation.run import Report, segment
from medsam3.view.crops import Crop
from medsam3.view.draw import number_marks, overlay
from medsam3.view.view import view_of

RGB = NDArray[np.uint8]
Map = NDArray[np.float32]
KEPT_FEATURES = 12
LEAST_SIDE = 512
MOST_SIDE = 1024
FULL = 1000
"""Coordinates of pictures run from 0 to this along each side. Pixels of the picture would not do: providers shrink and
cut pictures once more before their model sees them, and a zoomed picture has other pixels than the frame."""
_RING_PX = 8


@runtime_checkable
class SoftSegmenter(Protocol):
    """The method that a segmenter may offer beside `encode` and `decode`."""

    def probability_map(self, features: Any, prompt: Prompt) -> Map:
        """Probability (H, W) in 0..1 that a pixel belongs to the concept, given that it is there."""
        ...


@dataclass(frozen=True)
class SoftAnswer:
    """The segmenter's answer to a phrase in a frame.

    Attributes:
        masks: Over (1, H, W), kept even if the concept counts as absent, so that it can be looked at.
        soft: (H, W) in 0..1; hard 0 and 1 of a segmenter that gives no probabilities.
    """

    masks: Masks
    soft: Map

    @property
    def presence(self) -> float:
        """Probability of the phrase; a segmenter without one is taken by its best object."""
        return self.masks.stated_presence

    @property
    def is_present(self) -> bool:
        """The calibrated yes or no; of a segmenter without one, whether anything was found."""
        return self.masks.says_present


class QueriedImage:
    """One image as `medsam3.segment` shows it, and one segmenter; the last dozen of encoded frames and crops are kept.

    All places are in pixels of the views; `view.masks_back` brings masks back to the file's frames.
    """

    def __init__(self, image: Image, segmenter: Segmenter, progress: Report | None = None) -> None:
        self.image, self.segmenter, self.view = image, segmenter, view_of(image)
        self._progress = progress
        self._whole: dict[str, Masks] = {}
        self.encodings = 0
        self._features: LRUCache[tuple[int, Crop | None], Any] = LRUCache(KEPT_FEATURES)
        self._answers: dict[tuple[int, str, Crop | None], SoftAnswer] = {}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W) of the views."""
        return self.view.shape

    def rgb(self, n: int, grey: Window | None = None) -> RGB:
        """Show frame n in its own grey window or another."""
        return (self.view if grey is None else replace(self.view, window=grey)).rgb(n)

    def ask_whole(self, phrase: str) -> Masks:
        """Find a phrase in all frames as `medsam3.segment` does, over the views."""
        if phrase not in self._whole:
            (found,) = segment(self.image, phrase, self.segmenter, progress=self._progress)
            self._whole[phrase] = self.view.masks_forth(found)
        return self._whole[phrase]

    def features(self, n: int, window: Crop | None = None) -> Any:
        """Encode frame n, or a window of it, or give what was encoded before."""
        key = (n, window)
        if key not in self._features:
            rgb = self.rgb(n)
            shown = rgb if window is None else np.ascontiguousarray(window.cut(rgb))
            self._features[key] = self.segmenter.encode(shown)
            self.encodings += 1
        return self._features[key]

    def ask(self, n: int, phrase: str, window: Crop | None = None) -> SoftAnswer:
        """Ask for a phrase in frame n or a window of it; the answer has the size of what was shown."""
        key = (n, phrase, window)
        if key not in self._answers:
            self._answers[key] = self._asked(self.features(n, window), Prompt(text=phrase))
        return self._answers[key]

    def decode(self, n: int, prompt: Prompt) -> Masks:
        """Answer any prompt about frame n, over (1, H, W)."""
        return self.segmenter.decode(self.features(n), prompt)

    def _asked(self, features: Any, prompt: Prompt) -> SoftAnswer:
        said = self.segmenter.decode(features, prompt)
        shown = said
        if not len(said):  # what would be there, if it were there
            anyway = self.segmenter.decode(features, prompt, threshold=0.0)
            shown = replace(anyway, presence=said.presence, is_present=said.is_present, is_sure=said.is_sure)
        if isinstance(self.segmenter, SoftSegmenter):
            soft = self.segmenter.probability_map(features, prompt)
        else:
            soft = shown.union()[0].astype(np.float32)
        return SoftAnswer(shown, soft)


def averaged(answers: Sequence[SoftAnswer]) -> Map:
    """Average soft maps of one size."""
    mean: Map = np.mean([answer.soft for answer in answers], axis=0, dtype=np.float32)
    return mean


def pasted(base: Map, windows: Sequence[Crop], maps: Sequence[Map], share: float) -> Map:
    """Mix what was seen in windows into a soft map at `share`; windows that overlap count by their mean."""
    total, count = np.zeros_like(base), np.zeros_like(base)
    for window, seen in zip(windows, maps, strict=True):
        window.cut(total)[...] += seen
        window.cut(count)[...] += 1
    inside = count > 0
    mixed = base.copy()
    mixed[inside] = (1 - share) * base[inside] + share * total[inside] / count[inside]
    return mixed


def objects_of(soft: Map, level: float, presence: float, phrase: str, n: int = 0) -> tuple[ObjectMask, ...]:
    """Find a phrase's objects where a map is above a level, best first by presence times the mean inside."""
    concept = find(phrase)
    parts = split_objects(soft, level, is_round=concept is not None and concept.is_round)
    found = [replace(part, start=(n, *part.start[1:]), score=presence * part.score) for part in parts]
    return tuple(sorted(found, key=lambda part: -part.score))


@dataclass(frozen=True)
class Place:
    """The part of a frame in which coordinates from 0 to `FULL` are given.

    Attributes:
        frame: Which frame.
        part: The rows and columns that stand for 0 to `FULL`.
    """

    frame: int
    part: Crop

    def point(self, x: float, y: float, *, is_positive: bool = True) -> Point:
        """Convert a point to pixels of the view, pixel centres at integers."""
        rows, columns = self.part.shape
        across, down = self.part.left + x * columns / FULL - 0.5, self.part.top + y * rows / FULL - 0.5
        return Point(across, down, is_positive)

    def box(self, edges: Sequence[float]) -> Box:
        """Convert a box of four edges x0, y0, x1, y1 to pixels of the view."""
        first, last = self.point(edges[0], edges[1]), self.point(edges[2], edges[3])
        return Box(first.x, first.y, last.x, last.y)

    def crop(self, edges: Sequence[float]) -> Crop:
        """Convert a region to whole pixels of the view."""
        box = self.box(edges)
        return Crop(round(box.y0 + 0.5), round(box.y1 + 0.5), round(box.x0 + 0.5), round(box.x1 + 0.5))


def whole_frame(n: int, shape: Sequence[int]) -> Place:
    """The whole of frame n of (H, W)."""
    return Place(n, Crop(0, shape[0], 0, shape[1]))


def relative_box(box: Sequence[float], shape: Sequence[int], digits: int = 1) -> list[float]:
    """Convert outer edges xyxy in pixels of a whole frame (H, W) to 0 to `FULL`."""
    sides = (shape[1], shape[0], shape[1], shape[0])
    return [round((float(edge) + 0.5) * FULL / side, digits) for edge, side in zip(box, sides, strict=True)]


def relative_crop(crop: Crop, shape: Sequence[int], digits: int = 6) -> list[float]:
    """Convert whole pixels of a frame (H, W) to 0 to `FULL`; with six digits `Place.crop` gives them back."""
    return relative_box((crop.left - 0.5, crop.top - 0.5, crop.right - 0.5, crop.bottom - 0.5), shape, digits)


def show_frame(
    rgb: RGB, caption: str, n: int = 0, window: Crop | None = None, marks: Sequence[Mark] = ()
) -> ShownPicture:
    """Draw a frame (H, W, 3), or a window of it, with numbered marks; text burnt into its borders is hidden.

    The picture's longer side has 512 to 1024 pixels, so that numbers can be read in it.

    Args:
        rgb: The frame.
        caption: Says what is seen.
        n: Which frame it is.
        window: The part to be shown enlarged; None shows all.
        marks: To draw, each under its own number; none leaves the frame raw.
    """
    shown, _ = hide_burnt_in_text(rgb)
    masks = [plane_of(mark, (rgb.shape[0], rgb.shape[1]), n) for mark in marks]
    if window is not None:
        shown, masks = window.cut(shown), [window.cut(mask) for mask in masks]
    longest = max(shown.shape[:2])
    factor = LEAST_SIDE / longest if longest < LEAST_SIDE else min(1.0, MOST_SIDE / longest)
    if factor != 1:
        size = (max(1, round(shown.shape[1] * factor)), max(1, round(shown.shape[0] * factor)))
        shown = np.asarray(PIL.Image.fromarray(shown).resize(size, PIL.Image.Resampling.LANCZOS))
        masks = [np.asarray(PIL.Image.fromarray(mask).resize(size, PIL.Image.Resampling.NEAREST)) for mask in masks]
    kept = [(mark, mask) for mark, mask in zip(marks, masks, strict=True) if mask.any()]
    if kept:
        # `overlay` and `number_marks` take objects best score first, which is not the order of the numbers here.
        each = [Masks.from_dense(mask[None, None], [mark.mask.score], concept=f"{mark.number}") for mark, mask in kept]
        shown = number_marks(overlay(shown, each), each, numbers=[mark.number for mark, _ in kept])
    part = None if window is None else (window.left, window.top, window.right, window.bottom)
    stream = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(shown)).save(stream, "PNG")  # without any metadata
    return ShownPicture(stream.getvalue(), caption, frame=n, part=part)


class MarkFacts(TypedDict):
    """The measures of a mark, as far as they are known; positions are 0 to 1000 along the frame's sides."""

    area_px: int
    share_of_frame: float
    centre_xy: list[float]
    box: list[float]
    width_px: int
    height_px: int
    touches_border: bool
    mean_grey: float
    mean_grey_around: float | None
    slices: NotRequired[list[int]]
    voxels: NotRequired[int]
    area_mm2: NotRequired[float]
    width_mm: NotRequired[float]
    height_mm: NotRequired[float]
    volume_ml: NotRequired[float]


def measures_text(mark: Mark, rgb: RGB, spacing_mm: tuple[float, float, float] | None) -> tuple[str, MarkFacts]:
    """Measure a mark, in words and as JSON values; an object through several slices on its fullest one.

    Args:
        mark: The mark.
        rgb: The mark's fullest frame.
        spacing_mm: Along (n, row, col); None gives no millimetres.
    """
    mask = plane_of(mark, (rgb.shape[0], rgb.shape[1]))
    rows, columns = np.nonzero(mask)
    grey = rgb.mean(axis=2)
    ring = np.asarray(ndimage.binary_dilation(mask, iterations=_RING_PX)) & ~mask
    left, top, right, bottom = mark.mask.box
    x, y = float(columns.mean()), float(rows.mean())
    facts: MarkFacts = {
        "area_px": int(mask.sum()),
        "share_of_frame": round(float(mask.mean()), 5),
        "centre_xy": relative_box((x, y, x, y), rgb.shape)[:2],
        "box": relative_box(mark.mask.box, rgb.shape),
        "width_px": round(right - left),
        "height_px": round(bottom - top),
        "touches_border": bool(mask[[0, -1]].any() or mask[:, [0, -1]].any()),
        "mean_grey": round(float(grey[mask].mean()), 1),
        "mean_grey_around": round(float(grey[ring].mean()), 1) if ring.any() else None,
    }
    if len(mark.mask.crop) > 1:
        facts["slices"] = [mark.mask.start[0], mark.mask.start[0] + len(mark.mask.crop) - 1]
        facts["voxels"] = mark.mask.voxels
    if spacing_mm is not None:
        facts["area_mm2"] = round(facts["area_px"] * spacing_mm[1] * spacing_mm[2], 2)
        facts["width_mm"] = round((right - left) * spacing_mm[2], 2)
        facts["height_mm"] = round((bottom - top) * spacing_mm[1], 2)
        if "voxels" in facts:
            facts["volume_ml"] = round(facts["voxels"] * float(np.prod(spacing_mm)) / 1000, 3)
    return f"mask {mark.number}: " + ", ".join(f"{name} {value}" for name, value in facts.items()), facts


def fullest_frame(mark: Mark) -> int:
    """Find the frame that holds most of the mark."""
    return mark.mask.start[0] + int(mark.mask.crop.sum(axis=(1, 2)).argmax())


def plane_of(mark: Mark, shape: tuple[int, int], n: int | None = None) -> BoolArray:
    """Lay the mark on frame n as (H, W) bool, empty if it is not there; None takes its fullest frame."""
    return mark.mask.plane(fullest_frame(mark) if n is None else n, shape)


def union_of(marks: Sequence[Mark], shape: tuple[int, int]) -> BoolArray:
    """Join marks on their fullest frames to one mask (H, W)."""
    union = np.zeros(shape, dtype=np.bool_)
    for mark in marks:
        union |= plane_of(mark, shape)
    return union


def box_around(marks: Sequence[Mark]) -> tuple[float, float, float, float]:
    """Find the box xyxy around marks, in pixels of the view."""
    boxes = np.array([mark.mask.box for mark in marks])
    (left, top), (right, bottom) = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    return float(left), float(top), float(right), float(bottom)
