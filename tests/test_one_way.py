"""One way from a file to a mask: whoever asks, and whatever the container, frames shown and masks found are the same.

The volumes are those of a scanner: oblique, anisotropic, with a window that only DICOM can carry. The truth of where
things lie comes from SimpleITK, which writes the files, and from nibabel.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import pytest
import SimpleITK
from numpy.typing import NDArray
from scipy.spatial import cKDTree

import medsam3
from made_dicom import COLUMN_DIRECTION, NORMAL, ORIGIN_MM, ROW_DIRECTION, SPACING_MM, write_oblique_series
from medsam3.agent.loop import run as run_agent
from medsam3.cli.main import main
from medsam3.data.index import read_index
from medsam3.data.samples import samples_from_index
from medsam3.data.volumes import SlicePlan, samples_from_volumes
from medsam3.eval.cases import EvalConfig, select
from medsam3.eval.run import AskedModel, answer_rows
from medsam3.geometry import world_from_index
from medsam3.image import Image, Masks
from medsam3.io.video import write_mp4
from medsam3.models import registry
from medsam3.prompts import Box, Prompt
from medsam3.store import Journal
from threshold_segmenter import ThresholdSegmenter

Modality = Literal["CT", "MR"]
RGB = NDArray[np.uint8]
SHAPE = (6, 20, 24)
CONTAINERS = ("series", "nii", "nii.gz", "nrrd", "mha", "canonical.nii")


class Witness(ThresholdSegmenter):
    """Finds what is bright, and remembers every frame that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[RGB] = []

    def encode(self, rgb: RGB) -> NDArray[np.bool_]:
        self.shown.append(rgb.copy())
        return super().encode(rgb)


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch) -> Witness:
    model = Witness()
    monkeypatch.setitem(registry.LOADERS, "witness", lambda weights, device: model)
    return model


