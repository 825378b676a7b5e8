"""The folder of results: names, the list, and what it does not overwrite."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from medsam3.cli.outputs import LIST_NAME, OutputFolder, ResultRow, Task, check_formats, make_files
from medsam3.errors import InputError
from medsam3.image import Image, Masks
from medsam3.prompts import Prompt
from medsam3.store import slug

IMAGE = Image(np.zeros((1, 4, 6, 1), dtype=np.uint8), affine=np.diag([5.0, 0.5, 0.25, 1.0]))
MASK = np.zeros((1, 1, 4, 6), dtype=np.bool_)
MASK[0, 0, 1:3, 2:5] = True  # 2 x 3 pixels
MASKS = Masks.from_dense(MASK, [0.75], concept="polyp", presence=0.9, is_present=True)


def _task(source: str = "/a/scan.png", *, job: str = "job", concept: str = "polyp") -> Task:
    return Task(source, "1:2:3", job, concept)


def _write(folder: OutputFolder, stem: str, masks: Masks, formats: list[str]) -> tuple[str, ...]:
    folder.open()
    return folder.take(stem, make_files(folder.path, stem, masks, IMAGE, formats, None))


def _finish(folder: OutputFolder, task: Task) -> ResultRow:
    stem = folder.stem(task, "scan")
    names = _write(folder, stem, MASKS, ["png"])
    row = ResultRow.from_masks(task.source, Prompt(text="polyp"), MASKS, IMAGE, names)
    folder.record(stem, task, row)
    return row


def test_a_row_holds_areas_worked_out_by_hand() -> None:
    row = ResultRow.from_masks("scan.png", Prompt(text="polyp"), MASKS, IMAGE, ())
    assert row.area_px == 6
    assert row.area_mm2 == 6 * 0.5 * 0.25
    assert row.objects[0].box == (1.5, 0.5, 4.5, 2.5)
    assert row.cells() == ("scan.png", "polyp", "0.90 yes", "1", "6", "0.8", "0.75")


def test_a_verdict_that_is_not_sure_stands_in_the_table_and_in_the_json() -> None:
    unsure = replace(MASKS, presence=0.6, is_sure=False)
    row = ResultRow.from_masks("scan.png", Prompt(text="polyp"), unsure, IMAGE, ())
    assert row.cells()[2] == "0.60 not sure"
    assert (row.to_json()["verdict"], row.to_json()["is_present"]) == ("not sure", True)


def test_an_area_is_in_mm2_where_only_the_pixel_size_is_known() -> None:
    image = Image(IMAGE.array(), metadata={"pixel_spacing_mm": "0.5 0.25"})
    row = ResultRow.from_masks("scan.png", Prompt(text="polyp"), MASKS, image, ())
    assert (row.area_mm2, row.objects[0].area_mm2) == (6 * 0.125, 6 * 0.125)
    # the position of the image goes before what the header says of the pixels
    placed = Image(IMAGE.array(), affine=IMAGE.affine, metadata={"pixel_spacing_mm": "9 9"})
    assert ResultRow.from_masks("scan.png", Prompt(text="polyp"), MASKS, placed, ()).area_mm2 == 6 * 0.125


def test_a_row_without_spacing_phrase_or_object_has_dashes() -> None:
    image = Image(IMAGE.array())
    row = ResultRow.from_masks("scan.png", Prompt(text="polyp"), Masks((1, 4, 6)), image, ())
    assert row.area_mm2 is None
    assert row.cells() == ("scan.png", "polyp", "-", "0", "0", "-", "-")


def test_a_finished_result_is_found_by_the_next_run(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as folder:
        row = _finish(folder, _task())
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
    folder.close()
    with OutputFolder(tmp_path) as again:
        assert again.stem(second, "scan") == "scan_polyp_2"
        assert again.stem(first, "scan") == "scan_polyp"


def test_a_new_result_of_the_same_source_and_concept_replaces_the_old(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    _finish(folder, _task(job="old"))
    _finish(folder, _task(job="new"))
    folder.close()
    again = OutputFolder(tmp_path)
    assert again.finished(_task(job="new")) is not None
    assert again.finished(_task(job="old")) is None


def test_a_file_of_someone_else_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    name = _finish(OutputFolder(tmp_path / "trial"), _task()).outputs[0]
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("precious")
    refused = pytest.raises(InputError, match=f"{name} is there and was not written by this command.*--overwrite")
    with OutputFolder(out) as folder, refused:
        _finish(folder, _task())
    assert (out / name).read_text() == "precious"
    with OutputFolder(out, replaces_foreign=True) as folder:
        _finish(folder, _task())
    assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_a_run_that_was_killed_before_its_record_is_taken_up(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    _write(folder, folder.stem(_task(), "scan"), MASKS, ["png"])  # killed here, or in the middle of a line
    folder.close()
    with (tmp_path / LIST_NAME).open("a") as stream:
        stream.write('{"stem": "scan_po')
    with OutputFolder(tmp_path) as again:
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
        _write(folder, folder.stem(_task(), "scan"), MASKS, ["png", "seg"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LIST_NAME]


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


def test_one_run_at_a_time_writes_into_a_folder(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as folder:
        _finish(folder, _task())
        start = "from pathlib import Path; from medsam3.cli.outputs import OutputFolder"
        code = f"{start}; OutputFolder(Path({str(tmp_path)!r}))"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert other.returncode == 1
        assert other.stderr.splitlines()[-1].endswith(
            f"{LIST_NAME} is open in another run: wait for it to end, or choose another folder"
        )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_damage_in_the_middle_of_the_list_loses_no_other_result(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as folder:
        for source in ("/a/1.png", "/a/2.png", "/a/3.png"):
            _finish(folder, _task(source))
    lines = (tmp_path / LIST_NAME).read_bytes().splitlines(keepends=True)
    (damaged,) = (number for number, line in enumerate(lines) if b"/a/2.png" in line)
    lines[damaged] = b'{"stem": \xff\x00 broken\n[1]\n{"stem": 3}\n'
    (tmp_path / LIST_NAME).write_bytes(b"".join(lines))
    for _ in range(2):
        with OutputFolder(tmp_path) as again:
            found = [again.finished(_task(f"/a/{number}.png")) is not None for number in (1, 2, 3)]
        assert found == [True, False, True]
    with OutputFolder(tmp_path) as again:
        _finish(again, _task("/a/2.png"))
    with OutputFolder(tmp_path) as again:
        assert all(again.finished(_task(f"/a/{number}.png")) for number in (1, 2, 3))


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/b", "..", "", "a\\b"])
@pytest.mark.parametrize("field", ["stem", "outputs"])
def test_a_name_in_a_foreign_list_cannot_lead_out_of_the_folder(tmp_path: Path, field: str, name: str) -> None:
    row = ResultRow.from_masks("scan.png", Prompt(text="polyp"), MASKS, IMAGE, ("x.png",)).to_json()
    line = {"stem": "x", "task": asdict(_task()), "result": row}
    if field == "stem":
        line["stem"] = name
    else:
        row["outputs"] = [name]
    out = tmp_path / "out"
    out.mkdir()
    (out / LIST_NAME).write_text(json.dumps(line) + "\n")
    with OutputFolder(out) as folder:
        assert folder.finished(_task()) is None
        assert folder.stem(_task(), "scan") == "scan_polyp"
        _finish(folder, _task())
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", LIST_NAME, "scan_polyp_mask.png"]


def test_what_a_killed_run_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".writing-abc").mkdir()
    (tmp_path / ".writing-abc" / "half.png").write_bytes(b"x")
    with OutputFolder(tmp_path) as folder:
        _finish(folder, _task())
    assert not (tmp_path / ".writing-abc").exists()


def test_a_long_picture_has_a_warning() -> None:
    def warning(height: int, width: int, affine: object = None) -> str | None:
        image = Image(np.zeros((1, height, width, 1), dtype=np.uint8), affine=affine)  # type: ignore[arg-type]
        return ResultRow.from_masks("a.png", Prompt(text="polyp"), Masks((1, height, width)), image, ()).warning

    assert warning(10, 80) is None
    assert (warning(10, 81) or "").startswith("81 x 10 pixels are shown to the model whole, and so very small")
    assert warning(81, 10) is not None
    # 10 rows of 1 mm, 81 columns of 0.5 mm: 40.5 by 10 mm
    assert warning(10, 81, np.diag([5.0, 1.0, 0.5, 1.0])) is None


def test_one_coco_file_of_many_images_has_all_concepts_and_unique_numbers(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools, of the extra coco")
    (tmp_path / "in" / "deep").mkdir(parents=True)
    sources = [tmp_path / "in" / "a.png", tmp_path / "in" / "deep" / "a.png"]
    for source in sources:
        source.touch()

    def run(tasks: list[tuple[Path, str]]) -> None:
        with OutputFolder(tmp_path / "out", has_one_coco=True) as folder:
            for source, concept in tasks:
                masks = Masks.from_dense(MASK, [0.75], concept=concept, presence=0.9, is_present=True)
                task = _task(str(source), concept=concept)
                if not folder.finished(task):
                    stem = folder.stem(task, "a")
                    names = _write(folder, stem, masks, ["coco"])
                    row = ResultRow.from_masks(str(source), Prompt(text=concept), masks, IMAGE, names)
                    assert row.outputs == ("annotations.coco.json",)
                    folder.record(stem, task, row)

    run([(sources[0], "polyp")])
    run([(source, concept) for source in sources for concept in ("polyp", "ulcer")])  # the first is there already
    content = json.loads((tmp_path / "out" / "annotations.coco.json").read_text())
    assert [(one["id"], one["file_name"]) for one in content["images"]] == [(1, "a.png"), (2, "deep/a.png")]
    assert content["images"][0]["presence"] == {"polyp": 0.9, "ulcer": 0.9}
    assert [(one["id"], one["name"]) for one in content["categories"]] == [(1, "polyp"), (2, "ulcer")]
    assert [(one["image_id"], one["category_id"]) for one in content["annotations"]] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert [one["id"] for one in content["annotations"]] == [1, 2, 3, 4]
    assert len({one["object_id"] for one in content["annotations"]}) == 4
    assert all(one["iscrowd"] == 0 and isinstance(one["segmentation"], list) for one in content["annotations"])
    read = coco.COCO(str(tmp_path / "out" / "annotations.coco.json"))
    found = read.annToMask(read.loadAnns(read.getAnnIds(imgIds=[2], catIds=[2]))[0])
    np.testing.assert_array_equal(found.astype(bool), MASK[0, 0])
    (tmp_path / "out" / "annotations.coco.json").unlink()
    run([(sources[0], "polyp")])  # nothing to do, and the file is there again
    assert json.loads((tmp_path / "out" / "annotations.coco.json").read_text()) == content


def test_a_coco_file_of_someone_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "annotations.coco.json").write_text("precious")
    with pytest.raises(InputError, match="was not written by this command"):
        OutputFolder(tmp_path, has_one_coco=True).open()
    assert (tmp_path / "annotations.coco.json").read_text() == "precious"
