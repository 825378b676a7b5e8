"""The threshold segmenter for worker processes, with phrases that take long or kill their process."""

from __future__ import annotations

import os
import signal
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3.cli.job import ModelChoice
from medsam3.image import Masks
from medsam3.models import registry
from medsam3.prompts import Prompt
from threshold_segmenter import ThresholdSegmenter


class SlowSegmenter(ThresholdSegmenter):
    """`slow` takes a fifth of a second a frame, `stuck` never ends, `greedy` takes up to 2 GiB of memory.

    `kill` ends the process as the kernel does when memory is short.
    """

    def decode(self, features: NDArray[np.bool_], prompt: Prompt, *, threshold: float | None = None) -> Masks:
        if prompt.text == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if prompt.text == "slow":
            time.sleep(0.2)
        if prompt.text == "stuck":
            time.sleep(600)
        if prompt.text == "greedy":
            taken = []
            for _ in range(40):
                taken.append(np.ones(50 << 20, dtype=np.uint8))
                time.sleep(0.05)
            time.sleep(600)
        return super().decode(features, prompt, threshold=threshold)


def load_fake(name: str) -> Any:
    return SlowSegmenter()


def register_fake() -> None:
    """Make the fake model known as `threshold` in this process."""
    registry.LOADERS["threshold"] = lambda weights, running: SlowSegmenter()


def choice_with_fake(given: dict[str, Any]) -> ModelChoice:
    """Make a choice of a model where the fake one is known."""
    register_fake()
    return ModelChoice(**given)


class TaughtSegmenter(SlowSegmenter):
    """One that was taught two concepts: all that is bright is the liver, and what is brightest in it the kidney."""

    card = SimpleNamespace(concepts=("liver", "kidney"))

    def encode(self, rgb: NDArray[np.uint8]) -> Any:
        grey = rgb.mean(axis=-1)
        return grey

    def decode(self, features: Any, prompt: Prompt, *, threshold: float | None = None) -> Masks:
        return super().decode(features > (200 if prompt.text == "kidney" else 90), prompt, threshold=threshold)


def load_taught(name: str) -> Any:
    return TaughtSegmenter()
