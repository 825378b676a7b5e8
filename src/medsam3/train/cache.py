"""Features of frozen encoders on disk, one file a view of a picture, shared by all runs.

A file's name is a hash of all that its values depend on: the encoder's weights and precision, the picture's bytes, and
the view. So a changed picture, encoder or view has another file, and nothing stale is read. A file that is damaged or
cut short counts as missing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam3.data.samples import Sample
from medsam3.store import cannot_write, replacing
from medsam3.train.workers import Workers

ViewKey = tuple[Sample, int]
"""A sample and the number of its view; 0 is the plain picture."""
Make = Callable[[Sample, int], NDArray[Any]]
"""Computes the features of a view."""
_STALE_S = 3600.0
"""No file takes this long to write: a temporary one that is older was left by a killed run."""


@dataclass(frozen=True)
class FeatureCache:
    """Features of one encoder.

    Attributes:
        folder: Where they lie; runs may share it.
        encoder: A digest of the encoder's weights, input size and precision.
        dtype: Type of a file's values; a structured one for several arrays a view.
        shape: Shape of a file's values.
        seed: Seed of the random views.
    """

    folder: Path
    encoder: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    seed: int

    def path(self, sample: Sample, view: int) -> Path:
        """Name the file of a view. A random view also depends on the sample's name, its seed, and the concepts.

        Raises:
            InputError: The picture cannot be read.
        """
        digest = hashlib.sha256(f"{self.encoder}/{view}/{sample.picture_digest()}/".encode())
        if view:
            concepts = ",".join(target.digest() for target in sample.targets)
            digest.update(f"{self.seed}/{sample.name}/{concepts}".encode())
        return self.folder / self.encoder[:16] / f"{digest.hexdigest()[:40]}.npy"

    def has(self, path: Path) -> bool:
        """Tell whether the file is there whole."""
        try:
            found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return False
        return found.shape == self.shape and found.dtype == self.dtype

    def put(self, path: Path, values: NDArray[Any]) -> None:
        """Write a view's features.

        Raises:
            InputError: The disk is full, or the folder cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path.parent, error) from error
        with replacing(path, ".npy") as temporary, temporary.open("wb") as stream:
            np.save(stream, values.astype(self.dtype, copy=False), allow_pickle=False)

    def get(self, path: Path) -> NDArray[Any]:
        """Read a view's features."""
        values: NDArray[Any] = np.load(path, allow_pickle=False)
        return values


class Features(Protocol):
    """Gives the features of samples, by name and view."""

    def views(self, name: str) -> Sequence[int]:
        """Numbers of the views that a sample has."""
        ...

    def get(self, name: str, view: int) -> NDArray[Any]:
        """A view's features, as its encoder's cache keeps them."""
        ...


class StoredFeatures:
    """Features in the files of a cache."""

    def __init__(self, cache: FeatureCache, files: Mapping[tuple[str, int], Path]) -> None:
        self._cache, self._files = cache, files
        self._views = _by_name(files)

    def views(self, name: str) -> Sequence[int]:
        """Numbers of the views that a sample has."""
        return self._views.get(name, ())

    def get(self, name: str, view: int) -> NDArray[Any]:
        """A view's features."""
        return self._cache.get(self._files[name, view])


class RepeatedFeatures:
    """One view's features in place of every other's, to time training before anything is cached."""

    def __init__(self, values: NDArray[Any], views: Iterable[ViewKey]) -> None:
        self._values = values
        self._views = _by_name((sample.name, view) for sample, view in views)

    def views(self, name: str) -> Sequence[int]:
        """Numbers of the views that a sample has."""
        return self._views.get(name, ())

    def get(self, name: str, view: int) -> NDArray[Any]:
        """Give the same features, whatever is asked for."""
        del name, view
        return self._values


def _by_name(views: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for name, view in views:
        numbers.setdefault(name, []).append(view)
    return numbers


def fill(
    cache: FeatureCache,
    views: Sequence[ViewKey],
    make: Make,
    workers: Workers,
    on_item: Callable[[], None] = lambda: None,
) -> StoredFeatures:
    """Compute the views that are not cached; several processes share the work.

    Args:
        cache: Where they go.
        views: What is wanted.
        make: Computes one.
        workers: The processes, which all have to call this.
        on_item: Called after each view, for a progress bar.

    Raises:
        InputError: A picture cannot be read, or the disk is full.
    """
    if workers.rank == 0:
        _remove_stale(cache.folder / cache.encoder[:16])
    files = {}
    for number, (sample, view) in enumerate(views):
        path = files[sample.name, view] = cache.path(sample, view)
        if number % workers.count == workers.rank and not cache.has(path):
            cache.put(path, make(sample, view))
        on_item()
    workers.wait()
    return StoredFeatures(cache, files)


def probe(cache: FeatureCache, views: Sequence[ViewKey], make: Make) -> tuple[Features, int, float]:
    """Time one view's encoding, and write nothing.

    Returns:
        Stored features if all are there, else one view's in place of all; views that are missing; seconds a view.
    """
    files = {(sample.name, view): cache.path(sample, view) for sample, view in views}
    missing = sum(not cache.has(path) for path in set(files.values()))
    if not missing:
        return StoredFeatures(cache, files), 0, 0.0
    make(*views[0])  # warms up
    started = time.perf_counter()
    values = make(*views[0]).astype(cache.dtype, copy=False)
    return RepeatedFeatures(values, views), missing, time.perf_counter() - started


def fingerprint(tensors: Mapping[str, Tensor], *, about: str = "") -> str:
    """Compute a SHA-256 of tensors with their names, and of a further text that says what else counts."""
    digest = hashlib.sha256(about.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}/{tensor.dtype}/{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _remove_stale(folder: Path) -> None:
    """Remove temporary files that killed runs left; younger ones may be another run's, which is still writing."""
    for path in folder.glob(".*.npy"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_S:
                path.unlink()
