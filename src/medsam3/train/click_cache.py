"""What the interactive decoder is trained on, kept on disk: the frozen detector's levels of a picture, and its answers.

The answers are masks that a person would begin to correct: to a phrase, and to a box of a wrong size around an object.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from medsam3.data.samples import Sample
from medsam3.geometry import box_of_mask
from medsam3.models.mini.letterbox import SIDE, letterbox, letterbox_labels
from medsam3.models.mini.segmenter import MiniSegmenter
from medsam3.prompts import Box
from medsam3.train.cache import FeatureCache
from medsam3.train.person import LEAST_PX

ANSWERS = 2
ANSWER_SIDE = 64
BOX_SIZES = (0.5, 1.6)
"""Sides of the boxes that are asked with, of the object's own."""


def click_features(width: int) -> np.dtype[Any]:
    """Give the type of one picture's values, of a detector of this width."""
    return np.dtype(
        [
            ("middle", "<f2", (width, 64, 64)),
            ("coarse", "<f2", (width, 32, 32)),
            ("answers", "<f2", (ANSWERS, ANSWER_SIDE, ANSWER_SIDE)),
        ]
    )


def click_cache(folder: Path, levels_sha256: str, width: int, seed: int) -> FeatureCache:
    """Name the cache of a detector's levels and answers."""
    return FeatureCache(folder, levels_sha256, click_features(width), (1,), seed)


def balanced(samples: Sequence[Sample], most: int, seed: int) -> list[Sample]:
    """Take at most so many samples of each data set that show something, drawn at random."""
    by_set: dict[str, list[Sample]] = {}
    for sample in samples:
        if any(target.is_present for target in sample.targets):
            by_set.setdefault(sample.dataset, []).append(sample)
    rng, kept = np.random.default_rng(seed), list[Sample]()
    for name in sorted(by_set):
        own = by_set[name]
        kept += [own[k] for k in sorted(rng.permutation(len(own))[:most])]
    return kept


def seen_by(segmenter: MiniSegmenter, sample: Sample, seed: int) -> NDArray[Any]:
    """Compute the levels and the answers for a sample."""
    square, place = letterbox(sample.load_rgb())
    features = segmenter.features(square, place)
    _, middle, coarse = features.levels[0].maps
    values = np.zeros((1,), dtype=click_features(middle.shape[1]))
    values["middle"][0], values["coarse"][0] = middle[0].numpy(), coarse[0].numpy()
    rng = np.random.default_rng([seed, *sample.picture_digest().encode()[:16]])
    present = [target for target in sample.targets if target.is_present]
    target = present[int(rng.integers(len(present)))]
    box = _some_box(letterbox_labels(target.load()), rng)
    boxes = () if box is None else (Box(*place.boxes_from_square(np.array(box)).tolist()),)
    with torch.inference_mode():
        asked = [segmenter.concept_map(features, target.concept)]
        asked += [segmenter.concept_map(features, None, boxes)] if boxes else []
    for k, found in enumerate(asked):
        values["answers"][0, k] = F.avg_pool2d(found.logits[None, None], SIDE // ANSWER_SIDE)[0, 0].numpy()
    return values


def _some_box(labels: NDArray[np.int32], rng: np.random.Generator) -> tuple[float, float, float, float] | None:
    """Draw a box around an object, smaller or larger than that."""
    sizes = np.bincount(labels.ravel())
    numbers = np.flatnonzero(sizes[1:] >= LEAST_PX) + 1
    edges = box_of_mask(labels == rng.choice(numbers)) if len(numbers) else None
    if edges is None:
        return None
    middle = np.array([edges[0] + edges[2], edges[1] + edges[3]]) / 2
    half = np.array([edges[2] - edges[0], edges[3] - edges[1]]) / 2 * np.exp(rng.uniform(*np.log(BOX_SIZES)))
    low = np.clip(middle - np.maximum(half, 1), -0.5, SIDE - 2.5)
    high = np.clip(middle + np.maximum(half, 1), low + 1, SIDE - 0.5)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])
