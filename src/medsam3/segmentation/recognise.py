"""What a drawn object is, by name, so that a video's object can be looked for again where following loses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medsam3.concepts import CONCEPTS
from medsam3.models.segmenter import Segmenter, reader_of
from medsam3.prompts import Prompt
from medsam3.segmentation.packed import PackedMask, overlap
from medsam3.segmentation.sweep import Found

LEAST_IOU = 0.3
"""Least overlap of a name's answer with what is drawn, as that of a followed object with what is found."""
RECOGNISING = frozenset({"mini"})
"""Models that name what is drawn: it takes a question for each concept."""


def is_named(segmenter: Segmenter, prompt: Prompt) -> bool:
    """Whether what a prompt draws can be named: boxes or points, no exemplars, and a model that is asked fast."""
    is_drawn = bool(prompt.boxes or prompt.points) and not prompt.exemplars
    return is_drawn and segmenter.name in RECOGNISING


def recognised(segmenter: Segmenter, features: Any, drawn: Sequence[Found], text: str | None = None) -> str:
    """The phrase whose answer on this frame is present and overlaps best with the drawn objects; "" where none does.

    Args:
        segmenter: The model; it is asked once for each phrase.
        features: Of the frame that the objects are drawn on.
        drawn: The objects.
        text: The phrase to try; None tries all concepts of the table that the model was taught.
    """
    if not drawn:
        return ""
    whole = PackedMask.of(np.logical_or.reduce([one.mask.dense() for one in drawn]))
    names = _taught(segmenter) if text is None else [text]
    scores = {name: _fit(segmenter, features, whole, name) for name in names}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0 else ""


def _taught(segmenter: Segmenter) -> list[str]:
    """Concepts of the table that a model was taught; all of them if it does not tell."""
    names = [concept.name for concept in CONCEPTS]
    return [name for name in names if reader_of(segmenter).read(name).is_taught is not False]


def _fit(segmenter: Segmenter, features: Any, drawn: PackedMask, name: str) -> float:
    """Presence times overlap; 0 where the model says no, or means another place."""
    found = segmenter.decode(features, Prompt(text=name))
    if not found.is_present:
        return 0.0
    iou = overlap(PackedMask.of(found.union()[0]), drawn)
    return iou * (1.0 if found.presence is None else found.presence) if iou >= LEAST_IOU else 0.0


def clearest(found: Sequence[Found], count: int) -> list[Found]:
    """As many objects as were drawn, those with the best scores."""
    return sorted(found, key=lambda one: -one.score)[:count]
