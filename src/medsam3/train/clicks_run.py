"""A run of the interactive decoder: keep the shipped detector's levels and answers, fit, write weights and card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from medsam3.data.samples import Sample, contents_digest
from medsam3.geometry import BoolArray
from medsam3.measure.outline import dice
from medsam3.models.mini.click_decoder import ClickDecoder
from medsam3.models.mini.clicker import clicker_weights, levels_sha256
from medsam3.models.mini.segmenter import MiniSegmenter
from medsam3.models.registry import load
from medsam3.store import replacing
from medsam3.train.cache import Features, fill
from medsam3.train.card import curve_summary, data_summary, write_card
from medsam3.train.click_cache import balanced, click_cache, seen_by
from medsam3.train.config import ClickFitConfig
from medsam3.train.extents import clicked_extents, fit_extents
from medsam3.train.loop import Hooks, RunFolder, Validation, fit
from medsam3.train.person import LEAST_PX, Logits, Meant, clicked_next
from medsam3.train.run import ClicksReached, RunResult
from medsam3.train.trainee_clicks import ClickBatchMaker, ClickTrainee, drawn_of, placed_object
from medsam3.train.workers import OneProcess, Workers

NAME = "mini-interactive"
VAL_OBJECTS = 48
VAL_MOST = 2
"""Pictures of a data set that are measured on val."""
VAL_CLICKS = 5


@dataclass(frozen=True)
class ValObject:
    """An object of a val picture in its window: what is meant and begun with, and what the decoder sees."""

    meant: Meant
    levels: tuple[Tensor, Tensor]
    window: Tensor
    pixels: Tensor


@dataclass(frozen=True)
class RunPlace:
    """Where a run writes, and where the cached features lie."""

    out: Path
    cache: Path


def train_clicks(
    samples: Sequence[Sample],
    place: RunPlace,
    config: ClickFitConfig,
    workers: Workers | None = None,
    *,
    hooks: Hooks | None = None,
) -> RunResult | None:
    """Train from samples to weights: train images are fitted, val images choose the step, test is not read.

    Args:
        samples: With train and val splits.
        place: Its folders.
        config: Its settings; the levels' digest is filled in here.
        workers: The processes that train together.
        hooks: Of the first process.

    Returns:
        What was made; None in the other processes.

    Raises:
        InputError: The shipped weights are damaged, or the folder holds another run.
    """
    hooks, workers = hooks or Hooks(), workers or OneProcess(torch.device("cpu"))
    segmenter = load("mini")
    assert isinstance(segmenter, MiniSegmenter), "mini is the small model"
    detector = segmenter.detectors[0]
    config = replace(config, levels_sha256=levels_sha256(detector.levels))
    train = balanced([one for one in samples if one.split == "train"], config.most, config.seed)
    val = balanced([one for one in samples if one.split == "val"], VAL_MOST, config.seed)
    cache = click_cache(place.cache, config.levels_sha256, detector.config.width, config.seed)
    hooks.on_phase("encoding", len(train) + len(val))
    make = lambda sample, view: seen_by(segmenter, sample, config.seed)  # noqa: E731
    features = fill(cache, [(one, 0) for one in (*train, *val)], make, workers, hooks.on_item)
    objects = val_objects(val, features, config)
    with RunFolder(place.out, config, contents_digest(samples), is_writer=workers.rank == 0) as folder:
        trainee = ClickTrainee(config, workers.device)
        maker = ClickBatchMaker(train, features, config)
        measured = partial(_mean_dice, trainee.average, objects)
        validation = Validation(config.val_every, config.patience, measured) if config.val_every else None
        hooks.on_phase("training", config.steps)
        run = fit(folder, trainee, maker, workers, validation=validation, hooks=hooks)
        if workers.rank > 0:
            return None
        if run.best is not None:
            trainee.put_further_state(run.best.weights)
        hooks.on_phase("extents", len(train))
        extents = fit_extents(clicked_extents(train, features, config.seed), detector.config.width, config.seed)
        curve = click_curve(trainee.average, objects)
        summary: ClicksReached = {"dice_by_click": [round(value, 4) for value in curve], "objects": len(objects)}
        content = {
            "decoder": asdict(config.decoder),
            "stands_on": {"levels_sha256": config.levels_sha256},
            "training": asdict(config),
            "updates": run.step if run.best is None else run.best.step,
            "data": data_summary((*train, *val)),
            "curve": curve_summary(folder.curves.records),
        }
        return write_clicks(place.out, clicker_weights(trainee.average, extents), content, summary)


def write_clicks(out: Path, networks: nn.Module, content: Mapping[str, object], reached: ClicksReached) -> RunResult:
    """Write `mini-interactive.safetensors` in float16 and its card."""
    weights, card = out / f"{NAME}.safetensors", out / f"{NAME}.json"
    state = {name: value.detach().cpu().half().contiguous() for name, value in networks.state_dict().items()}
    with replacing(weights, ".safetensors") as temporary:
        temporary.write_bytes(save(state))
        temporary.chmod(0o644)
    write_card(card, NAME, weights, {**content, "val": reached})
    return RunResult(weights, card, reached)


def val_objects(samples: Sequence[Sample], features: Features, config: ClickFitConfig) -> list[ValObject]:
    """Take the largest object of a concept of each picture, begun with a model's answer, a damaged mask or nothing."""
    rng, chosen = np.random.default_rng(0), list[ValObject]()
    for sample in samples[:VAL_OBJECTS]:
        present = [target for target in sample.targets if target.is_present]
        labels = present[int(rng.integers(len(present)))].load()
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        if sizes.max() < LEAST_PX:
            continue
        values = features.get(sample.name, 0)
        truth, answers = labels == int(sizes.argmax()), values["answers"][0].astype(np.float32)
        chosen.append(_val_object(sample, truth, answers, values, config))
    return chosen


def _val_object(
    sample: Sample, truth: BoolArray, answers: Logits, values: NDArray[Any], config: ClickFitConfig
) -> ValObject:
    rng = np.random.default_rng([1, *sample.name.encode()])
    meant, window, pixels = placed_object(sample.load_rgb(), truth, answers, config, rng)
    middle, coarse = (torch.from_numpy(values[name].astype(np.float32)) for name in ("middle", "coarse"))
    return ValObject(meant, (middle, coarse), window.shares[None].float(), pixels[None])


def _mean_dice(decoder: ClickDecoder, objects: Sequence[ValObject]) -> float:
    return float(np.mean(click_curve(decoder, objects)))


def click_curve(decoder: ClickDecoder, objects: Sequence[ValObject], clicks: int = VAL_CLICKS) -> list[float]:
    """Mean Dice over objects after what they begin with and one answer, two and so on."""
    scores = np.zeros((len(objects), clicks))
    with torch.inference_mode():
        for k, one in enumerate(objects):
            said = one.meant
            image = decoder.image(decoder.frame((one.levels[0], *one.levels)), one.window, one.pixels)
            for n in range(clicks):
                said = clicked_next(said, None) if n else said
                logits = decoder(image, drawn_of([said]))[0][0]
                mask = (logits > 0).numpy().repeat(2, axis=0).repeat(2, axis=1)
                said = replace(said, mask=mask)
                scores[k, n] = dice(said.truth, mask)
    return [float(value) for value in scores.mean(axis=0)]
