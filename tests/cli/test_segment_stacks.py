"""`medsam3 segment --propagate`: volumes and videos as a whole, from the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest

from dicom_files import write_ct_series
from medsam3.cli.main import main
from medsam3.io import read
from medsam3.io.read_masks import read_masks
from threshold_segmenter import ThresholdSegmenter

N, H, W = 4, 8, 16


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A bright block of 3 slices x 3 rows x 6 columns in dark CT, pixels of 0.5 by 0.25 mm, slices 2 mm apart."""
    values = np.full((N, H, W), -1000, dtype=np.int16)
    values[0:3, 2:5, 4:10] = 400
    write_ct_series(tmp_path / "study", values)
    return tmp_path / "study"


def segment(*arguments: str | Path) -> int:
    return main(["segment", *(str(argument) for argument in arguments), "--model", "threshold", "--propagate"])


def test_a_series_gives_one_object_through_all_its_slices_in_every_format(
    study: Path, tmp_path: Path, threshold_model: ThresholdSegmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    formats = "nifti,nrrd,mha,seg,rtstruct,coco,csv,json,montage,planes,overlay"
    assert segment(study, "--text", "liver", "--out", tmp_path / "out", "--format", formats, "--json") == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert (len(result["objects"]), result["area_px"]) == (1, 54)
    assert len(result["outputs"]) == 11
    with (tmp_path / "out" / "study_liver_measures.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    # 54 voxels of 2 x 0.5 x 0.25 mm are 13.5 cubic mm; 3 rows and 6 columns are 1.5 by 1.5 mm.
    assert (row["volume_ml"], row["first_slice"], row["last_slice"]) == ("0.0135", "0", "2")
    assert float(row["longest_diameter_mm"]) == pytest.approx(np.sqrt(4.5), abs=1e-3)
    image = read(study)
    for name in ("mask.nii.gz", "mask.nrrd", "mask.mha", "seg.dcm", "rtstruct.dcm"):
        (found,), _ = read_masks(tmp_path / "out" / f"study_liver_{name}", image)
        assert (found.objects[0].start, found.objects[0].voxels) == ((0, 2, 4), 54), name
    assert not list((tmp_path / "out").glob(".*.journal"))


def test_a_second_run_does_nothing_again(
    study: Path, tmp_path: Path, threshold_model: ThresholdSegmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert segment(study, "--text", "liver", "--out", tmp_path / "out") == 0
    assert threshold_model.encoded == N


def test_a_clip_gives_an_overlay_video(
    tmp_path: Path, threshold_model: ThresholdSegmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av", reason="needs PyAV, of the extra video")
    for n in range(5):
        frame = np.zeros((32, 48), dtype=np.uint8)
        frame[8:20, 10 + n : 24 + n] = 250
        (tmp_path / "frames").mkdir(exist_ok=True)
        PIL.Image.fromarray(frame).save(tmp_path / "frames" / f"f{n}.png")
    from medsam3.io.video import write_mp4  # noqa: PLC0415

    stack = read(tmp_path / "frames")
    write_mp4([np.repeat(stack.pixels(n), 3, axis=-1) for n in range(5)], tmp_path / "clip.mp4", fps=5)
    assert segment(tmp_path / "clip.mp4", "--text", "polyp", "--out", tmp_path / "out", "--format", "mp4,coco") == 0
    assert read(tmp_path / "out" / "clip_polyp_overlay.mp4").shape == (5, 32, 48)
    content = json.loads((tmp_path / "out" / "clip_polyp.coco.json").read_text())
    assert [entry["image_id"] for entry in content["annotations"]] == [1, 2, 3, 4, 5]
    assert {entry["object_id"] for entry in content["annotations"]} == {1}


def test_a_folder_of_frames_is_one_video(
    tmp_path: Path, threshold_model: ThresholdSegmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "frames").mkdir()
    for n in range(3):
        frame = np.zeros((32, 48), dtype=np.uint8)
        frame[8:20, 10 + n : 24 + n] = 250
        PIL.Image.fromarray(frame).save(tmp_path / "frames" / f"f{n}.png")
    assert segment(tmp_path / "frames", "--text", "polyp", "--out", tmp_path / "out", "--json") == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert (result["shape"], len(result["objects"]), result["area_px"]) == ([3, 32, 48], 1, 3 * 12 * 14)


def test_a_time_point_of_a_4d_nifti_is_chosen_by_frame(
    tmp_path: Path, threshold_model: ThresholdSegmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.zeros((W, H, N, 2), dtype=np.float32)
    values[4:10, 2:5, 0:3, 1] = 100
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "four.nii.gz")
    assert segment(tmp_path / "four.nii.gz", "--text", "liver", "--out", tmp_path / "out") == 2
    assert "2 time points" in capsys.readouterr().err
    assert (
        segment(tmp_path / "four.nii.gz", "--text", "liver", "--frame", "1", "--out", tmp_path / "out", "--json") == 0
    )
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["area_px"] == 54


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--box", "1,1,5,5"], "on one slice of a volume: say which, 0 to 3"),
        (["--text", "liver", "--window", "purple"], "window is 'purple', allowed are soft tissue"),
        (["--text", "liver", "--key-every", "0"], "--key-every. Must be >= 1"),
        (["--text", "liver", "--frame", "4"], "frame 4 was asked for, allowed is 0 to 3"),
        (["--text", "liver", "--frame", "1", "--plane", "coronal"], "take plane 'axial'"),
        (["--text", "liver", "--format", "png"], "use the format nifti"),
    ],
)
def test_what_a_stack_does_not_take_is_said(
    arguments: list[str],
    message: str,
    study: Path,
    tmp_path: Path,
    threshold_model: ThresholdSegmenter,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert segment(study, *arguments, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err


def test_the_default_is_the_same_as_asking_for_it(
    study: Path, tmp_path: Path, threshold_model: ThresholdSegmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for number, way in enumerate(([], ["--each-slice"], ["--propagate"])):
        arguments = ["segment", str(study), "--text", "liver", "--model", "threshold", "--plane", "coronal", *way]
        assert main([*arguments, "--out", str(tmp_path / str(number))]) == 0
        found.append((tmp_path / str(number) / "study_liver_mask.nii.gz").read_bytes())
    assert found[0] == found[1]
    assert found[0] == found[2]  # a block without gaps: following finds the same
    assert segment(study, "--text", "liver", "--each-slice", "--out", tmp_path / "out") == 2
    assert "--each-slice was given with --propagate" in capsys.readouterr().err
