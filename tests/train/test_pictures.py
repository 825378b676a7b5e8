"""Live views: picture and labels move together, each draw differs, and what may not be mirrored is not."""

from dataclasses import replace
from pathlib import Path

import mini_tiny as tiny
import numpy as np
import PIL.Image
import pytest
import torch

from medsam3.data.samples import RGB, Instances, Sample, Target
from medsam3.models.mini.letterbox import SIDE, letterbox
from medsam3.train.augment import view_of, warp_pixels
from medsam3.train.batches import BatchMaker
from medsam3.train.config import SamplingConfig
from medsam3.train.pictures import (
    LiveViews,
    Shown,
    StretchedViews,
    is_mirrored,
    mini_view,
    stretched_labels,
    stretched_view,
)


def sample(folder: Path, concept: str) -> Sample:
    """A bright block, left and above the centre, that is the concept."""
    pixels = np.full((SIDE, SIDE, 3), 20, np.uint8)
    pixels[40:100, 50:120] = 230
    pixels[0, 0], pixels[0, 1] = 0, 255  # so that min-max scaling changes nothing
    PIL.Image.fromarray(pixels).save(folder / "a.png")

    def load() -> Instances:
        labels = np.zeros((SIDE, SIDE), np.int32)
        labels[40:100, 50:120] = 7
        return labels

    return Sample("a.png", folder / "a.png", "one", "a", "train", (Target(concept, True, load),))


def square_of(shown: Shown) -> RGB:
    assert shown.square is not None
    return shown.square


@pytest.mark.parametrize("concept", ["polyp", "left ventricle", "optic disc"])
def test_labels_lie_where_the_picture_shows_them(tmp_path: Path, concept: str) -> None:
    item, views, rng = sample(tmp_path, concept), LiveViews(), np.random.default_rng(0)
    for _ in range(10):
        shown = views.draw(item, rng)
        inside = shown.labels(item.targets[0]) == 7
        bright = square_of(shown).mean(axis=2)
        assert inside.sum() > 1000
        assert bright[inside].mean() > bright[~inside].mean() + 60


def test_each_draw_is_another_view(tmp_path: Path) -> None:
    item, views, rng = sample(tmp_path, "polyp"), LiveViews(), np.random.default_rng(0)
    first, second = (square_of(views.draw(item, rng)) for _ in range(2))
    assert not np.array_equal(first, second)


