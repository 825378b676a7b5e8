"""The loop that fine-tunes SAM 3: updates, schedule, checkpoints, curves, on one process or many.

A run is its folder: `config.json`, `curves.jsonl`, `checkpoint.pt`. Started again with the same folder it goes on at
the step it had saved, with the same batches and the same dropout, also after it was killed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medsam3.errors import InputError
from medsam3.train.batches import prefetched
from medsam3.train.fit import Progress, cut_curves, learning_rate
from medsam3.train.sam3_batches import Sam3Batch, Sam3BatchMaker
from medsam3.train.sam3_config import Sam3FitConfig
from medsam3.train.sam3_trainee import Sam3Trainee
from medsam3.train.workers import State, Workers, gather, scatter

_PREFIX = "network."


@dataclass
class Sam3Run:
    """What changes while training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0


def fit_sam3(
    folder: Path,
    trainee: Sam3Trainee,
    maker: Sam3BatchMaker,
    workers: Workers,
    *,
    on_step: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Tensor]:
    """Train until `config.steps`, saving as it goes; resumes what the folder holds.

    Args:
        folder: Of the run.
        trainee: The model, on the workers' device.
        maker: Draws the batches.
        workers: The processes that train together.
        on_step: Called after each update.

    Returns:
        The weights that were trained, under the network's names, on the CPU.

    Raises:
        InputError: The folder holds a run with another configuration, or the loss is not finite.
    """
    config = trainee.config
    run = resume(folder, trainee, workers)
    started, first = time.monotonic(), run.step
    batches = own_batches(maker, config, workers, first)
    for step in range(first, config.steps):
        terms = update(run, batches, config, workers)
        if workers.rank == 0:
            line = {"step": step, **{name: round(value, 5) for name, value in terms.items()}}
            with (folder / "curves.jsonl").open("a", encoding="utf-8") as curves:
                curves.write(json.dumps(line) + "\n")
            left = (time.monotonic() - started) / (run.step - first) * (config.steps - run.step)
            on_step(Progress(run.step, terms["total"], terms, left))
        if run.step % config.save_every == 0 or run.step == config.steps:
            save(folder, run, workers)
    weights, _ = gather(run.model, run.optimizer)
    return {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items()}


def own_batches(
    maker: Sam3BatchMaker, config: Sam3FitConfig, workers: Workers, first: int
) -> Iterator[tuple[int, Sam3Batch]]:
    """The batches of this process from update `first` on, with their numbers: every `count`-th of the run's."""
    an_update = config.accumulate * workers.count
    return prefetched(maker, range(first * an_update + workers.rank, config.steps * an_update, workers.count))


def update(
    run: Sam3Run, batches: Iterator[tuple[int, Sam3Batch]], config: Sam3FitConfig, workers: Workers
) -> dict[str, float]:
    """One update of the weights; the terms of its loss, means over its batches, `total` included."""
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
            sums[name] = sums.get(name, 0) + value.detach() / config.accumulate
    means = {name: float(workers.mean(value)) for name, value in _all_terms(sums).items()}
    if not means["total"] < float("inf"):
        raise InputError(f"the loss is {means['total']} at step {run.step}: lower --learning-rate or use --no-bf16")
    workers.clip(run.model, config.clip_norm)
    run.optimizer.step()
    run.step += 1
    return means


def _all_terms(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """With zeros for the mask terms of batches without a present concept, so that all processes have the same."""
    names = ("box_l1", "box_giou", "score", "presence", "mask_focal", "mask_dice", "semantic_focal", "semantic_dice")
    return {"total": sums["total"], **{name: sums.get(name, torch.zeros_like(sums["total"])) for name in names}}


def save(folder: Path, run: Sam3Run, workers: Workers) -> None:
    """Write the checkpoint beside the old one, then put it in its place; all processes have to call it."""
    weights, moments = gather(run.model, run.optimizer)
    if workers.rank == 0:
        temporary = folder / "checkpoint.tmp"
        torch.save({"step": run.step, "model": weights, "optimizer": moments}, temporary)
        temporary.replace(folder / "checkpoint.pt")
    workers.wait()


def resume(folder: Path, trainee: Sam3Trainee, workers: Workers) -> Sam3Run:
    """The run saved in the folder, or a fresh one where there is none.

    Raises:
        InputError: The folder holds a run with another configuration, or a checkpoint that cannot be read.
    """
    config = trainee.config
    if workers.rank == 0:
        check_folder(folder, config)
    workers.wait()
    optimizer = torch.optim.AdamW(trainee.groups())
    run = Sam3Run(*workers.prepare(trainee, optimizer))
    path = folder / "checkpoint.pt"
    if path.exists():
        content = _read(path)
        scatter(run.model, run.optimizer, content["model"], content["optimizer"])
        run.step = int(content["step"])
    if workers.rank == 0:
        cut_curves(folder / "curves.jsonl", run.step)
    workers.wait()
    return run


def check_folder(folder: Path, config: Sam3FitConfig) -> None:
    """Write the configuration into a new folder, or compare it with the one that is there.

    Raises:
        InputError: They differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = folder / "config.json"
    wanted: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    if written.exists():
        found = json.loads(written.read_text(encoding="utf-8"))
        if found != wanted:
            odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            raise InputError(
                f"{folder} holds a run with another configuration ({', '.join(odd)}): choose another --out, or the "
                "same options"
            )
        return
    temporary = written.with_suffix(".tmp")
    temporary.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
    temporary.replace(written)


def _read(path: Path) -> State:
    try:
        content: State = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError) as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}): delete it to start the run anew") from error
    return content
