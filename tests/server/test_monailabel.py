"""MONAI Label's dialect, asked by the client of its own wheel and by plain requests."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from starlette.testclient import TestClient

import medsam3
from made_clients import TOKEN, asked, client_python, scan, serving
from made_server import started
from medsam3.io.read_masks import read_masks
from medsam3.server.clients import dialects_named
from slow_segmenter import TaughtSegmenter, load_taught

ON = {"load": load_taught, "clients": dialects_named(["monailabel"])}


def array(path: str) -> np.ndarray[Any, Any]:
    """Voxels (x, y, z)."""
    values: np.ndarray[Any, Any] = sitk.GetArrayFromImage(sitk.ReadImage(path)).transpose(2, 1, 0)
    return values


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Any:
    client_python("monailabel")
    folder = tmp_path_factory.mktemp("monailabel")
    data = folder / "data"
    data.mkdir()
    image = folder / "scan.nii.gz"
    image.write_bytes(scan()[0])
    (data / "other.nii.gz").write_bytes(scan()[0])
    with serving("monailabel", tokens=(TOKEN,), data=data) as address:
        answer = asked("monailabel", "ask_monailabel.py", address, image, TOKEN, folder)
    answer["data"], answer["image"] = data, image
    return answer


def test_the_token_is_the_password(told: Any) -> None:
    assert told["auth"] is True
    assert told["token"] == {"access_token": TOKEN, "token_type": "Bearer"}
    assert told["valid"] == [True, False]
    for case in ("wrong_token", "no_token"):
        assert told[case][0] == 401
        assert "token" in told[case][1]


def test_info_has_what_the_clients_look_for(told: Any) -> None:
    info = told["info"]
    assert "config" not in info
    assert info["models"]["phrase"]["config"] == {"text": ""}
    assert info["models"]["abdominal_ct_and_mri"]["labels"] == {"liver": 1, "kidney": 2}
    assert {one["type"] for one in info["models"].values()} == {"segmentation", "deepgrow"}
    assert all(one["description"] for one in info["models"].values())
    assert isinstance(info["labels"], list)
    assert (info["datastore"]["total"], info["datastore"]["completed"]) == (1, 0)


def test_phrases_and_concepts_give_labels_in_the_place_of_the_image(told: Any) -> None:
    voxels = scan()[1]
    wanted = np.where(voxels > 200, 2, np.where(voxels > 90, 1, 0))
    for case in ("phrase", "family"):
        np.testing.assert_array_equal(array(told[f"{case}_file"]), wanted)
    assert told["phrase"]["label_names"] == {"liver": 1, "kidney": 2, "absent": 3}
    assert [one["is_present"] for one in told["phrase"]["concepts"]] == [True, True, False]
    assert told["family"]["label_names"] == {"liver": 1, "kidney": 2}
    np.testing.assert_array_equal(array(told["sent_along"]), voxels > 90)
    image, label = sitk.ReadImage(str(told["image"])), sitk.ReadImage(told["phrase_file"])
    np.testing.assert_allclose(label.GetOrigin(), image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(label.GetDirection(), image.GetDirection(), atol=1e-5)
    np.testing.assert_allclose(nib.load(told["family_file"]).affine, nib.load(told["image"]).affine, atol=1e-4)


def test_clicks_are_those_of_a_session_of_the_library(told: Any) -> None:
    session = medsam3.Session(told["image"], TaughtSegmenter())
    session.click(4, 5, frame=2)
    session.propagate()
    np.testing.assert_array_equal(array(told["clicks_file"]), session.masks.union().transpose(2, 1, 0))
    assert told["clicks"]["label_names"] == {"thing": 1}
    alone = medsam3.Session(told["image"], TaughtSegmenter())
    alone.click(4, 5, frame=2)
    alone.click(2, 3, positive=False, frame=2)
    np.testing.assert_array_equal(array(told["slice_file"]), alone.masks.union().transpose(2, 1, 0))
    assert alone.masks.union().any()


def test_a_label_that_is_saved_lies_beside_the_images_with_its_names(told: Any) -> None:
    path = told["data"] / "labels" / "final" / "scan.nii.gz"
    found, _ = read_masks(path, medsam3.read(told["image"]))
    assert [one.concept for one in found] == ["my liver", "my kidney"]
    np.testing.assert_array_equal(found[1].union(), (scan()[1] > 200).transpose(2, 1, 0))
    assert Path(told["label_back"]).read_bytes() == path.read_bytes()
    assert told["datastore"]["objects"]["other"] == {
        "image": {"ext": ".nii.gz", "info": {"name": "other.nii.gz"}},
        "labels": {},
    }
    assert told["next"]["id"] == "other"
    assert (told["saved"], told["train"]) == ({"image": "scan", "label": "scan"}, False)
    assert sorted(one.name for one in told["data"].rglob("*")) == ["final", "labels", "other.nii.gz", "scan.nii.gz"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no image", "there is no image 'not there'"),
        ("no phrase", "no phrase was given"),
        ("no model", "there is no model 'nothing', allowed are phrase"),
        ("no session", "there is no such image"),
        ("outside", "click 40,5 is outside the image of 12 x 9 pixels"),
        ("no slice", "a click is on slice 20, allowed is 0 to 4"),
        ("image as label", "the label"),
        ("train", "this server does not train"),
        ("a path", "cannot name a file"),
    ],
)
def test_what_is_refused_is_said_in_the_form_that_the_client_shows(told: Any, case: str, message: str) -> None:
    assert message in told["refused"][case][1]


def test_without_being_enabled_no_route_answers() -> None:
    with started() as client:
        assert client.get("/monailabel/info/").status_code == 404


def test_every_route_but_that_for_the_token_wants_one() -> None:
    with started(tokens=(TOKEN,), clients=dialects_named(["monailabel"])) as client:
        assert client.get("/monailabel/auth/").json() == {"enabled": True}
        assert client.get("/monailabel/info/").status_code == 401
        assert client.get("/monailabel/info/", headers={"Authorization": "Bearer x"}).status_code == 401
        assert client.get("/monailabel/info/", auth=("anyone", TOKEN)).status_code == 200
        assert client.get("/monailabel/info/", headers={"Authorization": "Basic ?"}).status_code == 401


def test_saving_without_a_data_folder_is_refused_and_says_what_to_do() -> None:
    with started(**ON) as client:
        put(client)
        answer = client.put("/monailabel/datastore/label?image=scan", files={"label": ("a.nii.gz", scan()[0])})
        assert answer.status_code == 409
        assert "--data" in answer.json()["detail"]


def test_ohif_saves_the_bytes_of_its_voxels(tmp_path: Path) -> None:
    with started(data=tmp_path, **ON) as client:
        put(client)
        labels = (scan()[1] > 200).transpose(2, 1, 0).astype(np.uint8)
        told = {"params": json.dumps({"label_info": [{"name": "kidney", "idx": 1}]})}
        place = "/monailabel/datastore/label?image=scan"
        cut = client.put(place, files={"label": ("label.bin", labels.tobytes()[:-1])}, data=told)
        assert cut.status_code == 400
        assert "539 voxels, the image has 540" in cut.json()["detail"]
        assert not (tmp_path / "labels").exists()
        assert client.put(place, files={"label": ("label.bin", labels.tobytes())}, data=told).status_code == 200
        (tmp_path / "scan.nii.gz").write_bytes(scan()[0])
        image = medsam3.read(tmp_path / "scan.nii.gz")
        (found,), _ = read_masks(tmp_path / "labels" / "final" / "scan.nii.gz", image)
        np.testing.assert_array_equal(found.union(), labels > 0)
        assert client.get("/monailabel/info/").json()["datastore"]["completed"] == 1
        assert client.delete("/monailabel/datastore/label?id=scan&tag=final").status_code == 200
        assert client.get("/monailabel/datastore/label?label=scan&tag=final").status_code == 404


def test_a_phrase_in_another_language_is_read_or_marked() -> None:
    with started(**ON) as client:
        put(client)
        params = {"params": json.dumps({"text": "Leber; 肝脏"})}
        answer = client.post("/monailabel/infer/phrase?image=scan&output=json", data=params)
        assert answer.status_code == 200
        assert [one["phrase"] for one in answer.json()["concepts"]] == ["Leber", "肝脏"]


def test_a_client_that_stops_in_mid_upload_leaves_nothing() -> None:
    with serving("monailabel") as address:
        host, port = address.removeprefix("http://").split(":")
        head = (
            "PUT /monailabel/datastore/?image=half HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n"
            'Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\nContent-Disposition: form-data; name="file"; '
            'filename="half.nii.gz"\r\n\r\n'
        )
        with socket.create_connection((host, int(port))) as sent:
            sent.sendall(head.encode() + b"0" * 5000)
            time.sleep(0.3)
        with httpx.Client(base_url=address) as client:
            answer = client.get("/monailabel/datastore/image/info?image=half")
            assert answer.status_code == 404
            assert "medsam3_images 0.0" in client.get("/metrics").text


def put(client: TestClient) -> None:
    answer = client.put("/monailabel/datastore/?image=scan", files={"file": ("scan.nii.gz", scan()[0])})
    assert answer.json() == {"image": "scan"}
