"""The moving average of what trains: a run gives its weights, and val is measured on them."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import nn

from medsam3.train.workers import State

Net = TypeVar("Net", bound=nn.Module)


class Averaged(nn.Module, Generic[Net]):
    """What trains, followed by a moving average that is no part of the module."""

    def keep_average(self, trained: Net, average: Net, decay: float) -> None:
        """Begin.

        Args:
            trained: A part of this module.
            average: Another of the same weights.
            decay: Of the average, after the first updates, in which it is less.
        """
        self._followed = (trained, average.requires_grad_(False).eval())  # in a tuple: no part of what trains
        self._decay = decay

    @property
    def module(self) -> nn.Module:
        """What the loop calls."""
        return self

    @property
    def average(self) -> Net:
        """The moving average of the weights."""
        return self._followed[1]

    def after_update(self, step: int) -> None:
        """Move the average towards the weights."""
        trained, average = self._followed
        decay = min(self._decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(trained.parameters()), 1 - decay)

    def further_state(self) -> State:
        """Give the moving average."""
        return self.average.state_dict()

    def put_further_state(self, state: State) -> None:
        """Take the moving average."""
        self.average.load_state_dict(state)

    def candidate(self) -> State:
        """Give a copy of the moving average, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.average.state_dict().items()}
