"""A training run to be killed: `python sam3_killed_run.py WEIGHTS PICTURES OUT`, slowly, so that there is time to."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import sam3_tiny as tiny
import torch

from medsam3.train.batches import BatchMaker
from medsam3.train.config import Sam3FitConfig
from medsam3.train.loop import Hooks, RunFolder, fit
from medsam3.train.pictures import StretchedViews
from medsam3.train.trainee_sam3 import Sam3Trainee, sides_of
from medsam3.train.workers import OneProcess, Workers, gather

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
    sides = sides_of(network)
    views = StretchedViews(sides.image, 2 * sides.mask, config.views, config.seed)
    maker = BatchMaker(samples, views, config.sampling, seed=config.seed, least_share=config.least_object_share)
    chosen = workers or OneProcess(torch.device("cpu"))
    hooks = Hooks(on_step=lambda progress: time.sleep(pause_s))
    with RunFolder(out, config, "bright squares", is_writer=chosen.rank == 0) as folder:
        run = fit(folder, trainee, maker, chosen, hooks=hooks)
    return trainee.trained_tensors(gather(run.model, run.optimizer)[0])


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), pause_s=0.5)
