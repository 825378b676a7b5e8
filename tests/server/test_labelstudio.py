"""Label Studio's ML backend, its brush read by label-studio-sdk, its images fetched from a small web server."""

from __future__ import annotations

import base64
import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

import medsam3
from made_clients import asked, client_python, dialect_client
from made_server import png
from medsam3.errors import InputError
from medsam3.image import Image, Masks
from medsam3.io.contours import filled
from medsam3.server.clients import labelstudio
from slow_segmenter import TaughtSegmenter

BRUSH = """<View><Image name="image" value="$picture"/><KeyPointLabels name="point" toName="image" smart="true">
<Label value="liver"/></KeyPointLabels><BrushLabels name="brush" toName="image"><Label value="liver"/>
<Label value="K" predicted_values="kidney"/><Label value="absent"/></BrushLabels></View>"""
POLYGON = BRUSH.replace("BrushLabels", "PolygonLabels")
RECTANGLE = BRUSH.replace("BrushLabels", "RectangleLabels")
KEY = "a-key-of-label-studio"


@pytest.fixture(scope="module")
def tool() -> Iterator[TestClient]:
    with dialect_client("labelstudio") as client:
        yield client


def task(number: int = 1, picture: str | None = None) -> dict[str, Any]:
    source = picture or f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    return {"id": number, "data": {"picture": source}}


def predicted(client: TestClient, *tasks: dict[str, Any], config: str = BRUSH, drawn: Any = ()) -> list[dict[str, Any]]:
    asked = {"tasks": list(tasks), "label_config": config, "params": {"context": {"result": list(drawn)}}}
    answer = client.post("/labelstudio/predict", json=asked)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def keypoint(x: float, y: float, is_positive: int = 1) -> dict[str, Any]:
    """A click at a pixel's centre of 60 x 40, in percent."""
    value = {"x": (x + 0.5) / 60 * 100, "y": (y + 0.5) / 40 * 100, "width": 1, "keypointlabels": ["liver"]}
    return {"type": "keypointlabels", "is_positive": is_positive, "value": value, "original_width": 60}


def block() -> np.ndarray[Any, Any]:
    mask = np.zeros((40, 60), dtype=np.bool_)
    mask[10:20, 20:35] = True
    return mask


def decoded(regions: list[dict[str, Any]], folder: Path) -> list[np.ndarray[Any, Any]]:
    """Masks as label-studio-sdk reads them, which are the same in all four channels."""
    (folder / "regions.json").write_text(json.dumps(regions))
    names = asked("lssdk", "read_labelstudio.py", "brush", folder / "regions.json", folder / "out.npz")
    read = np.load(folder / "out.npz")
    for name in names:
        assert (read[name] == read[name][..., :1]).all()
    return [read[name][..., 3] == 255 for name in names]


