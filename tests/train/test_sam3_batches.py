"""SAM 3's batches and cache: where pixels and labels end up, views, and features that are never stale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import sam3_tiny as tiny
import torch

from medsam3.data.samples import Sample, Target, foreign_concepts
from medsam3.train.batches import SamplingConfig
from medsam3.train.sam3_batches import (
    CachedTrunks,
    Sam3BatchMaker,
    Sides,
    all_phrases,
    is_mirrored,
    view_labels,
    view_pixels,
)
from medsam3.train.sam3_cache import TrunkCache, fingerprint

SIDES = Sides(image=112, mask=32, queries=10)
SHAPE = (4, 8, 8)


def one_sample(folder: Path, *, concept: str = "polyp") -> Sample:
    """A picture of 50 x 100, its left 40 columns white and the concept."""
    labels = np.zeros((50, 100), np.int32)
    labels[:, :40] = 1
    PIL.Image.fromarray(np.where(labels[..., None] > 0, 255, 0).astype(np.uint8).repeat(3, axis=2)).save(
        folder / "a.png"
    )
    return Sample("a.png", folder / "a.png", "one", "a", "train", (Target(concept, True, lambda: labels),))


def maker(samples: tuple[Sample, ...], *, trunks: CachedTrunks | None = None, views: int = 1) -> Sam3BatchMaker:
    config = tiny.configured(views=views, sampling=SamplingConfig(images=1, prompts=2, exemplar=0.0))
    return Sam3BatchMaker(samples, foreign_concepts(samples), config, SIDES, trunks=trunks)


def test_pixels_and_labels_are_stretched_to_the_square(tmp_path: Path) -> None:
    sample = one_sample(tmp_path)
    pixels = view_pixels(sample, 0, seed=0, side=112)
    assert pixels.shape == (112, 112, 3)
    assert pixels[60, 20].tolist() == [255, 255, 255]
    assert pixels[60, 90].tolist() == [0, 0, 0]
    labels = view_labels(sample.targets[0].load(), sample, 0, seed=0, side=64)
    # 40 of 100 columns are 25.6 of 64: cells whose centre lies before 25.6, so 26 of them.
    assert (labels > 0).sum(axis=1).tolist() == [26] * 64


def test_odd_views_are_mirrored_unless_a_concept_has_a_side(tmp_path: Path) -> None:
    plain, sided = one_sample(tmp_path), one_sample(tmp_path, concept="left lung")
    assert [is_mirrored(plain, view) for view in range(3)] == [False, True, False]
    assert not is_mirrored(sided, 1)


@pytest.mark.parametrize("number", [1, 2])
def test_a_view_moves_pixels_and_labels_alike(tmp_path: Path, number: int) -> None:
    sample = one_sample(tmp_path)
    white = view_pixels(sample, number, seed=3, side=128)[..., 0] > 100
    labels = view_labels(sample.targets[0].load(), sample, number, seed=3, side=128) > 0
    assert (white == labels).mean() > 0.98


def test_a_batch_depends_on_its_number_alone(tmp_path: Path) -> None:
    samples = tiny.bright_squares(tmp_path)
    first, again = maker(samples).batch(7), maker(samples).batch(7)
    assert first.pixels is not None and again.pixels is not None
    assert torch.equal(first.pixels, again.pixels)
    assert [q.phrase for q in first.questions] == [q.phrase for q in again.questions]


def test_boxes_and_masks_of_a_question_by_hand(tmp_path: Path) -> None:
    question = maker((one_sample(tmp_path),)).batch(0).questions[0]
    # 26 of 64 columns, all rows: the box's right edge at 26 / 64, the mask 13 of 32 columns.
    assert question.truth.boxes_cxcywh[0].tolist() == pytest.approx([13 / 64, 0.5, 26 / 64, 1.0])
    assert question.truth.masks.shape == (1, 32, 32)
    assert question.truth.masks[0].sum().item() == 13 * 32


def test_more_objects_than_the_network_has_queries_are_taught_as_one(tmp_path: Path) -> None:
    labels = np.zeros((64, 64), np.int32)
    for number in range(11):  # one more than the ten queries
        labels[5 * number : 5 * number + 4] = number + 1
    sample = replace(one_sample(tmp_path), targets=(Target("polyp", True, lambda: labels),))
    assert len(maker((sample,)).batch(0).questions[0].truth.masks) == 1


def test_every_phrase_that_a_batch_asks_is_among_all_phrases(tmp_path: Path) -> None:
    samples = tiny.bright_squares(tmp_path)
    known = all_phrases(samples, foreign_concepts(samples))
    asked = {q.phrase for step in range(30) for q in maker(samples).batch(step).questions}
    assert asked <= set(known)
    assert {"visual", "polyp", "needle"} <= set(known)


def test_cached_features_come_back_in_bfloat16_as_they_were(tmp_path: Path) -> None:
    cache = TrunkCache(tmp_path / "cache", "e" * 64, SHAPE, seed=0)
    path = cache.path(one_sample(tmp_path), 0)
    assert not cache.has(path)
    trunk = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    cache.put(path, trunk)
    assert cache.has(path)
    assert torch.equal(cache.get(path), trunk.to(torch.bfloat16))
    assert path.stat().st_size == 128 + 2 * 4 * 8 * 8  # a header of numpy's and two bytes a value


def test_a_files_name_changes_with_the_image_the_view_and_the_encoder(tmp_path: Path) -> None:
    sample = one_sample(tmp_path)
    cache = TrunkCache(tmp_path / "cache", "e" * 64, SHAPE, seed=0)
    names = [cache.path(sample, 0), cache.path(sample, 1), replace(cache, seed=1).path(sample, 1)]
    names.append(replace(cache, encoder="f" * 64).path(sample, 0))
    assert replace(cache, seed=1).path(sample, 0) == names[0]  # the plain view has no random numbers
    PIL.Image.new("RGB", (100, 50)).save(sample.image)
    names.append(cache.path(sample, 0))
    assert len(set(names)) == 5


def test_a_file_that_is_cut_short_counts_as_missing(tmp_path: Path) -> None:
    cache = TrunkCache(tmp_path, "e" * 64, SHAPE, seed=0)
    path = cache.path(one_sample(tmp_path), 0)
    cache.put(path, torch.zeros(SHAPE))
    path.write_bytes(path.read_bytes()[:200])
    assert not cache.has(path)


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


def test_a_batch_of_cached_features_has_no_pixels(tmp_path: Path) -> None:
    sample = one_sample(tmp_path)
    cache = TrunkCache(tmp_path / "cache", "e" * 64, SHAPE, seed=0)
    cache.put(cache.path(sample, 0), torch.ones(SHAPE))
    batch = maker((sample,), trunks=CachedTrunks(cache, {("a.png", 0): cache.path(sample, 0)})).batch(0)
    assert batch.pixels is None
    assert batch.trunk is not None and batch.trunk.shape == (1, *SHAPE)
