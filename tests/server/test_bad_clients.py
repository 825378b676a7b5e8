"""What each dialect answers to a bad client, and what is left of it: nothing.

A thing that does not exist, a wrong token, an upload that stops half-way, 2,000 slices, a phrase in another language,
and servers behind that fail or hang.
"""

from __future__ import annotations

import base64
import gzip
import http.server
import io
import json
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import PIL.Image
import pytest
from starlette.testclient import TestClient

from made_clients import TOKEN, dialect_client, serving
from made_server import png
from medsam3.server.clients import arrays, labelstudio

pytest.importorskip("blosc2")
ALL = ("monailabel", "labelstudio", "cvat", "qupath", "nninteractive", "voxtell")
CONFIG = '<View><Image name="i" value="$i"/><BrushLabels name="b" toName="i"><Label value="{}"/></BrushLabels></View>'
DETECTOR = {"x-nuclio-function-name": "medsam3-abdominal-ct-and-mri"}
NO_FUNCTION = {"x-nuclio-function-name": "none"}
SLICES = 2000


@pytest.fixture(scope="module")
def tools() -> Iterator[TestClient]:
    with dialect_client(*ALL) as client:
        yield client


def packed(content: bytes) -> str:
    return base64.b64encode(content).decode()


def labels_asked(source: str, label: str = "liver") -> dict[str, Any]:
    return {"tasks": [{"id": 1, "data": {"i": source}}], "label_config": CONFIG.format(label)}


def volume(slices: int = SLICES) -> np.ndarray[Any, Any]:
    """Voxels (n, row, column) with a bright block on all but the first and the last slice."""
    voxels = np.zeros((slices, 9, 12), dtype=np.uint8)
    voxels[1:-1, 3:8, 2:8] = 150
    return voxels


def nifti(voxels: np.ndarray[Any, Any]) -> bytes:
    image = nib.Nifti1Image(voxels.transpose(2, 1, 0), np.diag([-1.0, -1.0, 2.0, 1.0]))
    return gzip.compress(image.to_bytes(), 1)


def images(tools: TestClient) -> float:
    """How many images are held."""
    return float(tools.get("/metrics").text.partition("\nmedsam3_images ")[2].split()[0])


def pages(count: int) -> bytes:
    """A TIFF of many pages."""
    stream = io.BytesIO()
    first, *others = (PIL.Image.fromarray(plane) for plane in volume(count))
    first.save(stream, "TIFF", save_all=True, append_images=others)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("path", "asked", "status", "message"),
    [
        (
            "monailabel/infer/phrase?image=1.2.840.9",
            {"data": {"params": '{"text": "liver"}'}},
            404,
            "no image '1.2.840.9'",
        ),
        ("monailabel/infer/phrase?session_id=none", {"data": {"params": '{"text": "liver"}'}}, 404, "no such image"),
        ("labelstudio/predict", {"json": {"tasks": [{"id": 1}], "label_config": CONFIG}}, 400, "task holds no image"),
        ("api/function_invocations", {"json": {}, "headers": NO_FUNCTION}, 404, "no function 'none'"),
        ("sam/sam3/", {"json": {"text_prompt": "liver"}}, 400, "b64img holds no base64"),
        ("nninteractive/predict", {"headers": {"X-Lease-Token": "none"}}, 410, "connect again"),
        ("voxtell/jobs", {"json": {"image_id": "none", "prompts": ["liver"]}}, 404, "there is no such image"),
    ],
)  # fmt: skip
def test_what_does_not_exist_is_said(
    tools: TestClient, path: str, asked: dict[str, Any], status: int, message: str
) -> None:
    answer = tools.post(f"/{path}", **asked)
    assert answer.status_code == status
    assert message in answer.json()["detail"]


@pytest.mark.parametrize(
    "path",
    [
        "monailabel/info/",
        "labelstudio/health",
        "api/functions",
        "sam/version/",
        "nninteractive/capabilities",
        "voxtell/capabilities",
    ],
)
def test_a_wrong_token_is_told_so_in_each_dialect(path: str, guarded: str) -> None:
    for authorization in (("anyone", "x" * 20), ("anyone", "")):
        answer = httpx.get(f"{guarded}/{path}", auth=authorization, timeout=120)
        assert answer.status_code == 401
        assert "a token is needed" in answer.json()["detail"]
    assert httpx.get(f"{guarded}/{path}", auth=("anyone", TOKEN), timeout=120).status_code == 200


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    with serving(*ALL, tokens=(TOKEN,)) as address:
        yield address


FORM = "Content-Type: multipart/form-data; boundary=x\r\n"
PART = '--x\r\nContent-Disposition: form-data; name="file"; filename="half.nii.gz"\r\n\r\n'


