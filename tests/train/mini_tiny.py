"""A small detector that is small and random, features that are kept in memory, and samples for both."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from medsam3.data.samples import Instances, Sample, Target
from medsam3.models.mini.detector import MiniDetectorConfig
from medsam3.models.mini.letterbox import SIDE
from medsam3.models.mini.text_encoder import TextEncoder, TextTokens
from medsam3.train.batches import BatchMaker
from medsam3.train.config import FitConfig, SamplingConfig
from medsam3.train.loop import Hooks, Run, RunFolder, Validation, fit
from medsam3.train.pictures import MINI_FEATURES, CachedViews
from medsam3.train.trainee_mini import MiniTrainee, Start
from medsam3.train.workers import OneProcess, Workers

TINY = MiniDetectorConfig(width=16, heads=2, feed_forward=16, encoder_layers=1, decoder_layers=1, queries=4)
CONFIG = FitConfig(
    steps=6, warmup_steps=2, bf16=False, save_every=3, detector=TINY, sampling=SamplingConfig(images=1, prompts=1)
)
DATA = "digest of the data"


class PhraseTexts:
    """Stands for the text encoder: a fixed random token for each phrase."""

    def encode(self, phrases: Sequence[str]) -> TextTokens:
        rows = [torch.randn(1, 384, generator=torch.Generator().manual_seed(len(phrase))) for phrase in phrases]
        return TextTokens(torch.stack(rows), torch.ones(len(rows), 1, dtype=torch.bool))


class KeptFeatures:
    """Features in memory, by name and view."""

    def __init__(self, kept: Mapping[str, Mapping[int, NDArray[Any]]]) -> None:
        self.kept = kept

    def views(self, name: str) -> Sequence[int]:
        return list(self.kept[name])

    def get(self, name: str, view: int) -> NDArray[Any]:
        return self.kept[name][view]


def texts() -> TextEncoder:
    return cast(TextEncoder, PhraseTexts())


def record(neck: NDArray[Any], pixels: NDArray[Any]) -> NDArray[Any]:
    """One view as the cache keeps it."""
    values = np.zeros(1, MINI_FEATURES)
    values["neck"][0], values["pixels"][0] = neck, pixels
    return values


def polyp(name: str, image: Path | None = None) -> Sample:
    """A sample with one polyp, left of the middle."""

    def load() -> Instances:
        labels = np.zeros((SIDE, SIDE), np.int32)
        labels[60:140, 30:200] = 1
        return labels

    return Sample(name, image or Path(name), "one", name, "train", (Target("polyp", True, load),))


def maker(names: Sequence[str] = ("a.png",), sampling: SamplingConfig = CONFIG.sampling) -> BatchMaker:
    """Batches of random features, brighter where the polyp is."""
    rng = np.random.default_rng(0)
    kept = {}
    for name in names:
        neck = rng.normal(size=(256, 64, 64)).astype(np.float16)
        neck[:, 15:35, 8:50] += 1
        kept[name] = {0: record(neck, rng.integers(0, 255, size=(SIDE, SIDE, 3)))}
    views = CachedViews(KeptFeatures(kept), seed=0)
    return BatchMaker([polyp(name) for name in names], views, sampling, seed=1)


def train(
    out: Path,
    config: FitConfig = CONFIG,
    *,
    batches: BatchMaker | None = None,
    workers: Workers | None = None,
    hooks: Hooks | None = None,
    validation: Validation | None = None,
    data: str = DATA,
) -> tuple[Run, MiniTrainee]:
    """Run `config` in a folder."""
    chosen = workers or OneProcess(torch.device("cpu"))
    trainee = MiniTrainee(config, texts())
    with RunFolder(out, config, data, is_writer=chosen.rank == 0) as folder:
        run = fit(folder, trainee, batches or maker(), chosen, hooks=hooks, validation=validation)
    return run, trainee


def started(config: FitConfig, start: Start) -> MiniTrainee:
    return MiniTrainee(config, texts(), start=start)


def losses(folder: Path) -> list[float]:
    """The total loss of each update of a run."""
    lines = (folder / "curves.jsonl").read_text().splitlines()[1:]
    return [json.loads(line)["total"] for line in lines]
