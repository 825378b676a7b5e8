"""One series of several, some frames of a stack, a time point: `--series` and `--frame` of segment and info."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import pydicom
import pytest

from dicom_files import write_ct_series
from medsam3.cli.inputs import FrameRange, Input, frame_ranges, part, read_chosen
from medsam3.cli.main import main
from medsam3.errors import InputError
from threshold_segmenter import ThresholdSegmenter

MODEL = ("--text", "bone", "--model", "threshold", "--json")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold_model: ThresholdSegmenter) -> Path:
    """A working folder with `study`: series 3 of 3 slices, series 4 of 2, each slice of 4 x 5 pixels.

    Slice n of series 3 has n + 1 bright pixels, slice n of series 4 has 4.
    """
    del threshold_model
    monkeypatch.chdir(tmp_path)
    for number, counts in ((3, (1, 2, 3)), (4, (4, 4))):
        values = np.full((len(counts), 4, 5), -1000, dtype=np.int16)
        for n, count in enumerate(counts):
            values[n, 1, :count] = 1000
        write_ct_series(tmp_path / "made", values)
        for path in sorted((tmp_path / "made").iterdir()):
            dataset = pydicom.dcmread(path)
            dataset.SeriesNumber = number
            (tmp_path / "study").mkdir(exist_ok=True)
            dataset.save_as(tmp_path / "study" / f"s{number}_{path.name}")
            path.unlink()
    return tmp_path


def _json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def _uid(work: Path, number: int) -> str:
    return str(pydicom.dcmread(work / "study" / f"s{number}_0.dcm").SeriesInstanceUID)


def _nifti_4d(path: Path) -> None:
    """Two time points of 6 x 5 x 4 voxels (x, y, z), 2 x 3 x 4 mm; the second has one bright voxel in slice 3."""
    values = np.zeros((6, 5, 4, 2), dtype=np.int16)
    values[1, 2, 3, 1] = 1000
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 3.0, 4.0, 1.0])), path)


# series


def test_a_folder_of_several_series_says_which_and_how_to_choose(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["segment", "study", *MODEL], ["info", "study"]):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"holds 2 series: 3 (...{_uid(work, 3)[-8:]}, 3 files), 4 (...{_uid(work, 4)[-8:]}, 2 files)" in error
        assert "choose one by --series, its number or the UID's end" in error
    assert not (work / "medsam3_out").exists()


def test_a_series_is_chosen_by_its_number_or_the_end_of_its_uid(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for series, shape, area in (("3", [3, 4, 5], 6), (_uid(work, 4)[-8:], [2, 4, 5], 8), (_uid(work, 4), [2, 4, 5], 8)):
        assert main(["segment", "study", "--series", series, *MODEL]) == 0
        [row] = _json(capsys)["results"]
        assert (row["shape"], row["area_px"], row["area_mm2"]) == (shape, area, area * 0.5 * 0.25)


def test_several_series_get_results_of_their_own(
    work: Path, capsys: pytest.CaptureFixture[str], threshold_model: ThresholdSegmenter
) -> None:
    command = ["segment", "study", "--series", "3", "--series", "4", *MODEL]
    assert main(command) == 0
    rows = _json(capsys)["results"]
    assert [row["file"] for row in rows] == ["study (series 3)", "study (series 4)"]
    assert [row["outputs"] for row in rows] == [
        ["study_series-3_bone_mask.nii.gz"],
        ["study_series-4_bone_mask.nii.gz"],
    ]
    assert threshold_model.encoded == 5
    assert main(command) == 0
    assert _json(capsys)["skipped"] == 2
    assert threshold_model.encoded == 5


def test_a_series_that_is_not_there_is_reported_and_the_other_done(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", "study", "--series", "9", "--series", "4", *MODEL]) == 2
    answer = _json(capsys)
    assert [row["file"] for row in answer["results"]] == ["study (series 4)"]
    [failure] = answer["failures"]
    assert failure["file"] == "study (series 9)"
    assert "series '9' fits 0 of the folder's series: 3 (" in failure["error"]


def test_info_tells_of_the_chosen_series(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "study", "--series", "4", "--json"]) == 0
    facts = _json(capsys)
    assert (facts["frames"], facts["spacing_mm"], facts["origin_mm"]) == (2, [2.0, 0.5, 0.25], [10.0, 20.0, 30.0])


# frames


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (None, ()),
        (["3"], (FrameRange(3, 3),)),
        (["3", " 5-7 "], (FrameRange(3, 3), FrameRange(5, 7))),
        (["4-4"], (FrameRange(4, 4),)),
    ],
)
def test_frames_are_numbers_and_ranges(texts: list[str] | None, expected: tuple[FrameRange, ...]) -> None:
    assert frame_ranges(texts) == expected


@pytest.mark.parametrize("text", ["", "a", "-1", "3-", "7-5", "1,2", "1.0", "9999999999"])
def test_other_frames_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="allowed is N or A-B with A not above B, counted from 0"):
        frame_ranges([text])


@pytest.mark.parametrize(
    ("frames", "area", "encoded"),
    [(["1"], 2, 1), (["1-2"], 5, 2), (["0", "2"], 4, 2), (["0-1", "1"], 3, 2)],
)
def test_only_the_chosen_frames_are_segmented_and_the_mask_keeps_the_stacks_size(
    work: Path,
    capsys: pytest.CaptureFixture[str],
    threshold_model: ThresholdSegmenter,
    frames: list[str],
    area: int,
    encoded: int,
) -> None:
    options = [part for frame in frames for part in ("--frame", frame)]
    assert main(["segment", "study", "--series", "3", *options, *MODEL]) == 0
    [row] = _json(capsys)["results"]
    assert (row["shape"], row["area_px"], threshold_model.encoded) == ([3, 4, 5], area, encoded)


def test_a_frame_that_is_not_there_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "study", "--series", "3", "--frame", "1-3", *MODEL]) == 2
    assert "study (series 3): frame 3 was asked for, allowed is 0 to 2" in capsys.readouterr().err


def test_a_time_point_of_a_4d_nifti_is_chosen(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _nifti_4d(work / "cine.nii.gz")
    assert main(["segment", "cine.nii.gz", *MODEL]) == 2
    assert "2 time points: choose one with --frame, from 0 to 1" in capsys.readouterr().err
    for frame, area in (("0", 0), ("1", 1)):
        assert main(["segment", "cine.nii.gz", "--frame", frame, *MODEL]) == 0
        [row] = _json(capsys)["results"]
        assert (row["shape"], row["area_px"], row["area_mm2"]) == ([4, 5, 6], area, area * 2.0 * 3.0)
    assert main(["info", "cine.nii.gz", "--frame", "1", "--json"]) == 0
    assert _json(capsys)["value_range"] == [0, 1000]
    assert main(["info", "cine.nii.gz", "--frame", "2"]) == 2
    assert "frame 2 was asked for, allowed is 0 to 1" in capsys.readouterr().err


def test_a_page_of_a_tiff_whose_pages_differ_is_chosen(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = [PIL.Image.new("L", size) for size in ((4, 3), (6, 5))]
    pages[0].save(work / "pages.tif", save_all=True, append_images=pages[1:])
    assert main(["info", "pages.tif"]) == 2
    assert "choose one page with --frame" in capsys.readouterr().err
    assert main(["info", "pages.tif", "--frame", "1", "--json"]) == 0
    facts = _json(capsys)
    assert (facts["frames"], facts["rows"], facts["columns"]) == (1, 5, 6)


def test_info_of_a_range_keeps_the_position_and_of_scattered_frames_none(work: Path) -> None:
    item = Input(work / "study", "3")
    run = part(read_chosen(item, frame_ranges(["1-2"])))
    assert run.shape == (2, 4, 5)
    assert run.affine is not None
    assert run.affine[:3, 3].tolist() == [10.0, 20.0, 32.0]  # one slice of 2 mm further
    assert [path.name for path in run.source] == ["s3_1.dcm", "s3_2.dcm"]
    scattered = part(read_chosen(item, frame_ranges(["0", "2"])))
    assert scattered.affine is None
    assert [path.name for path in scattered.source] == ["s3_0.dcm", "s3_2.dcm"]
    assert part(read_chosen(item, ())).shape == (3, 4, 5)


# areas


def test_areas_are_in_mm2_where_only_the_pixel_size_is_known(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = pydicom.dcmread(work / "study" / "s4_0.dcm")
    del dataset.ImagePositionPatient, dataset.ImageOrientationPatient
    dataset.save_as(work / "x-ray.dcm")
    assert main(["segment", "x-ray.dcm", *MODEL]) == 0
    [row] = _json(capsys)["results"]
    assert (row["area_px"], row["area_mm2"]) == (4, 4 * 0.5 * 0.25)
    assert row["objects"][0]["area_mm2"] == 4 * 0.5 * 0.25