@pytest.mark.parametrize(
    ("line", "headers", "begin"),
    [
        ("PUT /monailabel/datastore/?image=half", FORM, PART),
        ("PUT /monailabel/session/", FORM, PART.replace('"file"', '"files"')),
        ("POST /labelstudio/predict", "Content-Type: application/json\r\n", '{"tasks": ['),
        ("POST /api/function_invocations", "x-nuclio-function-name: medsam3-clicks\r\n", '{"image": "'),
        ("POST /sam/sam3/", "Content-Type: application/json\r\n", '{"b64img": "'),
        ("POST /nninteractive/set_image", "X-Lease-Token: LEASE\r\n", "NNIA"),
        ("POST /voxtell/images", "Content-Type: application/octet-stream\r\n", ""),
    ],
    ids=["monailabel image", "monailabel session", "labelstudio", "cvat", "qupath", "nninteractive", "voxtell"],
)
def test_an_upload_that_stops_half_way_leaves_nothing(
    line: str, headers: str, begin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with serving(*ALL) as address, httpx.Client(base_url=address, timeout=60) as client:
        lease = client.post("/nninteractive/claim").json()["lease_token"]
        head = f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n{headers.replace('LEASE', lease)}\r\n"
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as sent:
            sent.sendall((head + begin).encode() + b"0" * 300_000)
            time.sleep(0.3)
        deadline = time.monotonic() + 20
        while (left := [one for one in tmp_path.rglob("*") if one.is_file()]) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert left == []
        assert "medsam3_images 0.0" in client.get("/metrics").text
        assert client.get("/healthz").status_code == 200


def test_a_phrase_in_another_language_comes_back_as_it_was_typed(tools: TestClient) -> None:
    asked = labels_asked(f"data:image/png;base64,{packed(png())}", "foie 肝脏")
    (found,) = tools.post("/labelstudio/predict", json=asked).json()["results"]
    assert [one["value"]["brushlabels"] for one in found["result"]] == [["foie 肝脏"]]
    (feature,) = tools.post("/sam/sam3/", json={"b64img": packed(png()), "text_prompt": "Milz"}).json()
    assert feature["properties"]["label"] == "Milz"
    scan = tools.post("/voxtell/images", content=nifti(volume(4)))
    image = json.loads(scan.headers["X-Meta"])["image_id"]
    assert voxtell_ends(tools, image, "hígado") == {"status": "done"}


def voxtell_ends(tools: TestClient, image: str, phrase: str) -> Any:
    job = tools.post("/voxtell/jobs", json={"image_id": image, "prompts": [phrase]}).json()["job_id"]
    return json.loads(tools.get(f"/voxtell/jobs/{job}/events").text.splitlines()[-1])


@pytest.mark.slow
def test_2000_slices_are_segmented_by_phrase_and_by_click(tools: TestClient) -> None:
    content, wanted = nifti(volume()), int((volume() > 90).sum())
    assert tools.put("/monailabel/datastore/?image=long", files={"file": ("l.nii.gz", content)}).status_code == 200
    answer = tools.post("/monailabel/infer/phrase?image=long&output=image", data={"params": '{"text": "liver"}'})
    assert answer.status_code == 200
    scan = tools.post("/voxtell/images?include_image=false", content=content)
    about = json.loads(scan.headers["X-Meta"])
    assert about["shape"] == [SLICES, 9, 12]
    assert voxtell_ends(tools, about["image_id"], "liver") == {"status": "done"}
    lease = {"X-Lease-Token": tools.post("/nninteractive/claim").json()["lease_token"]}
    body = arrays.packed(volume()[None], "NNIA")
    meta = json.dumps({"image_properties": {"spacing": [2.0, 1.0, 1.0]}})
    set_image = tools.post("/nninteractive/set_image", content=body, headers=lease | {"X-Meta": meta})
    assert set_image.json() == {"original_image_shape": [1, SLICES, 9, 12]}
    tools.post("/nninteractive/add_point_interaction", json={"coordinates": [1000, 5, 4]}, headers=lease)
    followed = tools.post("/nninteractive/predict", headers=lease)
    told = json.loads(followed.headers["X-Meta"])
    assert told["bbox"] == [[1, SLICES - 1], [3, 8], [2, 8]]
    assert arrays.unpacked(followed.content, "NNIA", 10**7).sum() == wanted


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("labelstudio/predict", lambda picture: {"json": labels_asked(f"data:image/tiff;base64,{picture}")}),
        ("api/function_invocations", lambda picture: {"json": {"image": picture}, "headers": DETECTOR}),
        ("sam/sam3/", lambda picture: {"json": {"b64img": picture, "text_prompt": "liver"}}),
    ],
)
def test_many_frames_are_refused_where_one_picture_is_asked_about(
    tools: TestClient, path: str, asked: Callable[[str], dict[str, Any]]
) -> None:
    before = images(tools)
    answer = tools.post(f"/{path}", **asked(packed(pages(200))))
    assert answer.status_code == 400
    assert "has 200 " in answer.json()["detail"]
    after = images(tools)
    assert after - before <= 1  # what Label Studio's address names may be asked for again


class _Failing(http.server.BaseHTTPRequestHandler):
    """Fails, hangs, and gives a byte now and then."""

    def do_GET(self) -> None:
        if self.path == "/500.png":
            self.send_error(500)
        elif self.path == "/hangs.png":
            time.sleep(3)
        else:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            for _ in range(30):
                self.wfile.write(b"0")
                self.wfile.flush()
                time.sleep(0.1)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


@pytest.mark.parametrize(
    ("path", "reason"), [("/500.png", "500"), ("/hangs.png", "timed out"), ("/slow.png", "timed out")]
)
def test_a_label_studio_that_fails_or_hangs_is_named_and_nothing_is_held(
    path: str, reason: str, tools: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Failing)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("LABEL_STUDIO_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(labelstudio, "FETCH_S", 0.5)
    begun = time.monotonic()
    answer = tools.post("/labelstudio/predict", json=labels_asked(path))
    server.shutdown()
    assert answer.status_code == 400
    assert f"Label Studio does not give the image ({reason})" in answer.json()["detail"]
    assert time.monotonic() - begun < 30
