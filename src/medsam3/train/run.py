"""A whole training run: describe the data, cache features, fit, choose thresholds, write weights and their card."""

from __future__ import annotations

import hashlib
import json
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from medsam3 import __version__
from medsam3.data.samples import Sample
from medsam3.errors import InputError
from medsam3.models.mini.box_decoder import BoxDecoder
from medsam3.models.mini.card import MiniCard, MiniThresholds, read_card
from medsam3.models.mini.detector import MiniDetector, MiniDetectorConfig
from medsam3.models.mini.encoder_files import LITE_MEDSAM, TRUNK, locate, locate_trunk
from medsam3.models.mini.segmenter import (
    ImageEncoder,
    MiniSegmenter,
    load_mini,
    read_lite_medsam,
)
from medsam3.models.mini.text_encoder import TextEncoder, blank_text_model
from medsam3.models.mini.tinyvit import TinyViT
from medsam3.models.precision import has_fast_bfloat16
from medsam3.train.batches import Batch, BatchMaker
from medsam3.train.cache import CachedView, Encode, load_or_make_view, view_folder
from medsam3.train.calibrate import Calibration, calibrate, collect, text_dice
from medsam3.train.fit import Hooks, Progress, Start, fit, freeze_all_but, new_state, train_step
from medsam3.train.mini_config import FitConfig
from medsam3.train.mini_estimate import cost_lines, measure, planned
from medsam3.train.parts import mini_sizes, table_of
from medsam3.train.pictures import CachedViews, LiveViews, Views
from medsam3.train.workers import OneProcess, Workers

WRITTEN_ANEW = frozenset({"model", "sha256", "made", "thresholds", "val", "versions"})
"""What `write_weights` writes into every card."""
ENCODER_DTYPE = torch.bfloat16 if has_fast_bfloat16() else torch.float32
ENCODER_KEY = f"{LITE_MEDSAM.sha256[:16]}-{'bf16' if torch.bfloat16 == ENCODER_DTYPE else 'fp32'}"
BYTES_A_VIEW = 2 * 256 * 64 * 64 + 3 * 256 * 256


@dataclass(frozen=True)
class RunSettings:
    """Where a run lives and how it is set."""

    out: Path
    cache: Path
    config: FitConfig
    initial: Path | None = None


@dataclass(frozen=True)
class RunResult:
    """What a run has made."""

    weights: Path
    card: Path
    summary: dict[str, Any]


def describe(samples: Sequence[Sample], config: FitConfig, out: Path) -> list[str]:
    """Lines that tell a person what will be trained on what."""
    views = sum(len(own) for _, own in cached_parts(samples, config))
    detector = MiniDetector(config.detector)
    freeze_all_but(detector, config.trains)
    return [
        *describe_data(samples),
        *table_of(mini_sizes(TinyViT(), blank_text_model(), detector)),
        f"trains: {config.steps} steps of {config.sampling.images} images, encoder {config.detector.image_encoder}",
        f"features to cache: {views} views, {views * BYTES_A_VIEW / 2**30:.1f} GiB on disk",
        f"run folder: {out}",
    ]


def describe_data(samples: Sequence[Sample]) -> list[str]:
    """Images by data set and split, and the concepts."""
    sizes = Counter((sample.dataset, sample.split) for sample in samples)
    lines = [f"{'data set':24} train   val  test"]
    for dataset in sorted({sample.dataset for sample in samples}):
        lines.append(f"{dataset:24}" + "".join(f"{sizes[dataset, split]:6}" for split in ("train", "val", "test")))
    concepts = {target.concept for sample in samples for target in sample.targets}
    return [*lines, f"{len(concepts)} concepts: {', '.join(sorted(concepts))}"]


def cached_parts(samples: Sequence[Sample], config: FitConfig) -> list[tuple[int, list[Sample]]]:
    """What the run keeps frozen features of: (view, samples), those of train first, and the plain view of val last.

    An image encoder that trains along needs none of train; val needs LiteMedSAM's for its box decoder.
    """
    train = [sample for sample in samples if sample.split == "train"]
    most = max(config.views_in(sample.dataset) for sample in train) if config.detector.is_frozen else 0
    parts = [(number, [s for s in train if config.views_in(s.dataset) > number]) for number in range(most)]
    return [*parts, (0, [sample for sample in samples if sample.split == "val"])]


