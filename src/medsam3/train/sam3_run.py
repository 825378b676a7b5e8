"""A whole fine-tuning run of SAM 3: weights in, features cached, training, weights and card out, a look at `val`."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsam3 import __version__
from medsam3.data.samples import Sample, foreign_concepts
from medsam3.errors import InputError
from medsam3.measure.outline import dice
from medsam3.models.detector import PromptTokens
from medsam3.models.sam3.checkpoints import WEIGHTS_FILE, Checkpoint, read_adapter, read_checkpoint, write_folder
from medsam3.models.sam3.clip_phrases import PhraseTokenizer, load_tokenizer, vocabulary_files
from medsam3.models.sam3.lora import LoraSource, merge
from medsam3.models.sam3.network import Architecture, Sam3Network, at_image_size, blank_network, fill_network
from medsam3.models.sam3.segmenter import Sam3Options, load_sam3
from medsam3.prompts import Prompt
from medsam3.train.fit import Progress
from medsam3.train.parts import table_of
from medsam3.train.run import curve_summary, data_summary, describe_data
from medsam3.train.sam3_batches import CachedTrunks, Sam3BatchMaker, all_phrases, view_pixels
from medsam3.train.sam3_cache import TrunkCache, fingerprint
from medsam3.train.sam3_config import Sam3FitConfig
from medsam3.train.sam3_estimate import described, estimate, measured_tera
from medsam3.train.sam3_fit import check_folder, fit_sam3
from medsam3.train.sam3_trainee import (
    Sam3Trainee,
    drop_text_encoder,
    drop_trunk,
    encode_phrases,
    halve_trunk,
    sides_of,
    trunk_of,
)
from medsam3.train.workers import Workers

_DETECTOR = "detector_model."


@dataclass(frozen=True)
class Sam3Settings:
    """Where a run lives and what it starts from.

    Attributes:
        weights: SAM 3's, in any form that `medsam3.load` takes.
        out: Folder of the run.
        cache: Folder of the cached features.
        config: Of the run; its `base_sha256` is filled in here.
        vocabulary: CLIP's, where it is not beside the weights.
        val_images: At most so many images of `val` are segmented in the end.
    """

    weights: str
    out: Path
    cache: Path
    config: Sam3FitConfig
    vocabulary: Path | None = None
    val_images: int = 32


@dataclass(frozen=True)
class Reporter:
    """Where to tell of phases, their items, and updates."""

    phase: Callable[[str, int], None] = lambda name, count: None
    item: Callable[[], None] = lambda: None
    step: Callable[[Progress], None] = lambda progress: None


@dataclass(frozen=True)
class Sam3Result:
    """What a run has made: a folder that `medsam3.load` takes, its card, the adapter if one was trained."""

    model: Path
    card: Path
    adapter: Path | None
    val: dict[str, Any]


@dataclass(frozen=True)
class Start:
    """Weights read and known to fit, the tokenizer, and the configuration with the weights' fingerprint."""

    checkpoint: Checkpoint
    architecture: Architecture
    tokenizer: PhraseTokenizer
    config: Sam3FitConfig

    def network(self, device: torch.device) -> Sam3Network:
        """The detector in float32, without the tracker."""
        sizes = self.architecture.without_tracker()
        own = {name: tensor for name, tensor in self.checkpoint.tensors.items() if name.startswith(_DETECTOR)}
        return fill_network(blank_network(sizes), own, dtype=torch.float32, device=device)


def read_start(settings: Sam3Settings) -> Start:
    """Read what the run starts from.

    Raises:
        InputError: As `read_checkpoint`, `load_tokenizer` and `at_image_size` say.
    """
    checkpoint, config = read_checkpoint(settings.weights), settings.config
    tokenizer = load_tokenizer(settings.vocabulary, checkpoint.folder)
    architecture = checkpoint.architecture
    if config.image_size is not None:
        architecture = at_image_size(architecture, config.image_size)
    return Start(checkpoint, architecture, tokenizer, replace(config, base_sha256=fingerprint(checkpoint.tensors)))


