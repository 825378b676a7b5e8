"""The training loop of both sizes: updates, schedule, checkpoints, curves, on one process or many.

A run is its folder: `curves.jsonl`, `val.jsonl`, `checkpoint.pt`. Started again with the same folder it goes on at the
step it had saved, with the same batches and the same dropout, also after it was killed. The folder belongs to one
configuration and to the contents of its data; more steps extend the run. It knows no model and no command line.
"""

from __future__ import annotations

import json
import math
import pickle
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from medsam3.errors import InputError
from medsam3.models.registry import DAMAGED_PICKLE
from medsam3.store import Journal, JsonObject, check_format, replacing, write_json
from medsam3.train.batches import Batch
from medsam3.train.config import Config
from medsam3.train.workers import State, Workers, gather, scatter, write_tensors

TERMS = ("box_l1", "box_giou", "score", "presence", "mask_focal", "mask_dice", "semantic_focal", "semantic_dice")
_UNREADABLE = (pickle.UnpicklingError, *DAMAGED_PICKLE)
_TEMPORARY = re.compile(r"\.[0-9a-f]{32}(\..*)?")
CHECKPOINT_FORMAT = 1
Made = TypeVar("Made")


class Maker(Protocol):
    """Draws batches."""

    def batch(self, step: int) -> Any:
        """Make batch number `step`, the same one whenever it is asked."""
        ...


class Trainee(Protocol):
    """A model that the loop trains."""

    @property
    def config(self) -> Config:
        """Settings of the run."""
        ...

    @property
    def module(self) -> nn.Module:
        """Gives loss and terms, called with a function that returns a batch.

        A function, because wrappers for several GPUs take arguments apart, and cannot rebuild frozen values.
        """
        ...

    def optimizer(self) -> torch.optim.Optimizer:
        """Make the optimizer; each group's `peak` is its highest rate."""
        ...

    def own_batch(self, maker: Any, step: int, rank: int, count: int) -> Any:
        """Draw this process's part of batch `step`, of `count` processes."""
        ...

    def after_update(self, step: int) -> None:
        """Follow the weights, such as in a moving average; `step` updates are done."""
        ...

    def further_state(self) -> State:
        """Give what a checkpoint keeps besides the trained weights."""
        ...

    def put_further_state(self, state: State) -> None:
        """Take back what `further_state` gave."""
        ...

    def candidate(self) -> State:
        """Give the weights that a measurement on val is about."""
        ...


@dataclass(frozen=True)
class StepReport:
    """Facts that the caller may show after a step."""

    step: int
    loss: float
    terms: dict[str, float]
    seconds_left: float


@dataclass(frozen=True)
class Best:
    """The best measurement on val so far.

    Attributes:
        step: Updates before it.
        dice: Mean Dice of phrases alone.
        weights: The weights that were measured.
        measured_since: Measurements after it, none of them better.
    """

    step: int
    dice: float
    weights: State
    measured_since: int = 0


@dataclass(frozen=True)
class Hooks:
    """Functions that a run calls as it goes.

    Attributes:
        on_phase: At the start of a phase, with its name and size.
        on_item: After each item of a phase.
        on_step: After each update.
        on_measured: After each measurement on val: step and Dice.
    """

    on_phase: Callable[[str, int], None] = lambda name, count: None
    on_item: Callable[[], None] = lambda: None
    on_step: Callable[[StepReport], None] = lambda progress: None
    on_measured: Callable[[int, float], None] = lambda step, dice: None


@dataclass(frozen=True)
class Validation:
    """Early stopping: Dice on val every so many updates, until so many measurements in a row gain nothing."""

    every: int
    patience: int
    dice: Callable[[], float]


