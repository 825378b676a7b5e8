"""The training loop of the small detector: encoders frozen, cached features in, checkpoints and curves out.

A run is its folder: `config.json`, `curves.jsonl`, `checkpoint.pt`. Started again with the same folder it goes on at
the step it had saved, with the same batches. It knows nothing of the command line.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from medsam3.errors import InputError
from medsam3.models.detector import (
    ExemplarBoxes,
    PromptTokens,
    decode_masks,
    detect,
    select_items,
)
from medsam3.models.efficientnet import convert_efficientnet
from medsam3.models.mini_detector import MiniDetector, MiniDetectorConfig
from medsam3.models.text_encoder import TextEncoder
from medsam3.train.batches import Batch, BatchMaker, Question, SamplingConfig, prefetched
from medsam3.train.losses import LossWeights, mask_losses, query_losses, weigh

TRUNK = "levels.trunk."


@dataclass(frozen=True)
class FitConfig:
    """All that a run depends on besides the data; saved as JSON beside the weights.

    `views_of` names data sets that have another number of cached views than `views`.
    `trunk_rate` is the learning rate of an image encoder that trains along, as a share of `learning_rate`.
    `initial_sha256` names the weights that the run starts from; None is a fresh start from the seed.
    """

    steps: int = 1600
    learning_rate: float = 8e-4
    warmup_steps: int = 150
    weight_decay: float = 0.05
    clip_norm: float = 0.5
    ema_decay: float = 0.997
    bf16: bool = True
    seed: int = 0
    views: int = 2
    views_of: tuple[tuple[str, int], ...] = ()
    save_every: int = 100
    trunk_rate: float = 0.4
    initial_sha256: str | None = None
    detector: MiniDetectorConfig = field(default_factory=MiniDetectorConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    loss: LossWeights = field(default_factory=LossWeights)

    def views_in(self, dataset: str) -> int:
        """Cached views of each train image of a data set."""
        return dict(self.views_of).get(dataset, self.views)


@dataclass(frozen=True)
class Progress:
    """What the caller may show after a step."""

    step: int
    loss: float
    terms: dict[str, float]
    seconds_left: float


@dataclass
class RunState:
    """Everything that changes while training."""

    model: MiniDetector
    average: MiniDetector
    optimizer: torch.optim.Optimizer
    step: int = 0


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
    average.load_state_dict(model.state_dict())
    return RunState(model, average.requires_grad_(False).eval(), _optimizer(model, config))


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


def text_tokens(model: MiniDetector, text: TextEncoder, phrases: Sequence[str]) -> PromptTokens:
    """The phrases' projected tokens."""
    tokens = text.encode(phrases)
    return model.project_text(tokens.features, tokens.mask)


def exemplar_boxes(questions: Sequence[Question]) -> ExemplarBoxes:
    """The questions' exemplars as one padded batch with one slot each."""
    boxes = [[0.5, 0.5, 0.5, 0.5] if q.exemplar is None else list(q.exemplar.cxcywh) for q in questions]
    used = torch.tensor([[q.exemplar is not None] for q in questions])
    return ExemplarBoxes(torch.tensor(boxes)[:, None], used, used)


def batch_loss(
    model: MiniDetector, text: TextEncoder, batch: Batch, config: FitConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss of a batch and its terms. Masks are decoded for prompts whose concept is present."""
    questions = batch.questions
    images = torch.tensor([question.image for question in questions])
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
        levels = model.levels(batch.pixels, batch.neck)
        tokens = text_tokens(model, text, [question.phrase for question in questions])
        detection = detect(model, levels.coarsest.select(images), tokens, exemplar_boxes(questions))
    targets = [question.truth for question in questions]
    terms, matches = query_losses(detection, targets, config.loss)
    present = torch.tensor([i for i, target in enumerate(targets) if target.is_present], dtype=torch.int64)
    if len(present):
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            masks = decode_masks(model, levels.select(images[present]), select_items(detection, present))
        terms |= mask_losses(masks, [targets[int(i)] for i in present], matches)
    return weigh(terms, config.loss), terms


def train_step(state: RunState, text: TextEncoder, batch: Batch, config: FitConfig) -> dict[str, float]:
    """One update of the model and of its moving average; the terms of its loss, `total` included."""
    for group in state.optimizer.param_groups:
        group["lr"] = group["share"] * learning_rate(state.step, config)
    loss, terms = batch_loss(state.model, text, batch, config)
    if not torch.isfinite(loss):
        raise InputError(f"the loss is {loss.item()} at step {state.step}: lower --learning-rate or use --no-bf16")
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm)
    state.optimizer.step()
    state.step += 1
    decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.average.parameters()), list(state.model.parameters()), 1 - decay)
    return {"total": loss.item(), **{name: value.item() for name, value in terms.items()}}


def fit(
    folder: Path,
    maker: BatchMaker,
    text: TextEncoder,
    config: FitConfig,
    *,
    start: Start | None = None,
    on_step: Callable[[Progress], None] = lambda progress: None,
    stop_after_s: float | None = None,
) -> RunState:
    """Train until `config.steps`, saving as it goes; resumes what the folder holds.

    Args:
        folder: Of the run.
        maker: Draws the batches.
        text: The frozen text encoder.
        config: Of the run; must equal that of a run that is resumed.
        start: Weights to start from; None starts from the seed.
        on_step: Called after each step.
        stop_after_s: Save and return after so many seconds; the run can be resumed.

    Raises:
        InputError: The folder holds a run with another configuration, or the loss is not finite.
    """
    state = resume(folder, config, start)
    started, first = time.monotonic(), state.step
    with (folder / "curves.jsonl").open("a", encoding="utf-8") as curves:
        for step, batch in prefetched(maker, range(first, config.steps)):
            terms = train_step(state, text, batch, config)
            elapsed = time.monotonic() - started
            curves.write(json.dumps({"step": step, **{k: round(v, 5) for k, v in terms.items()}}) + "\n")
            left = elapsed / (state.step - first) * (config.steps - state.step)
            on_step(Progress(state.step, terms["total"], terms, left))
            is_last = stop_after_s is not None and elapsed > stop_after_s
            if state.step % config.save_every == 0 or state.step == config.steps or is_last:
                curves.flush()
                save(folder, state)
            if is_last:
                break
    return state


def save(folder: Path, state: RunState) -> None:
    """Write the checkpoint beside the old one, then put it in its place."""
    content = {
        "step": state.step,
        "model": state.model.state_dict(),
        "average": state.average.state_dict(),
        "optimizer": state.optimizer.state_dict(),
    }
    temporary = folder / "checkpoint.tmp"
    torch.save(content, temporary)
    temporary.replace(folder / "checkpoint.pt")


def resume(folder: Path, config: FitConfig, start: Start | None = None) -> RunState:
    """The state saved in the folder, or a fresh one where there is none, from the seed or from `start`.

    Raises:
        InputError: The folder holds a run with another configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "config.json"
    wanted: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    if written.exists() and json.loads(written.read_text(encoding="utf-8")) != wanted:
        raise InputError(f"{folder} holds a run with another configuration: choose another --out, or the same options")
    written.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
    state = new_state(config)
    path = folder / "checkpoint.pt"
    if path.exists():
        content = torch.load(path, weights_only=True)
        state.model.load_state_dict(content["model"])
        state.average.load_state_dict(content["average"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.step = int(content["step"])
    elif start is not None:
        start_from(state, start)
    cut_curves(folder / "curves.jsonl", state.step)
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
        unfilled = [name for name in missing if not name.startswith("levels.")] if start.weights else []
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