def describe_sam3(samples: Sequence[Sample], settings: Sam3Settings, start: Start, device: torch.device) -> list[str]:
    """Lines that tell a person what trains on what, and what it will take."""
    blank = blank_network(start.architecture.without_tracker())
    parts = Sam3Trainee(blank, start.config, tokenizer=start.tokenizer).parts()
    tera = measured_tera(device, torch.bfloat16 if start.config.bf16 else torch.float32)
    images = sum(sample.split == "train" for sample in samples)
    sampling = start.config.sampling
    return [
        *describe_data(samples),
        *table_of(parts),
        f"trains: {start.config.trains}, {start.config.steps} updates of {start.config.accumulate} x {sampling.images} "
        f"images with {sampling.prompts} prompts each, at {blank.image_size} pixels, on {device}",
        *described(estimate(blank, parts, start.config, images=images, tera=tera), tera),
        f"run folder: {settings.out}",
    ]


def train_sam3(
    samples: Sequence[Sample], settings: Sam3Settings, start: Start, workers: Workers, *, report: Reporter | None = None
) -> Sam3Result | None:
    """From samples to weights. Train images are fitted, some of `val` are segmented in the end, `test` is not read.

    Returns:
        What was made; None in all processes but the first.

    Raises:
        InputError: The folder holds another run, or the loss is not finite.
    """
    tell, config = report or Reporter(), start.config
    train = [sample for sample in samples if sample.split == "train"]
    if config.sampling.images > len(train):
        raise InputError(f"--images-per-step is {config.sampling.images}, there are only {len(train)} train images")
    if workers.rank == 0:
        check_folder(settings.out, config)
    foreign = foreign_concepts(samples)
    torch.manual_seed(config.seed)
    network = start.network(workers.device)
    trainee, trunks = _prepared(network, train, settings, start, workers, tell)
    maker = Sam3BatchMaker(train, foreign, config, sides_of(network), trunks=trunks)
    tell.phase("training", config.steps)
    weights = fit_sam3(settings.out, trainee, maker, workers, on_step=tell.step)
    if workers.rank > 0:
        return None
    adapter = write_adapter(settings.out / "adapter", trainee, weights)
    del network, trainee, maker
    model = export_model(settings, start, weights, adapter)
    val = measure_val(samples, model, settings, workers.device, tell) if settings.val_images else {}
    card = write_card(model, settings, start, samples, val)
    return Sam3Result(model, card, adapter, val)


def _prepared(
    network: Sam3Network,
    train: Sequence[Sample],
    settings: Sam3Settings,
    start: Start,
    workers: Workers,
    tell: Reporter,
) -> tuple[Sam3Trainee, CachedTrunks | None]:
    """The trainee, with all frozen features cached and the frozen encoders dropped where the recipe allows it."""
    config = start.config
    if config.trains != "detector":
        return Sam3Trainee(network, config, tokenizer=start.tokenizer), None
    phrases = encode_all(network, start.tokenizer, all_phrases(train, foreign_concepts(train)))
    drop_text_encoder(network)
    if config.bf16:
        halve_trunk(network)
    trunks = None
    if config.is_cached:
        trunks = cache_trunks(network, train, settings, start, workers, tell)
        drop_trunk(network)
    return Sam3Trainee(network, config, phrases=phrases), trunks


def encode_all(network: Sam3Network, tokenizer: PhraseTokenizer, phrases: Sequence[str]) -> dict[str, PromptTokens]:
    """Text features of phrases, one at a time so that none is padded."""
    with torch.no_grad():
        return {phrase: encode_phrases(network, tokenizer, [phrase]) for phrase in phrases}


