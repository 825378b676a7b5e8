"""Results over HTTP are those of the command line, voxel by voxel and byte by byte."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
from starlette.testclient import TestClient

from made_dicom import write_oblique_series
from made_server import begun, opened, started, step
from medsam3.cli.main import main
from medsam3.server.settings import load_model
from threshold_segmenter import ThresholdSegmenter


def oblique() -> bytes:
    """A gzipped NIfTI of 14 x 11 x 6 voxels, turned about z and y, with two bright blocks."""
    voxels = np.zeros((14, 11, 6), dtype=np.uint8)
    voxels[2:6, 3:8, 1:4] = 200
    voxels[9:12, 1:3, 2:6] = 250
    c, s = np.cos(0.3), np.sin(0.3)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.8, 1.3, 3.0])
    affine[:3, 3] = [-12, 7, 31]
    return gzip.compress(nib.Nifti1Image(voxels, affine).to_bytes())


def by_command(path: Path, phrase: str, form: str, out: Path, model: str) -> Path:
    asked = ["segment", str(path), "--text", phrase, "--format", form, "--out", str(out), "--model", model]
    assert main(asked) == 0
    (made,) = [one for one in out.iterdir() if one.name != "results.jsonl" and not one.name.startswith(".")]
    return made


def by_job(client: TestClient, image: str, phrase: str, form: str) -> bytes:
    job = client.post("/v1/jobs", json={"image": image, "phrases": [phrase]}).json()["id"]
    client.get(f"/v1/jobs/{job}/events")
    ended = client.get(f"/v1/jobs/{job}").json()
    assert ended["state"] == "done", ended
    return taken(client, ended["result"], form)


def by_session(client: TestClient, image: str, phrase: str, form: str) -> bytes:
    session = begun(client, image)
    step(client, session, do="segment", phrase=phrase)
    kept = client.post(f"{session}/results").json()
    return taken(client, kept["id"], form)


def taken(client: TestClient, result: str, form: str) -> bytes:
    answer = client.get(f"/v1/results/{result}", params={"format": form})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"].startswith("attachment")
    return answer.content


def voxels_of(data: bytes) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    image = nib.Nifti1Image.from_bytes(gzip.decompress(data))
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize("way", [by_job, by_session])
def test_a_volume_equals_the_command_line_voxel_by_voxel(
    way: Any, client: TestClient, tmp_path: Path, threshold_model: ThresholdSegmenter
) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(oblique())
    made = by_command(path, "block", "nifti", tmp_path / "out", "threshold")
    image = opened(client, ("scan.nii.gz", oblique()))["id"]
    got, place = voxels_of(way(client, image, "block", "nifti"))
    wanted, wanted_place = voxels_of(made.read_bytes())
    assert wanted.any()
    np.testing.assert_array_equal(got, wanted)
    np.testing.assert_allclose(place, wanted_place, atol=1e-6)


@pytest.mark.parametrize("form", ["nrrd", "mha", "csv", "json", "montage", "planes", "overlay"])
def test_every_format_is_that_of_the_command_line(
    form: str, client: TestClient, tmp_path: Path, threshold_model: ThresholdSegmenter
) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(oblique())
    if form == "overlay":
        pixels = np.zeros((30, 50), dtype=np.uint8)
        pixels[5:20, 10:30] = 220
        path = tmp_path / "scan.png"
        PIL.Image.fromarray(pixels).save(path)
    made = by_command(path, "block", form, tmp_path / "out", "threshold")
    image = opened(client, (path.name, path.read_bytes()))["id"]
    assert by_job(client, image, "block", form) == made.read_bytes()


def test_a_dicom_series_equals_the_command_line_however_it_is_sent(
    client: TestClient, tmp_path: Path, threshold_model: ThresholdSegmenter
) -> None:
    values = np.full((4, 9, 11), -1000, dtype=np.int16)
    values[1:3, 2:6, 3:9] = 1500
    values[0, 0, 0] = 1500  # a marked corner
    write_oblique_series(tmp_path / "study", values, "CT")
    made = by_command(tmp_path / "study", "block", "nifti", tmp_path / "out", "threshold")
    wanted, place = voxels_of(made.read_bytes())
    assert (wanted > 0).sum() == 2 * 4 * 6 + 1
    slices = [(f"study/{one.name}", one.read_bytes()) for one in sorted((tmp_path / "study").iterdir(), reverse=True)]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in slices:
            archive.writestr(name, data)
    for files in (slices, [("study.zip", packed.getvalue())]):
        image = opened(client, *files)
        assert (image["kind"], image["frames"], image["modality"]) == ("volume", 4, "CT")
        assert "bone" in image["windows"]
        got, got_place = voxels_of(by_job(client, image["id"], "block", "nifti"))
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_allclose(got_place, place, atol=1e-6)


def test_an_unknown_format_is_refused_with_those_that_are_known(client: TestClient) -> None:
    session = begun(client, opened(client)["id"])
    kept = client.post(f"{session}/results").json()
    assert "nifti" in kept["formats"]
    refused = client.get(f"/v1/results/{kept['id']}?format=exe")
    assert refused.status_code == 400
    assert "nifti" in refused.json()["detail"]


@pytest.mark.weights
def test_mini_answers_as_on_the_command_line_and_knows_its_concepts(tmp_path: Path) -> None:
    from skimage import data  # noqa: PLC0415

    path = Path(data.data_dir) / "retina.jpg"
    made = by_command(path, "optic disc", "png", tmp_path / "out", "mini")
    with started(model="mini", load=load_model) as client:
        image = client.post("/v1/samples/retina.jpg").json()
        session = begun(client, image["id"])
        found = step(client, session, do="segment", phrase="opptic disc")["found"]["concepts"][0]
        assert (found["read_as"], found["is_taught"], found["is_present"]) == ("optic disc", True, True)
        got = np.asarray(PIL.Image.open(io.BytesIO(by_job(client, image["id"], "optic disc", "png"))))
        np.testing.assert_array_equal(got, np.asarray(PIL.Image.open(made)))
        (model,) = client.get("/v1/models").json()
        assert "optic disc" in model["concepts"]
        taught = {one["name"]: one["is_taught"] for one in client.get("/v1/concepts?q=optic").json()}
        assert taught["optic disc"] is True
