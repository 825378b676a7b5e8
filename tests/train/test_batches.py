"""Batches: truth of prompts, negatives, mirrors, and the same stream after a restart."""

from dataclasses import replace
from pathlib import Path

import mini_tiny as tiny
import numpy as np
import pytest

from medsam3 import concepts
from medsam3.data.samples import Instances, Sample, Target, connected_objects, foreign_concepts, is_sided
from medsam3.models.mini.letterbox import SIDE
from medsam3.train.augment import PLAIN, view_of, warp_labels, warp_pixels
from medsam3.train.batches import BatchMaker, choose_prompts, prompt_target
from medsam3.train.config import SamplingConfig
from medsam3.train.pictures import CachedViews


def square_labels() -> Instances:
    labels = np.zeros((SIDE, SIDE), dtype=np.int32)
    labels[10:50, 20:100] = 1  # 40 rows, 80 columns
    labels[200:220, 30:60] = 2
    return labels


def sample(name: str, present: tuple[str, ...], absent: tuple[str, ...] = (), dataset: str = "one") -> Sample:
    targets = [Target(concept, True, square_labels) for concept in present]
    targets += [Target(concept, False, lambda: np.zeros((SIDE, SIDE), np.int32)) for concept in absent]
    return Sample(name, Path(name), dataset, name, "train", tuple(targets))


