"""A low-rank adapter on the attention of the small model's text encoder, whose own weights stay frozen.

Its weights lie in the detector's file; the encoder's are read from their own file as always and changed in memory.

Source: Hu et al., LoRA, ICLR 2022.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

LAYERS = 6
CHANNELS = 384
ADAPTED = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")


class TextLora(nn.Module):
    """W + (alpha / rank) B A for the four projections of each layer; B starts at 0, so that nothing changes at first.

    Attributes:
        down: A of every projection, (24, rank, 384), in the order of `targets`.
        up: B, (24, 384, rank).
    """

    def __init__(self, rank: int, *, alpha: float = 16.0) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.down = nn.Parameter(torch.empty(LAYERS * len(ADAPTED), rank, CHANNELS))
        self.up = nn.Parameter(torch.zeros(LAYERS * len(ADAPTED), CHANNELS, rank))
        nn.init.uniform_(self.down, -1 / math.sqrt(CHANNELS), 1 / math.sqrt(CHANNELS))

    def merged(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The encoder's changed weights, by their names in it, from its own."""
        changes = self.scale * self.up @ self.down
        return {name: weights[name] + change for name, change in zip(targets(), changes, strict=True)}


def targets() -> list[str]:
    """Names of the adapted weights in a `MiniLM`."""
    return [f"encoder.layer.{layer}.{part}.weight" for layer in range(LAYERS) for part in ADAPTED]
