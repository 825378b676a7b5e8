"""Volumes of a data folder: segmented whole, measured in mm, taken up again, refused where they do not fit."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from medsam3.cli.main import run
from medsam3.data.index import read_index
from medsam3.eval.case_result import CaseResult
from medsam3.eval.cases import EvalConfig, VolumeWay, select
from medsam3.eval.results import Unanswered
from medsam3.eval.run import AskedModel, answer_rows, cases_of
from medsam3.geometry import BoolArray
from medsam3.image import Masks
from medsam3.models import registry
from medsam3.prompts import Prompt
from medsam3.store import Journal

SHAPE = (7, 24, 32)  # N, H, W
STEP_MM = (4.0, 1.5, 1.5)
TURN = np.deg2rad(10)  # about the third axis of the world, so that the affine is oblique


def affine() -> NDArray[np.float64]:
    """Of NIfTI: (i, j, k) = (column, row, slice) to RAS."""
    place = np.eye(4)
    place[:3, :3] = np.diag(STEP_MM[::-1])
    turn = np.array([[np.cos(TURN), -np.sin(TURN), 0], [np.sin(TURN), np.cos(TURN), 0], [0, 0, 1]])
    place[:3, :3] = turn @ place[:3, :3]
    place[:3, 3] = (-20, 15, 40)
    return place


def block(columns: tuple[int, int]) -> BoolArray:
    """Slices 2 to 4, rows 4 to 9, the columns given with their stop excluded."""
    mask = np.zeros(SHAPE, dtype=np.bool_)
    mask[2:5, 4:10, slice(*columns)] = True
    return mask


def save(path: Path, voxels: NDArray[np.generic], place: NDArray[np.float64]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(voxels.transpose(2, 1, 0), place), path)


def volume_folder(path: Path) -> Path:
    """One volume: bright in columns 10 to 17, where the liver's truth is columns 8 to 15; a pancreas of 1 slice."""
    labels = block((8, 16)).astype(np.uint8)
    labels[6, 12:14, 20:23] = 2
    save(path / "belly/images/v.nii.gz", (block((10, 18)) * 200).astype(np.int16), affine())
    save(path / "belly/masks/v.nii.gz", labels, affine())
    files = "belly,belly/images/v.nii.gz,belly/masks/v.nii.gz"
    lines = [f"{files},liver,1,test,p1,1", f"{files},pancreas,2,test,p1,1", f"{files},kidney tumor,3,test,p1,0"]
    text = "\n".join(["dataset,image,mask,concept,label_value,split,group,present", *lines])
    (path / "index.csv").write_text(text + "\n")
    return path


@dataclass
class BrightSegmenter:
    """What is brighter than half is the liver; in a box, what is bright in it. `stop_at` breaks off that encoding."""

    encoded: int = 0
    stop_at: int | None = None
    asked: list[Prompt] = field(default_factory=list)
    name: str = "bright"

    def encode(self, rgb: NDArray[np.uint8]) -> BoolArray:
        self.encoded += 1
        if self.encoded == self.stop_at:
            raise KeyboardInterrupt
        bright: BoolArray = rgb[..., 0] > 127
        return bright

    def decode(self, features: BoolArray, prompt: Prompt, *, threshold: float | None = None) -> Masks:
        self.asked.append(prompt)
        found = features.copy() if prompt.boxes or prompt.text == "liver" else np.zeros_like(features)
        for box in prompt.boxes:
            rows, columns = np.mgrid[: found.shape[0], : found.shape[1]]
            found &= (columns >= box.x0) & (columns <= box.x1) & (rows >= box.y0) & (rows <= box.y1)
        if prompt.text is None:
            return Masks.from_dense(found[None, None], [0.9])
        is_present = bool(found.any())
        return Masks.from_dense(
            found[None, None], [0.9], concept=prompt.text, presence=0.9 if is_present else 0.1, is_present=is_present
        )


def answered(
    folder: Path, segmenter: BrightSegmenter, config: EvalConfig
) -> tuple[dict[str, CaseResult], list[Unanswered]]:
    out = folder.parent / "out"
    model = AskedModel(folder, segmenter, config, out / "masks", out / "volumes", "weights")
    rows = select(read_index(folder), config, with_volumes=True).rows
    with Journal(out / "cases.jsonl", {}, other="refuse") as journal:
        failures = answer_rows(model, rows, journal)
        return {case.concept: case for case in cases_of(journal)}, failures


@pytest.mark.parametrize("way", get_args(VolumeWay))
def test_a_volume_is_asked_whole_and_measured_in_mm(tmp_path: Path, way: VolumeWay) -> None:
    cases, failures = answered(volume_folder(tmp_path / "data"), BrightSegmenter(), EvalConfig(volumes=way))
    assert failures == [] and set(cases) == {"liver", "pancreas", "kidney tumor"}
    liver = cases["liver"]
    assert (liver.mode, liver.unit, liver.presence, liver.says_present) == ("T", "mm", 0.9, True)
    assert (liver.reference_px, liver.predicted_px) == (3 * 6 * 8, 3 * 6 * 8)
    assert liver.dice == pytest.approx(6 / 8) and liver.iou == pytest.approx(6 / 10)  # 6 of 8 columns are shared
    assert liver.hd95 == pytest.approx(2 * 1.5)  # two columns of 1.5 mm
    assert (liver.references, liver.predictions) == (1, 1) and liver.overlaps == pytest.approx((0.6,), abs=1e-6)
    pancreas = cases["pancreas"]
    assert pancreas.is_missed and pancreas.dice == 0 and not pancreas.says_present
    assert pancreas.hd95 == pytest.approx(np.hypot(np.hypot(7 * 4.0, 24 * 1.5), 32 * 1.5), abs=1e-5)  # the diagonal
    assert cases["kidney tumor"].dice is None and not cases["kidney tumor"].says_present


