"""A segmenter that needs no weights: what is brighter than 128 is the object, unless the phrase is `absent`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medsam3.image import Masks
from medsam3.prompts import Prompt

SCORE = 0.75


class ThresholdSegmenter:
    """Counts its calls, so that tests see how often a frame is encoded."""

    name = "threshold"

    def __init__(self) -> None:
        self.encoded = 0
        self.decoded = 0

    def encode(self, rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
        self.encoded += 1
        assert rgb.dtype == np.uint8
        bright: NDArray[np.bool_] = rgb.mean(axis=-1) > 128
        return bright

    def decode(self, features: NDArray[np.bool_], prompt: Prompt, *, threshold: float | None = None) -> Masks:
        self.decoded += 1
        if prompt.text == "crash":
            raise RuntimeError("the model broke")
        mask = features.copy()
        if prompt.text == "absent" or (threshold or 0) > SCORE:
            mask[:] = False
        is_found = bool(mask.any())
        return Masks.from_dense(
            mask[None, None],
            [SCORE],
            concept=prompt.text or "",
            presence=None if prompt.text is None else (0.9 if is_found else 0.1),
            is_present=None if prompt.text is None else is_found,
        )
