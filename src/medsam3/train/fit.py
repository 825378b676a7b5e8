"""The training loop of the small detector: encoders frozen, cached features in, checkpoints and curves out.

A run is its folder: `config.json`, `curves.jsonl`, `checkpoint.pt`. Started again with the same folder it goes on at
the step it had saved, with the same batches. It knows nothing of the command line.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from medsam3.errors import InputError
from medsam3.models.mini.detector import MiniDetector
from medsam3.models.mini.efficientnet import convert_efficientnet
from medsam3.models.mini.text_encoder import TextEncoder
from medsam3.train.batches import Batch, BatchMaker, prefetched
from medsam3.train.losses import LossWeights
from medsam3.train.mini_config import FitConfig, Trains
from medsam3.train.mini_loss import batch_loss
from medsam3.train.workers import OneProcess, Workers

TRUNK = "levels.trunk."
TERMS = ("total", *(f.name for f in fields(LossWeights) if f.name not in ("score_positive", "match_score")))


@dataclass(frozen=True)
class Progress:
    """What the caller may show after a step."""

    step: int
    loss: float
    terms: dict[str, float]
    seconds_left: float


@dataclass
class RunState:
    """Everything that changes while training; `best` is of the average, as val measured it."""

    model: MiniDetector
    average: MiniDetector
    optimizer: torch.optim.Optimizer
    step: int = 0
    best: Best | None = None

    def chosen(self) -> MiniDetector:
        """The average, at the step where val was best; at the last step where val was not measured."""
        if self.best is not None:
            self.average.load_state_dict(self.best.weights)
        return self.average


@dataclass(frozen=True)
class Best:
    """The best measurement on val so far.

    Attributes:
        step: Updates before it.
        dice: Mean Dice of phrases alone.
        weights: Of the moving average.
        measured_since: Measurements after it, none of them better.
    """

    step: int
    dice: float
    weights: dict[str, Tensor]
    measured_since: int = 0


class Schedule(Protocol):
    """What `learning_rate` reads of a configuration."""

    @property
    def steps(self) -> int:
        """Updates of the run."""
        ...

    @property
    def warmup_steps(self) -> int:
        """Updates until the peak."""
        ...

    @property
    def learning_rate(self) -> float:
        """The peak."""
        ...


def learning_rate(step: int, config: Schedule) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def new_state(config: FitConfig) -> RunState:
    """Fresh weights from the seed."""
    torch.manual_seed(config.seed)
    model, average = MiniDetector(config.detector), MiniDetector(config.detector)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    freeze_all_but(model, config.trains)
    average.load_state_dict(model.state_dict())
    return RunState(model, average.requires_grad_(False).eval(), _optimizer(model, config))


def freeze_all_but(model: MiniDetector, trains: Trains) -> None:
    """Leave gradients to what trains; the finest stages of an image encoder never have any."""
    for name, parameter in model.named_parameters():
        is_chosen = name.startswith("text_projection.") if trains == "text" else not name.startswith(TRUNK)
        if trains != "all" and not is_chosen:
            parameter.requires_grad_(False)


def _optimizer(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    """AdamW; no weight decay on biases, norms and embeddings; an image encoder that trains along at its own rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.ndim >= 2 else 0.0
            share = config.trunk_rate if name.startswith(TRUNK) else 1.0
            groups.setdefault((decay, share), []).append(parameter)
    listed = [{"params": held, "weight_decay": decay, "share": share} for (decay, share), held in groups.items()]
    return torch.optim.AdamW(listed, lr=config.learning_rate, fused=True)