def centres(folder: Path, concept: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    item, views, rng = sample(folder, concept), LiveViews(), np.random.default_rng(0)
    drawn = [views.draw(item, rng).labels(item.targets[0]) for _ in range(60)]
    return np.array([np.argwhere(labels == 7).mean(axis=0) for labels in drawn])


def test_only_pictures_without_up_and_down_are_turned_and_only_those_without_sides_mirrored(tmp_path: Path) -> None:
    # The block's centre is row 70, column 85; a warp moves it by less than the way to the middle, 127.5.
    rows, columns = centres(tmp_path, "polyp").T
    assert (rows > 140).any() and (columns > 140).any()
    rows, columns = centres(tmp_path, "optic disc").T
    assert (rows < 128).all() and (columns > 140).any()
    rows, columns = centres(tmp_path, "left ventricle").T
    assert (rows < 128).all() and (columns < 128).all()


def test_a_closer_view_enlarges_an_object_and_its_labels(tmp_path: Path) -> None:
    item, rng = sample(tmp_path, "polyp"), np.random.default_rng(0)
    shares = []
    for _ in range(60):
        shown = LiveViews(closer=1.0).draw(item, rng)
        inside = shown.labels(item.targets[0]) == 7
        if inside.sum() > 1000:
            bright = square_of(shown).mean(axis=2)
            assert bright[inside].mean() > bright[~inside].mean() + 60
        shares.append(inside.mean())
    whole = 60 * 70 / SIDE**2
    assert np.median(shares) > 2 * whole
    assert min(shares) < whole  # now and then the window is elsewhere


SIDES = StretchedViews(image=112, side=64, count=3, seed=3)


def left_white(folder: Path, concept: str = "polyp") -> Sample:
    """A picture of 50 x 100, its left 40 columns white and the concept."""
    labels = np.zeros((50, 100), np.int32)
    labels[:, :40] = 1
    PIL.Image.fromarray(np.where(labels[..., None] > 0, 255, 0).astype(np.uint8).repeat(3, axis=2)).save(
        folder / "a.png"
    )
    return Sample("a.png", folder / "a.png", "one", "a", "train", (Target(concept, True, lambda: labels),))


def test_sam3_sees_pixels_and_labels_stretched_to_the_square(tmp_path: Path) -> None:
    item = left_white(tmp_path)
    pixels = stretched_view(item, 0, seed=0, side=112)
    assert pixels.shape == (112, 112, 3)
    assert pixels[60, 20].tolist() == [255, 255, 255]
    assert pixels[60, 90].tolist() == [0, 0, 0]
    labels = stretched_labels(item.targets[0].load(), item, 0, seed=0, side=64)
    # 40 of 100 columns are 25.6 of 64: cells whose centre lies before 25.6, so 26 of them.
    assert (labels > 0).sum(axis=1).tolist() == [26] * 64


def test_odd_stretched_views_are_mirrored_unless_a_concept_has_a_side(tmp_path: Path) -> None:
    assert [is_mirrored(left_white(tmp_path), view) for view in range(3)] == [False, True, False]
    assert not is_mirrored(left_white(tmp_path, "left lung"), 1)


@pytest.mark.parametrize("number", [1, 2])
def test_a_stretched_view_moves_pixels_and_labels_alike(tmp_path: Path, number: int) -> None:
    item = left_white(tmp_path)
    white = stretched_view(item, number, seed=3, side=128)[..., 0] > 100
    labels = stretched_labels(item.targets[0].load(), item, number, seed=3, side=128) > 0
    assert (white == labels).mean() > 0.98


def sam3_maker(item: Sample, features: tiny.KeptFeatures | None = None, queries: int = 10) -> BatchMaker:
    sampling = SamplingConfig(images=1, prompts=1, exemplar=0.0, max_objects=queries)
    return BatchMaker([item], replace(SIDES, count=1, features=features), sampling, seed=0, least_share=0.00005)


def test_boxes_and_masks_of_a_stretched_question_by_hand(tmp_path: Path) -> None:
    (question,) = sam3_maker(left_white(tmp_path)).batch(0).questions
    # 26 of 64 columns, all rows: the box's right edge at 26 / 64, the mask 13 of 32 columns.
    assert question.truth.boxes_cxcywh[0].tolist() == pytest.approx([13 / 64, 0.5, 26 / 64, 1.0])
    assert question.truth.masks.shape == (1, 32, 32)
    assert question.truth.masks[0].sum().item() == 13 * 32


def test_cached_features_of_sam3_come_as_bfloat16_without_pixels(tmp_path: Path) -> None:
    kept = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3)).bfloat16()
    features = tiny.KeptFeatures({"a.png": {0: kept.view(torch.int16).numpy()}})
    batch = sam3_maker(left_white(tmp_path), features).batch(0)
    assert batch.pixels is None
    assert batch.features is not None and torch.equal(batch.features[0], kept)


def test_every_phrase_that_a_batch_asks_is_among_all_phrases(tmp_path: Path) -> None:
    labels = np.zeros((50, 100), np.int32)
    item = left_white(tmp_path)
    item = replace(item, targets=(*item.targets, Target("needle", False, lambda: labels)))
    maker = sam3_maker(item)
    asked = {question.phrase for step in range(30) for question in maker.batch(step).questions}
    assert asked <= set(maker.phrases())
    assert {"visual", "polyp", "needle"} <= set(maker.phrases())


def test_microscopy_is_restained_from_view_2_on_and_other_pictures_never_are(tmp_path: Path) -> None:
    for concept, number, is_restained in (("cell nucleus", 1, False), ("cell nucleus", 2, True), ("polyp", 2, False)):
        item = sample(tmp_path, concept)
        square, _ = letterbox(item.load_rgb())
        warped = warp_pixels(square, view_of("a.png", number, seed=0))
        assert np.array_equal(mini_view(item, number, seed=0), warped) != is_restained