def estimate_run(samples: Sequence[Sample], settings: RunSettings) -> list[str]:
    """Lines on the time and memory that the run will take, from a few real steps that are thrown away.

    Raises:
        InputError: The encoders are not there.
    """
    encoders, config = locate(), settings.config
    plans = [
        planned(own, number, view_folder(settings.cache, own, number, seed=config.seed, encoder=ENCODER_KEY))
        for number, own in cached_parts(samples, config)
    ]
    texts = TextEncoder.from_files(encoders.text_model, encoders.tokenizer)
    images = ImageEncoder(read_lite_medsam(encoders.lite_medsam), dtype=ENCODER_DTYPE)
    state = new_state(config)

    def step(batch: Batch) -> dict[str, float]:
        return train_step(state, texts, [batch] * config.accumulate, config)

    train = [sample for sample in samples if sample.split == "train"]
    return cost_lines(measure(train, plans, _half_precision_encoder(images), config, step))


@dataclass(frozen=True)
class RunHooks:
    """What a run calls as it goes: at the start of a phase, with its size; after each item of it; and of the loop."""

    on_phase: Callable[[str, int], None] = lambda name, count: None
    on_item: Callable[[], None] = lambda: None
    on_step: Callable[[Progress], None] = lambda progress: None
    on_measured: Callable[[int, float], None] = lambda step, dice: None


def train_and_export(
    samples: Sequence[Sample], settings: RunSettings, workers: Workers | None = None, *, hooks: RunHooks | None = None
) -> RunResult | None:
    """The run from samples to weights. Train images are fitted, val images choose the thresholds, test is not read.

    Args:
        samples: With train and val splits.
        settings: Of the run.
        workers: The processes that train together; the first one keeps features, chooses thresholds and writes.
        hooks: Of the first process.

    Returns:
        What was made; None in the other processes.

    Raises:
        InputError: The encoders are not there, or the folder holds another run.
    """
    encoders, config = locate(), settings.config
    hooks, workers = hooks or RunHooks(), workers or OneProcess(torch.device("cpu"))
    settings.out.mkdir(parents=True, exist_ok=True)
    lite_medsam = read_lite_medsam(encoders.lite_medsam)
    texts = TextEncoder.from_files(encoders.text_model, encoders.tokenizer)
    encode = _half_precision_encoder(ImageEncoder(lite_medsam, dtype=ENCODER_DTYPE))
    parts = cached_parts(samples, config)
    kept = _cached_views(parts, settings, encode, workers, hooks)
    val, val_view = parts[-1][1], kept[-1]
    segmenter_of = _segmenters(lite_medsam, texts, config)
    views: Views = CachedViews(kept[:-1]) if config.detector.is_frozen else LiveViews(config.sampling.closer)
    maker = BatchMaker([s for s in samples if s.split == "train"], views, config.sampling, seed=config.seed)
    hooks.on_phase("training", config.steps)
    start = Start(settings.initial, None if config.detector.is_frozen else locate_trunk())
    loop = Hooks(hooks.on_step, lambda average: text_dice(segmenter_of(average), val, val_view), hooks.on_measured)
    state = fit(settings.out, maker, texts, config, start=start, workers=workers, hooks=loop)
    if workers.rank > 0:
        return None
    hooks.on_phase("thresholds, val", len(val))
    chosen = state.chosen()
    answers = collect(segmenter_of(chosen), val, val_view, on_image=hooks.on_item)
    calibration = calibrate(answers, prior_thresholds(settings.initial))
    return export(chosen, settings, calibration, samples, best_step=None if state.best is None else state.best.step)


def _cached_views(
    parts: Sequence[tuple[int, list[Sample]]],
    settings: RunSettings,
    encode: Encode,
    workers: Workers,
    hooks: RunHooks,
) -> list[CachedView]:
    """Each part's view from disk; the first process computes what is missing, the others wait for it."""

    def view(number: int, chosen: list[Sample]) -> CachedView:
        folder = view_folder(settings.cache, chosen, number, seed=settings.config.seed, encoder=ENCODER_KEY)
        return load_or_make_view(folder, chosen, number, encode, seed=settings.config.seed, on_image=hooks.on_item)

    if workers.rank > 0:
        workers.wait()
        return [view(number, chosen) for number, chosen in parts]
    views = []
    for place, (number, chosen) in enumerate(parts):
        hooks.on_phase("features, val" if place == len(parts) - 1 else f"features, view {number}", len(chosen))
        views.append(view(number, chosen))
    workers.wait()
    return views


