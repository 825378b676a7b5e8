"""A whole run of the small model: describe, cache features, fit, choose thresholds, write weights and their card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from medsam3.data.index import SPLITS
from medsam3.data.samples import Sample, contents_digest
from medsam3.models.mini.card import MiniCard, MiniThresholds, read_card
from medsam3.models.mini.detector import MiniDetector, MiniDetectorConfig
from medsam3.models.mini.encoder_files import LITE_MEDSAM, TRUNK, locate, locate_trunk
from medsam3.models.mini.lite_medsam import LiteMedSam
from medsam3.models.mini.segmenter import SHIPPED_WEIGHTS, MiniSegmenter, load_mini
from medsam3.models.mini.text_encoder import TextEncoder, blank_text_model
from medsam3.models.mini.tinyvit import TinyViT
from medsam3.models.precision import has_fast_bfloat16
from medsam3.models.registry import check_safetensors
from medsam3.store import replacing
from medsam3.train.batches import BatchMaker
from medsam3.train.cache import FeatureCache, Features, ViewKey, fill, probe
from medsam3.train.calibrate import Calibration, calibrate, collect, text_dice
from medsam3.train.card import WRITTEN_ANEW, curve_summary, data_summary, lineage, write_card
from medsam3.train.config import KNOWN, NEW, FitConfig, InitDefaults
from medsam3.train.estimate import cost_lines, measure, mini_sizes, table_of
from medsam3.train.loop import Hooks, RunFolder, Validation, fit
from medsam3.train.pictures import MINI_FEATURES, CachedViews, LiveViews, mini_view
from medsam3.train.trainee_mini import MiniTrainee, Start, freeze_all_but
from medsam3.train.workers import OneProcess, Workers

ENCODER_DTYPE = torch.bfloat16 if has_fast_bfloat16() else torch.float32
ENCODER_KEY = f"{LITE_MEDSAM.sha256[:16]}-{'bf16' if torch.bfloat16 == ENCODER_DTYPE else 'fp32'}"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class RunSettings:
    """The folder and settings of a run.

    Attributes:
        out: Folder of the run.
        cache: Folder of the cached features.
        config: Settings of the training.
        initial: Weights to start from; None starts from the seed.
        is_mean_with_start: Give the mean of the parameters at the start and at the end (Wortsman et al., "Robust
            fine-tuning of zero-shot models", CVPR 2022).
    """

    out: Path
    cache: Path
    config: FitConfig
    initial: Path | None = None
    is_mean_with_start: bool = False

    @property
    def features(self) -> FeatureCache:
        """The cache of the frozen image encoder's features."""
        return FeatureCache(self.cache, ENCODER_KEY, MINI_FEATURES, (1,), self.config.seed)


class Reached(TypedDict):
    """The thresholds of trained weights, and what they reach on val: mean Dice by concept, AUROC of presence."""

    thresholds: dict[str, float | None]
    presence_auroc: float | None
    presence_kept: NotRequired[str]
    dice_text: dict[str, float]
    dice_text_box: dict[str, float]


class ClicksReached(TypedDict):
    """Mean Dice on val after the interactive decoder's first answer, the second and so on, over so many objects."""

    dice_by_click: list[float]
    objects: int


@dataclass(frozen=True)
class RunResult:
    """The files that a run has made."""

    weights: Path
    card: Path
    summary: Reached | ClicksReached


def describe(samples: Sequence[Sample], config: FitConfig, out: Path) -> list[str]:
    """Tell a person what will be trained on what."""
    views = len(cached_views(samples, config))
    detector = MiniDetector(config.detector)
    freeze_all_but(detector, config.trains)
    return [
        *describe_data(samples),
        *table_of(mini_sizes(TinyViT(), blank_text_model(), detector)),
        f"trains: {config.steps} steps of {config.sampling.images} images, encoder {config.detector.image_encoder}",
        f"features to cache: {views} views, {views * MINI_FEATURES.itemsize / 2**30:.1f} GiB on disk",
        f"run folder: {out}",
    ]


def describe_data(samples: Sequence[Sample]) -> list[str]:
    """Count images by data set and split, and name the concepts."""
    sizes = Counter((sample.dataset, sample.split) for sample in samples)
    lines = [f"{'data set':24} train   val  test"]
    for dataset in sorted({sample.dataset for sample in samples}):
        lines.append(f"{dataset:24}" + "".join(f"{sizes[dataset, split]:6}" for split in SPLITS))
    concepts = {target.concept for sample in samples for target in sample.targets}
    return [*lines, f"{len(concepts)} concepts: {', '.join(sorted(concepts))}"]


def cached_views(samples: Sequence[Sample], config: FitConfig) -> list[ViewKey]:
    """List what the run keeps frozen features of.

    An image encoder that trains along needs none of train; val needs LiteMedSAM's for its box decoder.
    """
    train = [sample for sample in samples if sample.split == "train"] if config.detector.is_frozen else []
    of_train = [(sample, view) for sample in train for view in range(config.views_in(sample.dataset))]
    return [*of_train, *((sample, 0) for sample in samples if sample.split == "val")]


@dataclass(frozen=True)
class _Encoders:
    """The published encoders as a run needs them."""

    lite_medsam: Path
    text: TextEncoder
    trunk: Path | None

    @classmethod
    def located(cls, config: FitConfig) -> _Encoders:
        files = locate()
        texts = TextEncoder.from_files(files.text_model, files.tokenizer)
        return cls(files.lite_medsam, texts, None if config.detector.is_frozen else locate_trunk())

    def trainee(self, settings: RunSettings, device: torch.device) -> MiniTrainee:
        start = Start(settings.initial, self.trunk)
        return MiniTrainee(settings.config, self.text, start=start, device=device)

    def segmenters(self, config: FitConfig) -> Callable[[MiniDetector], MiniSegmenter]:
        """Make the model of a detector that is being trained."""
        lite_medsam, card = LiteMedSam(self.lite_medsam), MiniCard((config.detector,), MiniThresholds())
        return lambda detector: MiniSegmenter(lite_medsam, self.text, [detector], card)


def _maker(samples: Sequence[Sample], features: Features, config: FitConfig) -> BatchMaker:
    train = [sample for sample in samples if sample.split == "train"]
    is_frozen = config.detector.is_frozen
    views = CachedViews(features, seed=config.seed) if is_frozen else LiveViews(config.sampling.closer)
    return BatchMaker(train, views, config.sampling, seed=config.seed)


def _make_view(lite_medsam: Path, seed: int) -> Callable[[Sample, int], NDArray[Any]]:
    """Encode views as the cache keeps them."""
    images = LiteMedSam(lite_medsam, dtype=ENCODER_DTYPE)

    def make(sample: Sample, view: int) -> NDArray[Any]:
        values = np.zeros(1, MINI_FEATURES)
        square = mini_view(sample, view, seed=seed)
        values["pixels"][0] = square
        values["neck"][0] = images.neck(square)[0].half().numpy()
        return values

    return make


def estimate_run(samples: Sequence[Sample], settings: RunSettings, device: torch.device = CPU) -> list[str]:
    """Say what time and memory the run will take, from a few real steps that are thrown away.

    Raises:
        InputError: The encoders are not there.
    """
    config, encoders = settings.config, _Encoders.located(settings.config)
    make = _make_view(encoders.lite_medsam, config.seed)
    features, missing, view_s = probe(settings.features, cached_views(samples, config), make)
    trainee, maker = encoders.trainee(settings, device), _maker(samples, features, config)
    return cost_lines(measure(trainee, maker, device, missing_views=missing, view_s=view_s))


def train_and_export(
    samples: Sequence[Sample], settings: RunSettings, workers: Workers | None = None, *, hooks: Hooks | None = None
) -> RunResult | None:
    """Train from samples to weights: train images are fitted, val images choose the thresholds, test is not read.

    Args:
        samples: With train and val splits.
        settings: Of the run.
        workers: The processes that train together; the first one chooses thresholds and writes.
        hooks: Of the first process.

    Returns:
        What was made; None in the other processes.

    Raises:
        InputError: The encoders are not there, or the folder holds another run.
    """
    config, hooks, workers = settings.config, hooks or Hooks(), workers or OneProcess(CPU)
    encoders = _Encoders.located(config)
    val = [sample for sample in samples if sample.split == "val"]
    with RunFolder(settings.out, config, contents_digest(samples), is_writer=workers.rank == 0) as folder:
        views = cached_views(samples, config)
        hooks.on_phase("features", len(views))
        make = _make_view(encoders.lite_medsam, config.seed)
        features = fill(settings.features, views, make, workers, hooks.on_item)
        trainee, segmenter_of = encoders.trainee(settings, workers.device), encoders.segmenters(config)
        validation = None
        if config.val_every:
            dice = lambda: text_dice(segmenter_of(trainee.average_on_cpu()), val, features)  # noqa: E731
            validation = Validation(config.val_every, config.patience, dice)
        hooks.on_phase("training", config.steps)
        maker = _maker(samples, features, config)
        run = fit(folder, trainee, maker, workers, validation=validation, hooks=hooks)
        if workers.rank > 0:
            return None
        if run.best is not None:
            trainee.put_further_state(run.best.weights)
        hooks.on_phase("thresholds, val", len(val))
        chosen = trainee.average_on_cpu()
        if settings.is_mean_with_start:
            move_half_way(chosen, encoders.trainee(settings, CPU).average)
        answers = collect(segmenter_of(chosen), val, features, on_image=hooks.on_item)
        earlier = _earlier_card(settings.initial)
        calibration = calibrate(answers, None if earlier is None else earlier.thresholds)
        content = {
            "detector": asdict(config.detector),
            **_encoders(config.detector),
            "training": asdict(config),
            "started_from": lineage(settings.initial),
            "concepts": taught_concepts(samples, earlier),
            "data": data_summary(samples),
            "curve": curve_summary(folder.curves.records),
            **({} if run.best is None else {"best_step": run.best.step}),
            **({"mean_with_start": True} if settings.is_mean_with_start else {}),
        }
        return write_weights(settings.out, chosen.state_dict(), content, calibration)


def move_half_way(model: MiniDetector, other: MiniDetector) -> None:
    """Replace the model's parameters by their mean with another's."""
    with torch.no_grad():
        torch._foreach_lerp_(list(model.parameters()), list(other.parameters()), 0.5)


def join_and_export(
    weights: Sequence[Path], samples: Sequence[Sample], settings: RunSettings, *, hooks: Hooks | None = None
) -> RunResult:
    """Make one file of several trained weights that answers with their mean; thresholds are chosen on val anew.

    Of one file only the thresholds are chosen; its card says the same of how it was made.

    Raises:
        InputError: The encoders are not there, or a file is not of `medsam3 train`.
    """
    encoders, hooks = locate(), hooks or Hooks()
    members = [load_mini(path, encoders) for path in weights]
    detectors = [detector for member in members for detector in member.detectors]
    first = members[0]
    card = MiniCard(tuple(detector.config for detector in detectors), MiniThresholds())
    joined = MiniSegmenter(first.lite_medsam, first.texts, detectors, card)
    val = [sample for sample in samples if sample.split == "val"]
    settings.out.mkdir(parents=True, exist_ok=True)
    hooks.on_phase("features", len(val))
    make = _make_view(encoders.lite_medsam, settings.config.seed)
    features = fill(settings.features, [(sample, 0) for sample in val], make, OneProcess(CPU), hooks.on_item)
    hooks.on_phase("thresholds, val", len(val))
    calibration = calibrate(collect(joined, val, features, on_image=hooks.on_item), first.card.thresholds)
    state = (detectors[0] if len(detectors) == 1 else nn.ModuleList(detectors)).state_dict()
    if len(weights) == 1:
        kept = {key: value for key, value in first.card.about.items() if key not in WRITTEN_ANEW}
        return write_weights(settings.out, state, kept, calibration)
    content = {
        "detector": [asdict(config) for config in card.detectors],
        **_encoders(*card.detectors),
        "joined": [lineage(path) for path in weights],
        "concepts": sorted({name for member in members for name in member.card.concepts}),
        "data": data_summary(samples),
    }
    return write_weights(settings.out, state, content, calibration)


def write_weights(
    out: Path, state: Mapping[str, Tensor], content: Mapping[str, object], calibration: Calibration
) -> RunResult:
    """Write `mini.safetensors` in float16 and its card, which says `content`, the thresholds and what they reach."""
    weights, card = out / "mini.safetensors", out / "mini.json"
    with replacing(weights, ".safetensors") as temporary:
        temporary.write_bytes(save({name: value.cpu().half().contiguous() for name, value in state.items()}))
        temporary.chmod(0o644)
    summary: Reached = {
        "thresholds": asdict(calibration.thresholds),
        "presence_auroc": None if calibration.presence_auroc is None else round(calibration.presence_auroc, 4),
        "dice_text": {name: round(value, 4) for name, value in calibration.dice_text.items()},
        "dice_text_box": {name: round(value, 4) for name, value in calibration.dice_text_box.items()},
    }
    if calibration.presence_kept:
        summary["presence_kept"] = calibration.presence_kept
    own = {"thresholds": asdict(calibration.thresholds), **content, "val": summary}
    write_card(card, "mini", weights, own)
    return RunResult(weights, card, summary)


def _encoders(*detectors: MiniDetectorConfig) -> dict[str, dict[str, str]]:
    """Name the encoders that the weights go with, and what one that trained along started from."""
    frozen = {"image": f"LiteMedSAM {LITE_MEDSAM.sha256}", "text": "all-MiniLM-L6-v2"}
    if all(detector.is_frozen for detector in detectors):
        return {"frozen_encoders": frozen}
    return {"frozen_encoders": frozen, "trained_encoder": {"image": f"EfficientNet-Lite0 {TRUNK.sha256}"}}


def taught_concepts(samples: Sequence[Sample], earlier: MiniCard | None) -> list[str]:
    """List the names that training showed, here or in the weights that it started from."""
    shown = (target for sample in samples if sample.split == "train" for target in sample.targets if target.is_present)
    return sorted({target.concept for target in shown}.union(() if earlier is None else earlier.concepts))


def init_defaults(samples: Sequence[Sample], initial: Path) -> InitDefaults:
    """Choose the defaults of a run from these weights: whether they know all the concepts that the samples show."""
    earlier = _earlier_card(initial)
    return KNOWN if taught_concepts(samples, earlier) == taught_concepts((), earlier) else NEW


def starting_weights(given: Path) -> Path:
    """Find the weights that a run starts from: a file, or shipped ones by their name, such as `mini`.

    Raises:
        InputError: There is no such file, or it can hold more than tensors.
    """
    shipped = SHIPPED_WEIGHTS.with_name(f"{given.name}.safetensors")
    is_named = given == Path(given.name) and not given.exists() and shipped.is_file()
    return check_safetensors(shipped if is_named else given)


def _earlier_card(initial: Path | None) -> MiniCard | None:
    """Read the card of the weights that a run starts from; None if there are none, or no card."""
    return read_card(initial) if initial is not None and initial.with_suffix(".json").exists() else None
