"""Batches for SAM 3: images stretched to its square, or their cached features, and the questions asked of them.

Which prompts an image gets is drawn as for the small model (`batches.choose_prompts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam3 import concepts
from medsam3.data.samples import RGB, Instances, Sample, is_sided
from medsam3.models.sam3.objects import stretched
from medsam3.train.augment import view_of, warp_labels, warp_pixels
from medsam3.train.batches import VISUAL_PHRASE, Question, ask, choose_prompts, dataset_chances, prompt_target
from medsam3.train.sam3_cache import TrunkCache
from medsam3.train.sam3_config import Sam3FitConfig


@dataclass(frozen=True)
class Sam3Batch:
    """A few images, as pixels or as the trunk's output, and the questions asked of them."""

    pixels: Tensor | None  # (images, 3, S, S) uint8
    trunk: Tensor | None  # (images, D, H, W) bfloat16
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Sides:
    """Sides in pixels of the network's input and of its masks, and the objects that it can find."""

    image: int
    mask: int
    queries: int


@dataclass(frozen=True)
class CachedTrunks:
    """The cache, and the file of each view of each sample in it, by sample name and view number."""

    cache: TrunkCache
    files: Mapping[tuple[str, int], Path]


class Sam3BatchMaker:
    """Draws batches. Batch `step` depends on seed and step alone, so a resumed run goes on as it was."""

    def __init__(
        self,
        samples: Sequence[Sample],
        foreign: Mapping[str, Mapping[str, float]],
        config: Sam3FitConfig,
        sides: Sides,
        *,
        trunks: CachedTrunks | None = None,
    ) -> None:
        self.samples, self.foreign, self.config, self.sides, self.trunks = samples, foreign, config, sides, trunks
        self.chances = dataset_chances(samples, [sample.dataset for sample in samples], config.sampling.dataset_power)

    def batch(self, step: int) -> Sam3Batch:
        """Batch number `step`."""
        config, sampling = self.config, self.config.sampling
        rng = np.random.default_rng([config.seed, step])
        chosen = rng.choice(len(self.samples), size=sampling.images, p=self.chances, replace=False)
        pixels, trunks, questions = [], [], []
        for image, index in enumerate(chosen):
            sample, view = self.samples[index], int(rng.integers(config.views))
            if self.trunks is None:
                pixels.append(view_pixels(sample, view, seed=config.seed, side=self.sides.image))
            else:
                trunks.append(self.trunks.cache.get(self.trunks.files[sample.name, view]))
            for target, phrase in choose_prompts(sample, self.foreign, sampling, rng):
                side = 2 * self.sides.mask
                labels = np.zeros((side, side), np.int32)
                if target is not None:
                    labels = view_labels(target.load(), sample, view, seed=config.seed, side=side)
                answer = prompt_target(
                    labels,
                    max_objects=min(sampling.max_objects, self.sides.queries),
                    least_share=config.least_object_share,
                )
                questions.append(ask(image, phrase, answer, sampling, rng))
        return Sam3Batch(
            pixels=torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) if pixels else None,
            trunk=torch.stack(trunks) if trunks else None,
            questions=tuple(questions),
        )


def view_pixels(sample: Sample, view: int, *, seed: int, side: int) -> RGB:
    """A view of the sample's image, stretched to (side, side, 3)."""
    square = np.array(stretched(sample.load_rgb(), side))  # a copy that may be written to, as torch wants it
    mirrored = np.ascontiguousarray(square[:, ::-1]) if is_mirrored(sample, view) else square
    return warp_pixels(mirrored, view_of(sample.name, view, seed=seed))


def view_labels(labels: Instances, sample: Sample, view: int, *, seed: int, side: int) -> Instances:
    """The same view of a map of instance numbers (H, W), as (side, side) by nearest neighbour."""
    rows, columns = (centres(length, side) for length in labels.shape)
    square = labels[rows[:, None], columns[None]]
    mirrored = np.ascontiguousarray(square[:, ::-1]) if is_mirrored(sample, view) else square
    return warp_labels(mirrored, view_of(sample.name, view, seed=seed))


def is_mirrored(sample: Sample, view: int) -> bool:
    """Odd views are mirrored, unless a concept of the sample has a side."""
    return view % 2 == 1 and not is_sided(sample)


def centres(length: int, side: int) -> NDArray[np.intp]:
    """For each of `side` cells over `length` pixels, the pixel that holds its centre."""
    return ((np.arange(side) + 0.5) * length / side).astype(np.intp)


def all_phrases(samples: Sequence[Sample], foreign: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """Every phrase that a batch of these samples can hold, sorted."""
    names = {target.concept for sample in samples for target in sample.targets}
    names |= {name for absent in foreign.values() for name in absent}
    return tuple(sorted({VISUAL_PHRASE, *names, *(word for name in names for word in concepts.synonyms(name))}))