def _segmenters(
    lite_medsam: dict[str, Tensor], texts: TextEncoder, config: FitConfig
) -> Callable[[MiniDetector], MiniSegmenter]:
    """Makes the model of a detector that is being trained."""
    images, boxes = ImageEncoder(lite_medsam), BoxDecoder.from_lite_medsam(lite_medsam)
    card = MiniCard((config.detector,), MiniThresholds())
    return lambda detector: MiniSegmenter(images, texts, boxes, [detector], card)


def join_and_export(
    weights: Sequence[Path],
    samples: Sequence[Sample],
    settings: RunSettings,
    *,
    averages: bool = False,
    hooks: RunHooks | None = None,
) -> RunResult:
    """Several trained weights as one that answers with their mean logits; thresholds are chosen on val anew.

    Of one file only the thresholds are chosen; its card says the same of how it was made. With `averages` the
    parameters are averaged in place of the answers (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR
    2022), which suits weights of which one started from the other.

    Raises:
        InputError: The encoders are not there, a file is not of `medsam3 train`, or unlike detectors are averaged.
    """
    encoders, hooks = locate(), hooks or RunHooks()
    members = [load_mini(path, encoders) for path in weights]
    detectors = [detector for member in members for detector in member.detectors]
    if averages:
        detectors = [averaged(detectors)]
    first = members[0]
    card = MiniCard(tuple(detector.config for detector in detectors), MiniThresholds())
    joined = MiniSegmenter(first.images, first.texts, first.boxes, detectors, card)
    val = [sample for sample in samples if sample.split == "val"]
    settings.out.mkdir(parents=True, exist_ok=True)
    encode = _half_precision_encoder(ImageEncoder(read_lite_medsam(encoders.lite_medsam), dtype=ENCODER_DTYPE))
    [view] = _cached_views([(0, val)], settings, encode, OneProcess(torch.device("cpu")), hooks)
    hooks.on_phase("thresholds, val", len(val))
    calibration = calibrate(collect(joined, val, view, on_image=hooks.on_item), first.card.thresholds)
    state = (detectors[0] if len(detectors) == 1 else nn.ModuleList(detectors)).state_dict()
    if len(weights) == 1:
        kept = {key: value for key, value in first.card.about.items() if key not in WRITTEN_ANEW}
        return write_weights(settings.out, state, kept, calibration)
    content = {
        "detector": [asdict(config) for config in card.detectors],
        **_encoders(*card.detectors),
        "averaged" if averages else "joined": [_lineage(path) for path in weights],
        "concepts": sorted({name for member in members for name in member.card.concepts}),
        "data": data_summary(samples),
    }
    return write_weights(settings.out, state, content, calibration)


def averaged(detectors: Sequence[MiniDetector]) -> MiniDetector:
    """One detector whose parameters are the mean of theirs.

    Raises:
        InputError: They are not of one configuration.
    """
    config = detectors[0].config
    if any(detector.config != config for detector in detectors):
        raise InputError("weights of unlike detectors were given: leave --average out to join their answers")
    states = [detector.state_dict() for detector in detectors]
    mean = MiniDetector(config)
    mean.load_state_dict({name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]})
    return mean


def _half_precision_encoder(images: ImageEncoder) -> Callable[[NDArray[np.uint8]], NDArray[np.float16]]:
    def encode(square: NDArray[np.uint8]) -> NDArray[np.float16]:
        neck: NDArray[np.float16] = images.neck(square)[0].half().numpy()
        return neck

    return encode


def export(
    detector: MiniDetector,
    settings: RunSettings,
    calibration: Calibration,
    samples: Sequence[Sample],
    *,
    best_step: int | None = None,
) -> RunResult:
    """Write `mini.safetensors` (float16) and its card `mini.json` into the run's folder."""
    content = {
        "detector": asdict(settings.config.detector),
        **_encoders(settings.config.detector),
        "training": asdict(settings.config),
        "started_from": _lineage(settings.initial),
        "concepts": taught_concepts(samples, settings.initial),
        "data": data_summary(samples),
        "curve": curve_summary(settings.out / "curves.jsonl"),
        **({} if best_step is None else {"best_step": best_step}),
    }
    return write_weights(settings.out, detector.state_dict(), content, calibration)


