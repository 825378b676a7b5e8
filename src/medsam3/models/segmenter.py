"""What every segmenter offers: `encode` a frame once, `decode` as many prompts as wanted."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from medsam3.image import Masks
from medsam3.models.phrase_reader import Reading
from medsam3.prompts import Prompt

RGB = NDArray[np.uint8]


class Segmenter(Protocol):
    """A model that answers prompts. It keeps no image: all that it needs of one is in the features."""

    @property
    def name(self) -> str:
        """Short name for tables and file names, for example `mini`."""
        ...

    def encode(self, rgb: RGB) -> Any:
        """Features of one frame (H, W, 3) uint8; they hold its size, and go only to this segmenter's `decode`."""
        ...

    def decode(self, features: Any, prompt: Prompt, *, threshold: float | None = None) -> Masks:
        """Objects over (1, H, W) of the encoded frame, best score first.

        Args:
            features: What `encode` returned.
            prompt: Already checked to lie inside the frame.
            threshold: Least presence x object score in 0..1 that is kept; None takes the weights' own.
        """
        ...


@runtime_checkable
class ReadsPhrases(Protocol):
    """A segmenter that was taught some concepts, and takes a phrase for the one that it means."""

    def read(self, phrase: str) -> Reading:
        """How a phrase is understood."""
        ...


def reading_of(segmenter: Segmenter, phrase: str | None) -> Reading | None:
    """How a model understands a phrase; None without one, and of a model that asks each as it stands."""
    return segmenter.read(phrase) if phrase is not None and isinstance(segmenter, ReadsPhrases) else None
