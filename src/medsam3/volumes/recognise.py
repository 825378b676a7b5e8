"""What a drawn object is, by name, so that a video's object can be looked for again where following loses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medsam3.concepts import CONCEPTS
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Prompt
from medsam3.volumes.packed import PackedMask
from medsam3.volumes.sweep import Found

LEAST_IOU = 0.3
"""Least overlap of a name's answer with what is drawn, as that of a followed object with what is found."""


def recognised(segmenter: Segmenter, features: Any, drawn: Sequence[Found], names: Sequence[str] = ()) -> str:
    """The phrase whose answer on this frame is present and overlaps best with the drawn objects; "" where none does.

    Args:
        segmenter: The model; it is asked once for each name.
        features: Of the frame that the objects are drawn on.
        drawn: The objects.
        names: Phrases to try; none given, all concepts of the table.
    """
    if not drawn:
        return ""
    whole = PackedMask.of(np.logical_or.reduce([one.mask.dense() for one in drawn]))
    scores = {name: _fit(segmenter, features, whole, name) for name in names or [one.name for one in CONCEPTS]}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] > 0 else ""


def _fit(segmenter: Segmenter, features: Any, drawn: PackedMask, name: str) -> float:
    """Presence times overlap; 0 where the model says no, or means another place."""
    found = segmenter.decode(features, Prompt(text=name))
    if not found.is_present or not len(found):
        return 0.0
    together = found.union()[0]
    mask = drawn.dense()
    iou = float((together & mask).sum() / (together | mask).sum())
    return iou * (1.0 if found.presence is None else found.presence) if iou >= LEAST_IOU else 0.0
