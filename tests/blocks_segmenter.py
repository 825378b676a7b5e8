"""A segmenter that finds each bright block as an object of its own, and a box's whole inside."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.image import Masks, ObjectMask
from medsam3.prompts import Prompt


class BlocksSegmenter:
    """Every phrase but `absent` and `vessel` means bright blocks; `vessel` is the left third; `crash` is our error."""

    name = "blocks"

    def __init__(self) -> None:
        self.encoded = 0
        self.asked: list[Prompt] = []

    def encode(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        self.encoded += 1
        return rgb

    def decode(self, features: NDArray[np.uint8], prompt: Prompt, *, threshold: float | None = None) -> Masks:
        self.asked.append(prompt)
        shape = (1, *features.shape[:2])
        if prompt.text == "crash":
            raise RuntimeError("the model broke")
        if prompt.boxes:
            masks = np.zeros((len(prompt.boxes), *shape), dtype=np.bool_)
            for k, box in enumerate(prompt.boxes):
                masks[k, 0, round(box.y0 + 0.5) : round(box.y1 + 0.5), round(box.x0 + 0.5) : round(box.x1 + 0.5)] = True
            return Masks.from_dense(masks, [0.9] * len(masks))
        if prompt.text == "absent":
            return Masks(shape, (), "absent", 0.1, False)
        bright = features.mean(axis=2) > 128
        if prompt.text == "vessel":
            bright = np.zeros_like(bright)
            bright[:, : shape[2] // 3] = True
        labels, count = ndimage.label(bright)
        parts = [ObjectMask.from_dense((labels == n)[None], 0.9 - 0.1 * n) for n in range(1, count + 1)]
        found = tuple(part for part in parts if part is not None)
        return Masks(shape, found, prompt.text or "", 0.9 if found else 0.1, bool(found))


def load_blocks(name: str) -> BlocksSegmenter:
    """Load it in a worker process."""
    return BlocksSegmenter()
