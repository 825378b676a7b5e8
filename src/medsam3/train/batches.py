"""From samples to batches: which images, which phrases of them, present or absent, which boxes, which mirror.

Each image carries several prompts, so that its levels are computed once for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medsam3 import concepts
from medsam3.data.samples import Instances, Sample, Target, foreign_concepts
from medsam3.geometry import box_of_mask, normalised_cxcywh_from_xyxy
from medsam3.models.detector import ExemplarBoxes
from medsam3.train.config import SamplingConfig
from medsam3.train.losses import PromptTarget
from medsam3.train.pictures import Views

VISUAL_PHRASE = "visual"
LEAST_SHARE = 0.0002
"""Smaller parts, as a share of the square, are no objects of their own."""


@dataclass(frozen=True)
class Exemplar:
    """One positive box, cxcywh in 0..1 of the square."""

    cxcywh: tuple[float, float, float, float]


@dataclass(frozen=True)
class Question:
    """One prompt of one image, with its truth."""

    image: int
    phrase: str
    exemplar: Exemplar | None
    truth: PromptTarget


def exemplar_boxes(questions: Sequence[Question], device: torch.device | str = "cpu") -> ExemplarBoxes:
    """Put the questions' exemplars into one padded batch with one slot each."""
    boxes = [[0.5, 0.5, 0.5, 0.5] if q.exemplar is None else list(q.exemplar.cxcywh) for q in questions]
    used = torch.tensor([[q.exemplar is not None] for q in questions]).to(device)
    return ExemplarBoxes(torch.tensor(boxes)[:, None].to(device), used, used)


@dataclass(frozen=True)
class Batch:
    """A few images, as pixels or as a frozen encoder's features or both, and the questions asked of them."""

    pixels: Tensor | None  # (images, 3, S, S) uint8, channels last in memory
    features: Tensor | None  # (images, D, H, W) in the cache's number format
    questions: tuple[Question, ...]

    def share(self, rank: int, count: int) -> Batch:
        """Take every `count`-th image from number `rank` on, with its questions."""
        if count == 1:
            return self
        shown = self.pixels if self.pixels is not None else self.features
        assert shown is not None, "a batch has pixels or features"
        images = range(rank, len(shown), count)
        place = {image: number for number, image in enumerate(images)}
        own = tuple(replace(one, image=place[one.image]) for one in self.questions if one.image in place)
        pixels, features = (None if part is None else part[rank::count] for part in (self.pixels, self.features))
        return Batch(pixels, features, own)