def test_each_slice_is_encoded_once_for_all_phrases(tmp_path: Path) -> None:
    segmenter = BrightSegmenter()
    cases, _ = answered(volume_folder(tmp_path / "data"), segmenter, EvalConfig(volumes="slices", absent=2))
    assert segmenter.encoded == 7
    assert sum(case.is_foreign for case in cases.values()) == 2
    seconds = {case.seconds for case in cases.values()}
    assert len(seconds) == 1 and seconds.pop() > 0  # an equal share each


def test_a_killed_volume_goes_on_where_it_was(tmp_path: Path) -> None:
    folder, config = volume_folder(tmp_path / "data"), EvalConfig(volumes="slices")
    with pytest.raises(KeyboardInterrupt):
        answered(folder, BrightSegmenter(stop_at=5), config)
    assert list((tmp_path / "out/volumes").iterdir()) != []
    second = BrightSegmenter()
    cases, _ = answered(folder, second, config)
    assert second.encoded == 7 - 4 and cases["liver"].dice == pytest.approx(0.75)
    assert list((tmp_path / "out/volumes").iterdir()) == []
    third = BrightSegmenter()
    answered(folder, third, config)
    assert third.encoded == 0


def test_what_does_not_fit_is_a_failure_in_one_line_and_the_rest_goes_on(tmp_path: Path) -> None:
    folder = volume_folder(tmp_path / "data")
    moved = affine()
    moved[0, 3] += 5
    labels = block((8, 16)).astype(np.uint8)
    save(folder / "belly/masks/moved.nii.gz", labels, moved)
    save(folder / "belly/masks/short.nii.gz", labels[:-1], affine())
    save(folder / "belly/masks/negative.nii.gz", -labels.astype(np.int16), affine())
    (folder / "belly/images/w.nii.gz").write_bytes(b"no volume")
    lines = (folder / "index.csv").read_text().splitlines()[:2]
    image = "belly,belly/images/v.nii.gz,belly/masks"
    lines += [f"{image}/{name}.nii.gz,{name},1,test,p1,1" for name in ("moved", "short", "negative")]
    lines += [
        f"{image}/v.nii.gz,pancreas,3,test,p1,1",
        "belly,belly/images/w.nii.gz,belly/masks/v.nii.gz,liver,1,test,p2,1",
    ]
    (folder / "index.csv").write_text("\n".join(lines))
    cases, failures = answered(folder, BrightSegmenter(), EvalConfig())
    assert set(cases) == {"liver"}
    errors = {(failure.image, failure.concept): failure.error for failure in failures}
    v, w = "belly/images/v.nii.gz", "belly/images/w.nii.gz"
    assert "lies on another grid than the image" in errors.pop((v, "moved"))
    assert "covers other voxels than the image: labels (6, 24, 32)" in errors.pop((v, "short"))
    assert "holds values outside 0..65535" in errors.pop((v, "negative"))
    assert "the index says pancreas is present, the mask says otherwise" in errors.pop((v, "pancreas"))
    assert "\n" not in errors.pop((w, ""))
    assert errors == {}


def command(*arguments: str | Path) -> int:
    return run(["eval", *map(str, arguments)])


def test_the_report_has_volumes_in_mm_with_a_middle_slice_and_none_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry.LOADERS, "bright", lambda weights, device: BrightSegmenter())
    folder, out = volume_folder(tmp_path / "data"), tmp_path / "out"
    assert command(folder, "--model", "bright", "--modes", "T,I", "--tolerance", "1", "--out", out) == 0
    printed = capsys.readouterr().out
    assert re.search(r"belly +liver +text +1 +\.750", printed) and "NSD at 1 mm" in printed
    note = "1 volumes were segmented whole (each slice for itself) and measured in mm; they were not asked"
    assert note in printed and "in modes I: a box belongs to one slice" in printed
    page = (out / "report.html").read_text()
    assert "<td>volumes left out</td><td>0</td>" in page
    assert "liver, v.nii.gz, slice 3 of 7: Dice 0.750" in page  # 2 to 4 are outlined, cut from below upwards
    kept = nibabel.load(out / "masks/belly/v__liver.nii.gz")
    assert np.array_equal(np.asarray(kept.dataobj).transpose(2, 1, 0) > 0, block((10, 18)))
    assert np.allclose(kept.affine, affine(), atol=1e-4)
    entry = json.loads((out / "results.json").read_text())
    assert (entry["skipped_volumes"], entry["config"]["volumes"]) == (0, "slices")
    assert entry["extras"]["duplicates"] == []  # pictures only
