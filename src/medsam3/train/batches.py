"""From samples to batches: which images, which phrases of them, present or absent, which boxes, which mirror.

Each image carries several prompts, so that its levels are computed once for all of them.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medsam3 import concepts
from medsam3.data.samples import Instances, Sample, Target, foreign_concepts
from medsam3.geometry import box_of_mask, normalised_cxcywh_from_xyxy
from medsam3.models.mini.letterbox import SIDE
from medsam3.train.losses import PromptTarget
from medsam3.train.pictures import Views

VISUAL_PHRASE = "visual"
Made_co = TypeVar("Made_co", covariant=True)


@dataclass(frozen=True)
class SamplingConfig:
    """How prompts are drawn.

    Attributes:
        images: Images a batch.
        prompts: Prompts an image.
        dataset_power: Data sets are drawn in proportion to their cached rows (images times views) to this power.
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


@dataclass(frozen=True)
class Batch:
    """Features of a few images, and the questions asked of them."""

    neck: Tensor | None  # (images, 256, 64, 64) float32; None where the image encoder trains along
    pixels: Tensor  # (images, 3, 256, 256) float32 in 0..1
    questions: tuple[Question, ...]

    def share(self, rank: int, count: int) -> Batch:
        """Every `count`-th image from number `rank` on, with its questions."""
        if count == 1:
            return self
        images = range(rank, len(self.pixels), count)
        place = {image: number for number, image in enumerate(images)}
        own = tuple(replace(one, image=place[one.image]) for one in self.questions if one.image in place)
        return Batch(None if self.neck is None else self.neck[rank::count], self.pixels[rank::count], own)


class BatchMaker:
    """Draws batches. The stream of batch `step` depends on seed and step alone, so a resumed run goes on as it was."""

    def __init__(
        self,
        samples: Sequence[Sample],
        views: Views,
        config: SamplingConfig,
        *,
        seed: int,
    ) -> None:
        self.samples, self.views, self.config, self.seed = samples, views, config, seed
        rows = [sample.dataset for sample in samples for _ in range(views.rows(sample))]
        self.chances = dataset_chances(samples, rows, config.dataset_power)
        self.foreign = foreign_concepts(samples, self.chances.tolist())

    def batch(self, step: int) -> Batch:
        """Batch number `step`."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.choice(len(self.samples), size=self.config.images, p=self.chances, replace=False)
        pictures, questions = [], []
        for image, index in enumerate(chosen):
            sample = self.samples[index]
            shown = self.views.draw(sample, rng)
            pictures.append(shown)
            for target, phrase in choose_prompts(sample, self.foreign, self.config, rng):
                labels = np.zeros((SIDE, SIDE), np.int32)
                if target is not None:
                    labels = shown.labels(target)
                truth, boxes = prompt_target(labels, max_objects=self.config.max_objects)
                questions.append(ask(image, phrase, (truth, boxes), self.config, rng))
        necks = [shown.neck for shown in pictures if shown.neck is not None]
        squares = torch.from_numpy(np.stack([shown.square for shown in pictures]))
        return Batch(
            neck=torch.from_numpy(np.stack(necks)).float().contiguous(memory_format=torch.channels_last)
            if necks
            else None,
            pixels=squares.permute(0, 3, 1, 2).float() / 255,  # channels last in memory
            questions=tuple(questions),
        )


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
    labels: Instances, *, max_objects: int, least_share: float = 0.0002
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


class Maker(Protocol[Made_co]):
    """Makes batch number `step`, the same one whenever it is asked."""

    def batch(self, step: int) -> Made_co:
        """Batch number `step`."""
        ...


def prefetched(maker: Maker[Made_co], steps: range, *, ahead: int = 4) -> Iterator[tuple[int, Made_co]]:
    """(step, batch) in order, made by one thread that stays at most `ahead` batches before the reader."""
    ready: queue.Queue[tuple[int, Made_co] | BaseException] = queue.Queue(maxsize=ahead)

    def work() -> None:
        try:
            for step in steps:
                ready.put((step, maker.batch(step)))
        except BaseException as error:  # handed to the reader, which raises it
            ready.put(error)

    threading.Thread(target=work, daemon=True).start()
    for _ in steps:
        item = ready.get()
        if isinstance(item, BaseException):
            raise item
        yield item
