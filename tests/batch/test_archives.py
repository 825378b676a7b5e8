"""Series of a real archive as pieces of a batch, each done once and as it is from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from made_archive import Orthanc
from made_batch import manifest
from made_study import Study, made_study
from medsam3.cli.main import main
from threshold_segmenter import ThresholdSegmenter

COMMAND = ("--cluster", "none", "--model", "threshold", "--text", "polyp", "--json")


@pytest.fixture
def study(tmp_path: Path, orthanc: Orthanc, threshold_model: ThresholdSegmenter) -> Study:
    del threshold_model
    made = made_study(tmp_path / "scans")
    orthanc.send(made.folder)
    return made


def batch(source: str, out: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, int]:
    code = main(["batch", source, "--out", str(out), *COMMAND])
    told: dict[str, int] = json.loads(capsys.readouterr().out)
    return told | {"code": code}


def test_a_series_of_an_archive_is_done_once_as_it_is_from_a_folder(
    orthanc: Orthanc, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"{orthanc.root}/studies/{study.study}"
    told = batch(source, tmp_path / "out", capsys)
    assert (told["code"], told["done"], told["failed"]) == (0, 1, 0)
    assert batch(str(study.folder), tmp_path / "local", capsys)["done"] == 1
    [row], [own] = manifest(tmp_path / "out"), manifest(tmp_path / "local")
    assert row["file"] == f"{orthanc.root}/studies/{study.study}/series/{study.series}"
    assert (row["voxels"], row["volume_ml"], row["frames"]) == (own["voxels"], own["volume_ml"], 6)
    mask, local = (nib.load(tmp_path / out / one["outputs"][0]) for out, one in (("out", row), ("local", own)))
    np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(local.dataobj))
    assert batch(source, tmp_path / "out", capsys)["skipped"] == 1


def test_a_series_that_grows_is_done_anew(
    orthanc: Orthanc, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = f"{orthanc.root}/studies?PatientID=growing"
    first = made_study(tmp_path / "first", PatientID="growing")
    orthanc.send(first.folder)
    assert batch(source, tmp_path / "out", capsys)["done"] == 1
    second = made_study(tmp_path / "second", PatientID="growing")  # another study of the same person
    orthanc.send(second.folder)
    told = batch(source, tmp_path / "out", capsys)
    assert (told["done"], told["skipped"]) == (1, 1)
    assert len({row["file"] for row in manifest(tmp_path / "out")}) == 2
    assert study.series not in {row["file"].rpartition("/")[2] for row in manifest(tmp_path / "out")}


def test_a_series_that_is_gone_is_a_row_with_the_reason(
    orthanc: Orthanc, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "tasks.csv"
    there = f"{orthanc.root}/studies/{study.study}/series/{study.series}"
    gone = f"{orthanc.root}/studies/{study.study}/series/1.2.3"
    listed.write_text(f"file\n{there}\n{gone}\n{orthanc.root}/studies/{study.study}\n")
    told = batch(str(listed), tmp_path / "out", capsys)
    assert (told["code"], told["done"], told["failed"]) == (2, 1, 2)
    whole, missing, done = manifest(tmp_path / "out")
    assert "names no series" in whole["error"]
    assert "correct the address" in missing["error"]
    assert done["error"] is None


def test_an_archive_that_holds_no_such_series_is_refused_in_one_line(
    orthanc: Orthanc, threshold_model: ThresholdSegmenter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"{orthanc.root}/studies?PatientID=nobody"
    assert main(["batch", address, "--out", str(tmp_path / "out"), *COMMAND]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "has no series with images at this address" in line
