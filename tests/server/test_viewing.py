"""What a viewer is given: the image and a session's masks as NIfTI, brushes and examples as steps, phrases as read."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient
from test_results import oblique

from made_dicom import write_oblique_series
from made_server import begun, opened, started, step
from medsam3.io.nifti import write_slices
from medsam3.server.settings import Limits, load_model


def loaded(content: bytes) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_a_viewer_is_given_the_voxels_of_a_nifti_in_their_place(client: TestClient, ending: str) -> None:
    image = opened(client, ("scan.nii.gz", oblique()))
    answer = client.get(f"/v1/images/{image['id']}/volume.{ending}")
    assert (answer.content[:2] == b"\x1f\x8b") == (ending == "nii.gz")
    got, wanted = loaded(answer.content), loaded(oblique())
    np.testing.assert_array_equal(np.asarray(got.dataobj), np.asarray(wanted.dataobj))
    np.testing.assert_allclose(got.affine, wanted.affine, atol=1e-5)
    assert got.get_data_dtype() == np.uint8


def test_a_viewer_is_given_hounsfield_units_of_a_dicom_series(client: TestClient, tmp_path: Path) -> None:
    values = np.arange(4 * 7 * 9, dtype=np.int16).reshape(4, 7, 9) * 10 - 1000
    write_oblique_series(tmp_path / "study", values, "CT")
    image = opened(client, *((f"s/{one.name}", one.read_bytes()) for one in sorted((tmp_path / "study").iterdir())))
    got = loaded(client.get(f"/v1/images/{image['id']}/volume.nii").content)
    np.testing.assert_array_equal(np.asarray(got.dataobj).transpose(2, 1, 0), values)
    raw = np.load(io.BytesIO(client.get(f"/v1/images/{image['id']}/frames/2.npy").content))
    np.testing.assert_array_equal(raw, values[2])
    assert client.get(f"/v1/images/{image['id']}/frames/4.npy").status_code == 400


def test_a_viewer_is_given_colours_as_rgb(client: TestClient) -> None:
    pixels = np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    image = opened(client, ("colours.png", stream.getvalue()))
    got = np.asarray(loaded(client.get(f"/v1/images/{image['id']}/volume.nii").content).dataobj)
    for k, name in enumerate("RGB"):
        np.testing.assert_array_equal(got[name][:, :, 0].T, pixels[..., k])
    raw = np.load(io.BytesIO(client.get(f"/v1/images/{image['id']}/frames/0.npy").content))
    np.testing.assert_array_equal(raw, pixels)


def test_a_volume_that_is_too_large_for_a_viewer_is_refused_before_it_is_decoded() -> None:
    with started(limits=Limits(volume_bytes=900)) as client:
        image = opened(client, ("scan.nii.gz", oblique()))
        refused = client.get(f"/v1/images/{image['id']}/volume.nii")
        assert refused.status_code == 400
        assert "924 bytes of voxels, allowed at once are 900" in refused.json()["detail"]


def test_slices_that_need_a_wider_type_than_the_first_are_all_written_in_it(tmp_path: Path) -> None:
    import medsam3  # noqa: PLC0415

    planes: list[NDArray[Any]] = [np.array([[1, 2]], dtype=np.uint8), np.array([[-300, 4]], dtype=np.int16)]
    image = medsam3.as_image(np.zeros((2, 1, 2), dtype=np.uint8))
    write_slices(image, lambda n: planes[n], tmp_path / "made.nii.gz")
    got = nib.load(tmp_path / "made.nii.gz")
    assert np.asarray(got.dataobj).transpose(2, 1, 0).tolist() == [[[1, 2]], [[-300, 4]]]
    assert [one.name for one in tmp_path.iterdir()] == ["made.nii.gz"]


def test_the_masks_of_a_session_are_a_label_map_by_number(client: TestClient) -> None:
    image = opened(client, ("scan.nii.gz", oblique()))
    session = begun(client, image["id"])
    assert not np.asarray(loaded(client.get(f"{session}/masks.nii.gz").content).dataobj).any()
    step(client, session, do="segment", phrase="block")
    step(client, session, do="select", object=None)
    step(client, session, do="paint", points=[[7, 1]], radius=0.5, frame=5)
    labels = loaded(client.get(f"{session}/masks.nii.gz").content)
    values = np.asarray(labels.dataobj)
    voxels = np.asarray(loaded(oblique()).dataobj)
    np.testing.assert_array_equal(values == 1, voxels > 128)
    assert np.argwhere(values == 2).tolist() == [[7, 1, 5]]
    np.testing.assert_allclose(labels.affine, loaded(oblique()).affine, atol=1e-5)
    folder = client.app.state.service.holdings.image("local", image["id"]).folder  # type: ignore[attr-defined]
    assert not list(folder.glob("labels-*"))


def test_objects_have_their_longest_diameter_and_images_their_windows(client: TestClient) -> None:
    image = opened(client)
    found = step(client, begun(client, image["id"]), do="segment", phrase="block")["found"]
    assert found["objects"][0]["diameter_px"] == pytest.approx((10**2 + 15**2) ** 0.5)  # of a block of 10 x 15 pixels
    assert image["display"]["window"] is None and image["windows"] == {}
    image = opened(client, ("scan.nii.gz", oblique()))
    found = step(client, begun(client, image["id"]), do="segment", phrase="block")["found"]
    wanted = ((10 * 0.8) ** 2 + (7 * 1.3) ** 2) ** 0.5  # both blocks together: 10 x 7 voxels of .8 x 1.3 mm in a slice
    assert max(one["diameter_mm"] for one in found["objects"]) == pytest.approx(wanted, rel=1e-5)


def test_brushes_and_examples_are_steps_that_can_be_taken_back(client: TestClient) -> None:
    session = begun(client, opened(client)["id"])
    step(client, session, do="segment", phrase="block")
    painted = step(client, session, do="paint", points=[[40, 30]], radius=1)
    assert painted["found"]["objects"][0]["pixels"] == 150 + 5
    erased = step(client, session, do="paint", points=[[20, 10]], radius=1, adding=False)
    assert erased["found"]["objects"][0]["pixels"] == 155 - 3  # the corner and its two neighbours
    assert step(client, session, do="undo")["found"]["objects"][0]["pixels"] == 155
    shown = step(client, session, do="exemplar", box=[19, 9, 36, 21], phrase="spot")["found"]
    assert [one["concept"] for one in shown["objects"]] == ["block", "spot"]
    assert [one["pixels"] for one in shown["objects"]] == [155, 150]
    refused = client.post(f"{session}/steps", json={"do": "exemplar", "box": [1, 1, 5, 5], "positive": False})
    assert refused.status_code == 400 and "a look-alike alone" in refused.json()["detail"]


def test_a_phrase_is_read_before_anything_is_segmented(client: TestClient) -> None:
    answer = client.get("/v1/phrases", params={"q": "liver and block"}).json()
    assert answer == [
        {"phrase": "liver", "read_as": None, "is_taught": None},
        {"phrase": "block", "read_as": None, "is_taught": None},
    ]
    refused = client.get("/v1/phrases", params={"q": "no liver"})
    assert refused.status_code == 400 and "no liver" in refused.json()["detail"]
    assert client.get("/v1/phrases").status_code == 422


@pytest.mark.weights
def test_mini_says_what_is_taught_read_as_something_else_and_not_taught() -> None:
    with started(model="mini", load=load_model) as client:
        (disc,) = client.get("/v1/phrases", params={"q": "opptic disc"}).json()
        assert disc == {"phrase": "opptic disc", "read_as": "optic disc", "is_taught": True}
        (door,) = client.get("/v1/phrases", params={"q": "door handle"}).json()
        assert door == {"phrase": "door handle", "read_as": None, "is_taught": False}
