"""`medsam3 segment --report`: what pipelines are told of a run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dicom_files import write_ct_series
from made_data import bright_picture
from medsam3 import __version__
from medsam3.cli.main import main
from threshold_segmenter import ThresholdSegmenter

MODEL = ("--model", "threshold")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold_model: ThresholdSegmenter) -> Path:
    del threshold_model
    monkeypatch.chdir(tmp_path)
    bright_picture(tmp_path / "scan.png")
    return tmp_path


def _report(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work / "report.json").read_text(encoding="utf-8"))
    return found


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_inputs_and_outputs_are_told_by_their_hashes(work: Path) -> None:
    command = ["segment", "scan.png", "--text", "polyp", "--threshold", "0.5", "--report", "report.json", *MODEL]
    assert main(command) == 0
    report = _report(work)
    [one] = report["inputs"]
    assert (one["name"], one["files"], one["sha256"]) == ("scan.png", 1, _sha256(work / "scan.png"))
    assert set(one["seconds"]) == {"open", "load model", "segment", "write"}
    assert 0 < sum(one["seconds"].values()) <= report["seconds"]
    outputs = {place["file"]: place["sha256"] for place in report["outputs"]}
    files = [path for path in Path("medsam3_out").iterdir() if path.name != "results.jsonl"]
    assert outputs == {str(path): _sha256(path) for path in files}
    assert report["versions"]["medsam3"] == __version__
    assert (report["model"]["name"], report["options"]["threshold"]) == ("threshold", 0.5)
    assert report["options"]["prompts"] == [{"text": "polyp", "boxes": [], "points": [], "exemplars": []}]
    assert [row["area_px"] for row in report["results"]] == [6]  # 2 rows of 3


def test_a_folder_is_hashed_as_sha256sum_lists_it(work: Path) -> None:
    write_ct_series(work / "ct", np.zeros((3, 8, 8), dtype=np.int16))
    assert main(["segment", "ct", "--text", "polyp", "--report", "report.json", *MODEL]) == 0
    [one] = _report(work)["inputs"]
    lines = "".join(f"{_sha256(work / 'ct' / name)}  {name}\n" for name in ("0.dcm", "1.dcm", "2.dcm"))
    assert (one["files"], one["sha256"]) == (3, hashlib.sha256(lines.encode()).hexdigest())


def test_what_failed_and_what_was_done_before_is_told(work: Path) -> None:
    (work / "bad.png").write_bytes(b"no picture")
    command = ["segment", "scan.png", "bad.png", "--text", "polyp", "--report", "report.json", *MODEL]
    assert main(command) == 2
    report = _report(work)
    assert [failure["file"] for failure in report["failures"]] == ["bad.png"]
    assert main(command) == 2
    again = _report(work)
    assert again["skipped"] == 1
    assert again["outputs"] == report["outputs"]


def test_a_report_without_a_place_ends_the_run_at_once(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["segment", "scan.png", "--text", "polyp", "--report", "none/report.json", *MODEL]
    assert main(command) == 2
    assert "--report is none/report.json, allowed is a JSON file in a folder that is there" in capsys.readouterr().err
    assert not (work / "medsam3_out").exists()
