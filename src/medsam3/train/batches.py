"""From samples to batches: which images, which phrases of them, present or absent, which boxes, which mirror.

Each image carries several prompts, so that its levels are computed once for all of them.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medsam3 import concepts
from medsam3.geometry import box_of_mask, normalised_cxcywh_from_xyxy
from medsam3.models.letterbox import SIDE, letterbox_labels
from medsam3.train.augment import view_of, warp_labels
from medsam3.train.cache import CachedView
from medsam3.train.data import Instances, Sample, Target, is_sided
from medsam3.train.losses import PromptTarget

VISUAL_PHRASE = "visual"
MASK_SIDE = SIDE // 2


@dataclass(frozen=True)
class SamplingConfig:
    """How prompts are drawn.

    Attributes:
        images: Images a batch.
        prompts: Prompts an image.
        dataset_power: Data sets are drawn in proportion to their cached rows (images times views) to this power.
        negative: Share of the further prompts of an image that ask for what is not there.
        exemplar: Share of the present prompts that carry an exemplar box.
        exemplar_only: Share of those that carry no phrase.
        box_noise: Jitter of an exemplar box's edges, as a share of its sides.
        max_objects: Concepts with more objects than this are taught as one.
    """

    images: int = 8
    prompts: int = 2
    dataset_power: float = 0.6
    negative: float = 0.5
    exemplar: float = 0.2
    exemplar_only: float = 0.3
    box_noise: float = 0.1
    max_objects: int = 16


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

    neck: Tensor  # (images, 256, 64, 64) float32
    pixels: Tensor  # (images, 3, 256, 256) float32 in 0..1
    questions: tuple[Question, ...]


class BatchMaker:
    """Draws batches. The stream of batch `step` depends on seed and step alone, so a resumed run goes on as it was."""

    def __init__(
        self,
        samples: Sequence[Sample],
        views: Sequence[CachedView],
        foreign: Mapping[str, Sequence[str]],
        config: SamplingConfig,
        *,
        seed: int,
    ) -> None:
        self.samples, self.views, self.foreign, self.config, self.seed = samples, views, foreign, config, seed
        images = Counter(sample.dataset for sample in samples)
        rows = Counter(sample.dataset for sample in samples for view in views if sample.name in view.rows)
        weights = np.array([rows[s.dataset] ** config.dataset_power / images[s.dataset] for s in samples])
        self.chances = weights / weights.sum()

    def batch(self, step: int) -> Batch:
        """Batch number `step`."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.choice(len(self.samples), size=self.config.images, p=self.chances, replace=False)
        necks, pixels, questions = [], [], []
        for image, index in enumerate(chosen):
            sample = self.samples[index]
            usable = [view for view in self.views if sample.name in view.rows]
            view = usable[rng.integers(len(usable))]
            mirror = bool(rng.random() < 0.5) and not is_sided(sample)
            row = view.rows[sample.name]
            neck, square = view.neck[row], view.pixels[row]
            necks.append(neck[:, :, ::-1].copy() if mirror else np.array(neck))
            pixels.append(square[:, ::-1].copy() if mirror else np.array(square))
            for target, phrase in self._choose(sample, rng):
                labels = np.zeros((SIDE, SIDE), np.int32)
                if target is not None:
                    labels = warp_labels(
                        letterbox_labels(target.load()), view_of(sample.name, view.number, seed=view.seed)
                    )
                    labels = labels[:, ::-1] if mirror else labels
                questions.append(self._question(image, phrase, labels, rng))
        return Batch(
            neck=torch.from_numpy(np.stack(necks)).float().contiguous(memory_format=torch.channels_last),
            pixels=torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 255,  # channels last in memory
            questions=tuple(questions),
        )

    def _choose(self, sample: Sample, rng: np.random.Generator) -> list[tuple[Target | None, str]]:
        """Targets with a phrase each; None for a concept of another image family."""
        present = [target for target in sample.targets if target.is_present]
        absent: list[Target | None] = [target for target in sample.targets if not target.is_present]
        chosen: list[tuple[Target | None, str]] = []
        order = list(rng.permutation(len(present)))
        while len(chosen) < self.config.prompts:
            wants_negative = bool(chosen) and (rng.random() < self.config.negative or not order)
            if order and not wants_negative:
                target = present[order.pop()]
                chosen.append((target, self._phrase(target.concept, rng)))
            else:
                chosen.append(self._negative(sample, absent, rng))
        return chosen

    def _negative(
        self, sample: Sample, absent: Sequence[Target | None], rng: np.random.Generator
    ) -> tuple[Target | None, str]:
        foreign = self.foreign.get(sample.dataset, ())
        if absent and (not foreign or rng.random() < 0.7):
            target = absent[int(rng.integers(len(absent)))]
            assert target is not None, "absent targets of the sample itself"
            return target, self._phrase(target.concept, rng)
        if foreign:
            return None, self._phrase(foreign[int(rng.integers(len(foreign)))], rng)
        present = [target for target in sample.targets if target.is_present]
        target = present[rng.integers(len(present))]
        return target, self._phrase(target.concept, rng)

    def _phrase(self, concept: str, rng: np.random.Generator) -> str:
        """The concept's name half of the time, else one of its training synonyms."""
        names = concepts.synonyms(concept)
        if not names or rng.random() < 0.5:
            return concept
        return str(names[rng.integers(len(names))])

    def _question(self, image: int, phrase: str, labels: Instances, rng: np.random.Generator) -> Question:
        truth, boxes = prompt_target(labels, max_objects=self.config.max_objects)
        if not truth.is_present or rng.random() >= self.config.exemplar:
            return Question(image, phrase, None, truth)
        box = boxes[rng.integers(len(boxes))]
        sides = np.array([box[2], box[3], box[2], box[3]])
        noisy = np.asarray(box) + rng.normal(0, self.config.box_noise / 2, size=4) * sides
        noisy[2:] = np.maximum(noisy[2:], 0.01)
        exemplar = Exemplar((float(noisy[0]), float(noisy[1]), float(noisy[2]), float(noisy[3])))
        return Question(image, VISUAL_PHRASE if rng.random() < self.config.exemplar_only else phrase, exemplar, truth)


