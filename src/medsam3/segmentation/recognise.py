"""Names of drawn objects, by which a video's object is looked for again when following loses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medsam3.concepts import CONCEPTS
from medsam3.models.segmenter import ReadsPhrases, Segmenter, reader_of
from medsam3.prompts import Prompt
from medsam3.segmentation.packed import PackedMask, overlap
from medsam3.segmentation.sweep import FoundMask

LEAST_IOU = 0.3
"""Least overlap of a name's answer with what is drawn, as that of a followed object with what is found."""


def is_named(segmenter: Segmenter, prompt: Prompt) -> bool:
    """Whether what a prompt draws can be named: boxes or points, no exemplars, by a model that was taught a list.

    It takes a question for each concept, which a small model answers fast, whatever its weights are called.
    """
    is_drawn = bool(prompt.boxes or prompt.points) and not prompt.exemplars
    return is_drawn and isinstance(segmenter, ReadsPhrases)


def recognised(segmenter: Segmenter, features: Any, drawn: Sequence[FoundMask], text: str | None = None) -> str:
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


def clearest(found: Sequence[FoundMask], count: int) -> list[FoundMask]:
    """Choose as many objects as were drawn, those with the best scores."""
    return sorted(found, key=lambda one: -one.score)[:count]
