"""The protocol of every segmenter: `encode` a frame once, `decode` as many prompts as wanted."""

from __future__ import annotations

from functools import cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.image import Masks
from medsam3.models.phrase_reader import PhraseReader, Reading
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

    @property
    def reader(self) -> PhraseReader:
        """Reads phrases for its weights."""
        ...


@cache
def _untold() -> PhraseReader:
    return PhraseReader()


def reader_of(segmenter: Segmenter) -> PhraseReader:
    """The reader of a model's phrases; one that asks each as it stands if the model has none."""
    return segmenter.reader if isinstance(segmenter, ReadsPhrases) else _untold()


def reading_alone(segmenter: Segmenter, phrase: str) -> Reading:
    """Read a phrase that is asked on one frame by itself, where nothing is composed.

    Raises:
        InputError: It is not understood, or asks for more than one concept as it is.
    """
    readings = reader_of(segmenter).readings(phrase)
    if len(readings) > 1:
        raise InputError(
            f"the phrase {phrase!r} asks for {len(readings)} concepts: ask each by itself "
            f"({', '.join(repr(one.phrase) for one in readings)})"
        )
    (one,) = readings
    if one.without or one.image_sides:
        raise InputError(
            f"the phrase {phrase!r} means {one.told}: ask for {one.text!r} alone, and take away or choose by position"
        )
    return one if one.is_plain else one.as_it_stands