def cache_trunks(
    network: Sam3Network,
    train: Sequence[Sample],
    settings: Sam3Settings,
    start: Start,
    workers: Workers,
    tell: Reporter,
) -> CachedTrunks:
    """The trunk's output for all views of all train images, computed where it is not on disk; processes share it."""
    config, side = start.config, network.image_size
    own = {n: t for n, t in start.checkpoint.tensors.items() if n.startswith(f"{_DETECTOR}vision_encoder.backbone.")}
    encoder = fingerprint(own, about=f"{side}/{'bf16' if config.bf16 else 'fp32'}")
    trunk = network.detector_model.config.vision_config.backbone_config
    shape = (trunk.hidden_size, side // trunk.patch_size, side // trunk.patch_size)
    cache = TrunkCache(settings.cache, encoder, shape, config.seed)
    pairs = [(sample, view) for view in range(config.views) for sample in train]
    tell.phase("features", len(pairs))
    files = {}
    for number, (sample, view) in enumerate(pairs):
        path = files[sample.name, view] = cache.path(sample, view)
        if number % workers.count == workers.rank and not cache.has(path):
            pixels = torch.from_numpy(view_pixels(sample, view, seed=config.seed, side=side)).permute(2, 0, 1)[None]
            with torch.inference_mode():
                cache.put(path, trunk_of(network, pixels)[0])
        tell.item()
    workers.wait()
    return CachedTrunks(cache, files)


def write_adapter(folder: Path, trainee: Sam3Trainee, weights: dict[str, Tensor]) -> Path | None:
    """The trained adapter in the authors' own format with its YAML file; None where none was trained."""
    if trainee.adapter is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path, unfinished = folder / "best_lora_weights.pt", folder / ".best_lora_weights.part"
    torch.save(trainee.adapter.authors_tensors(weights), unfinished)
    unfinished.replace(path)
    (folder / "lora_config.yaml").write_text(trainee.adapter.yaml(), encoding="utf-8")
    return path


def export_model(settings: Sam3Settings, start: Start, weights: dict[str, Tensor], adapter: Path | None) -> Path:
    """A folder in transformers' layout: the weights at the start with what was trained in their place.

    The tracker is kept unless the image encoder that it stands on was trained.
    """
    tensors, architecture = start.checkpoint.tensors, start.architecture
    if adapter is not None:
        tensors = merge(tensors, read_adapter(LoraSource(adapter)))
    else:
        unknown = sorted(set(weights) - set(tensors))
        assert not unknown, f"trained weights have no place: {unknown[:3]}"
        tensors = {**tensors, **weights}
    if start.config.trains == "all":
        architecture = architecture.without_tracker()
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(_DETECTOR)}
    folder = settings.out / "model"
    files = vocabulary_files(settings.vocabulary, start.checkpoint.folder)
    write_folder(folder, architecture, tensors, vocabulary=files)
    return folder


def measure_val(
    samples: Sequence[Sample], model: Path, settings: Sam3Settings, device: torch.device, tell: Reporter
) -> dict[str, Any]:
    """Mean Dice by concept where it is present, and the share of absent ones in which something was found anyway.

    Each concept is asked by its name, as a user would; all objects found count together.
    """
    chosen = [sample for sample in samples if sample.split == "val"][: settings.val_images]
    tell.phase("val", len(chosen))
    is_half = settings.config.bf16 and device.type == "cuda"
    options = Sam3Options(device=str(device), precision="bfloat16" if is_half else "float32")
    segmenter = load_sam3(model, options=options, vocabulary=settings.vocabulary)
    overlaps: dict[str, list[float]] = defaultdict(list)
    false_alarms = []
    for sample in chosen:
        features = segmenter.encode(sample.load_rgb())
        for target in sample.targets:
            truth = target.load() > 0
            found = segmenter.decode(features, Prompt(text=target.concept)).union()[0]
            if truth.any():
                overlaps[target.concept].append(dice(truth, found))
            else:
                false_alarms.append(bool(found.any()))
        tell.item()
    return {
        "images": len(chosen),
        "dice_text": {concept: round(float(np.mean(values)), 4) for concept, values in sorted(overlaps.items())},
        "absent_prompts": len(false_alarms),
        "absent_but_found": round(float(np.mean(false_alarms)), 4) if false_alarms else None,
    }


def write_card(
    model: Path, settings: Sam3Settings, start: Start, samples: Sequence[Sample], val: dict[str, Any]
) -> Path:
    """`card.json` beside the weights: how they were made, from what, on what, and what they reach."""
    with (model / WEIGHTS_FILE).open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    content = {
        "model": "sam3",
        "sha256": digest,
        "made": datetime.now(UTC).strftime("%Y-%m-%d"),
        "started_from": {"name": Path(settings.weights).name, "tensors_sha256": start.config.base_sha256},
        "training": asdict(start.config),
        "data": data_summary(samples),
        "val": val,
        "curve": curve_summary(settings.out / "curves.jsonl"),
        "versions": {
            "medsam3": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
    }
    card, unfinished = model / "card.json", model / "card.json.part"
    unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")
    unfinished.replace(card)
    return card