def test_health_setup_and_webhook_answer(tool: TestClient) -> None:
    assert tool.get("/labelstudio/health").json()["status"] == "UP"
    setup = {"project": "1", "schema": BRUSH, "hostname": "http://localhost:8080", "access_token": "x"}
    assert "medsam3" in tool.post("/labelstudio/setup", json=setup).json()["model_version"]
    assert tool.post("/labelstudio/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 201


def test_each_label_is_a_phrase_and_its_objects_are_brush_masks(tool: TestClient, tmp_path: Path) -> None:
    (found,) = predicted(tool, task())
    labels = [region["value"]["brushlabels"] for region in found["result"]]
    assert labels == [["liver"], ["K"]]
    region = found["result"][0]
    assert (region["from_name"], region["to_name"], region["type"]) == ("brush", "image", "brushlabels")
    assert (region["original_width"], region["original_height"], region["value"]["format"]) == (60, 40, "rle")
    assert found["score"] == region["score"] == 0.75
    for mask in decoded(found["result"], tmp_path):
        np.testing.assert_array_equal(mask, block())


def test_brushes_of_any_mask_are_read_by_label_studio(tmp_path: Path) -> None:
    client_python("lssdk")
    rng = np.random.default_rng(0)
    masks = [rng.random((13, 17)) < 0.5, np.zeros((5, 3), bool), np.ones((300, 310), bool), rng.random((90, 64)) < 0.02]
    regions = [
        {"original_width": one.shape[1], "original_height": one.shape[0], "value": {"rle": labelstudio.brush_of(one)}}
        for one in masks
    ]
    for mask, read in zip(masks, decoded(regions, tmp_path), strict=True):
        np.testing.assert_array_equal(read, mask)


def test_clicks_and_rectangles_are_those_of_a_session(tool: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "block.png"
    path.write_bytes(png())
    session = medsam3.Session(path, TaughtSegmenter())
    session.box(18, 8, 40, 22)
    session.click(25, 15)
    session.click(21, 11, positive=False)
    edges = {"x": 18.5 / 60 * 100, "y": 8.5 / 40 * 100, "width": 22 / 60 * 100, "height": 14 / 40 * 100}
    box = {"type": "rectanglelabels", "value": edges | {"rectanglelabels": ["K"]}}
    (found,) = predicted(tool, task(7), drawn=[keypoint(21, 11, 0), box, keypoint(25, 15)])
    (region,) = found["result"]
    assert region["value"]["brushlabels"] == ["liver"]
    (mask,) = decoded([region], tmp_path)
    np.testing.assert_array_equal(mask, session.masks.union()[0])
    assert not mask[11, 21]


def test_polygons_and_rectangles_are_given_where_the_interface_takes_them(tool: TestClient) -> None:
    (found,) = predicted(tool, task(), config=POLYGON)
    points = np.array(found["result"][0]["value"]["points"]) / 100 * [60, 40]
    np.testing.assert_array_equal(filled([points - 0.5], 40, 60), block())
    (found,) = predicted(tool, task(), config=RECTANGLE)
    value = found["result"][0]["value"]
    assert [round(value[key], 6) for key in ("x", "y", "width", "height")] == [33.333333, 25.0, 25.0, 25.0]


def test_a_task_that_fails_leaves_the_others(tool: TestClient) -> None:
    good, bad = predicted(tool, task(), task(2, "data:image/png;base64,AAAA"))
    assert len(good["result"]) == 2
    assert (bad["result"], "error" in bad) == ([], True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_config": "<View>"}, "the labelling interface is no XML"),
        ({"label_config": '<!DOCTYPE a [<!ENTITY b "c">]><View/>'}, "holds more than tags"),
        ({"label_config": "<View><Text name='a' value='$b'/></View>"}, "the labelling interface takes no masks"),
        ({"tasks": [{"id": 1, "data": {}}]}, "the task holds no image"),
        ({"tasks": [{"id": 1, "data": {"picture": "/data/a.png"}}]}, "start the server with LABEL_STUDIO_URL"),
        ({"params": {"context": {"result": [keypoint(5, 5, 0)]}}}, "there is no click on an object"),
        ({"params": {"context": {"result": [{"type": "keypointlabels"}]}}}, "is not in Label Studio's form"),
    ],
)
def test_what_is_wrong_is_said(tool: TestClient, changes: dict[str, Any], message: str) -> None:
    answer = tool.post("/labelstudio/predict", json={"tasks": [task()], "label_config": BRUSH} | changes)
    assert answer.status_code == 400
    assert message in answer.json()["detail"]


class _Files(http.server.SimpleHTTPRequestHandler):
    """Gives files to who has the key, and sends two names elsewhere."""

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Token {KEY}":
            self.send_error(401)
        elif self.path in ("/moved.png", "/away.png"):
            host = "http://localhost:1" if self.path == "/away.png" else ""
            self.send_response(302)
            self.send_header("Location", f"{host}/block.png")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""


@pytest.fixture
def label_studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "block.png").write_bytes(png())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    root = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("LABEL_STUDIO_URL", root)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", KEY)
    yield root
    server.shutdown()


def test_images_come_from_label_studio_alone(label_studio: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in ("/block.png", "/moved.png", f"{label_studio}/block.png"):
        assert labelstudio.fetched(source, 10**6)[0] == png()
    wrong = {
        "/not-there.png": "does not give the image (404)",
        "/away.png": "does not give the image (302)",
        "http://169.254.169.254/latest": "the image lies at 169.254.169.254",
        "s3://bucket/a.png": "another store",
        "file:///etc/passwd": "another store",
    }
    for source, message in wrong.items():
        with pytest.raises(InputError) as caught:
            labelstudio.fetched(source, 10**6)
        assert message in str(caught.value)
    with pytest.raises(InputError, match="larger than 10 bytes"):
        labelstudio.fetched("/block.png", 10)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "wrong")
    with pytest.raises(InputError, match="401"):
        labelstudio.fetched("/block.png", 10**6)


def test_our_coco_json_is_read_as_polygons(tmp_path: Path) -> None:
    mask = block()
    mask[30:33, 3:9] = True
    masks = Masks.from_dense(mask[None, None], [0.9], concept="liver")
    image = Image(np.zeros((1, 40, 60, 1), np.uint8), source=(Path("block.png"),))
    medsam3.write(masks, tmp_path / "block_coco.json", image)
    tasks = asked("lssdk", "read_labelstudio.py", "coco", tmp_path / "block_coco.json", tmp_path / "tasks.json")
    (read,) = tasks
    regions = read["annotations"][0]["result"]
    polygons = [region["value"] for region in regions if region["type"] == "polygonlabels"]  # beside their rectangles
    assert [value["polygonlabels"] for value in polygons] == [["liver"], ["liver"]]
    lines = [np.array(value["points"]) / 100 * [60, 40] - 0.5 for value in polygons]
    np.testing.assert_array_equal(filled(lines, 40, 60), mask)
