"""Settings of a run besides its data: plain values, saved as JSON beside the weights.

Source: the paper's recipe (both encoders frozen, the detector trained) of MedSAM-3, arXiv 2511.19046; SAM 3's rates,
decay and clipping from arXiv 2511.16719; rank, alpha and rate of the adapter of MedSAM-3 v1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from medsam3.errors import InputError
from medsam3.models.mini.click_decoder import ClickDecoderConfig
from medsam3.models.mini.detector import MiniDetectorConfig
from medsam3.train.losses import LossWeights
from medsam3.train.person import PersonConfig

Trains = Literal["detector", "text", "lora", "all"]
Sam3Trains = Literal["detector", "lora", "all"]
TRAINS: tuple[Sam3Trains, ...] = get_args(Sam3Trains)
TEXT_RANK = 8


@dataclass(frozen=True)
class SamplingConfig:
    """How prompts are drawn.

    Attributes:
        images: Images a batch.
        prompts: Prompts an image.
        dataset_power: Data sets are drawn in proportion to their rows (images times cached views) to this power.
        negative: Share of the further prompts of an image that ask for what is not there.
        absent: Prompts an image on top of these that ask for what is not there, each for another concept.
        exemplar: Share of the present prompts that carry an exemplar box.
        exemplar_only: Share of those that carry no phrase.
        box_noise: Jitter of an exemplar box's edges, as a share of its sides.
        max_objects: Concepts with more objects than this are taught as one.
        closer: Share of the views that enlarge a window around an object; not with a frozen encoder's cached views.
    """

    images: int = 8
    prompts: int = 2
    dataset_power: float = 0.6
    negative: float = 0.5
    absent: int = 0
    exemplar: float = 0.2
    exemplar_only: float = 0.3
    box_noise: float = 0.1
    max_objects: int = 16
    closer: float = 0.3


@dataclass(frozen=True)
class FitConfig:
    """A run of the small model; a run that is resumed must have the same, but for `steps`.

    Attributes:
        steps: Updates.
        learning_rate: Peak rate of the detector.
        warmup_steps: Updates until the peak, at most a third of `steps`; a cosine down to 2 % follows.
        weight_decay: AdamW's, on matrices alone.
        clip_norm: Largest norm of all gradients together.
        ema_decay: Decay of the moving average of the weights, which is what a run gives.
        bf16: Compute in bfloat16 if the processor does so fast; the weights stay in float32.
        seed: Seed of weights, views and batches.
        views: Cached views of a train image, with a frozen image encoder.
        views_of: Data sets that have another number of views.
        save_every: Updates between checkpoints.
        trunk_rate: Rate of an image encoder that trains along, as a share of `learning_rate`.
        initial_sha256: The weights that the run starts from; None is a fresh start from the seed.
        trains: `detector` behind frozen encoders, `text` (its text projection alone), `lora` (the detector, and an
            adapter on the text encoder), or `all`, an image encoder that trains along included.
        accumulate: Batches an update.
        val_every: Updates between measurements on val; 0 never measures.
        patience: Measurements in a row without gain that end the run.
        detector, sampling, loss: Sizes, sampling of prompts, and weights of the loss's terms.
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


@dataclass(frozen=True)
class InitDefaults:
    """A run that starts from weights: its peak rate, and how many updates it makes for each image to train on.

    At a fresh start's rate and length weights lose of what they know; what they were never taught takes more of both
    (docs/experiments.md).
    """

    learning_rate: float
    updates_an_image: int

    def steps(self, images: int) -> int:
        """Give the updates for so many images, and for fewer than 24 as for 24; at most those of a fresh start."""
        return min(FitConfig.steps, self.updates_an_image * max(24, images))


KNOWN = InitDefaults(learning_rate=1e-4, updates_an_image=1)
NEW = InitDefaults(learning_rate=2e-4, updates_an_image=2)


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
    """A fine-tuning run of SAM 3; a run that is resumed must have the same, but for `steps`.

    Attributes:
        trains: What changes: the detector behind frozen encoders, an adapter, or everything.
        steps: Updates.
        learning_rate: Peak rate of the detector or the adapter.
        vision_learning_rate: Peak rate of the image encoder if everything trains.
        text_learning_rate: Peak rate of the text encoder if everything trains.
        warmup_steps: Updates until the peak, at most a third of `steps`; a cosine down to 2 % follows.
        weight_decay: AdamW's, on matrices alone.
        clip_norm: Largest norm of all gradients together.
        accumulate: Batches an update.
        bf16: Compute in bfloat16; the weights that train stay in float32.
        is_checkpointed: Compute layers again in the backward pass instead of keeping what is inside them.
        is_cached: Keep the image encoder's output on disk; only if it is frozen.
        image_size: Side of the square in pixels; None takes the weights' own.
        views: Views an image, the plain one included; odd ones are mirrored if no concept has a side.
        seed: Seed of views, batches, dropout and the adapter's start.
        save_every: Updates between checkpoints.
        least_object_share: Objects smaller than this share of the image are no objects of their own.
        base_sha256: Fingerprint of the weights that the run starts from.
        lora: The adapter, for `trains` "lora".
        sampling: How images and prompts are drawn.
        loss: Weights of the loss's terms.
    """

    trains: Sam3Trains = "detector"
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


@dataclass(frozen=True)
class ClickFitConfig:
    """A run of the small model's interactive decoder; a run that is resumed must have the same, but for `steps`.

    Attributes:
        steps: Updates.
        learning_rate: Peak rate.
        warmup_steps: Updates until the peak, at most a third of `steps`; a cosine down to 2 % follows.
        weight_decay: AdamW's, on matrices alone.
        clip_norm: Largest norm of all gradients together.
        ema_decay: Decay of the moving average of the weights, which is what a run gives.
        seed: Seed of weights, views and the simulated person.
        save_every: Updates between checkpoints.
        accumulate: Batches an update.
        val_every: Updates between measurements on val; 0 never measures.
        patience: Measurements in a row without gain that end the run.
        images: Pictures a batch.
        most: Pictures of a data set, at most.
        dataset_power: Data sets are drawn in proportion to their pictures to this power.
        levels_sha256: The frozen levels that it stands on.
        decoder, person: Sizes, and the person who clicks.
    """

    steps: int = 3000
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    ema_decay: float = 0.99
    seed: int = 0
    save_every: int = 50
    accumulate: int = 1
    val_every: int = 0
    patience: int = 100
    images: int = 4
    most: int = 20
    dataset_power: float = 0.5
    levels_sha256: str = ""
    decoder: ClickDecoderConfig = field(default_factory=ClickDecoderConfig)
    person: PersonConfig = field(default_factory=PersonConfig)


Config = FitConfig | Sam3FitConfig | ClickFitConfig


def recipe(trains: Sam3Trains) -> Sam3FitConfig:
    """Give the defaults: the paper's for the detector and for everything, MedSAM-3 v1's for the adapter."""
    if trains == "lora":
        return Sam3FitConfig(trains="lora", learning_rate=5e-5, weight_decay=0.01, clip_norm=1.0, is_cached=False)
    return Sam3FitConfig(trains=trains, is_cached=trains == "detector")
