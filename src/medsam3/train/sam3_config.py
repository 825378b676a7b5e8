"""What a fine-tuning run of SAM 3 depends on besides its data: plain values, no torch.

Source: the paper's recipe (both encoders frozen, the detector trained) of MedSAM-3, arXiv 2511.19046; rates, decay and
clipping of SAM 3, arXiv 2511.16719; rank, alpha and rate of the adapter of MedSAM-3 v1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from medsam3.errors import InputError
from medsam3.train.batches import SamplingConfig
from medsam3.train.losses import LossWeights

Trains = Literal["detector", "lora", "all"]
TRAINS: tuple[Trains, ...] = get_args(Trains)


@dataclass(frozen=True)
class LoraConfig:
    """MedSAM-3 v1's adapter: on all attention and feed-forward layers, both encoders included."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise InputError(f"{self} is not allowed: rank from 1, alpha above 0, dropout from 0 to below 1")


@dataclass(frozen=True)
class Sam3FitConfig:
    """A run; saved as JSON beside the weights, and a run that is resumed must have the same.

    Attributes:
        trains: What changes: the detector behind frozen encoders, an adapter, or everything.
        steps: Updates.
        learning_rate: Peak rate of the detector or the adapter.
        vision_learning_rate: Peak rate of the image encoder where everything trains.
        text_learning_rate: Peak rate of the text encoder where everything trains.
        warmup_steps: Updates until the peak; a cosine down to 2 % follows.
        weight_decay: Of AdamW, on matrices alone.
        clip_norm: Largest norm of all gradients together.
        accumulate: Batches an update.
        bf16: Compute in bfloat16; the weights that train stay in float32.
        is_checkpointed: Compute layers again in the backward pass instead of keeping what is inside them.
        is_cached: Keep the image encoder's output on disk; only where it is frozen.
        image_size: Side of the square in pixels; None takes the weights' own.
        views: Views an image, the plain one included; odd ones are mirrored where no concept has a side.
        seed: Of views, batches, dropout and the adapter's start.
        save_every: Updates between checkpoints.
        least_object_share: Objects smaller than this share of the image are no objects of their own.
        base_sha256: Fingerprint of the weights that the run starts from.
        lora: The adapter, for `trains` "lora".
        sampling: How images and prompts are drawn.
        loss: Weights of the loss's terms.
    """

    trains: Trains = "detector"
    steps: int = 2000
    learning_rate: float = 8e-5
    vision_learning_rate: float = 2.5e-5
    text_learning_rate: float = 5e-6
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip_norm: float = 0.1
    accumulate: int = 1
    bf16: bool = True
    is_checkpointed: bool = True
    is_cached: bool = True
    image_size: int | None = None
    views: int = 1
    seed: int = 0
    save_every: int = 100
    least_object_share: float = 0.00005
    base_sha256: str = ""
    lora: LoraConfig = field(default_factory=LoraConfig)
    sampling: SamplingConfig = field(
        default_factory=lambda: SamplingConfig(images=1, prompts=4, dataset_power=0.7, max_objects=100)
    )
    loss: LossWeights = field(default_factory=LossWeights)

    def __post_init__(self) -> None:
        if self.trains not in TRAINS:
            raise InputError(f"trains is {self.trains!r}, allowed are {', '.join(TRAINS)}")
        for name in ("steps", "learning_rate", "clip_norm", "accumulate", "views", "save_every"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}, it must be above 0")

    @property
    def keeps_trunk(self) -> bool:
        """The image encoder runs in every step."""
        return self.trains != "detector" or not self.is_cached


def recipe(trains: Trains) -> Sam3FitConfig:
    """The defaults: the paper's for the detector and for everything, MedSAM-3 v1's for the adapter."""
    if trains == "lora":
        return Sam3FitConfig(trains="lora", learning_rate=5e-5, weight_decay=0.01, clip_norm=1.0, is_cached=False)
    return Sam3FitConfig(trains=trains, is_cached=trains == "detector")
