"""A segmenter without weights for stacks: bright connected parts are objects; a box gives what is bright inside it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.image import Masks
from medsam3.models.phrase_reader import PhraseReader
from medsam3.prompts import Prompt


class BoxSegmenter:
    """The phrase `bright` finds parts brighter than 128; slices whose first pixel is 7 hide them from phrases.

    Presence is the brightest pixel over 255, except on hidden slices, where it is that pixel's 7 over 255.
    """

    name = "boxes"

    def __init__(self) -> None:
        self.encoded: list[int] = []
        self.decoded = 0
        self.phrases: list[int] = []  # numbers of the slices that a phrase was asked on
        self.stop_after: int | None = None

    def encode(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self.stop_after is not None and len(self.encoded) >= self.stop_after:
            raise RuntimeError("killed")
        self.encoded.append(int(rgb[0, 1, 0]))
        return rgb[..., 1].copy()

    def decode(self, features: NDArray[np.uint8], prompt: Prompt, *, threshold: float | None = None) -> Masks:
        self.decoded += 1
        if prompt.text is not None:
            self.phrases.append(int(features[0, 1]))
        bright = features > 128
        bright[0] = False  # the first row holds the slice's number and its secrets
        if prompt.boxes:
            inside = np.zeros_like(bright)
            for box in prompt.boxes:
                rows = slice(max(0, int(np.ceil(box.y0 - 1))), int(np.floor(box.y1 + 1)) + 1)
                inside[rows, max(0, int(np.ceil(box.x0 - 1))) : int(np.floor(box.x1 + 1)) + 1] = True
            return Masks.from_dense((bright & inside)[None, None], [0.9], concept=prompt.text or "")
        is_hidden = int(features[0, 0]) == 7
        is_present = bool(bright.any()) and not is_hidden
        presence = 0.9 if is_present else 7 / 255
        labels, count = ndimage.label(bright)
        parts = np.stack([labels == k for k in range(1, count + 1)]) if count and not is_hidden else None
        about: dict[str, Any] = {"concept": prompt.text or "", "presence": presence, "is_present": is_present}
        if parts is None:
            return Masks((1, *bright.shape), (), **about)
        return Masks.from_dense(parts[:, None], [0.8] * count, **about)


class NamingSegmenter(BoxSegmenter):
    """Reads phrases, as the small model does whatever its weights are called, and so may name what is drawn."""

    name = "weights of our own"
    reader = PhraseReader()