def train_step(
    state: RunState, text: TextEncoder, batches: Sequence[Batch], config: FitConfig, workers: Workers | None = None
) -> dict[str, float]:
    """One update of the model and of its moving average, by the mean gradient of the batches of all processes.

    Returns:
        The mean of each term of the loss over the batches and processes, `total` included.

    Raises:
        InputError: The loss is not finite.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = group["share"] * learning_rate(state.step, config)
    state.optimizer.zero_grad(set_to_none=True)
    device = batches[0].pixels.device
    sums: dict[str, Tensor] = dict.fromkeys(TERMS, torch.zeros((), device=device))
    for batch in batches:
        loss, terms = batch_loss(state.model, text, batch, config)
        (loss / len(batches)).backward()  # type: ignore[no-untyped-call]
        for name, value in {"total": loss, **terms}.items():
            sums[name] = sums[name] + value.detach().float() / len(batches)
    values = torch.stack(list(sums.values()))
    if workers is not None and workers.count > 1:
        values = workers.mean(values)
        _share_gradients(state.model, workers)
    total = float(values[list(sums).index("total")])
    if not math.isfinite(total):
        raise InputError(f"the loss is {total} at step {state.step}: lower --learning-rate or use --no-bf16")
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm)
    state.optimizer.step()
    state.step += 1
    decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.average.parameters()), list(state.model.parameters()), 1 - decay)
    return dict(zip(sums, values.tolist(), strict=True))


def _share_gradients(model: nn.Module, workers: Workers) -> None:
    """Put the mean gradient of all processes into each; what had no part in a process's batch counts as 0."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    shared = workers.mean(torch.cat([gradient.reshape(-1) for gradient in own]))
    for parameter, part in zip(trained, torch.split(shared, [p.numel() for p in trained]), strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(part.view_as(parameter))  # fused AdamW wants equal strides


def fit(
    folder: Path,
    maker: BatchMaker,
    text: TextEncoder,
    config: FitConfig,
    *,
    start: Start | None = None,
    workers: Workers | None = None,
    hooks: Hooks | None = None,
) -> RunState:
    """Train until `config.steps`, or until val gains no more, saving as it goes; resumes what the folder holds.

    Args:
        folder: Of the run.
        maker: Draws the batches.
        text: The frozen text encoder.
        config: Of the run; must equal that of a run that is resumed.
        start: Weights to start from; None starts from the seed.
        workers: The processes that train together, each on its share of every batch; the first one writes.
        hooks: What is called meanwhile.

    Raises:
        InputError: The folder holds a run with another configuration, or the loss is not finite.
    """
    hooks, workers = hooks or Hooks(), workers or OneProcess(torch.device("cpu"))
    state = resume(folder, config, start, workers)
    started, first = time.monotonic(), state.step
    is_writer = workers.rank == 0
    with (folder / "curves.jsonl" if is_writer else Path(os.devnull)).open("a", encoding="utf-8") as curves:
        for batches in _updates(maker, config, workers, first):
            if _has_settled(state, config):
                break
            terms = train_step(state, text, batches, config, workers)
            line = {"step": state.step - 1, **{k: round(v, 5) for k, v in terms.items()}}
            curves.write(json.dumps(line) + "\n")
            left = (time.monotonic() - started) / (state.step - first) * (config.steps - state.step)
            hooks.on_step(Progress(state.step, terms["total"], terms, left))
            is_measured = config.val_every and (state.step % config.val_every == 0 or state.step == config.steps)
            if is_measured:
                _measure(state, hooks, folder / "val.jsonl", workers)
            if is_measured or state.step % config.save_every == 0 or state.step == config.steps:
                curves.flush()
                if is_writer:
                    save(folder, state)
                workers.wait()
    return state


@dataclass(frozen=True)
class Hooks:
    """What the loop calls.

    Attributes:
        on_step: After each update.
        measure: Mean Dice of phrases alone on val, of the moving average; needed where `val_every` is set.
        on_measured: After each measurement: step and Dice.
    """

    on_step: Callable[[Progress], None] = lambda progress: None
    measure: Callable[[MiniDetector], float] = lambda detector: math.nan
    on_measured: Callable[[int, float], None] = lambda step, dice: None


def _updates(maker: BatchMaker, config: FitConfig, workers: Workers, first: int) -> Iterator[list[Batch]]:
    """The batches of each update from `first` on, each process's share of them."""
    made = prefetched(maker, range(first * config.accumulate, config.steps * config.accumulate))
    for _ in range(first, config.steps):
        batches = [batch for _, batch in islice(made, config.accumulate)]
        yield [batch.share(workers.rank, workers.count) for batch in batches]


def _has_settled(state: RunState, config: FitConfig) -> bool:
    return state.best is not None and state.best.measured_since >= config.patience


def _measure(state: RunState, hooks: Hooks, path: Path, workers: Workers) -> None:
    """Measure val in the first process, and remember the weights where they are the best so far."""
    measured = torch.zeros(())
    if workers.rank == 0:
        measured = torch.tensor(hooks.measure(state.average))
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": state.step, "dice": round(float(measured), 5)}) + "\n")
        hooks.on_measured(state.step, float(measured))
    dice = float(workers.mean(measured)) * workers.count
    if state.best is None or dice > state.best.dice:
        weights = {name: value.clone() for name, value in state.average.state_dict().items()}
        state.best = Best(state.step, dice, weights)
    else:
        state.best = replace(state.best, measured_since=state.best.measured_since + 1)


def save(folder: Path, state: RunState) -> None:
    """Write the checkpoint beside the old one, then put it in its place."""
    content = {
        "step": state.step,
        "model": state.model.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "best": None if state.best is None else vars(state.best),
    }
    temporary = folder / "checkpoint.tmp"
    torch.save(content, temporary)
    temporary.replace(folder / "checkpoint.pt")


def resume(folder: Path, config: FitConfig, start: Start | None = None, workers: Workers | None = None) -> RunState:
    """The state saved in the folder, or a fresh one where there is none, from the seed or from `start`.

    Raises:
        InputError: The folder holds a run with another configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "config.json"
    wanted: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    if written.exists() and json.loads(written.read_text(encoding="utf-8")) != wanted:
        raise InputError(f"{folder} holds a run with another configuration: choose another --out, or the same options")
    state = new_state(config)
    path = folder / "checkpoint.pt"
    if path.exists():
        content = torch.load(path, weights_only=True)
        state.model.load_state_dict(content["model"])
        state.average.load_state_dict(content["average"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.step = int(content["step"])
        state.best = None if content.get("best") is None else Best(**content["best"])
    elif start is not None:
        start_from(state, start)
    if workers is not None:
        workers.wait()  # all have read before the first one writes
    if workers is None or workers.rank == 0:
        written.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
        cut_curves(folder / "curves.jsonl", state.step)
        cut_curves(folder / "val.jsonl", state.step + 1)
    return state


@dataclass(frozen=True)
class Start:
    """Files that a fresh run starts from.

    Attributes:
        weights: Of `medsam3 train`, those of `FitConfig.initial_sha256`.
        trunk: The published image encoder, for one that trains along and is not in `weights`.
    """

    weights: Path | None = None
    trunk: Path | None = None


def start_from(state: RunState, start: Start) -> None:
    """Put the files' weights into a fresh state. Of weights with another image encoder all but the levels is taken.

    Raises:
        InputError: The tensors are not those of the configured detector.
    """
    tensors: dict[str, Tensor] = {}
    if start.trunk is not None:
        published = convert_efficientnet(torch.load(start.trunk, weights_only=True, map_location="cpu"))
        tensors |= {f"{TRUNK}{name}": value for name, value in published.items()}
    if start.weights is not None:
        given = load_file(start.weights)
        own = state.model.state_dict()
        is_same_encoder = all(name in own for name in given)
        tensors |= {n: v.float() for n, v in given.items() if is_same_encoder or not n.startswith("levels.")}
    for model in (state.model, state.average):
        try:
            missing, extra = model.load_state_dict(tensors, strict=False)
        except RuntimeError as error:
            raise InputError(f"{start.weights} does not fit the detector: its tensors have other sizes") from error
        unfilled = [name for name in missing if not name.startswith(("levels.", "text_lora."))] if start.weights else []
        if extra or unfilled:
            raise InputError(
                f"{start.weights} does not fit the detector ({len(unfilled)} tensors missing, {len(extra)} unknown): "
                "give weights that medsam3 train made"
            )


def cut_curves(path: Path, steps: int) -> None:
    """Drop the lines of steps that were lost with a kill."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = list(_lines_before(lines, steps))
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _lines_before(lines: Sequence[str], steps: int) -> Iterator[str]:
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # the last line of a killed run
            continue
        if entry["step"] < steps:
            yield line
