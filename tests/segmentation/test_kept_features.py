"""Kept features are those of the frame that is asked, counted by their memory, and bounded by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import medsam3
from medsam3.image import Masks
from medsam3.prompts import Prompt
from medsam3.segmentation.kept_features import KeptFeatures, bytes_of
from threshold_segmenter import ThresholdSegmenter

RGB = NDArray[np.uint8]


@dataclass
class Grown:
    frame: RGB
    asked: dict[str, NDArray[np.uint8]] = field(default_factory=dict)


class Counting:
    """Keeps 1,000 bytes for each phrase that a frame is asked."""

    name = "counting"

    def __init__(self) -> None:
        self.encoded: list[int] = []

    def encode(self, rgb: RGB) -> Grown:
        self.encoded.append(int(rgb[0, 0, 0]))
        return Grown(rgb)

    def decode(self, features: Grown, prompt: Prompt, *, threshold: float | None = None) -> Masks:
        del threshold
        features.asked[prompt.text or ""] = np.zeros(1000, np.uint8)
        return Masks((1, *features.frame.shape[:2]))


def frame(value: int) -> RGB:
    return np.full((10, 10, 3), value, np.uint8)


def test_memory_is_counted_once_through_views_containers_closures_and_caches() -> None:
    whole = torch.zeros(100, dtype=torch.float32)
    other = np.zeros(50, np.uint8)

    def made() -> Callable[[], Any]:
        hidden = np.zeros(7, np.uint8)
        return lambda: hidden

    model = torch.nn.Linear(1000, 1000)
    held = Grown(other, {"a": other})
    held.__dict__["later"] = [whole[:10], (whole[50:],), model.forward]
    assert bytes_of([held, made()]) == 400 + 50 + 7


def test_a_frame_is_encoded_once_until_what_is_newer_takes_its_room() -> None:
    model, kept = Counting(), KeptFeatures(most_bytes=3000)
    for value in (1, 2, 1, 2):
        model.decode(kept.get(model, frame(value)), Prompt("polyp"))
    assert (model.encoded, kept.nbytes) == ([1, 2], 2600)
    model.decode(kept.get(model, frame(2)), Prompt("cup"))
    assert kept.nbytes == 3600
    kept.get(model, frame(2))
    assert (len(kept), kept.nbytes) == (1, 2300)
    kept.get(model, frame(1))
    assert model.encoded == [1, 2, 1]


def test_the_frame_that_is_asked_stays_however_large_it_is() -> None:
    model, kept = Counting(), KeptFeatures(most_bytes=10)
    first = kept.get(model, frame(1))
    assert kept.get(model, frame(1)) is first
    assert len(kept) == 1


def test_two_models_do_not_share_what_they_encode() -> None:
    kept, one, other = KeptFeatures(), Counting(), Counting()
    assert kept.get(one, frame(1)) is not kept.get(other, frame(1))
    assert one.encoded == other.encoded == [1]


def test_sessions_of_one_model_share_the_frames_that_they_encode() -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[5:10, 5:15] = 255
    model, kept = ThresholdSegmenter(), KeptFeatures()
    first, second = (medsam3.Session(picture, model, features=kept).segment("bright").union() for _ in range(2))
    assert model.encoded == 1
    np.testing.assert_array_equal(first, second)
