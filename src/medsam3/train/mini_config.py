"""What a run of the small model depends on besides its data: plain values, saved as JSON beside the weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from medsam3.models.mini.detector import MiniDetectorConfig
from medsam3.train.batches import SamplingConfig
from medsam3.train.losses import LossWeights

Trains = Literal["detector", "text", "lora", "all"]
TEXT_RANK = 8


@dataclass(frozen=True)
class FitConfig:
    """All that a run depends on besides the data; saved as JSON beside the weights.

    `views_of` names data sets that have another number of cached views than `views`.
    `bf16` computes in bfloat16 if the processor does so fast.
    `trunk_rate` is the learning rate of an image encoder that trains along, as a share of `learning_rate`.
    `initial_sha256` names the weights that the run starts from; None is a fresh start from the seed.
    `trains`: `detector` behind frozen encoders, `text` (its text projection alone), `lora` (the detector, and an
    adapter on the text encoder), or `all`, an image encoder that trains along included.
    `accumulate` batches make one update. Every `val_every` updates val is measured (0: never), and the run ends after
    `patience` measurements in a row without gain.
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
    trains: Trains = "all"
    accumulate: int = 1
    val_every: int = 0
    patience: int = 3
    detector: MiniDetectorConfig = field(default_factory=MiniDetectorConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    loss: LossWeights = field(default_factory=LossWeights)

    def views_in(self, dataset: str) -> int:
        """Cached views of each train image of a data set."""
        return dict(self.views_of).get(dataset, self.views)
