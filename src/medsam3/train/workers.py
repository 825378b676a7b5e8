"""One process, or several on several GPUs and machines through accelerate (DDP, FSDP): the same few calls for both.

Several are used where the run was started with `accelerate launch`. Trained weights and the optimiser's state are
gathered whole and by name whatever the layout, so that a run may go on with another number of processes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    OptimizerStateType,
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from medsam3.errors import InputError, require

State = dict[str, Tensor]
"""Tensors by their names."""


class Workers(Protocol):
    """The processes that run the loop, as it asks them."""

    rank: int
    count: int
    device: torch.device

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Both as the processes share them."""
        ...

    def accumulating(self, model: nn.Module) -> AbstractContextManager[object]:
        """Gradients within are not exchanged yet."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients."""
        ...

    def clip(self, model: nn.Module, norm: float) -> None:
        """Scale all gradients down to a norm."""
        ...

    def mean(self, value: Tensor) -> Tensor:
        """The processes' mean."""
        ...

    def wait(self) -> None:
        """Until all processes are here."""
        ...


class OneProcess:
    """No exchange at all."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.count, self.device = 0, 1, device

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Both as they are."""
        return model, optimizer

    def accumulating(self, model: nn.Module) -> AbstractContextManager[object]:
        """Nothing to hold back."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def clip(self, model: nn.Module, norm: float) -> None:
        """Scale all gradients down to a norm."""
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], norm)

    def mean(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    def wait(self) -> None:
        """Nobody to wait for."""


class AcceleratedProcesses:
    """Processes of `accelerate launch`, with DDP or FSDP as its configuration says."""

    def __init__(self) -> None:
        accelerate: Any = require("accelerate", extra="accelerate")
        unused = accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)  # no masks in some batches
        self._accelerator: Any = accelerate.Accelerator(mixed_precision="no", kwargs_handlers=[unused])
        self.rank = int(self._accelerator.process_index)
        self.count = int(self._accelerator.num_processes)
        self.device: torch.device = self._accelerator.device
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != self.count:  # else each would train alone and all would write the same files
            raise InputError(
                f"{started} processes were started and accelerate joined {self.count}: check its configuration with "
                "accelerate env (on CPUs set ACCELERATE_USE_CPU=true)"
            )

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrapped for DDP, or sharded for FSDP."""
        wrapped, shared = self._accelerator.prepare(model, optimizer)
        return wrapped, shared

    def accumulating(self, model: nn.Module) -> AbstractContextManager[object]:
        """Gradients stay in their process."""
        context: AbstractContextManager[object] = self._accelerator.no_sync(model)
        return context

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients and exchange them."""
        self._accelerator.backward(loss)

    def clip(self, model: nn.Module, norm: float) -> None:
        """Scale all gradients down to a norm over all shards."""
        self._accelerator.clip_grad_norm_(model.parameters(), norm)

    def mean(self, value: Tensor) -> Tensor:
        """The processes' mean."""
        mean: Tensor = self._accelerator.reduce(value, reduction="mean")
        return mean

    def wait(self) -> None:
        """Until all processes are here."""
        self._accelerator.wait_for_everyone()


def workers_for(device: torch.device | str) -> Workers:
    """The processes that this one belongs to: itself, or those of `accelerate launch`.

    Raises:
        InputError: Started by a launcher, and accelerate is not installed.
    """
    is_launched = "ACCELERATE_MIXED_PRECISION" in os.environ or int(os.environ.get("WORLD_SIZE", "1")) > 1
    return AcceleratedProcesses() if is_launched else OneProcess(torch.device(device))


def gather(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[State, OptimizerStateType]:
    """Weights that train, and the optimiser's state, whole and on the CPU; all processes have to call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights = cast(State, get_model_state_dict(model, options=options))
    return weights, get_optimizer_state_dict(model, _bare(optimizer), options=options)


def scatter(model: nn.Module, optimizer: torch.optim.Optimizer, weights: State, moments: OptimizerStateType) -> None:
    """Put back what `gather` gave; all processes have to call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)
    set_model_state_dict(model, {**weights}, options=options)
    set_optimizer_state_dict(model, _bare(optimizer), moments, options=options)


def _bare(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Without accelerate's wrapper."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def write_tensors(path: Path, content: Mapping[str, object]) -> None:
    """Write a file of torch's, whatever its name.

    Raises:
        OSError: The disk is full, or the file cannot be written.
    """
    try:
        with path.open("wb") as stream:
            torch.save(content, stream)
    except RuntimeError as error:  # what torch makes of a write that failed
        raise OSError(errno.ENOSPC, "the disk may be full") from error
