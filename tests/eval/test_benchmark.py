from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from colour_data import ColourSegmenter, DataFolder, block, polyp_folder

from medsam3.data.index import read_index
from medsam3.data.samples import connected_objects
from medsam3.errors import InputError
from medsam3.eval.case_pictures import mask_file
from medsam3.eval.case_result import CaseResult, measure
from medsam3.eval.cases import EvalConfig, Truth, select
from medsam3.eval.results import Unanswered
from medsam3.eval.run import AskedModel, answer_rows, cases_of
from medsam3.image import Masks
from medsam3.store import Journal


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return polyp_folder(tmp_path / "data")


@pytest.fixture
def segmenter() -> ColourSegmenter:
    return ColourSegmenter()


def run(
    data: DataFolder,
    segmenter: ColourSegmenter,
    config: EvalConfig,
    *,
    journal: Path | None = None,
) -> tuple[list[CaseResult], list[Unanswered]]:
    rows = select(read_index(data.path), config).rows
    model = AskedModel(data.path, segmenter, config, data.path.parent / "masks")
    with Journal(journal or data.path.parent / "cases.jsonl", {"run": 1}, other="refuse") as kept:
        failures = answer_rows(model, rows, kept)
        return list(cases_of(kept)), failures


def by_name(cases: list[CaseResult]) -> dict[tuple[str, str, str], CaseResult]:
    return {(Path(case.image).stem, case.concept, case.mode): case for case in cases}


def test_text_answers_are_scored_by_their_union_and_misses_count_0(
    data: DataFolder, segmenter: ColourSegmenter
) -> None:
    cases, failures = run(data, segmenter, EvalConfig())
    found = by_name(cases)
    assert failures == [] and len(cases) == 5
    assert [found[name, "polyp", "T"].dice for name in "abc"] == [1, 0.5, 0]
    assert [found[name, "polyp", "T"].iou for name in "abc"] == pytest.approx([1, 16 / 48, 0])
    missed = found["c", "polyp", "T"]
    assert missed.is_missed and not missed.says_present and missed.presence == 0.2
    assert missed.hd95 == missed.assd == pytest.approx(math.hypot(20, 30)) and missed.nsd == 0
    assert missed.unit == "px"


def test_absent_concepts_have_a_presence_and_no_overlap(data: DataFolder, segmenter: ColourSegmenter) -> None:
    found = by_name(run(data, segmenter, EvalConfig())[0])
    for name, concept in (("a", "optic disc"), ("d", "polyp")):
        case = found[name, concept, "T"]
        assert not case.is_present and not case.says_present
        assert (case.presence, case.dice, case.hd95, case.predicted_px) == (0.2, None, None, 0)


def test_each_picture_is_encoded_once_for_all_its_questions(data: DataFolder, segmenter: ColourSegmenter) -> None:
    cases, _ = run(data, segmenter, EvalConfig(modes=("T", "I", "TI"), jitters_percent=(0, 10)))
    assert len(segmenter.encoded) == 4
    assert len(cases) == 3 * 5 + 2


def test_boxes_that_a_phrase_gave_take_one_more_encoding(data: DataFolder, segmenter: ColourSegmenter) -> None:
    run(data, segmenter, EvalConfig(modes=("T", "TB")))
    assert len(segmenter.encoded) == 4 + 2  # in c and d the phrase finds nothing


def test_oracle_boxes_come_from_the_truth_and_are_given_without_or_with_the_phrase(
    data: DataFolder, segmenter: ColourSegmenter
) -> None:
    found = by_name(run(data, segmenter, EvalConfig(modes=("I", "TI")))[0])
    assert {case.dice for case in found.values()} == {1}
    assert all(prompt.boxes[0].xyxy == (5.5, 3.5, 13.5, 7.5) for prompt in segmenter.asked)
    assert {prompt.text for prompt in segmenter.asked} == {None, "polyp"}
    assert found["c", "polyp", "I"].presence is None and found["c", "polyp", "TI"].presence == 0.8


def test_the_box_of_a_text_answer_is_asked_again_as_a_box(data: DataFolder, segmenter: ColourSegmenter) -> None:
    found = by_name(run(data, segmenter, EvalConfig(modes=("TB",)))[0])
    assert found["b", "polyp", "TB"].dice == 0.5
    assert found["c", "polyp", "TB"].is_missed  # nothing found, so no box to ask with
    boxes = [prompt.boxes[0].xyxy for prompt in segmenter.asked if prompt.boxes]
    assert boxes == [(5.5, 3.5, 13.5, 7.5), (9.5, 3.5, 17.5, 7.5)]


def test_synonyms_are_asked_where_the_concept_is_present(data: DataFolder, segmenter: ColourSegmenter) -> None:
    cases, _ = run(data, segmenter, EvalConfig(with_synonyms=True))
    plural = [case for case in cases if case.phrase == "polyps"]
    assert [case.dice for case in plural] == [1, 0.5, 0]
    unseen = [case for case in cases if case.phrasing == "unseen synonym"]
    assert unseen and all(case.is_missed for case in unseen)


