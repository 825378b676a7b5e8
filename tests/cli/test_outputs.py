"""The folder of results: names, the list, and what it does not overwrite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medsam3.cli.outputs import LIST_NAME, OutputFolder, Task, check_formats, slug
from medsam3.cli.results import ResultRow, pixel_area_mm2
from medsam3.errors import InputError
from medsam3.image import Image, Masks
from medsam3.prompts import Prompt

IMAGE = Image(np.zeros((1, 4, 6, 1), dtype=np.uint8), affine=np.diag([5.0, 0.5, 0.25, 1.0]))
MASK = np.zeros((1, 1, 4, 6), dtype=np.bool_)
MASK[0, 0, 1:3, 2:5] = True  # 2 x 3 pixels
MASKS = Masks.from_dense(MASK, [0.75], concept="polyp", presence=0.9, is_present=True)


def _task(source: str = "/a/scan.png", *, job: str = "job", concept: str = "polyp") -> Task:
    return Task(source, "1:2:3", job, concept)


def _finish(folder: OutputFolder, task: Task) -> ResultRow:
    stem = folder.stem(task, "scan")
    names = folder.write(stem, MASKS, IMAGE, ["png"])
    row = ResultRow.from_masks(task.source, Prompt(text="polyp"), MASKS, IMAGE, names)
    folder.record(stem, task, row)
    return row


def test_a_row_holds_areas_worked_out_by_hand() -> None:
    row = ResultRow.from_masks("scan.png", Prompt(text="polyp"), MASKS, IMAGE, ())
    assert row.area_px == 6
    assert row.area_mm2 == 6 * 0.5 * 0.25
    assert row.objects[0].box == (1.5, 0.5, 4.5, 2.5)
    assert row.cells() == ("scan.png", "polyp", "0.90 yes", "1", "6", "0.8", "0.75")


def test_an_area_is_in_mm2_where_only_the_pixel_size_is_known() -> None:
    image = Image(IMAGE.array(), metadata={"pixel_spacing_mm": "0.5 0.25"})
    assert pixel_area_mm2(image) == 0.5 * 0.25
    row = ResultRow.from_masks("scan.png", Prompt(text="polyp"), MASKS, image, ())
    assert (row.area_mm2, row.objects[0].area_mm2) == (6 * 0.125, 6 * 0.125)
    # the position of the image goes before what the header says of the pixels
    placed = Image(IMAGE.array(), affine=IMAGE.affine, metadata={"pixel_spacing_mm": "9 9"})
    assert pixel_area_mm2(placed) == 0.125


def test_a_row_without_spacing_phrase_or_object_has_dashes() -> None:
    image = Image(IMAGE.array())
    row = ResultRow.from_masks("scan.png", Prompt(text="polyp"), Masks((1, 4, 6)), image, ())
    assert row.area_mm2 is None
    assert row.cells() == ("scan.png", "polyp", "-", "0", "0", "-", "-")


def test_a_finished_result_is_found_by_the_next_run(tmp_path: Path) -> None:
    row = _finish(OutputFolder(tmp_path), _task())
    again = OutputFolder(tmp_path)
    assert again.finished(_task()) == row
    assert again.finished(_task(job="other")) is None
    (tmp_path / row.outputs[0]).unlink()
    assert again.finished(_task()) is None


def test_the_same_name_from_two_places_gets_a_number_that_stays(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    first, second = _task("/a/scan.png"), _task("/b/scan.png")
    assert [folder.stem(task, "scan") for task in (first, second, first)] == [
        "scan_polyp",
        "scan_polyp_2",
        "scan_polyp",
    ]
    _finish(folder, second)
    assert OutputFolder(tmp_path).stem(second, "scan") == "scan_polyp_2"
    assert OutputFolder(tmp_path).stem(first, "scan") == "scan_polyp"


def test_a_new_result_of_the_same_source_and_concept_replaces_the_old(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    _finish(folder, _task(job="old"))
    _finish(folder, _task(job="new"))
    again = OutputFolder(tmp_path)
    assert again.finished(_task(job="new")) is not None
    assert again.finished(_task(job="old")) is None


def test_a_file_of_someone_else_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    name = _finish(OutputFolder(tmp_path / "trial"), _task()).outputs[0]
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("precious")
    with pytest.raises(InputError, match=f"{name} is there and was not written by this command.*--overwrite"):
        _finish(OutputFolder(out), _task())
    assert (out / name).read_text() == "precious"
    _finish(OutputFolder(out, replaces_foreign_files=True), _task())
    assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_killed_before_its_record_is_taken_up(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    folder.write(folder.stem(_task(), "scan"), MASKS, IMAGE, ["png"])  # killed here, or in the middle of a line
    with (tmp_path / LIST_NAME).open("a") as stream:
        stream.write('{"stem": "scan_po')
    again = OutputFolder(tmp_path)
    assert again.finished(_task()) is None
    _finish(again, _task())
    lines = (tmp_path / LIST_NAME).read_text().splitlines()
    assert json.loads(lines[-1])["stem"] == "scan_polyp"
    assert OutputFolder(tmp_path).finished(_task()) is not None


def test_nothing_but_results_is_left_in_the_folder(tmp_path: Path) -> None:
    row = _finish(OutputFolder(tmp_path), _task())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([LIST_NAME, *row.outputs])


def test_the_folder_is_made_only_when_there_is_something_to_write(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "deep" / "out")
    assert folder.finished(_task()) is None
    assert list(tmp_path.iterdir()) == []
    _finish(folder, _task())
    assert (tmp_path / "deep" / "out" / LIST_NAME).is_file()


def test_a_format_that_fails_leaves_none_of_the_files(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "out")
    with pytest.raises(InputError, match="needs an image that was read from DICOM"):
        folder.write(folder.stem(_task(), "scan"), MASKS, IMAGE, ["png", "seg"])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_format_that_does_not_fit_the_image_is_refused_before(tmp_path: Path) -> None:
    stack = Image(np.zeros((2, 4, 6, 1), dtype=np.uint8), kind="volume")
    check_formats(["png", "overlay", "coco", "nifti"], IMAGE)
    check_formats(["overlay", "coco", "nifti"], stack)
    with pytest.raises(InputError, match="a label-map PNG holds one frame, this image has 2"):
        check_formats(["overlay", "png"], stack)
    with pytest.raises(InputError, match="needs an image that was read from DICOM"):
        check_formats(["seg"], IMAGE)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"output folder .*file/out cannot be written"):
        OutputFolder(tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("concept", "expected"),
    [
        ("Optic Disc", "optic-disc"),
        ("Barrett's  esophagus", "barrett-s-esophagus"),
        ("ポリープ", "ポリープ"),
        ("../..", ""),
    ],
)
def test_a_slug_is_safe_in_a_file_name(concept: str, expected: str) -> None:
    assert slug(concept) == expected


def test_long_concepts_with_the_same_start_stay_apart() -> None:
    first, second = slug("polyp " * 40 + "left"), slug("polyp " * 40 + "right")
    assert first != second
    assert max(len(first), len(second)) <= 60
