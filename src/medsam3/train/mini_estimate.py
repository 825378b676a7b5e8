"""What a run of the small model will take, measured: a few real steps are timed, and one pass of the frozen encoder.

Steps are timed on the real batches; where features are not cached yet, those of one image stand in for all, as the time
does not depend on their values. Nothing is written.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from medsam3.data.samples import Sample
from medsam3.models.mini.letterbox import letterbox
from medsam3.train.batches import Batch, BatchMaker, Maker, prefetched
from medsam3.train.cache import NECK_SHAPE, CachedView, Encode, load_or_make_view
from medsam3.train.mini_config import FitConfig
from medsam3.train.pictures import CachedViews, LiveViews, Views

MEASURED_STEPS = 3
Made = TypeVar("Made")


@dataclass(frozen=True)
class ViewPlan:
    """A view of some samples: which, its number, its folder, and how many rows of it are cached."""

    samples: Sequence[Sample]
    number: int
    folder: Path
    done: int

    @property
    def is_complete(self) -> bool:
        """All rows are cached."""
        return self.done == len(self.samples)


@dataclass(frozen=True)
class RunCost:
    """What a run takes.

    Attributes:
        steps: All of them.
        step_s: One step, timed.
        missing_views: Features that are not cached yet.
        view_s: One of them, timed; 0 where none is missing.
        peak_gib: The most memory that the process has held by the end of the steps; None where that cannot be told.
    """

    steps: int
    step_s: float
    missing_views: int
    view_s: float
    peak_gib: float | None


def planned(samples: Sequence[Sample], number: int, folder: Path) -> ViewPlan:
    """A view with what is cached of it, as `train.cache` notes it."""
    noted = folder / "done.json"
    return ViewPlan(samples, number, folder, json.loads(noted.read_text()) if noted.exists() else 0)


def measure(
    train: Sequence[Sample],
    plans: Sequence[ViewPlan],
    encode: Encode,
    config: FitConfig,
    step: Callable[[Batch], object],
    *,
    steps: int = MEASURED_STEPS,
) -> RunCost:
    """Time `steps` steps after one for warming up, and a pass of the encoder where a view is missing.

    Args:
        train: Samples that are fitted.
        plans: Cached views of them, none where the image encoder trains along, and after them that of val.
        encode: The frozen image encoder.
        config: Of the run.
        step: Makes one update from a batch.
        steps: How many are timed.
    """
    missing = sum(len(plan.samples) - plan.done for plan in plans)
    of_train, view_s = plans[:-1], 0.0
    if missing:
        square, _ = letterbox(train[0].load_rgb())
        encode(square)  # warms up
        started = time.perf_counter()
        neck = encode(square)
        view_s = time.perf_counter() - started
    views: Views = LiveViews(config.sampling.closer)
    if of_train and missing:
        rows = {sample.name: row for row, sample in enumerate(train)}
        pixels = np.broadcast_to(square, (len(train), *square.shape))
        alike = np.broadcast_to(neck, (len(train), *NECK_SHAPE))
        views = CachedViews([CachedView(0, config.seed, rows, alike, pixels)])
    elif of_train:
        views = CachedViews(
            [load_or_make_view(plan.folder, plan.samples, plan.number, encode, seed=config.seed) for plan in of_train]
        )
    maker = BatchMaker(train, views, config.sampling, seed=config.seed)
    return RunCost(config.steps, time_steps(maker, step, steps=steps), missing, view_s, peak_gib())


def time_steps(maker: Maker[Made], step: Callable[[Made], object], *, steps: int = MEASURED_STEPS) -> float:
    """Seconds of one step, batches being made meanwhile as in training; the first step does not count."""
    started = 0.0
    for number, batch in prefetched(maker, range(steps + 1)):
        step(batch)
        if number == 0:
            started = time.perf_counter()
    return (time.perf_counter() - started) / steps


def peak_gib() -> float | None:
    """The most memory that this process has held, in GiB; None where the system does not tell."""
    try:
        import resource  # noqa: PLC0415  not on every system
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def cost_lines(cost: RunCost, *, timed: int = MEASURED_STEPS) -> list[str]:
    """Lines for a person, each saying what is measured and what is estimated from it."""
    training_s, cache_s = cost.steps * cost.step_s, cost.missing_views * cost.view_s
    lines = [
        f"measured: {cost.step_s:.2f} s a step ({timed} steps after 1); estimated from it: {_duration(training_s)} for "
        f"{cost.steps} steps"
    ]
    if cost.missing_views:
        lines.append(
            f"measured: {cost.view_s:.2f} s a view to encode (1 pass); estimated from it: {_duration(cache_s)} for "
            f"{cost.missing_views} views that are not cached"
        )
    if cost.peak_gib is not None:
        lines.append(f"measured: {cost.peak_gib:.1f} GiB of memory at most in these steps")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
