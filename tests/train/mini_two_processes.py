"""A run of the small detector on two images a step: `torchrun mini_two_processes.py OUT`, or here by `train(out)`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import test_fit as one

from medsam3.data.samples import Instances, Sample, Target
from medsam3.models.mini.letterbox import SIDE
from medsam3.train.batches import BatchMaker, SamplingConfig
from medsam3.train.cache import CachedView
from medsam3.train.fit import fit
from medsam3.train.pictures import CachedViews
from medsam3.train.workers import Workers, workers_for

CONFIG = replace(one.CONFIG, sampling=SamplingConfig(images=2, prompts=1, exemplar=0.0))


def maker() -> BatchMaker:
    rng = np.random.default_rng(0)

    def load() -> Instances:
        labels = np.zeros((SIDE, SIDE), np.int32)
        labels[60:140, 30:200] = 1
        return labels

    samples = [Sample(n, Path(n), "one", n, "train", (Target("polyp", True, load),)) for n in ("a.png", "b.png")]
    neck = rng.normal(size=(2, 256, 64, 64)).astype(np.float16)
    pixels = rng.integers(0, 255, size=(2, SIDE, SIDE, 3)).astype(np.uint8)
    view = CachedView(0, 0, {sample.name: row for row, sample in enumerate(samples)}, neck, pixels)
    return BatchMaker(samples, CachedViews([view]), CONFIG.sampling, seed=1)


def train(out: Path, workers: Workers | None = None) -> None:
    fit(out, maker(), one.texts(), CONFIG, workers=workers)


if __name__ == "__main__":
    train(Path(sys.argv[1]), workers_for("cpu"))
