"""A training run to be killed: `python sam3_killed_run.py WEIGHTS PICTURES OUT`, slowly, so that there is time to."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import sam3_tiny as tiny
import torch

from medsam3.data.samples import foreign_concepts
from medsam3.train.sam3_batches import Sam3BatchMaker
from medsam3.train.sam3_config import Sam3FitConfig
from medsam3.train.sam3_fit import fit_sam3
from medsam3.train.sam3_trainee import Sam3Trainee, sides_of
from medsam3.train.workers import OneProcess, Workers

CONFIG = tiny.configured(steps=7, save_every=3, is_cached=False, accumulate=2)


def train(
    weights: Path,
    pictures: Path,
    out: Path,
    *,
    config: Sam3FitConfig = CONFIG,
    pause_s: float = 0.0,
    workers: Workers | None = None,
) -> dict[str, torch.Tensor]:
    """The run of `config` on bright squares."""
    samples = tiny.bright_squares(pictures)
    torch.manual_seed(config.seed)
    network = tiny.network()
    trainee = Sam3Trainee(network, config, tokenizer=tiny.tokenizer(weights))
    maker = Sam3BatchMaker(samples, foreign_concepts(samples), config, sides_of(network))
    chosen = workers or OneProcess(torch.device("cpu"))
    return fit_sam3(out, trainee, maker, chosen, on_step=lambda progress: time.sleep(pause_s))


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), pause_s=0.5)
