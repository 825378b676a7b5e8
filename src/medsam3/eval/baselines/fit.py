"""Trains the U-Net of one data set: seeded, in bounded time, resumable after any kill, stopped early by validation.

What is chosen on the validation images is the step whose weights are kept. Test images are never read here.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medsam3.errors import InputError, require
from medsam3.eval.baselines.squares import SquareBatch, Squares, square_batch, training_batch
from medsam3.eval.baselines.unet import MASK_THRESHOLD, unet
from medsam3.io.files import first_line
from medsam3.models.precision import has_fast_bfloat16
from medsam3.store import replacing

OnStep = Callable[[int, int, float], None]
"""Called with steps done, steps in all, and the best validation Dice so far (NaN before the first)."""


@dataclass(frozen=True)
class UnetConfig:
    """How a U-Net is trained.

    Attributes:
        minutes: Most wall time of training a data set, all resumed parts together.
        batch: Images a step.
        epochs: Passes over the training images, within the bounds on steps.
        least_steps: At least so many steps, for small sets.
        most_steps: At most so many.
        rate: Highest learning rate; it falls along a cosine to 0 with steps or time, whichever is further on.
        validate_every: Steps between validations, or a pass over the images, whichever is longer.
        patience: Validations without a better Dice after which training stops.
        seed: Of weights, order and variants.
    """

    minutes: float = 20.0
    batch: int = 8
    epochs: int = 60
    least_steps: int = 1500
    most_steps: int = 6000
    rate: float = 3e-3
    validate_every: int = 40
    patience: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minutes) and self.minutes > 0):
            raise InputError(f"baseline minutes are {self.minutes}, allowed is more than 0")

    def steps(self, images: int) -> int:
        """Steps for so many training images."""
        return int(np.clip(self.epochs * images / self.batch, self.least_steps, self.most_steps))


@dataclass
class FitState:
    """Where a training stands. `best` is the state of the kept weights."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0
    best: dict[str, Tensor] = field(default_factory=dict)
    best_dice: float = math.nan
    best_step: int = 0
    validations_since: int = 0

    def to_save(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "best_dice": self.best_dice,
            "best_step": self.best_step,
            "validations_since": self.validations_since,
        }


def fit_unet(
    train: Squares, val: Squares, config: UnetConfig, checkpoint: Path, on_step: OnStep = lambda done, count, dice: None
) -> FitState:
    """Train, or go on from `checkpoint`, until the steps, the time or the patience are used up.

    Returns:
        The state, with the best weights loaded into its network.

    Raises:
        InputError: MONAI is missing, there is nothing to train on, or the checkpoint is of another network.
    """
    if not len(train) or not len(val):
        raise InputError(f"a U-Net needs images to train and to validate on, got {len(train)} and {len(val)}")
    torch.manual_seed(config.seed)
    network = unet(len(train.concepts))
    state = FitState(network, torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=1e-4))
    if checkpoint.is_file():
        state = _resumed(state, checkpoint)
    steps = config.steps(len(train))
    every = max(config.validate_every, math.ceil(len(train) / config.batch))
    started = time.monotonic() - state.seconds
    while not _is_done(state, steps, config):
        for _ in range(min(every, steps - state.step)):
            state.seconds = time.monotonic() - started
            _update(state, training_batch(train, config.batch, seed=config.seed, step=state.step), steps, config)
            on_step(state.step, steps, state.best_dice)
            if state.seconds > config.minutes * 60:
                break
        _validate(state, val)
        state.seconds = time.monotonic() - started
        with replacing(checkpoint, ".pt") as temporary:
            torch.save(state.to_save(), temporary)
    network.load_state_dict(state.best)
    network.eval()
    return state


def validation_dice(network: nn.Module, squares: Squares, *, batch: int = 8) -> float:
    """Mean Dice on the square over all annotated pairs of image and concept; 1 where truth and answer are empty."""
    network.eval()
    total, count = 0.0, 0.0
    with torch.inference_mode():
        for start in range(0, len(squares), batch):
            some = square_batch(squares, np.arange(start, min(start + batch, len(squares))))
            answer = (network(_channels_last(some.images)).sigmoid() > MASK_THRESHOLD).float()
            shared = (answer * some.targets).sum(dim=(2, 3))
            sizes = answer.sum(dim=(2, 3)) + some.targets.sum(dim=(2, 3))
            dice = torch.where(sizes > 0, 2 * shared / sizes.clamp(min=1), torch.ones_like(sizes))
            total += float((dice * some.known).sum())
            count += float(some.known.sum())
    return total / max(count, 1.0)


def loss_of(logits: Tensor, batch: SquareBatch) -> Tensor:
    """Cross entropy plus soft Dice, the mean over annotated pairs of image and concept."""
    losses = require("monai.losses", extra="baseline")
    entropy = nn.functional.binary_cross_entropy_with_logits(logits, batch.targets, reduction="none").mean(dim=(2, 3))
    soft = losses.DiceLoss(sigmoid=True, reduction="none", smooth_nr=1.0, smooth_dr=1.0)
    dice = soft(logits, batch.targets).reshape(entropy.shape)
    loss: Tensor = ((entropy + dice) * batch.known).sum() / batch.known.sum().clamp(min=1)
    return loss


def stopped_by(state: FitState, steps: int, config: UnetConfig) -> str:
    """Why a finished training ended: all steps done, no better Dice for long, or the time, which may leave it weak."""
    if state.step >= steps:
        return "all steps done"
    return "no gain" if state.validations_since >= config.patience else "stopped by time"


def _is_done(state: FitState, steps: int, config: UnetConfig) -> bool:
    is_patient = state.validations_since < config.patience
    return not is_patient or state.step >= steps or (state.step > 0 and state.seconds >= config.minutes * 60)


def _update(state: FitState, batch: SquareBatch, steps: int, config: UnetConfig) -> None:
    progress = min(1.0, max(state.step / steps, state.seconds / (config.minutes * 60)))
    for group in state.optimizer.param_groups:
        group["lr"] = config.rate * (0.5 + 0.5 * math.cos(math.pi * progress))
    state.network.train()
    state.optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16()):
        logits = state.network(_channels_last(batch.images))
    loss_of(logits.float(), batch).backward()  # type: ignore[no-untyped-call]
    state.optimizer.step()
    state.step += 1


def _validate(state: FitState, val: Squares) -> None:
    dice = validation_dice(state.network, val)
    if not state.best or dice > state.best_dice:
        state.best = {name: value.detach().clone() for name, value in state.network.state_dict().items()}
        state.best_dice, state.best_step, state.validations_since = dice, state.step, 0
    else:
        state.validations_since += 1


def _resumed(state: FitState, checkpoint: Path) -> FitState:
    try:
        saved = torch.load(checkpoint, weights_only=True)
        state.network.load_state_dict(saved["network"])
        state.optimizer.load_state_dict(saved["optimizer"])
        rest = {name: value for name, value in saved.items() if name not in ("network", "optimizer")}
        return replace(state, **rest)
    except (OSError, RuntimeError, KeyError, EOFError, TypeError, ValueError, pickle.UnpicklingError) as error:
        reason = first_line(error)
        raise InputError(f"{checkpoint} is no checkpoint of this U-Net ({reason}): remove it to start anew") from error


def _channels_last(images: Tensor) -> Tensor:
    return images.to(memory_format=torch.channels_last)
