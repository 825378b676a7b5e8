"""Two processes of one run: `torchrun sam3_two_processes.py ddp|sharded first|rest WEIGHTS PICTURES OUT`.

`first` stops after its fourth update, one after a save; `rest` goes on from there. `sharded` cuts the weights up with
FSDP 2 by hand, since accelerate itself does so on accelerators alone.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import sam3_killed_run as killed
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from medsam3.train import loop
from medsam3.train.loop import Run
from medsam3.train.workers import AcceleratedProcesses

LAYERS = ("Sam3ViTLayer", "Sam3DetrEncoderLayer", "Sam3DetrDecoderLayer")


class ShardedProcesses(AcceleratedProcesses):
    """Each process holds half of every weight."""

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = [{**group, "params": [names[id(p)] for p in group["params"]]} for group in optimizer.param_groups]
        for module in list(model.modules()):
            if type(module).__name__ in LAYERS:
                fully_shard(module)
        fully_shard(model)
        sharded = dict(model.named_parameters())
        again = [{**group, "params": [sharded[name] for name in group["params"]]} for group in groups]
        return model, torch.optim.AdamW(again)

    def accumulating(self, model: nn.Module) -> AbstractContextManager[object]:
        return nullcontext()

    def clip(self, model: nn.Module, norm: float) -> None:
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], norm)


class StoppedError(Exception):
    """The first part is over."""


def main() -> None:
    layout, part, *places = sys.argv[1:]
    weights, pictures, out = map(Path, places)
    workers = ShardedProcesses() if layout == "sharded" else AcceleratedProcesses()
    config = replace(killed.CONFIG, accumulate=1)
    update = loop.update

    def stopping(run: Run, *others: Any) -> dict[str, float]:
        if part == "first" and run.step == 4:
            raise StoppedError
        return update(run, *others)

    with patch.object(loop, "update", stopping):
        try:
            killed.train(weights, pictures, out, config=config, workers=workers)
        except StoppedError:
            workers.wait()


if __name__ == "__main__":
    main()
