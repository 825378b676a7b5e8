"""`medsam3 segment` from its arguments to files, table, JSON, exit code; the model only compares with a threshold."""

from __future__ import annotations

import builtins
import json
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from dicom_files import write_ct_series
from made_data import bright_picture
from medsam3.cli.main import main
from medsam3.errors import InputError
from medsam3.models import registry
from medsam3.models.phrase_reader import PhraseReader
from threshold_segmenter import ThresholdSegmenter

MODEL = ("--model", "threshold", "--workers", "1")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold_model: ThresholdSegmenter) -> Path:
    """A working folder with one picture of 8 x 6 pixels (x, y), 3 x 2 of them bright from (2, 1) on."""
    del threshold_model
    monkeypatch.chdir(tmp_path)
    bright_picture(tmp_path / "scan.png")
    return tmp_path


def _json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_phrase_gives_a_table_and_files_beside_each_other(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "scan.png", "--text", "polyp", *MODEL]) == 0
    captured = capsys.readouterr()
    [row] = [line for line in captured.out.splitlines() if "scan.png" in line]
    assert row.split() == ["scan.png", "polyp", "0.90", "yes", "1", "6", "-", "0.75"]
    assert captured.err == ""
    assert _names(work / "medsam3_out") == ["results.jsonl", "scan_polyp_mask.png", "scan_polyp_overlay.png"]
    labels = np.asarray(PIL.Image.open(work / "medsam3_out" / "scan_polyp_mask.png"))
    assert np.argwhere(labels == 1).tolist() == [[1, 2], [1, 3], [1, 4], [2, 2], [2, 3], [2, 4]]
    assert labels.shape == (6, 8)


