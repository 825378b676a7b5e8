"""The parts that a run will train, and its time and memory from a few real steps that are thrown away.

Steps are timed on real batches. If features are not cached yet, those of one image stand in for all, as the time does
not depend on their values. Nothing is written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from medsam3.train.loop import Maker, Run, Trainee, own_batches, update
from medsam3.train.workers import OneProcess

MEASURED_STEPS = 3
Parts = Sequence[tuple[str, tuple[str, ...]]]
"""Names of parts, each with the beginnings of its parameters' names."""
_ADAPTER = ".lora."
MINI_PARTS: Parts = (
    ("image encoder", ("image.", "detector.levels.trunk.")),
    ("text encoder", ("text.", "detector.text_lora.")),
    ("level adapter", ("detector.levels.",)),
    ("text projection", ("detector.text_projection.",)),
    ("geometry encoder", ("detector.geometry_encoder.",)),
    ("encoder", ("detector.detr_encoder.",)),
    ("decoder and presence", ("detector.detr_decoder.",)),
    ("mask head", ("detector.mask_decoder.",)),
    ("scoring", ("detector.dot_product_scoring.",)),
)


@dataclass(frozen=True)
class PartSize:
    """How large a part of the model is, and how much of it trains, in parameters; an adapter's are extra."""

    name: str
    total: int
    trained: int


def sizes_by_part(model: nn.Module, is_trained: Mapping[str, bool], parts: Parts) -> list[PartSize]:
    """Count each part of a model, and how much of it trains; what belongs to none is the last row, `other`.

    Args:
        model: With all of its parameters.
        is_trained: By the parameter's name.
        parts: A parameter belongs to the first part that one of its beginnings fits.
    """
    totals = {name: 0 for name, _ in parts}
    trained = dict(totals)
    for name, parameter in model.named_parameters():
        part = next((part for part, starts in parts if name.startswith(starts)), "other")
        totals[part] = totals.get(part, 0) + (0 if _ADAPTER in name else parameter.numel())
        trained[part] = trained.get(part, 0) + (parameter.numel() if is_trained[name] else 0)
    return [PartSize(name, totals[name], trained[name]) for name in totals]


def mini_sizes(image: nn.Module, text: nn.Module, detector: nn.Module) -> list[PartSize]:
    """Count the parts of the small model; its detector's parameters say what trains."""
    model = nn.ModuleDict({"image": image, "text": text, "detector": detector})
    is_trained = {name: name.startswith("detector.") and p.requires_grad for name, p in model.named_parameters()}
    return sizes_by_part(model, is_trained, MINI_PARTS)


def table_of(sizes: Sequence[PartSize]) -> list[str]:
    """Say for a person what is frozen, and how many parameters train."""
    lines = [f"{'part':24}{'parameters':>14}{'trained':>14}"]
    for part in sizes:
        lines.append(f"{part.name:24}{part.total:14,}" + (f"{part.trained:14,}" if part.trained else f"{'frozen':>14}"))
    total, trained = sum(part.total for part in sizes), sum(part.trained for part in sizes)
    return [*lines, f"{'all':24}{total:14,}{trained:14,}"]


@dataclass(frozen=True)
class RunCost:
    """The cost of a run.

    Attributes:
        steps: All of them.
        step_s: One step, timed.
        missing_views: Features that are not cached yet.
        view_s: One of them, timed; 0 if none is missing.
        peak_gib: The most memory that the process or its GPU has held by the end of the steps; None if that cannot be
            told.
    """

    steps: int
    step_s: float
    missing_views: int
    view_s: float
    peak_gib: float | None


def measure(
    trainee: Trainee, maker: Maker, device: torch.device, *, missing_views: int = 0, view_s: float = 0.0
) -> RunCost:
    """Time a few updates after one for warming up.

    Args:
        trainee: The model; its weights change.
        maker: Draws the batches.
        device: Where the model is.
        missing_views, view_s: See `RunCost`.
    """
    workers = OneProcess(device)
    run = Run(trainee.module, trainee.optimizer())
    batches = own_batches(trainee, maker, workers, 0)
    seconds: list[float] = []
    for _ in range(min(1 + MEASURED_STEPS, trainee.config.steps)):
        started = time.perf_counter()
        update(run, trainee, batches, workers)
        seconds.append(time.perf_counter() - started)
    timed = seconds[1:] or seconds
    return RunCost(trainee.config.steps, sum(timed) / len(timed), missing_views, view_s, peak_gib(device))


def peak_gib(device: torch.device) -> float | None:
    """Tell the most memory that this process, or its GPU, has held, in GiB; None if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource  # noqa: PLC0415  not on every system
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def cost_lines(cost: RunCost) -> list[str]:
    """Say for a person what is measured, and what is estimated from it."""
    training_s, cache_s = cost.steps * cost.step_s, cost.missing_views * cost.view_s
    lines = [
        f"measured: {cost.step_s:.2f} s a step ({MEASURED_STEPS} steps after 1); estimated from it: "
        f"{_duration(training_s)} for {cost.steps} steps"
    ]
    if cost.missing_views:
        lines.append(
            f"measured: {cost.view_s:.2f} s a view to encode (1 pass); estimated from it: {_duration(cache_s)} for "
            f"{cost.missing_views} views that are not cached"
        )
    if cost.peak_gib is not None:
        lines.append(f"measured: {cost.peak_gib:.1f} GiB of memory at most in these steps")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
