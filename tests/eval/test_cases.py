from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from colour_data import DataFolder, block, polyp_folder

from medsam3.data.index import IndexRow, read_index
from medsam3.data.samples import connected_objects
from medsam3.errors import InputError
from medsam3.eval.cases import (
    EvalConfig,
    Truth,
    jitter_rng,
    jittered,
    load_truth,
    oracle_boxes,
    questions,
    select,
)
from medsam3.prompts import Box


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return polyp_folder(tmp_path / "data")


def row(concept: str = "polyp", *, is_present: bool = True, dataset: str = "gut", name: str = "a.png") -> IndexRow:
    return IndexRow(dataset, Path(dataset, name), Path("m", name), concept, (1,), "test", "p1", is_present)


def test_a_present_concept_is_asked_in_every_mode_and_jitter() -> None:
    config = EvalConfig(modes=("T", "TB", "I", "TI"), jitters_percent=(0, 10))
    asked = [(question.mode, question.phrase, question.jitter_percent) for question in questions(row(), config)]
    assert asked == [
        ("T", "polyp", 0),
        ("TB", "polyp", 0),
        ("I", "", 0),
        ("I", "", 10),
        ("TI", "polyp", 0),
        ("TI", "polyp", 10),
    ]


def test_an_absent_concept_is_asked_by_text_alone() -> None:
    config = EvalConfig(modes=("T", "TB", "I", "TI"), with_synonyms=True)
    assert [question.mode for question in questions(row(is_present=False), config)] == ["T"]
    assert questions(row(is_present=False), EvalConfig(modes=("I",))) == []


def test_the_synonym_panel_asks_seen_and_unseen_phrasings() -> None:
    asked = {question.phrase: question.phrasing for question in questions(row(), EvalConfig(with_synonyms=True))}
    assert asked["polyp"] == "name"
    assert asked["colonic polyp"] == "synonym"
    assert asked["adenomatous polyp"] == "unseen synonym"
    assert len(questions(row("a concept of one's own"), EvalConfig(with_synonyms=True))) == 1


def test_rows_are_selected_by_split_and_data_set_and_volumes_are_counted() -> None:
    rows = [row(), row(dataset="eye"), row(name="v.nii.gz")]
    assert [kept.dataset for kept in select(rows, EvalConfig()).rows] == ["eye", "gut"]
    chosen = select(rows, EvalConfig(datasets=("gut",)))
    assert (len(chosen.rows), chosen.skipped_volumes) == (1, 1)
    with pytest.raises(InputError, match="there is no data set lung, allowed are eye, gut"):
        select(rows, EvalConfig(datasets=("lung",)))
    with pytest.raises(InputError, match="no picture of any data set is in split val"):
        select(rows, EvalConfig(split="val"))


def test_a_limit_counts_images_of_each_data_set_and_keeps_all_their_rows() -> None:
    rows = [row(concept, dataset=d, name=f"{n}.png") for d in "ab" for n in range(5) for concept in ("polyp", "liver")]
    kept = select(rows, EvalConfig(limit=2)).rows
    assert len(kept) == 2 * 2 * 2
    assert set(kept) <= set(select(rows, EvalConfig(limit=3)).rows)


def test_truth_is_the_union_of_values_with_its_parts_numbered(data: DataFolder) -> None:
    polyp, disc = (found for found in read_index(data.path) if found.image.name == "a.png")
    truth = load_truth(polyp)
    np.testing.assert_array_equal(truth.mask, block((4, 8), (6, 14)))
    assert truth.objects.max() == 1 and not truth.are_instances
    assert not load_truth(disc).mask.any()


def test_instances_of_the_data_set_go_before_connected_parts(data: DataFolder) -> None:
    (data.path / "gut" / "instances").mkdir()
    numbers = np.zeros((20, 30), dtype=np.uint16)
    numbers[4:8, 6:10], numbers[4:8, 10:14], numbers[0, 0] = 500, 2, 3  # the last is no polyp
    PIL.Image.fromarray(numbers).save(data.path / "gut" / "instances" / "a.png")
    truth = load_truth(read_index(data.path)[0])
    assert truth.are_instances and set(np.unique(truth.objects)) == {0, 2, 500}
    assert [box.xyxy for box in oracle_boxes(truth, "parts")] == [(9.5, 3.5, 13.5, 7.5), (5.5, 3.5, 9.5, 7.5)]


def test_an_index_that_the_mask_belies_is_refused(data: DataFolder) -> None:
    data.lines[-1] = data.lines[-1].removesuffix("0") + "1"
    data.write()
    with pytest.raises(InputError, match="the index says polyp is present, the mask says otherwise"):
        load_truth(read_index(data.path)[-1])


def test_oracle_boxes_surround_each_part_but_specks_or_the_whole() -> None:
    mask = block((0, 10), (0, 15)) | block((12, 14), (20, 30))  # 150 and 20 pixels
    mask[19, 0] = True  # 1 of 171, under 1 %
    truth = Truth(mask, connected_objects(mask), are_instances=False)
    assert [box.xyxy for box in oracle_boxes(truth, "parts")] == [(-0.5, -0.5, 14.5, 9.5), (19.5, 11.5, 29.5, 13.5)]
    assert [box.xyxy for box in oracle_boxes(truth, "whole")] == [(-0.5, -0.5, 29.5, 19.5)]


def test_diagonal_neighbours_are_one_part() -> None:
    assert connected_objects(np.eye(3, 4, dtype=np.bool_)).max() == 1


def test_jitter_moves_each_edge_by_at_most_its_part_of_the_side_and_stays_inside() -> None:
    box, rng = Box(2, 3, 12, 7), np.random.default_rng(1)
    moved = [jittered([box], 10, (20, 30), rng)[0] for _ in range(300)]
    reach = np.abs(np.array([other.xyxy for other in moved]) - box.xyxy).max(axis=0)
    assert (reach <= (1, 0.4, 1, 0.4)).all() and (reach > (0.9, 0.36, 0.9, 0.36)).all()
    edge = [jittered([Box(-0.5, -0.5, 29.5, 19.5)], 20, (20, 30), rng)[0] for _ in range(50)]
    assert all(other.x0 >= -0.5 and other.y1 <= 19.5 for other in edge)
    assert jittered([box], 0, (20, 30), rng) == (box,)


def test_a_case_is_jittered_the_same_in_every_run() -> None:
    draws = [jitter_rng(row(), 10, 0).random() for _ in range(2)]
    assert draws[0] == draws[1] != jitter_rng(row("liver"), 10, 0).random()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"modes": ()}, "no mode was chosen"),
        ({"jitters_percent": (60.0,)}, "jitter is"),
        ({"limit": 0}, "limit is 0"),
        ({"tolerance": -1.0}, "tolerance is -1"),
    ],
)
def test_settings_out_of_range_are_refused(config: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EvalConfig(**config)  # type: ignore[arg-type]
