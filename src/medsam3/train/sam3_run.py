"""A whole fine-tuning run of SAM 3: weights in, features cached, training, weights and card out, a look at `val`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam3.data.samples import Sample, contents_digest
from medsam3.errors import InputError
from medsam3.measure.outline import dice
from medsam3.models.detector import PromptTokens
from medsam3.models.sam3.checkpoints import WEIGHTS_FILE, Checkpoint, read_adapter, read_checkpoint, write_folder
from medsam3.models.sam3.clip_phrases import PhraseTokenizer, load_tokenizer, vocabulary_files
from medsam3.models.sam3.lora import LoraSource, merge
from medsam3.models.sam3.network import Architecture, Sam3Network, at_image_size, blank_network, fill_network
from medsam3.models.sam3.segmenter import Sam3Options, load_sam3
from medsam3.prompts import Prompt
from medsam3.store import replacing, write_text
from medsam3.train.batches import BatchMaker
from medsam3.train.cache import FeatureCache, Features, ViewKey, fill, fingerprint, probe
from medsam3.train.card import curve_summary, data_summary, write_card
from medsam3.train.config import Sam3FitConfig
from medsam3.train.estimate import cost_lines, measure, table_of
from medsam3.train.loop import Hooks, RunFolder, fit
from medsam3.train.pictures import StretchedViews, stretched_view
from medsam3.train.run import describe_data
from medsam3.train.trainee_sam3 import (
    Sam3Trainee,
    drop_text_encoder,
    drop_trunk,
    encode_phrases,
    halve_trunk,
    sides_of,
    trunk_of,
)
from medsam3.train.workers import Workers, gather, write_tensors

_DETECTOR = "detector_model."
Bits = NDArray[np.int16]


@dataclass(frozen=True)
class Sam3Settings:
    """The folder of a run and what it starts from.

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


class Sam3Reached(TypedDict, total=False):
    """What trained weights reach on val; empty if nothing was measured."""

    images: int
    dice_text: dict[str, float]
    absent_prompts: int
    absent_but_found: float | None


@dataclass(frozen=True)
class Sam3Result:
    """The results of a run: a folder that `medsam3.load` takes, its card, the adapter if one was trained."""

    model: Path
    card: Path
    adapter: Path | None
    val: Sam3Reached


@dataclass(frozen=True)
class Sam3Start:
    """Weights read and known to fit, the tokenizer, and the configuration with the weights' fingerprint."""

    checkpoint: Checkpoint
    architecture: Architecture
    tokenizer: PhraseTokenizer
    config: Sam3FitConfig

    @cached_property
    def encoder_sha256(self) -> str:
        """The fingerprint of the frozen image encoder's trunk, by its weights, input size and precision."""
        trunk = self.architecture.detector.vision_config.backbone_config
        start = f"{_DETECTOR}vision_encoder.backbone."
        own = {name: tensor for name, tensor in self.checkpoint.tensors.items() if name.startswith(start)}
        return fingerprint(own, about=f"{trunk.image_size}/{'bf16' if self.config.bf16 else 'fp32'}")

    def network(self, device: torch.device) -> Sam3Network:
        """The detector in float32, without the tracker."""
        sizes = self.architecture.without_tracker()
        own = {name: tensor for name, tensor in self.checkpoint.tensors.items() if name.startswith(_DETECTOR)}
        return fill_network(blank_network(sizes), own, dtype=torch.float32, device=device)


def read_start(settings: Sam3Settings) -> Sam3Start:
    """Read what the run starts from.

    Raises:
        InputError: As `read_checkpoint`, `load_tokenizer` and `at_image_size` say.
    """
    checkpoint, config = read_checkpoint(settings.weights), settings.config
    tokenizer = load_tokenizer(settings.vocabulary, checkpoint.folder)
    architecture = checkpoint.architecture
    if config.image_size is not None:
        architecture = at_image_size(architecture, config.image_size)
    return Sam3Start(checkpoint, architecture, tokenizer, replace(config, base_sha256=fingerprint(checkpoint.tensors)))


