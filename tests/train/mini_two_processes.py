"""A run of the small detector on two images a step: `torchrun mini_two_processes.py OUT`, or here by `train(out)`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import mini_tiny as tiny

from medsam3.train.config import SamplingConfig
from medsam3.train.workers import Workers, workers_for

CONFIG = replace(tiny.CONFIG, sampling=SamplingConfig(images=2, prompts=1, exemplar=0.0))


def train(out: Path, workers: Workers | None = None) -> None:
    tiny.train(out, CONFIG, batches=tiny.maker(("a.png", "b.png"), CONFIG.sampling), workers=workers)


if __name__ == "__main__":
    train(Path(sys.argv[1]), workers_for("cpu"))
