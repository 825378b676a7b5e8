"""Names that are no UTF-8, texts that steer a terminal, and streams that take nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from dicom_files import write_ct_series
from medsam3.cli.inputs import find_inputs
from medsam3.cli.main import main
from threshold_segmenter import ThresholdSegmenter


def picture(path: str | Path) -> str:
    grey = np.zeros((20, 24), dtype=np.uint8)
    grey[4:9, 5:12] = 200
    with open(path, "wb") as stream:  # noqa: PTH123  a name of bytes
        PIL.Image.fromarray(grey).save(stream, format="PNG")
    return str(path)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_not_utf8_is_segmented_in_every_format(
    threshold_model: ThresholdSegmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = picture(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller.png"))
    formats = "png,overlay,coco,nifti,nrrd,mha,csv,json,montage,planes"
    arguments = ["segment", name, "--text", "polyp", "--model", "threshold", "--format", formats]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert len([path for path in (tmp_path / "out").iterdir() if path.name != "results.jsonl"]) == 10
    assert main(["info", name]) == 0
    for mask in ("_polyp_mask.nrrd", "_polyp_mask.mha", "_polyp_mask.nii.gz"):
        source = os.fsdecode(os.fsencode(tmp_path) + b"/out/M\xfcller" + mask.encode())
        assert main(["convert", source, str(tmp_path / f"back{mask}.png")]) == 0
        assert np.count_nonzero(np.asarray(PIL.Image.open(tmp_path / f"back{mask}.png"))) == 35


def test_an_escape_sequence_in_a_name_reaches_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a long path is broken in the table
    picture("a\x1b[31m.png")
    assert main(["info", "a\x1b[31m.png"]) == 0
    assert main(["info", "b\x1b[31m.png"]) == 2
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "\\x1b[31m" in said.out and "\\x1b[31m" in said.err


@pytest.mark.parametrize(
    ("redirect", "code", "line"),
    [
        ("> /dev/full", 2, "the output cannot be written (No space left on device)"),
        (">&-", 0, ""),
        ("2>&- >/dev/null", 0, ""),
    ],
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_streams_that_take_nothing_end_without_a_traceback(redirect: str, code: int, line: str, tmp_path: Path) -> None:
    name = picture(tmp_path / "a.png")
    command = f'"{sys.executable}" -m medsam3 info "{name}" {redirect}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code and line in done.stderr and "Traceback" not in done.stderr


def test_an_ascii_terminal_shows_other_letters_as_escapes(tmp_path: Path) -> None:
    picture(tmp_path / "größe.png")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "medsam3", "info", "größe.png"]
    done = subprocess.run(command, capture_output=True, check=False, env=environment, cwd=tmp_path)
    assert done.returncode == 0 and rb"gr\xf6\xdfe.png" in done.stdout


def test_a_backslash_and_a_dash_at_the_beginning_are_parts_of_a_name(
    threshold_model: ThresholdSegmenter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a\\b.png", "-scan.png"):
        picture(tmp_path / name)
    options = ["--text", "polyp", "--model", "threshold", "--format", "png", "--out", "o"]
    for _ in range(2):  # the second run takes up the first one's list
        assert main(["segment", "a\\b.png", "./-scan.png", *options]) == 0
    assert {path.name for path in Path("o").glob("*.png")} == {"a-b_polyp_mask.png", "-scan_polyp_mask.png"}
    assert "skipped 2 files done before" in capsys.readouterr().out
    assert main(["segment", "-scan.png", *options]) == 2
    assert "-scan.png is read as an option: write ./-scan.png for the file" in capsys.readouterr().err


def test_results_of_an_earlier_run_are_not_taken_for_images(
    threshold_model: ThresholdSegmenter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = picture(tmp_path / "a.png")
    assert main(["segment", name, "--text", "polyp", "--model", "threshold", "--out", str(tmp_path)]) == 0
    assert [item.path.name for item in find_inputs([str(tmp_path)])] == ["a.png"]
    assert caplog.messages[-1] == f"{tmp_path}: passed over: 2 results of an earlier run"


def test_dicom_files_without_an_image_are_passed_over_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import pydicom  # noqa: PLC0415

    write_ct_series(tmp_path / "ct", np.zeros((3, 4, 5), dtype=np.int16))
    made = pydicom.dcmread(tmp_path / "ct" / "0.dcm")
    del made.PixelData, made.Rows, made.Columns
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    made.save_as(tmp_path / "rs")
    assert [item.path for item in find_inputs([str(tmp_path)])] == [tmp_path / "ct"]
    assert caplog.messages == [f"{tmp_path}: passed over: 1 DICOM files without an image (rs)"]
