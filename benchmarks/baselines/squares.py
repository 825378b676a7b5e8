"""What the U-Net learns from: letterboxed squares of one data set with a channel for each concept, and their variants.

Everything is held in memory as bytes; a variant depends on seed and step alone, so a resumed training sees the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medsam3.concepts import side_of
from medsam3.data.index import IndexRow
from medsam3.eval.cases import load_truth
from medsam3.geometry import BoolArray
from medsam3.io import read
from medsam3.models.mini.letterbox import SIDE, letterbox, letterbox_labels
from medsam3.view.view import view_of

MOST_DEGREES = 20.0
LARGEST_ZOOM = 1.25
LARGEST_SHIFT = 0.08
LARGEST_TONE = 1.25


@dataclass(frozen=True)
class Squares:
    """Images of one data set.

    Attributes:
        concepts: The K concepts, in the order of the channels.
        pixels: (n, 256, 256, 3) uint8.
        targets: (n, K, 256, 256) bool.
        known: (n, K) bool, whether the concept is annotated in the image, as present or as absent.
    """

    concepts: tuple[str, ...]
    pixels: NDArray[np.uint8]
    targets: BoolArray
    known: BoolArray

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class SquareBatch:
    """Images (n, 3, 256, 256) in 0..1, targets (n, K, 256, 256) in {0, 1}, and which are known (n, K), all float."""

    images: Tensor
    targets: Tensor
    known: Tensor


def load_squares(rows: Sequence[IndexRow], concepts: Sequence[str]) -> Squares:
    """The pictures of `rows`, each once.

    Raises:
        InputError: A picture or mask cannot be read.
    """
    images = [list(own) for _, own in groupby(rows, key=lambda row: row.image)]
    pixels = np.zeros((len(images), SIDE, SIDE, 3), dtype=np.uint8)
    targets = np.zeros((len(images), len(concepts), SIDE, SIDE), dtype=np.bool_)
    known = np.zeros((len(images), len(concepts)), dtype=np.bool_)
    for n, own in enumerate(images):
        pixels[n] = letterbox(view_of(read(own[0].image)).rgb(0))[0]
        for row in own:
            channel = concepts.index(row.concept)
            known[n, channel] = True
            targets[n, channel] = letterbox_labels(load_truth(row).mask.astype(np.int32)) > 0
    return Squares(tuple(concepts), pixels, targets, known)


def square_batch(squares: Squares, chosen: NDArray[np.intp]) -> SquareBatch:
    """Chosen images as they are."""
    return SquareBatch(
        images=torch.from_numpy(squares.pixels[chosen]).permute(0, 3, 1, 2).float() / 255,
        targets=torch.from_numpy(squares.targets[chosen]).float(),
        known=torch.from_numpy(squares.known[chosen]).float(),
    )


def training_batch(squares: Squares, size: int, *, seed: int, step: int) -> SquareBatch:
    """Batch number `step`: images drawn at random, mirrored, turned, zoomed, shifted and changed in tone.

    A data set with a concept of a left or right side is not mirrored.
    """
    rng = np.random.default_rng([seed, step])
    plain = square_batch(squares, rng.choice(len(squares), size=size, replace=len(squares) < size))
    mirrors = np.where(rng.random(size) < 0.5, -1.0, 1.0) * (0 if is_sided(squares.concepts) else 1)
    mirrors[mirrors == 0] = 1.0
    grid = F.affine_grid(_affine(rng, mirrors), [size, 1, *plain.images.shape[2:]], align_corners=False)
    images = F.grid_sample(plain.images, grid, mode="bilinear", align_corners=False)
    targets = F.grid_sample(plain.targets, grid, mode="nearest", align_corners=False)
    return SquareBatch(_retoned(images, rng), targets, plain.known)


def is_sided(concepts: Sequence[str]) -> bool:
    """Some concept has a left or right side, so that its images must not be mirrored."""
    return any(side_of(concept) is not None for concept in concepts)


def _affine(rng: np.random.Generator, mirrors: NDArray[np.float64]) -> Tensor:
    """(n, 2, 3) from the place in the variant to that in the plain image, both in -1..1."""
    size = len(mirrors)
    angles = np.deg2rad(rng.uniform(-MOST_DEGREES, MOST_DEGREES, size))
    zooms = np.exp(rng.uniform(-1, 1, size) * np.log(LARGEST_ZOOM))
    matrix = np.zeros((size, 2, 3))
    matrix[:, 0, 0], matrix[:, 0, 1] = np.cos(angles) * mirrors / zooms, -np.sin(angles) / zooms
    matrix[:, 1, 0], matrix[:, 1, 1] = np.sin(angles) * mirrors / zooms, np.cos(angles) / zooms
    matrix[:, :, 2] = rng.uniform(-2, 2, (size, 2)) * LARGEST_SHIFT
    return torch.from_numpy(matrix).float()


def _retoned(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Brightness, contrast and gamma by random factors, each image its own; what is black stays so."""

    def factors() -> Tensor:
        exponents = rng.uniform(-1, 1, len(images)) * np.log(LARGEST_TONE)
        return torch.from_numpy(np.exp(exponents)).float()[:, None, None, None]

    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    lit = images > 0
    changed = ((images - mean) * factors() + mean) * factors()
    return torch.where(lit, changed.clamp(1e-4, 1) ** factors(), images)