def test_json_goes_to_stdout_alone(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--text", "polyp", "--text", "absent", "--format", "coco", "--out", "out", "--json", *MODEL]
    assert main(["segment", "scan.png", *arguments]) == 0
    answer = _json(capsys)
    assert (answer["model"], answer["out"], answer["failures"], answer["skipped"]) == ("threshold", "out", [], 0)
    polyp, absent = answer["results"]
    assert polyp["objects"] == [{"score": 0.75, "box": [1.5, 0.5, 4.5, 2.5], "area_px": 6, "area_mm2": None}]
    assert (polyp["mode"], polyp["shape"], polyp["outputs"]) == ("T", [1, 6, 8], ["scan_polyp.coco.json"])
    assert (absent["presence"], absent["is_present"], absent["objects"]) == (0.1, False, [])


class ReadingSegmenter(ThresholdSegmenter):
    """Was taught polyps alone, and knows them by another name."""

    @property
    def reader(self) -> PhraseReader:
        return PhraseReader(("polyp",))


def test_what_a_phrase_is_read_as_and_what_was_not_taught_is_told(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.LOADERS, "threshold", lambda weights, device: ReadingSegmenter())
    command = ["segment", "scan.png", "--text", "polypp", "--text", "spleen", *MODEL]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "polypp (as polyp)" in printed
    assert "spleen (not taught)" in printed
    assert "not taught to these weights, so the answer is a guess: spleen (see: medsam3 concepts)" in printed
    assert main([*command, "--json"]) == 0  # of the list of results this time
    answer = _json(capsys)
    assert answer["skipped"] == 1
    assert [(row["read_as"], row["is_taught"]) for row in answer["results"]] == [("polyp", True), (None, False)]


def test_joined_concepts_are_rows_of_their_own_and_what_denies_is_refused(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", "scan.png", "--text", "liver and kidney", "--json", *MODEL]) == 0
    rows = _json(capsys)["results"]
    assert [row["concept"] for row in rows] == ["liver", "kidney"]
    assert [row["outputs"][0] for row in rows] == ["scan_liver_mask.png", "scan_kidney_mask.png"]
    assert main(["segment", "scan.png", "--text", "liver without kidney", *MODEL]) == 0
    assert "liver without kidney (as liver minus kidney)" in capsys.readouterr().out
    assert main(["segment", "scan.png", "--text", "no liver", "--out", "none", *MODEL]) == 2
    assert "'no liver' is not understood" in capsys.readouterr().err
    assert not (work / "none").exists()


def test_boxes_points_and_exemplars_reach_the_prompt(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    geometry = ["--box", "1,0,5,4", "--point", "3,2", "--point", "0,0,0", "--exemplar", "1,1,4,4,0"]
    assert main(["segment", "scan.png", *geometry, "--text", "polyp", "--json", *MODEL]) == 0
    assert _json(capsys)["results"][0]["mode"] == "T+I"
    assert main(["segment", "scan.png", *geometry, "--json", *MODEL]) == 0
    [row] = _json(capsys)["results"]
    assert (row["mode"], row["concept"], row["presence"]) == ("I", "", None)
    assert row["outputs"] == ["scan_prompt_mask.png", "scan_prompt_overlay.png"]


def test_a_box_may_begin_left_of_the_image(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for box in (["--box=-3,0,5,4"], ["--box", "-3,0,5,4"], ["--box", "-.5,0,5,4"]):
        assert main(["segment", "scan.png", *box, "--json", *MODEL]) == 0
        assert _json(capsys)["results"][0]["mode"] == "I"


def test_a_dicom_series_is_a_volume_with_areas_in_mm2(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.full((3, 4, 5), -1000, dtype=np.int16)
    values[1, 1, 2:4] = 1000
    write_ct_series(work / "ct", values)
    assert main(["segment", "ct", "--text", "bone", "--json", *MODEL]) == 0
    [row] = _json(capsys)["results"]
    assert row["shape"] == [3, 4, 5]
    assert (row["area_px"], row["area_mm2"]) == (2, 2 * 0.5 * 0.25)
    assert row["outputs"] == ["ct_bone_mask.nii.gz"]
    assert main(["segment", "ct", "--text", "bone", "--slice", "0", "--json", *MODEL]) == 0
    assert _json(capsys)["results"][0]["area_px"] == 0


def test_what_is_written_about_a_series_does_not_name_the_patient(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ct_series(work / "ct", np.zeros((2, 4, 5), dtype=np.int16))
    assert main(["segment", "ct", "--text", "bone", "--format", "nifti,coco", *MODEL]) == 0
    assert main(["info", "ct"]) == 0
    captured = capsys.readouterr()
    written = b"".join(path.read_bytes() for path in (work / "medsam3_out").iterdir())
    assert "secret" not in (captured.out + captured.err).lower()
    assert b"secret" not in written.lower()


def test_a_second_run_skips_what_is_done_and_says_so(
    work: Path, threshold_model: ThresholdSegmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        bright_picture(work / "in" / f"{number}.png")
    command = ["segment", "in", "--text", "polyp", "--out", "out", *MODEL]
    assert main(command) == 0
    assert threshold_model.encoded == 3
    bright_picture(work / "in" / "3.png")
    capsys.readouterr()
    assert main(command) == 0
    assert threshold_model.encoded == 4
    out = capsys.readouterr().out
    assert "skipped 3 files done before" in out
    assert out.count("polyp") == 4  # the table holds the skipped ones as well


def test_a_new_phrase_is_looked_for_without_doing_the_old_one_again(
    work: Path, threshold_model: ThresholdSegmenter
) -> None:
    assert main(["segment", "scan.png", "--text", "polyp", *MODEL]) == 0
    assert main(["segment", "scan.png", "--text", "polyp", "--text", "absent", *MODEL]) == 0
    assert (threshold_model.encoded, threshold_model.decoded) == (2, 2)


@pytest.mark.parametrize("change", ["threshold", "file", "output", "overwrite"])
def test_a_change_makes_the_result_anew(work: Path, threshold_model: ThresholdSegmenter, change: str) -> None:
    command = ["segment", "scan.png", "--text", "polyp", *MODEL]
    assert main(command) == 0
    if change == "threshold":
        command += ["--threshold", "0.9"]
    elif change == "file":
        PIL.Image.fromarray(np.zeros((6, 8), dtype=np.uint8)).save(work / "scan.png")
    elif change == "output":
        (work / "medsam3_out" / "scan_polyp_mask.png").unlink()
    else:
        command += ["--overwrite"]
    assert main(command) == 0
    assert threshold_model.encoded == 2


def test_files_of_one_name_do_not_overwrite_each_other(work: Path) -> None:
    bright_picture(work / "a" / "x.png")
    bright_picture(work / "b" / "x.png")
    bright_picture(work / "b" / "x.bmp")
    assert main(["segment", "a", "b", "--text", "polyp", "--format", "png", "--out", "out", *MODEL]) == 0
    names = ["results.jsonl", "x_polyp_2_mask.png", "x_polyp_3_mask.png", "x_polyp_mask.png"]
    assert _names(work / "out") == names


def test_results_inside_the_input_folder_are_not_segmented(work: Path, threshold_model: ThresholdSegmenter) -> None:
    for _ in range(2):
        assert main(["segment", ".", "--text", "polyp", *MODEL]) == 0
    assert threshold_model.encoded == 1


def test_a_format_that_a_volume_does_not_take_is_refused_before_it_is_segmented(
    work: Path, threshold_model: ThresholdSegmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    write_ct_series(work / "in" / "ct", np.zeros((3, 4, 5), dtype=np.int16))
    bright_picture(work / "in" / "scan.png")
    assert main(["segment", "in", "--text", "polyp", "--format", "png,coco", "--json", *MODEL]) == 2
    answer = _json(capsys)
    assert [row["file"] for row in answer["results"]] == ["in/scan.png"]
    [failure] = answer["failures"]
    assert failure["file"] == "in/ct"
    assert "a label-map PNG holds one frame, this image has 3: use the format nifti" in failure["error"]
    assert threshold_model.encoded == 1


def test_bad_files_of_a_folder_are_reported_and_the_others_go_on(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bright_picture(work / "in" / "good.png")
    (work / "in" / "text.png").write_text("this is no picture")
    (work / "in" / "empty.png").touch()
    (work / "in" / "cut.png").write_bytes((work / "scan.png").read_bytes()[:60])
    assert main(["segment", "in", "gone.png", "--text", "polyp", "--json", *MODEL]) == 2
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert [row["file"] for row in answer["results"]] == ["in/good.png"]
    names = ["in/cut.png", "in/empty.png", "in/text.png", "gone.png"]
    assert [failure["file"] for failure in answer["failures"]] == names
    lines = captured.err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("medsam3: error: ") for line in lines)
    assert all(name in line for name, line in zip(names, lines, strict=True))


def test_an_error_of_the_model_is_reported_and_the_others_go_on(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "scan.png", "--text", "crash", *MODEL]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "scan.png: unexpected RuntimeError: the model broke; run again with --debug" in captured.err
    assert "failed: 1 file, see the errors above" in captured.out


def _huge_png(path: Path) -> None:
    """A PNG of some hundred bytes that says that it is 60,000 x 60,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(100))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.png", "--text", "polyp"], "gone.png does not exist"),
        (["empty.png", "--text", "polyp"], "empty.png is empty"),
        (["text.png", "--text", "polyp"], "text.png"),
        (["huge.png", "--text", "polyp"], "pixels that are allowed: crop it or scale it down"),
        (["*.tif", "--text", "polyp"], "pattern '*.tif' matches no file"),
        (["scan.png"], "the prompt is empty: give a phrase, a box, a point or an exemplar"),
        (["scan.png", "--text", ""], "the phrase is empty"),
        (["scan.png", "--text", "  "], "the phrase is empty"),
        (["scan.png", "--text", "x" * 10_000], "the phrase has 10000 characters, allowed are 300"),
        (["scan.png", "--box", "5,1,2,3"], "inverted or empty"),
        (["scan.png", "--box", "100,100,120,120"], "is outside the image of 8 x 6 pixels"),
        (["scan.png", "--box", "1,2,3"], "--box is '1,2,3', allowed is X0,Y0,X1,Y1 in pixels"),
        (["scan.png", "--box", "a,b,c,d"], "--box is 'a,b,c,d'"),
        (["scan.png", "--box", "nan,0,3,3"], "NaN or infinity"),
        (["scan.png", "--box", "0,0,3,3,1"], "--box is '0,0,3,3,1'"),
        (["scan.png", "--point", "1,2,3"], "--point ends in 3, allowed is 1 (wanted) or 0 (not wanted)"),
        (["scan.png", "--point", "1,2,0"], "all points are negative"),
        (["scan.png", "--point", "80,2"], "point 80.0,2.0 is outside the image of 8 x 6 pixels"),
        (["scan.png", "--exemplar", "0,0,0,3"], "inverted or empty"),
        (["scan.png", "--text", "polyp", "--slice", "1"], "frame 1 was asked for, allowed is 0 to 0"),
        (["scan.png", "--text", "polyp", "--threshold", "1.5"], "--threshold. Must be <= 1"),
        (["scan.png", "--text", "polyp", "--format", "png,gif"], "--format is 'png,gif', allowed are png, overlay,"),
        (["scan.png", "--text", "polyp", "--out", "text.png/out"], "output folder text.png/out cannot be written"),
        (["scan.png", "--text", "polyp", "--out", "scan.png"], "output folder scan.png cannot be written"),
        (
            ["scan.png", "--text", "polyp", "--model", "giant"],
            "there is no model 'giant', allowed are: facebook/sam3, mini, mini-frozen, mini-open, threshold, a folder",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (work / "empty.png").touch()
    (work / "text.png").write_text("this is no picture")
    _huge_png(work / "huge.png")
    model = [] if "--model" in arguments else MODEL
    assert main(["segment", *arguments, *model]) == 2
    error = capsys.readouterr().err
    assert error.startswith("medsam3: error: ")
    assert error.count("\n") == 1
    assert message in error


class _RunsCode:
    """Unpickling this would end the tests."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return builtins.exec, ("raise SystemExit('code of the pickle was run')",)


@pytest.mark.parametrize("kind", ["pickle", "zip", "text", "empty", "cut", "missing"])
def test_weights_that_are_no_safetensors_are_refused_unopened(
    work: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = work / "own.safetensors"
    contents = {
        "pickle": pickle.dumps(_RunsCode()),
        "zip": b"PK\x03\x04 as torch.save writes it",
        "text": b"these are no weights",
        "empty": b"",
        "cut": (100).to_bytes(8, "little") + b'{"a":',
    }
    if kind in contents:
        path.write_bytes(contents[kind])
    assert main(["segment", "scan.png", "--text", "polyp", "--weights", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"weights {path} are" in error


def test_missing_encoders_say_what_to_run(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDSAM3_HOME", str(work / "nowhere"))
    assert main(["segment", "scan.png", "--text", "polyp"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith("run: medsam3 weights fetch\n")


def test_mini_has_one_precision_and_image_size() -> None:
    with pytest.raises(InputError, match="model mini has one precision and image size, SAM 3 has several"):
        registry.load("mini", device=registry.Running(precision="bfloat16"))


def test_info_tells_size_and_spacing(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ct_series(work / "ct", np.zeros((3, 4, 5), dtype=np.int16))
    assert main(["info", "ct", "--json"]) == 0
    assert _json(capsys)
    assert main(["info", "gone.png"]) == 2
    assert "gone.png" in capsys.readouterr().err


def test_of_a_folder_one_coco_file_holds_all_images_and_of_a_single_picture_its_own(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycocotools", reason="needs the extra coco")
    for name in ("1.png", "deep/1.png"):
        bright_picture(work / "in" / name)
    command = ["segment", "in", "--text", "polyp", "--text", "absent", "--format", "coco", "--json", *MODEL]
    for number in range(2):  # the second run finds all done, and makes the same file
        assert main([*command, "--out", "out"]) == 0
        answer = _json(capsys)
        assert answer["skipped"] == 2 * number
        assert {name for row in answer["results"] for name in row["outputs"]} == {"annotations.coco.json"}
        content = json.loads((work / "out" / "annotations.coco.json").read_text())
        assert [image["file_name"] for image in content["images"]] == ["1.png", "deep/1.png"]
        assert [category["name"] for category in content["categories"]] == ["polyp", "absent"]
        assert [(one["image_id"], one["category_id"], one["area"]) for one in content["annotations"]] == [
            (1, 1, 6),
            (2, 1, 6),
        ]
        (work / "out" / "annotations.coco.json").unlink()
    assert main(["segment", "scan.png", "--text", "polyp", "--format", "coco", "--out", "one", *MODEL]) == 0
    assert _names(work / "one") == ["results.jsonl", "scan_polyp.coco.json"]


def test_a_long_picture_is_warned_of_in_the_table_and_the_json(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PIL.Image.fromarray(np.zeros((6, 60), dtype=np.uint8)).save("strip.png")
    command = ["segment", "strip.png", "scan.png", "--text", "polyp", *MODEL]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "(see below)" in next(line for line in printed.splitlines() if "strip.png" in line)
    assert "warning: strip.png: 60 x 6 pixels are shown to the model whole, and so very small" in printed
    assert main([*command, "--json"]) == 0
    strip, scan = _json(capsys)["results"]
    assert "cut the picture into pieces" in strip["warning"] and scan["warning"] is None


def test_a_name_that_is_no_utf8_is_segmented_and_found_again(
    work: Path, threshold_model: ThresholdSegmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    name = b"scan\xff\x1b.png".decode(errors="surrogateescape")
    (work / "scan.png").rename(work / name)
    for _ in range(2):
        assert main(["segment", ".", "--text", "polyp", "--format", "png", *MODEL]) == 0
        printed = capsys.readouterr().out
        assert r"scan\udcff\x1b.png" in printed and "\x1b" not in printed
    assert threshold_model.encoded == 1
    assert (work / "medsam3_out" / name.replace(".png", "_polyp_mask.png")).is_file()