def describe_sam3(
    samples: Sequence[Sample], settings: Sam3Settings, start: Sam3Start, device: torch.device
) -> list[str]:
    """Tell a person what trains on what."""
    config, blank = start.config, blank_network(start.architecture.without_tracker())
    parts = Sam3Trainee(blank, config, tokenizer=start.tokenizer).parts()
    sampling = config.sampling
    lines = [
        *describe_data(samples),
        *table_of(parts),
        f"trains: {config.trains}, {config.steps} updates of {config.accumulate} x {sampling.images} images with "
        f"{sampling.prompts} prompts each, at {blank.image_size} pixels, on {device}",
    ]
    if _is_cached(config):
        cache, views = _cache(blank, settings, start), _views(samples, config)
        size = len(views) * cache.dtype.itemsize * int(np.prod(cache.shape)) / 2**30
        lines.append(f"features to cache: {len(views)} views, {size:.2f} GiB on disk")
    return [*lines, f"run folder: {settings.out}"]


def estimate_sam3(
    samples: Sequence[Sample], settings: Sam3Settings, start: Sam3Start, device: torch.device
) -> list[str]:
    """Say what time and memory the run will take, from a few real steps that are thrown away."""
    train = _train_samples(samples, start.config)
    missing_views, view_s = 0, 0.0

    def features(cache: FeatureCache, views: Sequence[ViewKey], make: Callable[[Sample, int], Bits]) -> Features:
        nonlocal missing_views, view_s
        found, missing_views, view_s = probe(cache, views, make)
        return found

    trainee, maker = _prepared(train, settings, start, device, features)
    return cost_lines(measure(trainee, maker, device, missing_views=missing_views, view_s=view_s))


def train_sam3(
    samples: Sequence[Sample], settings: Sam3Settings, start: Sam3Start, workers: Workers, *, hooks: Hooks | None = None
) -> Sam3Result | None:
    """Train from samples to weights. Some of `val` are segmented in the end, `test` is not read.

    Returns:
        What was made; None in all processes but the first.

    Raises:
        InputError: The folder holds another run, or the loss is not finite.
    """
    hooks, config = hooks or Hooks(), start.config
    train = _train_samples(samples, config)

    def features(cache: FeatureCache, views: Sequence[ViewKey], make: Callable[[Sample, int], Bits]) -> Features:
        hooks.on_phase("features", len(views))
        return fill(cache, views, make, workers, hooks.on_item)

    with RunFolder(settings.out, config, contents_digest(samples), is_writer=workers.rank == 0) as folder:
        trainee, maker = _prepared(train, settings, start, workers.device, features)
        hooks.on_phase("training", config.steps)
        run = fit(folder, trainee, maker, workers, hooks=hooks)
        gathered, _ = gather(run.model, run.optimizer)
        weights = trainee.trained_tensors(gathered)
        if workers.rank > 0:
            return None
        adapter = write_adapter(settings.out / "adapter", trainee, weights)
        del trainee, maker, run
        model = export_model(settings, start, weights, adapter)
        val: Sam3Reached = measure_val(samples, model, settings, workers.device, hooks) if settings.val_images else {}
        card = model / "card.json"
        content = {
            "started_from": {"name": Path(settings.weights).name, "tensors_sha256": config.base_sha256},
            "training": asdict(config),
            "data": data_summary(samples),
            "val": val,
            "curve": curve_summary(folder.curves.records),
        }
        write_card(card, "sam3", model / WEIGHTS_FILE, content)
        return Sam3Result(model, card, adapter, val)


def _train_samples(samples: Sequence[Sample], config: Sam3FitConfig) -> list[Sample]:
    train = [sample for sample in samples if sample.split == "train"]
    if config.sampling.images > len(train):
        raise InputError(f"--images-per-step is {config.sampling.images}, there are only {len(train)} train images")
    return train


def _is_cached(config: Sam3FitConfig) -> bool:
    return config.trains == "detector" and config.is_cached


def _views(samples: Sequence[Sample], config: Sam3FitConfig) -> list[ViewKey]:
    return [(sample, view) for view in range(config.views) for sample in samples if sample.split == "train"]


