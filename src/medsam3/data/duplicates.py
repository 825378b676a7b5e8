"""Pictures that stand in two splits: a test image whose near-copy was trained on makes its result worthless.

Two steps: a perceptual hash finds candidates, and the correlation of their fine detail confirms them, so that two eyes
or two chests, alike in the large, are not taken for one. Mirrored and rotated copies are looked for as well, because
sets are often augmented before they are published. It knows no model.

Source: the hash is that of Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from scipy import fft, ndimage

from medsam3.data.index import IndexRow
from medsam3.errors import InputError, reason_of
from medsam3.io.raster import open_picture

SIDE = 64
HASH_SIDE = 32
DETAIL_PX = 2.0
"""Standard deviation of the blur that is taken off a thumbnail; what is left is its detail."""
MOST_BITS = 10
"""Hashes of 63 bits that differ in more than these are of different pictures."""
LEAST_CORRELATION = 0.95
"""Two different eyes of one camera reach .94, because of their common rim."""


@dataclass(frozen=True)
class Thumbnail:
    """The parts of a picture that are compared.

    Attributes:
        image: Path relative to the data folder.
        dataset: Of the picture.
        split: Of the picture.
        hashes: (8, 63) bool, one row for each mirror and quarter turn, the picture as it is first.
        detail: (64, 64) of length 1, all 0 for a picture of one tone.
    """

    image: str
    dataset: str
    split: str
    hashes: NDArray[np.bool_]
    detail: NDArray[np.float64]


@dataclass(frozen=True)
class NearDuplicate:
    """Two pictures of different splits that look alike.

    Attributes:
        first, second: Their paths relative to the data folder.
        splits: Theirs.
        bits: Of the 63 in which the hashes differ.
        correlation: Of their detail, in -1..1.
        turn: 0 as they are; else the mirror or quarter turn of the first that matches the second.
    """

    first: str
    second: str
    splits: tuple[str, str]
    bits: int
    correlation: float
    turn: int


def thumbnails(
    rows: Iterable[IndexRow],
    folder: Path,
    *,
    on_image: Callable[[int, int], None] = lambda done, count: None,
    is_lenient: bool = False,
) -> list[Thumbnail]:
    """Thumbnails of all pictures of the rows, each once; volumes are left out.

    Args:
        rows: Of any splits.
        folder: The data folder.
        on_image: Called with pictures done and pictures in all.
        is_lenient: Leave out what cannot be read, where the caller tells of it elsewhere.

    Raises:
        InputError: A picture cannot be read.
    """
    pictures = {row.image: row for row in rows if not row.is_volume}
    found = []
    for done, (path, row) in enumerate(sorted(pictures.items()), start=1):
        try:
            with open_picture(path) as opened:
                grey = np.asarray(opened.convert("L").resize((SIDE, SIDE), PIL.Image.Resampling.BOX), np.float64)
        except (OSError, InputError) as error:
            if is_lenient:
                continue
            raise InputError(f"{path}: {reason_of(error)}") from error
        found.append(thumbnail(path.relative_to(folder).as_posix(), row.dataset, row.split, grey))
        on_image(done, len(pictures))
    return found


def thumbnail(image: str, dataset: str, split: str, grey: NDArray[np.float64]) -> Thumbnail:
    """The thumbnail of a grey picture (64, 64)."""
    detail = grey - ndimage.gaussian_filter(grey, DETAIL_PX)
    length = float(np.linalg.norm(detail))
    halved = grey.reshape(HASH_SIDE, 2, HASH_SIDE, 2).mean(axis=(1, 3))
    hashes = np.stack([perceptual_hash(turned(halved, turn)) for turn in range(8)])
    return Thumbnail(image, dataset, split, hashes, detail / length if length > 1e-6 else np.zeros_like(detail))


def turned(grey: NDArray[np.float64], turn: int) -> NDArray[np.float64]:
    """One of the 8 mirrors and quarter turns of a square; 0 is the square itself."""
    mirrored = grey[:, ::-1] if turn >= 4 else grey
    return np.rot90(mirrored, turn % 4)


def perceptual_hash(grey: NDArray[np.float64]) -> NDArray[np.bool_]:
    """63 bits: which of the lowest 8 x 8 cosine coefficients, without the mean, lie above their median."""
    low = fft.dctn(grey, norm="ortho")[:8, :8].ravel()[1:]
    bits: NDArray[np.bool_] = low > np.median(low)
    return bits


def near_duplicates(
    pictures: Sequence[Thumbnail], *, most_bits: int = MOST_BITS, least_correlation: float = LEAST_CORRELATION
) -> list[NearDuplicate]:
    """Pairs across splits, most alike first. Pictures of one tone match nothing."""
    plain = np.array([picture.hashes[0] for picture in pictures], dtype=np.uint8)
    found = []
    for i, first in enumerate(pictures):
        others = [j for j in range(i + 1, len(pictures)) if pictures[j].split != first.split]
        if not others:
            continue
        # (8, others): bits that differ between each turn of the first and the second as it is
        distances = np.array([(plain[others] != row).sum(axis=1) for row in first.hashes])
        for column in np.flatnonzero(distances.min(axis=0) <= most_bits):
            second, turn = pictures[others[column]], int(distances[:, column].argmin())
            correlation = float((turned(first.detail, turn) * second.detail).sum())
            if correlation >= least_correlation:
                bits = int(distances[turn, column])
                splits = (first.split, second.split)
                found.append(NearDuplicate(first.image, second.image, splits, bits, correlation, turn))
    return sorted(found, key=lambda pair: -pair.correlation)