class BatchMaker:
    """Draws batches. Batch `step` depends on seed and step alone, so a resumed run goes on as it was."""

    def __init__(
        self,
        samples: Sequence[Sample],
        views: Views,
        config: SamplingConfig,
        *,
        seed: int,
        least_share: float = LEAST_SHARE,
    ) -> None:
        self.samples, self.views, self.config, self.seed = samples, views, config, seed
        self.least_share = least_share
        rows = [sample.dataset for sample in samples for _ in range(views.rows(sample))]
        self.chances = dataset_chances(samples, rows, config.dataset_power)
        self.foreign = foreign_concepts(samples, self.chances.tolist())

    def batch(self, step: int) -> Batch:
        """Make batch number `step`."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.choice(len(self.samples), size=self.config.images, p=self.chances, replace=False)
        squares, features, questions = [], [], []
        for image, index in enumerate(chosen):
            sample = self.samples[index]
            shown = self.views.draw(sample, rng)
            squares += [] if shown.square is None else [shown.square]
            features += [] if shown.features is None else [shown.features]
            for target, phrase in choose_prompts(sample, self.foreign, self.config, rng):
                labels = np.zeros((self.views.side, self.views.side), np.int32)
                if target is not None:
                    labels = shown.labels(target)
                answer = prompt_target(labels, max_objects=self.config.max_objects, least_share=self.least_share)
                questions.append(ask(image, phrase, answer, self.config, rng))
        return Batch(
            pixels=torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) if squares else None,
            features=torch.stack(features) if features else None,
            questions=tuple(questions),
        )

    def phrases(self) -> tuple[str, ...]:
        """Every phrase that a batch can ask, sorted."""
        names = {target.concept for sample in self.samples for target in sample.targets}
        names |= {name for absent in self.foreign.values() for name in absent}
        return tuple(sorted({VISUAL_PHRASE, *names, *(word for name in names for word in concepts.synonyms(name))}))


def dataset_chances(samples: Sequence[Sample], rows: Sequence[str], power: float) -> NDArray[np.float64]:
    """Chance of each sample, so that a data set is drawn by its weight and its count in `rows` to a power."""
    images, counts = Counter(sample.dataset for sample in samples), Counter(rows)
    weights = np.array([sample.weight * counts[sample.dataset] ** power / images[sample.dataset] for sample in samples])
    chances: NDArray[np.float64] = weights / weights.sum()
    return chances


def choose_prompts(
    sample: Sample, foreign: Mapping[str, Mapping[str, float]], config: SamplingConfig, rng: np.random.Generator
) -> list[tuple[Target | None, str]]:
    """Targets of a sample with a phrase each; None for a concept of another image family, which is surely absent."""
    present = [target for target in sample.targets if target.is_present]
    chosen: list[tuple[Target | None, str]] = []
    order = list(rng.permutation(len(present)))
    while len(chosen) < config.prompts:
        wants_negative = bool(chosen) and (rng.random() < config.negative or not order)
        if order and not wants_negative:
            target = present[order.pop()]
            chosen.append((target, _phrase(target.concept, rng)))
        else:
            chosen.append(_negative(sample, foreign.get(sample.dataset, {}), rng))
    return [*chosen, *_absent(sample, foreign.get(sample.dataset, {}), config.absent, rng)]


def _absent(
    sample: Sample, foreign: Mapping[str, float], count: int, rng: np.random.Generator
) -> list[tuple[Target | None, str]]:
    """Concepts that are not there, each once: half of them annotated as absent, as far as there are such."""
    own = [target for target in sample.targets if not target.is_present]
    others = list(foreign)
    from_own = min(len(own), max((count + 1) // 2, count - len(others)))
    from_others = min(len(others), count - from_own)
    chosen: list[tuple[Target | None, str]] = [
        (own[i], _phrase(own[i].concept, rng)) for i in rng.permutation(len(own))[:from_own]
    ]
    if from_others:
        shown = np.array(list(foreign.values()), dtype=np.float64)
        places = rng.choice(len(others), size=from_others, replace=False, p=shown / shown.sum())
        chosen += [(None, _phrase(others[int(place)], rng)) for place in places]
    return chosen


def _negative(sample: Sample, foreign: Mapping[str, float], rng: np.random.Generator) -> tuple[Target | None, str]:
    present = [target for target in sample.targets if target.is_present]
    absent = [target for target in sample.targets if not target.is_present]
    if absent and (not foreign or rng.random() < 0.7):
        target = absent[int(rng.integers(len(absent)))]
        return target, _phrase(target.concept, rng)
    if foreign:
        names, shown = list(foreign), np.array(list(foreign.values()), dtype=np.float64)
        return None, _phrase(names[int(rng.choice(len(names), p=shown / shown.sum()))], rng)
    target = present[rng.integers(len(present))]
    return target, _phrase(target.concept, rng)


def _phrase(concept: str, rng: np.random.Generator) -> str:
    """The concept's name half of the time, else one of its training synonyms."""
    names = concepts.synonyms(concept)
    if not names or rng.random() < 0.5:
        return concept
    return str(names[rng.integers(len(names))])


def ask(
    image: int,
    phrase: str,
    answer: tuple[PromptTarget, NDArray[np.float64]],
    config: SamplingConfig,
    rng: np.random.Generator,
) -> Question:
    """The question whose answer is a truth of `prompt_target`, now and then with an exemplar box."""
    truth, boxes = answer
    if not truth.is_present or rng.random() >= config.exemplar:
        return Question(image, phrase, None, truth)
    box = boxes[rng.integers(len(boxes))]
    sides = np.array([box[2], box[3], box[2], box[3]])
    noisy = np.asarray(box) + rng.normal(0, config.box_noise / 2, size=4) * sides
    noisy[2:] = np.maximum(noisy[2:], 0.01)
    exemplar = Exemplar((float(noisy[0]), float(noisy[1]), float(noisy[2]), float(noisy[3])))
    return Question(image, VISUAL_PHRASE if rng.random() < config.exemplar_only else phrase, exemplar, truth)


def prompt_target(
    labels: Instances, *, max_objects: int, least_share: float = LEAST_SHARE
) -> tuple[PromptTarget, NDArray[np.float64]]:
    """Truth of a prompt from instance numbers (S, S), S even, and the objects' boxes (n, 4) cxcywh in 0..1.

    Masks have half of S. Parts of an object that a crop cut apart stay one object; specks under `least_share` of the
    square are no objects of their own. More than `max_objects` objects are taught as one, the whole concept.
    """
    side, half = labels.shape[0], labels.shape[0] // 2
    counts = np.bincount(labels.ravel())
    numbers = [int(n) for n in np.flatnonzero(counts >= least_share * labels.size) if n > 0]
    whole = labels > 0
    objects = [labels == n for n in numbers] if 0 < len(numbers) <= max_objects else [whole]
    if not whole.any():
        nothing = PromptTarget(torch.zeros(0, 4), torch.zeros(0, half, half), torch.zeros(half, half), is_present=False)
        return nothing, np.zeros((0, 4))
    edges = np.array([box_of_mask(mask) for mask in objects], dtype=np.float64)
    boxes = normalised_cxcywh_from_xyxy(edges, side, side)
    masks = torch.from_numpy(np.stack([*objects, whole])).float()
    halved = F.avg_pool2d(masks[None], 2)[0]
    return PromptTarget(torch.from_numpy(boxes).float(), halved[:-1], halved[-1], is_present=True), boxes