def values(modality: Modality) -> NDArray[np.int16]:
    """A body with an organ that sits off-centre in all axes; of MR in the scanner's own units."""
    voxels = np.full(SHAPE, -1000, dtype=np.int16)
    voxels[:, 3:18, 2:22] = -60
    voxels[1:5, 4:9, 12:20] = 150
    voxels[2, 4, 12] = 170  # one voxel to find again
    if modality == "MR":
        return ((voxels + 1000) // 2).astype(np.int16)
    return voxels


def volume_as(container: str, modality: Modality, folder: Path) -> Path:
    """The volume in a container; `canonical.nii` has its voxels in another order, as other tools keep them."""
    if container == "series":
        write_oblique_series(folder / "series", values(modality), modality)
        return folder / "series"
    image = SimpleITK.GetImageFromArray(values(modality))
    image.SetSpacing(SPACING_MM[::-1])
    image.SetOrigin(ORIGIN_MM.tolist())
    image.SetDirection(np.stack([ROW_DIRECTION, COLUMN_DIRECTION, NORMAL], axis=1).reshape(-1).tolist())
    path = folder / f"volume.{container.removeprefix('canonical.')}"
    SimpleITK.WriteImage(image, str(path))
    if container == "canonical.nii":
        nibabel.save(nibabel.as_closest_canonical(nibabel.load(path)), folder / "canonical.nii")
        return folder / "canonical.nii"
    return path


def places(masks: Masks, image: Image) -> NDArray[np.float64]:
    """Where the voxels lie, (P, 3) in mm."""
    assert image.affine is not None
    return world_from_index(image.affine, np.argwhere(masks.union()))


def written(out: Path) -> NDArray[np.bool_]:
    """The mask (N, H, W) that a command wrote."""
    (path,) = out.glob("*_mask.nii.gz")
    whole: NDArray[np.bool_] = np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0) > 0
    return whole


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_model_sees_the_same_frames_whatever_the_container(
    modality: Modality, witness: Witness, tmp_path: Path
) -> None:
    seen: dict[str, list[RGB]] = {}
    for container in CONTAINERS:
        witness.shown = []
        medsam3.segment(medsam3.read(volume_as(container, modality, tmp_path)), "liver", witness)
        seen[container] = witness.shown
    for container, shown in seen.items():
        assert len(shown) == SHAPE[0], container
        for one, other in zip(shown, seen["series"], strict=True):
            np.testing.assert_array_equal(one, other, err_msg=container)
    # As a radiologist sees it: the organ has greater columns, so it lies to the patient's left: at the picture's right.
    bright = np.argwhere(seen["nii"][2][..., 0] > 128)
    assert bright[:, 1].mean() > seen["nii"][2].shape[1] / 2


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_python_the_command_and_the_agent_find_the_same_voxels(
    container: str, modality: Modality, witness: Witness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = volume_as(container, modality, tmp_path)
    image = medsam3.read(path)
    (found,) = medsam3.segment(image, "liver", witness)
    assert 120 <= found.union().sum() <= 200  # the organ, 4 x 5 x 8 voxels, but for its blurred edge
    arguments = ["segment", str(path), "--text", "liver", "--model", "witness", "--format", "nifti", "--json"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    np.testing.assert_array_equal(written(tmp_path / "out"), found.union())
    assert (result["presence"], result["area_px"]) == (found.presence, found.union().sum())
    answer = run_agent(image, "liver", witness)
    np.testing.assert_array_equal(answer.masks.union(), found.union())
    assert answer.masks.scores == found.scores and answer.masks.presence == found.presence
    assert main(["agent", str(path), "liver", "--segmenter", "witness", "--out", str(tmp_path / "agent")]) == 0
    np.testing.assert_array_equal(written(tmp_path / "agent"), found.union())


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_masks_lie_at_the_same_place_whatever_the_container(
    modality: Modality, witness: Witness, tmp_path: Path
) -> None:
    found = {}
    for container in CONTAINERS:
        image = medsam3.read(volume_as(container, modality, tmp_path))
        found[container] = places(medsam3.segment(image, "liver", witness)[0], image)
    for container, where in found.items():
        distances, nearest = cKDTree(found["series"]).query(where)
        assert distances.max() < 0.01 and sorted(nearest) == list(range(len(found["series"]))), container


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_evaluation_measures_what_segment_gives_and_training_shows_what_it_shows(
    modality: Modality, witness: Witness, tmp_path: Path
) -> None:
    folder = data_folder(tmp_path, modality)
    image = medsam3.read(folder / "set/images/v.nii")
    (found,) = medsam3.segment(image, "liver", witness)
    used, witness.shown = witness.shown, []
    config = EvalConfig()
    model = AskedModel(folder, witness, config, masks_folder=tmp_path / "masks")
    journal = Journal(tmp_path / "cases.jsonl", {}, other="refuse")
    assert answer_rows(model, select(read_index(folder), config, with_volumes=True).rows, journal) == []
    kept = np.asarray(nibabel.load(tmp_path / "masks/set/v__liver.nii.gz").dataobj).transpose(2, 1, 0) > 0
    np.testing.assert_array_equal(kept, found.union())
    samples = samples_from_volumes(folder, SlicePlan(every=1, empty_share=1.0))
    trained = {int(sample.name.split("#")[1]): sample.load_rgb() for sample in samples}
    assert sorted(trained) == list(range(SHAPE[0]))
    for n, one in enumerate(used):
        np.testing.assert_array_equal(one, witness.shown[n])
        np.testing.assert_array_equal(one, trained[n])


def data_folder(tmp_path: Path, modality: Modality) -> Path:
    """A data folder with the volume as its one test case."""
    folder = tmp_path / "data"
    (folder / "set/images").mkdir(parents=True)
    (folder / "set/masks").mkdir()
    volume_as("nii", modality, tmp_path).rename(folder / "set/images/v.nii")
    labels = nibabel.load(folder / "set/images/v.nii")
    truth = (values(modality).transpose(2, 1, 0) >= values(modality).max() - 100).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(truth, labels.affine), folder / "set/masks/v.nii")
    head = "dataset,image,mask,concept,label_value,split,group,present"
    (folder / "index.csv").write_text(f"{head}\nset,set/images/v.nii,set/masks/v.nii,liver,1,test,v,1\n")
    return folder


@pytest.mark.parametrize("container", CONTAINERS[:-1])
def test_a_box_and_a_chosen_slice_lie_where_the_file_has_them(
    container: str, witness: Witness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = volume_as(container, "CT", tmp_path)
    (found,) = medsam3.segment(medsam3.read(path), Prompt(boxes=(Box(11, 3, 20, 9),)), witness, frames=[2])
    assert np.flatnonzero(found.union().any(axis=(1, 2))).tolist() == [2]
    rows, columns = np.nonzero(found.union()[2])
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 8, 12, 19)
    arguments = ["segment", str(path), "--box", "11,3,20,9", "--frame", "2", "--model", "witness"]
    assert main([*arguments, "--format", "nifti", "--out", str(tmp_path / "out")]) == 0
    np.testing.assert_array_equal(written(tmp_path / "out"), found.union())


def test_a_slice_by_itself_is_shown_as_in_its_volume(witness: Witness, tmp_path: Path) -> None:
    """A picture cut out of a CT, in its own file, with its position."""
    image = medsam3.read(volume_as("series", "CT", tmp_path))
    medsam3.segment(image, "liver", witness, frames=[2])
    (within,) = witness.shown
    for name in ("slice.nii.gz", "slice.mha", "slice.nrrd"):
        witness.shown = []
        whole = SimpleITK.ReadImage(str(volume_as("mha", "CT", tmp_path)))
        SimpleITK.WriteImage(whole[:, :, 2:3], str(tmp_path / name))
        medsam3.segment(tmp_path / name, "liver", witness)
        np.testing.assert_array_equal(witness.shown[0], within, err_msg=name)
    witness.shown = []
    medsam3.segment(image.source[2], "liver", witness)
    np.testing.assert_array_equal(witness.shown[0], within)


def test_a_clip_gives_the_same_whoever_asks(
    witness: Witness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av", reason="needs PyAV, of the extra video")
    frames = np.full((5, 32, 48, 3), 20, dtype=np.uint8)
    for n in range(5):
        frames[n, 8:20, 10 + n : 24 + n] = 240
    write_mp4(list(frames), tmp_path / "clip.mp4", fps=5)
    (found,) = medsam3.segment(medsam3.read(tmp_path / "clip.mp4"), "polyp", witness)
    arguments = ["segment", str(tmp_path / "clip.mp4"), "--text", "polyp", "--model", "witness"]
    assert main([*arguments, "--format", "nifti", "--out", str(tmp_path / "out")]) == 0
    np.testing.assert_array_equal(written(tmp_path / "out"), found.union())
    answer = run_agent(medsam3.read(tmp_path / "clip.mp4"), "polyp", witness)
    np.testing.assert_array_equal(answer.masks.union(), found.union())
    assert [mask.any() for mask in found.union()] == [True] * 5


def test_a_picture_is_trained_on_evaluated_and_used_alike(witness: Witness, tmp_path: Path) -> None:
    """Sixteen bits, which a plain conversion to 8 bits would clip at 255."""
    folder = tmp_path / "data"
    (folder / "set").mkdir(parents=True)
    grey = np.linspace(0, 60_000, 30 * 40).reshape(30, 40).astype(np.uint16)
    picture: Any = SimpleITK.GetImageFromArray(grey)
    SimpleITK.WriteImage(picture, str(folder / "set/a.png"))
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray((grey > 30_000).astype(np.uint8)), str(folder / "set/m.png"))
    head = "dataset,image,mask,concept,label_value,split,group,present"
    (folder / "index.csv").write_text(f"{head}\nset,set/a.png,set/m.png,liver,1,test,a,1\n")
    medsam3.segment(folder / "set/a.png", "liver", witness)
    model = AskedModel(folder, witness, EvalConfig())
    answer_rows(model, read_index(folder), Journal(tmp_path / "cases.jsonl", {}, other="refuse"))
    used, evaluated = witness.shown
    (sample,) = samples_from_index(folder)
    np.testing.assert_array_equal(used, evaluated)
    np.testing.assert_array_equal(used, sample.load_rgb())
    assert len(np.unique(used)) > 200