def _prepared(
    train: Sequence[Sample],
    settings: Sam3Settings,
    start: Sam3Start,
    device: torch.device,
    features: Callable[[FeatureCache, Sequence[ViewKey], Callable[[Sample, int], Bits]], Features],
) -> tuple[Sam3Trainee, BatchMaker]:
    """Make the trainee and its batches.

    If the recipe allows it, all frozen features come at once from `features`, and the frozen encoders are dropped.
    """
    config = start.config
    torch.manual_seed(config.seed)
    network = start.network(device)
    sides = sides_of(network)
    views = StretchedViews(sides.image, 2 * sides.mask, config.views, config.seed)
    sampling = replace(config.sampling, max_objects=min(config.sampling.max_objects, sides.queries))
    maker = BatchMaker(train, views, sampling, seed=config.seed, least_share=config.least_object_share)
    if config.trains != "detector":
        return Sam3Trainee(network, config, tokenizer=start.tokenizer), maker
    phrases = encode_all(network, start.tokenizer, maker.phrases())
    drop_text_encoder(network)
    if config.bf16:
        halve_trunk(network)
    if _is_cached(config):
        found = features(_cache(network, settings, start), _views(train, config), _make_view(network, config.seed))
        maker.views = replace(views, features=found)
        drop_trunk(network)
    return Sam3Trainee(network, config, phrases=phrases), maker


def _cache(network: Sam3Network, settings: Sam3Settings, start: Sam3Start) -> FeatureCache:
    """Name the cache of the trunk's output."""
    side = network.image_size
    trunk = network.detector_model.config.vision_config.backbone_config
    shape = (trunk.hidden_size, side // trunk.patch_size, side // trunk.patch_size)
    return FeatureCache(settings.cache, start.encoder_sha256, np.dtype(np.int16), shape, start.config.seed)


def _make_view(network: Sam3Network, seed: int) -> Callable[[Sample, int], Bits]:
    """Encode views in bfloat16, whose bits numpy keeps as integers."""

    def make(sample: Sample, view: int) -> Bits:
        square = stretched_view(sample, view, seed=seed, side=network.image_size)
        pixels = torch.from_numpy(square).permute(2, 0, 1)[None]
        with torch.inference_mode():
            trunk = trunk_of(network, pixels)[0]
        bits: Bits = trunk.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy()
        return bits

    return make


def encode_all(network: Sam3Network, tokenizer: PhraseTokenizer, phrases: Sequence[str]) -> dict[str, PromptTokens]:
    """Encode phrases one at a time, so that none is padded."""
    with torch.no_grad():
        return {phrase: encode_phrases(network, tokenizer, [phrase]) for phrase in phrases}


def write_adapter(folder: Path, trainee: Sam3Trainee, weights: dict[str, Tensor]) -> Path | None:
    """Write the trained adapter in the authors' own format with its YAML file; None if none was trained."""
    if trainee.adapter is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "best_lora_weights.pt"
    with replacing(path) as temporary:
        write_tensors(temporary, trainee.adapter.authors_tensors(weights))
    write_text(folder / "lora_config.yaml", trainee.adapter.yaml())
    return path


def export_model(settings: Sam3Settings, start: Sam3Start, weights: dict[str, Tensor], adapter: Path | None) -> Path:
    """Write a folder in transformers' layout: the weights at the start with what was trained in their place.

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
    samples: Sequence[Sample], model: Path, settings: Sam3Settings, device: torch.device, hooks: Hooks
) -> Sam3Reached:
    """Measure the mean Dice by concept if it is present, and the share of absent ones that are found anyway.

    Each concept is asked by its name, as a user would; all objects found count together.
    """
    chosen = [sample for sample in samples if sample.split == "val"][: settings.val_images]
    hooks.on_phase("val", len(chosen))
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
        hooks.on_item()
    return {
        "images": len(chosen),
        "dice_text": {concept: round(float(np.mean(values)), 4) for concept, values in sorted(overlaps.items())},
        "absent_prompts": len(false_alarms),
        "absent_but_found": round(float(np.mean(false_alarms)), 4) if false_alarms else None,
    }