@dataclass
class Run:
    """The state that changes while training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    best: Best | None = None


def learning_rate(step: int, config: Config) -> float:
    """Compute the rate: a linear warm-up over at most a third of the steps, then a cosine down to 2 % of the peak."""
    warmup = min(config.warmup_steps, config.steps // 3)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class RunFolder:
    """The folder of a run, held by one process until it is closed."""

    def __init__(self, path: Path, config: Config, data: str, *, is_writer: bool = True) -> None:
        """Open a new run, or one that is to be resumed.

        Args:
            path: The folder.
            config: Settings; those of a run that is there must be the same, but for `steps`.
            data: Digest of the contents of the data; see `contents_digest`.
            is_writer: False in all processes of a run but the first, which alone writes.

        Raises:
            InputError: The folder holds a run on other data or with other settings, or one that is still going.
        """
        self.path, self.is_writer = path, is_writer
        wanted = check_folder(path, config, data)
        curves, val = path / "curves.jsonl", path / "val.jsonl"
        self.curves = Journal(curves if is_writer else None, wanted, other="refuse")
        self.val = Journal(val if is_writer else None, wanted, other="replace")
        if is_writer:
            for left in path.iterdir():  # by a run that was killed as it wrote them
                if _TEMPORARY.fullmatch(left.name):
                    left.unlink(missing_ok=True)
            write_json(path / "config.json", asdict(config))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.curves.close()
        self.val.close()

    def keep(self, step: int) -> None:
        """Drop the lines of updates that were lost with a kill; `step` updates are done."""
        for journal, last in ((self.curves, step - 1), (self.val, step)):
            kept = sum(record.get("step", math.inf) <= last for record in journal.records)
            if kept < len(journal.records):
                journal.truncate(kept)

    @property
    def checkpoint(self) -> Path:
        """The file that a resumed run goes on from."""
        return self.path / "checkpoint.pt"


def check_folder(path: Path, config: Config, data: str) -> JsonObject:
    """Compare the run that a folder holds with the one that is wanted, and write nothing.

    Returns:
        What the run is bound to: the heading of its curves.

    Raises:
        InputError: They differ.
    """
    wanted: JsonObject = json.loads(json.dumps({"config": asdict(config), "data": data, "version": 1}))
    del wanted["config"]["steps"]
    try:
        with (path / "curves.jsonl").open("rb") as stream:
            found = json.loads(stream.readline())
        settings, its_data = found["config"], found["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return wanted  # there is none, or the journal says what is wrong with it
    if its_data != data:
        raise InputError(
            f"{path} holds a run on other data: choose another --out, or give the data that it was begun with "
            "(to go on from its weights on other data: --init)"
        )
    if settings != wanted["config"]:
        own = wanted["config"]
        odd = sorted(name for name in own.keys() | settings.keys() if own.get(name) != settings.get(name))
        raise InputError(
            f"{path} holds a run with another configuration ({', '.join(odd)}): choose another --out, or the "
            "same options (only --steps may be raised)"
        )
    return wanted


def fit(
    folder: RunFolder,
    trainee: Trainee,
    maker: Maker,
    workers: Workers,
    *,
    validation: Validation | None = None,
    hooks: Hooks | None = None,
) -> Run:
    """Train until `config.steps`, or until val gains no more, saving as it goes; resumes what the folder holds.

    Args:
        folder: The run's, open.
        trainee: The model, on the workers' device.
        maker: Draws the batches.
        workers: The processes that train together; the first one writes.
        validation: Early stopping; None trains to the end.
        hooks: What is called meanwhile.

    Returns:
        The run at its end; `best` is there if val was measured.

    Raises:
        InputError: The checkpoint is damaged or has more steps, the loss is not finite, or the disk is full.
    """
    config, hooks = trainee.config, hooks or Hooks()
    run = resume(folder, trainee, workers)
    started, first = time.monotonic(), run.step
    batches = own_batches(trainee, maker, workers, first)
    while run.step < config.steps and not _has_settled(run, validation):
        terms = update(run, trainee, batches, workers)
        folder.curves.append({"step": run.step - 1, **{name: round(value, 5) for name, value in terms.items()}})
        left = (time.monotonic() - started) / (run.step - first) * (config.steps - run.step)
        hooks.on_step(StepReport(run.step, terms["total"], terms, left))
        is_last = run.step == config.steps
        is_measured = validation is not None and (run.step % validation.every == 0 or is_last)
        if validation is not None and is_measured:
            _measure(run, trainee, validation, folder, workers, hooks)
        if is_measured or is_last or run.step % config.save_every == 0:
            save(folder, run, trainee, workers)
    return run


def own_batches(trainee: Trainee, maker: Maker, workers: Workers, first: int) -> Iterator[tuple[int, Batch]]:
    """Draw this process's batches from update `first` on, each with a number that no other batch of the run has."""
    config = trainee.config

    def make(step: int) -> tuple[int, Batch]:
        return step * workers.count + workers.rank, trainee.own_batch(maker, step, workers.rank, workers.count)

    return prefetched(make, range(first * config.accumulate, config.steps * config.accumulate))


def prefetched(make: Callable[[int], Made], steps: range, *, ahead: int = 4) -> Iterator[Made]:
    """Make values in order, by one thread that stays at most `ahead` of them before the reader."""
    ready: queue.Queue[Made | BaseException] = queue.Queue(maxsize=ahead)

    def work() -> None:
        try:
            for step in steps:
                ready.put(make(step))
        except BaseException as error:  # handed to the reader, which raises it
            ready.put(error)

    threading.Thread(target=work, daemon=True).start()
    for _ in steps:
        item = ready.get()
        if isinstance(item, BaseException):
            raise item
        yield item