def write_weights(
    out: Path, state: Mapping[str, Tensor], content: dict[str, Any], calibration: Calibration
) -> RunResult:
    """Write tensors in float16 and their card, which says `content`, the thresholds and what they reach on val."""
    weights, card = out / "mini.safetensors", out / "mini.json"
    temporary = out / "mini.safetensors.tmp"
    save_file({name: value.half().contiguous() for name, value in state.items()}, temporary)
    temporary.chmod(0o644)
    summary = {
        "thresholds": asdict(calibration.thresholds),
        "presence_auroc": None if calibration.presence_auroc is None else round(calibration.presence_auroc, 4),
        **({"presence_kept": calibration.presence_kept} if calibration.presence_kept else {}),
        "dice_text": {name: round(value, 4) for name, value in calibration.dice_text.items()},
        "dice_text_box": {name: round(value, 4) for name, value in calibration.dice_text_box.items()},
    }
    whole = {
        "model": "mini",
        "sha256": hashlib.sha256(temporary.read_bytes()).hexdigest(),
        "made": datetime.now(UTC).strftime("%Y-%m-%d"),
        "thresholds": asdict(calibration.thresholds),
        **content,
        "val": summary,
        "versions": {
            "medsam3": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": version("transformers"),
        },
    }
    written = card.with_suffix(".json.tmp")
    written.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    temporary.replace(weights)
    written.replace(card)
    return RunResult(weights, card, summary)


def _encoders(*detectors: MiniDetectorConfig) -> dict[str, Any]:
    """Which encoders the weights go with, and what an image encoder that trained along started from."""
    frozen = {"image": f"LiteMedSAM {LITE_MEDSAM.sha256}", "text": "all-MiniLM-L6-v2"}
    if all(detector.is_frozen for detector in detectors):
        return {"frozen_encoders": frozen}
    return {"frozen_encoders": frozen, "trained_encoder": {"image": f"EfficientNet-Lite0 {TRUNK.sha256}"}}


def _lineage(initial: Path | None) -> dict[str, Any] | None:
    """How the weights that the run started from were made, by their card."""
    card = None if initial is None else initial.with_suffix(".json")
    if card is None or not card.exists():
        return None
    content = json.loads(card.read_text(encoding="utf-8"))
    made_of = {key: content[key] for key in ("joined", "averaged") if key in content}
    return {key: content.get(key) for key in ("sha256", "made", "training", "data", "curve", "started_from")} | made_of


def taught_concepts(samples: Sequence[Sample], initial: Path | None) -> list[str]:
    """Names that training showed, here or in the weights that it started from."""
    shown = (target for sample in samples if sample.split == "train" for target in sample.targets if target.is_present)
    earlier = read_card(initial).concepts if initial is not None and initial.with_suffix(".json").exists() else ()
    return sorted({target.concept for target in shown}.union(earlier))


def prior_thresholds(initial: Path | None) -> MiniThresholds:
    """Give the thresholds of the weights that a run starts from; the default ones if there are none, or no card."""
    if initial is None or not initial.with_suffix(".json").exists():
        return MiniThresholds()
    return read_card(initial).thresholds


def data_summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """Images by data set and split, and a digest of names, concepts and splits."""
    counts: dict[str, dict[str, int]] = {}
    digest = hashlib.sha256()
    for sample in sorted(samples, key=lambda sample: sample.name):
        counts.setdefault(sample.dataset, Counter())[sample.split] += 1
        targets = ",".join(f"{target.concept}={int(target.is_present)}" for target in sample.targets)
        digest.update(f"{sample.name};{sample.split};{targets}\n".encode())
    return {"images": counts, "sha256_of_index": digest.hexdigest()}


def curve_summary(path: Path, *, points: int = 40) -> list[dict[str, float]]:
    """The loss curve, averaged over `points` stretches."""
    if not path.exists():
        return []
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    stretches = [
        entries[int(part[0]) : int(part[-1]) + 1]
        for part in np.array_split(np.arange(len(entries)), points)
        if len(part)
    ]
    return [
        {"step": stretch[-1]["step"], "total": round(float(np.mean([entry["total"] for entry in stretch])), 3)}
        for stretch in stretches
    ]
