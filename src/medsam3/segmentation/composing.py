"""Executes what a phrase composes: several concepts, one without another, one on a side of the image or the patient.

The model is asked for single concepts; here their masks are combined. It knows readings and masks, no grammar.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medsam3.geometry import BoolArray
from medsam3.image import Image, Masks, ObjectMask
from medsam3.models.phrase_reader import Reading
from medsam3.models.segmenter import Segmenter, reader_of
from medsam3.phrases import ImageSide
from medsam3.prompts import Prompt
from medsam3.view.view import View

WHOLE_FROM = 0.9
"""An object counts as a whole on a side that holds this share of it; one that lies on both is cut in the middle."""
LEAST_WIDTH_MM = 150.0
"""An image that is narrower from left to right may show one side of the patient alone: its middle tells nothing."""

Block = tuple[slice, slice, slice]


@dataclass(frozen=True)
class ComposedQuestion:
    """One answer that is wanted.

    Attributes:
        prompt: What the model is asked first.
        reading: How its phrase was understood; None if only something is drawn.
    """

    prompt: Prompt
    reading: Reading | None

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The model's prompts: for what is wanted, then for what is taken away."""
        away = () if self.reading is None else self.reading.without
        return (self.prompt, *(Prompt(text=text) for text in away))

    def answer(self, found: Mapping[Prompt, Masks], view: Callable[[], View]) -> Masks:
        """The masks that are wanted, from those of each prompt; `view` shows the image."""
        masks, reading = found[self.prompt], self.reading
        if reading is None:
            return masks
        if not reading.is_plain:
            objects = masks.objects
            for prompt in self.prompts[1:]:
                objects = without(objects, found[prompt].union())
            if reading.patient_side is not None:
                objects = on_patient_side(objects, view().image, reading.patient_side)
            masks = replace(masks, objects=objects)
            if reading.image_sides:
                masks = on_image_sides(masks, view(), reading.image_sides)
            masks = replace(masks, is_present=None if masks.is_present is None else masks.is_present and len(masks) > 0)
        return replace(masks, concept=reading.phrase)


def questions(image: Image, prompt: Prompt, segmenter: Segmenter) -> tuple[ComposedQuestion, ...]:
    """List what a prompt asks about an image: one question for each concept that its phrase joins.

    Raises:
        InputError: The phrase is not understood.
    """
    if prompt.text is None:
        return (ComposedQuestion(prompt, None),)
    readings = readings_of(image, prompt.text, segmenter)
    return tuple(ComposedQuestion(replace(prompt, text=reading.text), reading) for reading in readings)


def readings_of(image: Image, phrase: str, segmenter: Segmenter) -> tuple[Reading, ...]:
    """Read a phrase about an image, whose orientation decides whether sides of the patient are known.

    Raises:
        InputError: The phrase is not understood.
    """
    readings = reader_of(segmenter).readings(phrase)
    return tuple(one if one.patient_side is None or tells_sides(image) else one.as_it_stands for one in readings)


def tells_sides(image: Image) -> bool:
    """Whether the middle of an image is that of the patient: its orientation is known, and it is wide enough."""
    if image.affine is None or image.kind == "video":
        return False
    return float(np.abs(image.affine[0, :3]) @ np.array(image.shape)) >= LEAST_WIDTH_MM


def without(objects: Sequence[ObjectMask], away: BoolArray) -> tuple[ObjectMask, ...]:
    """Objects without the voxels of (N, H, W); those of which nothing is left are left out."""
    return _kept(objects, lambda block: ~away[block], whole_from=1.0)


def on_patient_side(objects: Sequence[ObjectMask], image: Image, side: str) -> tuple[ObjectMask, ...]:
    """Objects on the patient's left or right of the image's middle."""
    assert image.affine is not None, "the orientation is known"
    along = image.affine[0, :3]  # world x grows to the patient's left
    sign = 1.0 if side == "left" else -1.0

    def is_there(block: Block) -> BoolArray:
        n, row, col = (
            step * (np.arange(part.start, part.stop) - (count - 1) / 2)
            for step, part, count in zip(along, block, image.shape, strict=True)
        )
        there: BoolArray = sign * (n[:, None, None] + row[:, None] + col) > 0
        return there

    return _kept(objects, is_there, whole_from=WHOLE_FROM)


def on_image_sides(found: Masks, view: View, sides: Sequence[ImageSide]) -> Masks:
    """Objects on sides of the image as it is shown."""
    shown = view.masks_forth(found)
    _, height, width = shown.shape
    objects: Sequence[ObjectMask] = shown.objects
    for side in sides:
        axis, middle = (2, width / 2) if side in ("left", "right") else (1, height / 2)
        is_first = side in ("left", "upper")

        def is_there(block: Block, axis: int = axis, middle: float = middle, is_first: bool = is_first) -> BoolArray:
            centers = np.arange(block[axis].start, block[axis].stop) + 0.5
            there: BoolArray = (centers < middle) if is_first else (centers > middle)
            return there if axis == 2 else there[:, None]

        objects = _kept(objects, is_there, whole_from=WHOLE_FROM)
    return view.masks_back(replace(shown, objects=tuple(objects)))


def _kept(
    objects: Sequence[ObjectMask], is_there: Callable[[Block], BoolArray], *, whole_from: float
) -> tuple[ObjectMask, ...]:
    """Keep what of each object lies where `is_there` is true of a block; all of it if `whole_from` of it does."""
    result = []
    for item in objects:
        n, row, col = (slice(at, at + length) for at, length in zip(item.start, item.crop.shape, strict=True))
        inside = item.crop & is_there((n, row, col))
        share = inside.sum() / item.voxels
        kept = item if share >= whole_from else ObjectMask.from_dense(inside, item.score)
        if kept is None or share <= 1 - whole_from:
            continue
        if kept is not item:
            a, b, c = (first + more for first, more in zip(item.start, kept.start, strict=True))
            kept = replace(kept, start=(a, b, c))
        result.append(kept)
    return tuple(result)