def update(run: Run, trainee: Trainee, batches: Iterator[tuple[int, Batch]], workers: Workers) -> dict[str, float]:
    """Make one update of the weights, by the mean gradient of its batches and processes.

    Returns:
        The mean of each term of the loss, `total` included.

    Raises:
        InputError: The loss is not finite.
    """
    config = trainee.config
    factor = learning_rate(run.step, config) / config.learning_rate
    for group in run.optimizer.param_groups:
        group["lr"] = group["peak"] * factor
    sums: dict[str, Tensor] = {}
    run.optimizer.zero_grad(set_to_none=True)
    for part in range(config.accumulate):
        number, batch = next(batches)
        torch.manual_seed(config.seed * 1_000_003 + number)  # dropout of a resumed run is that of an unbroken one
        is_last = part == config.accumulate - 1
        with nullcontext() if is_last else workers.accumulating(run.model):
            loss, terms = run.model(lambda batch=batch: batch)
            workers.backward(loss / config.accumulate)
        for name, value in {"total": loss, **terms}.items():
            sums[name] = sums.get(name, 0) + value.detach().float() / config.accumulate
    nothing = torch.zeros_like(sums["total"])  # the mask terms of batches without a present concept
    values = workers.mean(torch.stack([sums.get(name, nothing) for name in ("total", *TERMS)]))
    means = dict(zip(("total", *TERMS), values.tolist(), strict=True))
    if not math.isfinite(means["total"]):
        raise InputError(f"the loss is {means['total']} at step {run.step}: lower --learning-rate or use --no-bf16")
    workers.clip(run.model, config.clip_norm)
    run.optimizer.step()
    run.step += 1
    trainee.after_update(run.step)
    return means


def _has_settled(run: Run, validation: Validation | None) -> bool:
    return validation is not None and run.best is not None and run.best.measured_since >= validation.patience


def _measure(
    run: Run, trainee: Trainee, validation: Validation, folder: RunFolder, workers: Workers, hooks: Hooks
) -> None:
    """Measure val in the first process, and remember the weights if they are the best so far."""
    measured = torch.zeros((), device=workers.device)
    if workers.rank == 0:
        measured += validation.dice()
        folder.val.append({"step": run.step, "dice": round(float(measured), 5)})
        hooks.on_measured(run.step, float(measured))
    dice = float(workers.mean(measured)) * workers.count
    if run.best is None or dice > run.best.dice:
        run.best = Best(run.step, dice, trainee.candidate())
    else:
        run.best = replace(run.best, measured_since=run.best.measured_since + 1)


def save(folder: RunFolder, run: Run, trainee: Trainee, workers: Workers) -> None:
    """Replace the checkpoint; all processes have to call it.

    Raises:
        InputError: The disk is full; the old checkpoint stays.
    """
    weights, moments = gather(run.model, run.optimizer)
    if folder.is_writer:
        content = {
            "format": CHECKPOINT_FORMAT,
            "step": run.step,
            "steps": trainee.config.steps,
            "model": weights,
            "optimizer": moments,
            "further": trainee.further_state(),
            "best": None if run.best is None else vars(run.best),
        }
        with replacing(folder.checkpoint) as temporary:
            write_tensors(temporary, content)
    workers.wait()


def resume(folder: RunFolder, trainee: Trainee, workers: Workers) -> Run:
    """Read the run that is saved in the folder, or begin a fresh one.

    A run that had settled on val and is given more steps goes on, its patience new.

    Raises:
        InputError: The checkpoint cannot be read, or has more steps than the run is to have.
    """
    run = Run(*workers.prepare(trainee.module, trainee.optimizer()))
    if folder.checkpoint.exists():
        _restore(run, folder.checkpoint, trainee)
    workers.wait()  # all have read before the first one writes
    folder.keep(run.step)
    return run


def _restore(run: Run, path: Path, trainee: Trainee) -> None:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content["format"] if "format" in content else None  # noqa: SIM401  it may be no dict
        check_format(found, CHECKPOINT_FORMAT, str(path))
        scatter(run.model, run.optimizer, content["model"], content["optimizer"])
        trainee.put_further_state(content["further"])
        run.step, earlier = int(content["step"]), int(content["steps"])
        run.best = None if content["best"] is None else Best(**content["best"])
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}): put a copy back, or remove it to train from the start"
        ) from error
    if run.step > trainee.config.steps:
        raise InputError(
            f"{path.parent} holds a run of {run.step} steps, --steps is {trainee.config.steps}: give {run.step} or "
            "more, or choose another --out"
        )
    if run.best is not None and trainee.config.steps > earlier:
        run.best = replace(run.best, measured_since=0)