def cached(samples: list[Sample], counts: dict[str, int] | None = None) -> CachedViews:
    """So many cached views of each sample, by default one, their left half bright."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[:, :128] = 200
    one = tiny.record(np.zeros((256, 64, 64)), pixels)
    kept = {item.name: dict.fromkeys(range((counts or {}).get(item.name, 1)), one) for item in samples}
    return CachedViews(tiny.KeptFeatures(kept), seed=0)


def maker(samples: list[Sample], **config: object) -> BatchMaker:
    settings = SamplingConfig(**({"images": 2} | config))  # type: ignore[arg-type]
    return BatchMaker(samples, cached(samples), settings, seed=3)


def test_the_truth_of_a_prompt_has_boxes_of_the_full_square_and_masks_at_half_size() -> None:
    truth, boxes = prompt_target(square_labels(), max_objects=16)
    # Columns 20..99: centre 60 of 256, width 80; rows 10..49: centre 30, height 40.
    assert boxes[0] == pytest.approx([60 / 256, 30 / 256, 80 / 256, 40 / 256])
    assert truth.masks.shape == (2, 128, 128)
    assert truth.masks[0].sum().item() == 20 * 40
    assert truth.semantic.sum().item() == 20 * 40 + 10 * 15


def test_more_objects_than_allowed_are_taught_as_one() -> None:
    truth, boxes = prompt_target(square_labels(), max_objects=1)
    assert len(boxes) == 1
    assert truth.masks[0].sum() == truth.semantic.sum()


def test_an_empty_map_is_an_absent_concept() -> None:
    truth, boxes = prompt_target(np.zeros((SIDE, SIDE), np.int32), max_objects=4)
    assert not truth.is_present
    assert len(boxes) == len(truth.boxes_cxcywh) == 0


def test_diagonal_neighbours_are_one_object() -> None:
    assert connected_objects(np.eye(3, dtype=bool)).max() == 1


def test_a_batch_depends_on_its_number_alone() -> None:
    samples = [sample(f"{i}.png", ("polyp",)) for i in range(5)]
    straight = [drawn.batch(step) for drawn in [maker(samples)] for step in range(4)]
    again = maker(samples).batch(3)
    assert [q.phrase for q in straight[3].questions] == [q.phrase for q in again.questions]
    assert straight[3].pixels is not None and again.pixels is not None
    assert (straight[3].pixels == again.pixels).all()


def bright_left(samples: list[Sample], count: int) -> list[bool]:
    """For so many batches of one image, whether its left half is bright."""
    batches = [maker(samples, images=1).batch(step).pixels for step in range(count)]
    return [pixels is not None and pixels[0, 0, 0, 0].item() == 200 for pixels in batches]


def test_sided_concepts_are_never_mirrored() -> None:
    samples = [sample("a.png", ("left lung",))]
    assert is_sided(samples[0])
    assert all(bright_left(samples, 12))


def test_others_are_mirrored_half_of_the_time() -> None:
    samples = [sample("a.png", ("polyp",))]
    assert 5 < sum(bright_left(samples, 30)) < 25


def test_an_image_without_the_concept_asks_only_for_what_is_absent() -> None:
    batch = maker([sample("a.png", (), ("polyp",))], images=1).batch(0)
    assert not any(question.truth.is_present for question in batch.questions)


def test_foreign_concepts_are_those_that_the_table_of_concepts_calls_surely_absent() -> None:
    samples = [
        sample("a.png", ("polyp",), dataset="endo"),
        sample("b.png", ("liver",), dataset="ct"),
        sample("c.png", ("left atrium",), dataset="mr"),
        sample("d.png", ("optic disk",), dataset="eye"),
        sample("e.png", ("teapot",), ("polyp",), dataset="own"),
        sample("f.png", ("large bowel",), dataset="gut"),
    ]
    foreign = foreign_concepts(samples)
    assert set(foreign["endo"]) == {"left atrium", "optic disk"}  # a colonoscopy is a view of the large bowel
    assert set(foreign["ct"]) == set(foreign["gut"]) == {"optic disk"}
    assert set(foreign["eye"]) == {"large bowel", "left atrium", "liver", "polyp"}
    assert foreign["own"] == {}  # a teapot may be anywhere


def test_the_plain_view_changes_nothing_and_a_view_is_the_same_each_time() -> None:
    labels = square_labels()
    assert view_of("a.png", 0) == PLAIN
    assert (warp_labels(labels, PLAIN) == labels).all()
    assert view_of("a.png", 1) == view_of("a.png", 1) != view_of("b.png", 1)


def test_pixels_and_labels_of_a_view_move_together() -> None:
    labels = square_labels()
    pixels = np.repeat(((labels > 0) * 255).astype(np.uint8)[..., None], 3, axis=2)
    chosen = view_of("a.png", 1)
    warped, moved = warp_pixels(pixels, chosen)[..., 0] > 100, warp_labels(labels, chosen) > 0
    assert (warped != moved).mean() < 0.01
    assert (moved != (labels > 0)).mean() > 0.02


def test_data_sets_are_drawn_by_their_cached_rows_to_the_power() -> None:
    large = [sample(f"large{n}", ("polyp",), dataset="large") for n in range(4)]
    small = [sample("small0", ("polyp",), dataset="small")]
    views = cached(large + small, {"small0": 2})  # 4 rows and 2 rows
    settings = SamplingConfig(images=1, dataset_power=0.5)
    chances = BatchMaker(large + small, views, settings, seed=0).chances
    assert chances[:4].sum() == pytest.approx(2 / (2 + 2**0.5))  # sqrt 4 to sqrt 2
    assert chances[4] == pytest.approx(2**0.5 / (2 + 2**0.5))


def test_absent_phrases_are_drawn_as_often_as_they_are_shown_elsewhere() -> None:
    eyes = [sample("eye", ("optic disc",), dataset="eye")]
    others = [sample(f"endo{n}", ("polyp",), dataset="endo") for n in range(3)]
    others += [sample("chest", ("lung",), dataset="chest")]
    foreign = foreign_concepts(eyes + others)
    assert foreign["eye"] == {"polyp": 3, "lung": 1}
    rng = np.random.default_rng(0)
    drawn = [choose_prompts(eyes[0], foreign, SamplingConfig(prompts=2), rng)[1] for _ in range(400)]
    assert all(target is None for target, _ in drawn)
    lungs = sum(phrase in ("lung", *concepts.synonyms("lung")) for _, phrase in drawn)
    assert 70 < lungs < 130  # a quarter of 400, three standard deviations of 8.7 either way


def test_absent_prompts_are_other_concepts_each_once_and_half_of_them_annotated_as_absent() -> None:
    others = [
        sample(f"{n}.png", (name,), dataset=name) for n, name in enumerate(("lung", "optic disc", "cell nucleus"))
    ]
    own = sample("a.png", ("polyp",), ("Barrett's esophagus", "suspicious lesion"), "endo")
    foreign = foreign_concepts([own, *others])
    config = SamplingConfig(prompts=1, absent=5)
    drawn = [choose_prompts(own, foreign, config, np.random.default_rng(seed)) for seed in range(20)]
    for prompts in drawn:
        assert [target is not None and target.is_present for target, _ in prompts] == [True] + [False] * 5
        assert sum(target is not None for target, _ in prompts[1:]) == 2  # there are no more, three are of other kinds
        assert len({phrase for _, phrase in prompts[1:]}) == 5
    more = choose_prompts(own, {}, replace(config, absent=9), np.random.default_rng(0))
    assert len(more) == 1 + 2
    few = choose_prompts(own, foreign, replace(config, absent=2), np.random.default_rng(0))
    assert sum(target is not None for target, _ in few[1:]) == 1


def test_processes_share_the_images_of_a_batch_with_their_questions() -> None:
    samples = [sample(f"{n}.png", ("polyp",)) for n in range(5)]
    whole = maker(samples, images=5, prompts=2).batch(0)
    shares = [whole.share(rank, 2) for rank in range(2)]
    assert [len(share.pixels) for share in shares if share.pixels is not None] == [3, 2]
    assert sum(len(share.questions) for share in shares) == len(whole.questions)
    for rank, share in enumerate(shares):
        for question in share.questions:
            assert any(
                other.image == 2 * question.image + rank and other.truth is question.truth for other in whole.questions
            )
    assert whole.share(0, 1) is whole