def prompt_target(labels: Instances, *, max_objects: int) -> tuple[PromptTarget, NDArray[np.float64]]:
    """Truth of a prompt from instance numbers (256, 256), and the objects' boxes (n, 4) cxcywh in 0..1.

    Parts of an object that a crop cut apart stay one object; specks under 0.02 % of the square are no objects of their
    own. More than `max_objects` objects are taught as one, the whole concept.
    """
    area = labels.size
    numbers = [int(n) for n in np.unique(labels) if n > 0 and (labels == n).sum() >= 0.0002 * area]
    whole = labels > 0
    objects = [labels == n for n in numbers] if 0 < len(numbers) <= max_objects else [whole]
    if not whole.any():
        empty = torch.zeros(0, MASK_SIDE, MASK_SIDE)
        return PromptTarget(torch.zeros(0, 4), empty, torch.zeros(MASK_SIDE, MASK_SIDE), is_present=False), np.zeros(
            (0, 4)
        )
    edges = np.array([box_of_mask(mask) for mask in objects], dtype=np.float64)
    boxes = normalised_cxcywh_from_xyxy(edges, SIDE, SIDE)
    masks = torch.from_numpy(np.stack([*objects, whole])).float()
    halved = F.avg_pool2d(masks[None], 2)[0]
    return PromptTarget(torch.from_numpy(boxes).float(), halved[:-1], halved[-1], is_present=True), boxes


def prefetched(maker: BatchMaker, steps: range, *, ahead: int = 4) -> Iterator[tuple[int, Batch]]:
    """(step, batch) in order, made by one thread that stays at most `ahead` batches before the reader."""
    ready: queue.Queue[tuple[int, Batch] | BaseException] = queue.Queue(maxsize=ahead)

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
