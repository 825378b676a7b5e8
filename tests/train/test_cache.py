"""The cache of features: named by contents, filled once, proof against kills, damage and full disks."""

import errno
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray

from medsam3.data.samples import Sample, Target
from medsam3.errors import InputError
from medsam3.train.cache import FeatureCache, RepeatedFeatures, StoredFeatures, fill, fingerprint, probe
from medsam3.train.workers import OneProcess

ONE = OneProcess(torch.device("cpu"))


def sample(folder: Path, name: str, grey: int = 7, concept: str = "polyp") -> Sample:
    folder.mkdir(exist_ok=True)
    PIL.Image.new("L", (6, 4), grey).save(folder / name)
    labels = np.ones((4, 6), np.int32)
    return Sample(name, folder / name, "one", name, "train", (Target(concept, True, lambda: labels),))


def cache_in(folder: Path) -> FeatureCache:
    return FeatureCache(folder / "cache", "e" * 64, np.dtype(np.float32), (2,), seed=0)


class Mean:
    """Gives the picture's mean and the view's number, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, item: Sample, view: int) -> NDArray[Any]:
        self.calls += 1
        return np.array([item.load_rgb().mean(), view], np.float32)


def test_features_are_made_once_and_read_afterwards(tmp_path: Path) -> None:
    items, make, cache = [sample(tmp_path, "a.png"), sample(tmp_path, "b.png", 9)], Mean(), cache_in(tmp_path)
    views = [(item, view) for item in items for view in range(2)]
    made, read = (fill(cache, views, make, ONE) for _ in range(2))
    assert make.calls == 4
    assert read.get("b.png", 1).tolist() == made.get("b.png", 1).tolist() == Mean()(items[1], 1).tolist()
    assert list(read.views("a.png")) == [0, 1]
    assert list(read.views("c.png")) == []


def test_another_set_with_the_same_names_never_reads_the_first_ones_features(tmp_path: Path) -> None:
    cache, make = cache_in(tmp_path), Mean()
    first = fill(cache, [(sample(tmp_path / "one", "a.png", 7), 0)], make, ONE).get("a.png", 0)
    second = fill(cache, [(sample(tmp_path / "two", "a.png", 90), 0)], make, ONE).get("a.png", 0)
    assert make.calls == 2
    assert first[0] != second[0]


def test_a_files_name_changes_with_all_that_its_values_depend_on(tmp_path: Path) -> None:
    item, cache = sample(tmp_path, "a.png"), cache_in(tmp_path)
    names = {cache.path(item, 0), cache.path(item, 1), replace(cache, seed=1).path(item, 1)}
    names |= {replace(cache, encoder="f" * 64).path(item, 0)}
    names |= {cache.path(replace(item, name="b.png"), 1), cache.path(sample(tmp_path, "a.png", concept="ulcer"), 1)}
    names |= {cache.path(replace(item, name="v.nii#3", loader=item.load_rgb), 0)}
    assert len(names) == 7
    plain = cache.path(item, 0)
    assert replace(cache, seed=1).path(item, 0) == plain  # the plain view has no random numbers
    assert cache.path(replace(item, name="b.png"), 0) == plain
    sample(tmp_path, "a.png", 8)
    assert cache.path(item, 0) not in names


@pytest.mark.parametrize("content", [b"", b"no array", b"cut"])
def test_an_empty_or_damaged_file_counts_as_missing_and_is_made_again(tmp_path: Path, content: bytes) -> None:
    item, cache, make = sample(tmp_path, "a.png"), cache_in(tmp_path), Mean()
    fill(cache, [(item, 0)], make, ONE)
    path = cache.path(item, 0)
    path.write_bytes(path.read_bytes()[:-2] if content == b"cut" else content)
    assert not cache.has(path)
    assert fill(cache, [(item, 0)], make, ONE).get("a.png", 0).tolist() == Mean()(item, 0).tolist()
    assert make.calls == 2


def test_a_full_disk_is_one_line_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item, cache = sample(tmp_path, "a.png"), cache_in(tmp_path)

    def full(stream: object, values: object, *, allow_pickle: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)") as raised:
        fill(cache, [(item, 0)], Mean(), ONE)
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "cache").rglob("*.npy")) == []


def test_files_that_killed_runs_left_are_removed_and_those_of_running_ones_stay(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    folder = tmp_path / "cache" / cache.encoder[:16]
    folder.mkdir(parents=True)
    old, young = folder / ".old.npy", folder / ".young.npy"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    fill(cache, [(sample(tmp_path, "a.png"), 0)], Mean(), ONE)
    assert (old.exists(), young.exists()) == (False, True)


def test_a_probe_times_one_view_and_writes_nothing(tmp_path: Path) -> None:
    items, cache = [sample(tmp_path, "a.png"), sample(tmp_path, "b.png", 9)], cache_in(tmp_path)
    views = [(item, 0) for item in items]
    found, missing, view_s = probe(cache, views, Mean())
    assert isinstance(found, RepeatedFeatures) and (missing, view_s > 0) == (2, True)
    assert found.get("b.png", 0).tolist() == Mean()(items[0], 0).tolist()
    assert list(found.views("b.png")) == [0]
    assert not (tmp_path / "cache").exists()
    fill(cache, views, Mean(), ONE)
    found, missing, view_s = probe(cache, views, Mean())
    assert isinstance(found, StoredFeatures) and (missing, view_s) == (0, 0.0)


def test_a_fingerprint_tells_values_names_and_the_further_text_apart() -> None:
    tensors = {"a": torch.ones(2), "b": torch.tensor(3.0)}
    prints = {
        fingerprint(tensors),
        fingerprint({**tensors, "a": torch.zeros(2)}),
        fingerprint({"c": tensors["a"], "b": tensors["b"]}),
        fingerprint(tensors, about="bf16"),
    }
    assert len(prints) == 4
    assert fingerprint(tensors) == fingerprint(dict(reversed(tensors.items())))