def test_a_killed_run_goes_on_with_what_is_missing(
    data: DataFolder, segmenter: ColourSegmenter, tmp_path: Path
) -> None:
    whole, _ = run(data, segmenter, EvalConfig(), journal=tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    killed = tmp_path / "killed.jsonl"
    killed.write_text("".join(lines[:3]) + lines[3][:20])  # header, two cases, and one half written
    again = ColourSegmenter()
    cases, _ = run(data, again, EvalConfig(), journal=killed)
    assert len(again.encoded) == 3  # a's two cases were kept
    assert [case.key for case in cases] == [case.key for case in whole]
    assert [case.dice for case in cases] == [case.dice for case in whole]
    assert len(killed.read_text().splitlines()) == len(lines)
    finished = ColourSegmenter()
    run(data, finished, EvalConfig(), journal=killed)
    assert finished.encoded == []


def test_a_picture_or_mask_that_cannot_be_read_is_returned_and_the_others_go_on(
    data: DataFolder, segmenter: ColourSegmenter
) -> None:
    (data.path / "gut/images/a.png").write_text("no picture")
    PIL.Image.new("L", (3, 4), 1).save(data.path / "gut/masks/b.png")
    cases, failures = run(data, segmenter, EvalConfig())
    assert [(Path(failure.image).stem, failure.concept) for failure in failures] == [("a", ""), ("b", "polyp")]
    assert "(4, 3), the image is (20, 30)" in failures[1].error
    assert {Path(case.image).stem for case in cases} == {"c", "d"}


def test_answers_to_text_are_kept_as_pictures(data: DataFolder, segmenter: ColourSegmenter) -> None:
    run(data, segmenter, EvalConfig(modes=("T", "I")))
    kept = mask_file(data.path.parent / "masks", "gut", "gut/images/b.png", "polyp")
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(kept)), block((4, 8), (10, 18)))
    assert len(list(kept.parent.iterdir())) == 5


def test_a_model_that_says_absent_is_taken_at_its_word() -> None:
    mask = block((4, 8), (6, 14))
    truth = Truth(mask, connected_objects(mask), are_instances=False)
    found = Masks.from_dense(mask[None, None], [0.4], presence=0.3, is_present=False)
    numbers = measure(truth, found, None, 2.0)
    assert (numbers["dice"], numbers["predicted_px"], numbers["predictions"]) == (0, 0, 0)


def test_distances_are_in_mm_where_a_spacing_is_known() -> None:
    mask, shifted = block((4, 8), (6, 14)), block((4, 8), (7, 15))
    truth = Truth(mask, connected_objects(mask), are_instances=False)
    numbers = measure(truth, Masks.from_dense(shifted[None, None], [0.9]), (0.5, 3.0), 1.0)
    # rows 0.5, columns 3 mm: the left side's nearest point is the shifted left side, 3 mm away
    assert (numbers["unit"], numbers["hd95"]) == ("mm", 1.5)
    assert numbers["says_present"] is True


def test_cases_of_another_version_are_refused(data: DataFolder, segmenter: ColourSegmenter) -> None:
    run(data, segmenter, EvalConfig())
    path = data.path.parent / "cases.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"dataset"', b'"datset"'))
    with pytest.raises(InputError, match="other fields"):
        run(data, segmenter, EvalConfig())


def test_progress_counts_pictures(data: DataFolder, segmenter: ColourSegmenter, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    config = EvalConfig()
    model = AskedModel(data.path, segmenter, config)
    with Journal(tmp_path / "c.jsonl", {}, other="refuse") as journal:
        answer_rows(model, select(read_index(data.path), config).rows, journal, lambda *at: seen.append(at))
    assert seen == [(0, 4, "gut"), (1, 4, "gut"), (2, 4, "gut"), (3, 4, "gut"), (4, 4, "")]


def test_a_text_answer_is_decoded_once_for_the_modes_that_start_from_it(
    data: DataFolder, segmenter: ColourSegmenter
) -> None:
    run(data, segmenter, EvalConfig(modes=("T", "TB")))
    asked = [prompt.text for prompt in segmenter.asked if not prompt.boxes]
    assert asked == ["optic disc", "polyp", "polyp", "polyp", "polyp"]  # the pictures a, b, c, d


def test_foreign_concepts_are_asked_by_name_where_they_cannot_be(data: DataFolder, segmenter: ColourSegmenter) -> None:
    data.lines = [line for line in data.lines if "optic disc" not in line]
    data.write()
    cases, failures = run(data, segmenter, EvalConfig(absent=2))
    foreign = [case for case in cases if case.is_foreign]
    assert failures == [] and len(foreign) == 8
    assert all(
        (case.mode, case.dice, case.reference_px, case.says_present) == ("T", None, 0, False) for case in foreign
    )
    assert "polyp" not in {case.concept for case in foreign}


def test_an_answer_is_held_against_what_it_may_be_taken_for(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    labels = np.zeros((20, 30), dtype=np.uint8)
    labels[4:8, 6:14], labels[10:14, 6:14] = 1, 2  # 32 pixels each
    # what is shown as red, the answer to "polyp", is the other concept
    folder.add("gut", "a", block((10, 14), (6, 14)), labels, "polyp=1=p1", "suspicious lesion=2=p1")
    found = by_name(run(folder, ColourSegmenter(), EvalConfig())[0])["a", "polyp", "T"]
    assert (found.dice, found.rivals, found.rival_dices) == (0, ("suspicious lesion",), (1.0,))
