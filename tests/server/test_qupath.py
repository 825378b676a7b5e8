"""samapi's dialect, which QuPath's SAM extension speaks: regions in, GeoJSON out."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import pytest
from starlette.testclient import TestClient

import medsam3
from made_clients import TOKEN, dialect_client
from made_server import started
from medsam3.geometry import FloatArray
from medsam3.io.contours import filled
from medsam3.server.clients import dialects_named
from slow_segmenter import TaughtSegmenter


@pytest.fixture(scope="module")
def tool() -> Iterator[TestClient]:
    with dialect_client("qupath") as client:
        yield client


def lit() -> np.ndarray[Any, Any]:
    """A ring, and a part that touches nothing."""
    mask = np.zeros((40, 60), dtype=np.bool_)
    mask[10:20, 20:35] = True
    mask[13:16, 24:30] = False
    mask[30:33, 3:9] = True
    return mask


def region() -> str:
    stream = io.BytesIO()
    PIL.Image.fromarray(lit().astype(np.uint8) * 255).convert("RGB").save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def drawn(feature: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The mask of a feature: an odd number of rings around a pixel's centre."""
    geometry = feature["geometry"]
    parts = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    lines: list[FloatArray] = []
    for part in parts:
        for ring in part:
            assert ring[0] == ring[-1], "GeoJSON closes its rings"
            lines.append(np.array(ring[:-1]) - 0.5)
    return filled(lines, 40, 60)


def asked(client: TestClient, path: str, **fields: Any) -> Any:
    return client.post(f"/sam/{path}", json={"type": "sam3", "b64img": region()} | fields)


def test_the_extension_finds_a_server_with_weights(tool: TestClient) -> None:
    assert tool.get("/sam/version/").text == medsam3.__version__
    (weights,) = tool.get("/sam/weights/", params={"type": "sam3"}).json()
    assert (weights["type"], set(weights)) == ("sam3", {"type", "name", "url"})


def test_a_phrase_gives_geojson_with_holes_and_parts(tool: TestClient) -> None:
    fields = {"positive_bboxes": [], "negative_bboxes": [], "reset_prompts": False, "checkpoint_url": "x"}
    (feature,) = asked(tool, "sam3/", text_prompt="liver", **fields).json()
    assert feature["type"] == "Feature"
    assert feature["geometry"]["type"] == "MultiPolygon"
    assert [len(part) for part in feature["geometry"]["coordinates"]] == [2, 1]
    np.testing.assert_array_equal(drawn(feature), lit())
    assert feature["properties"] == {"object_idx": 0, "label": "liver", "quality": 0.75, "sam_model": "sam3"}
    assert asked(tool, "sam3/", text_prompt="absent").json() == []
    assert asked(tool, "sam3/", text_prompt="liver", confidence_threshold=0.9).json() == []


def test_boxes_and_points_are_those_of_a_session(tool: TestClient) -> None:
    session = medsam3.Session(lit().astype(np.uint8) * 255, TaughtSegmenter())
    session.box(17.5, 7.5, 39.5, 21.5)
    session.click(21, 11, positive=False)
    (feature,) = asked(tool, "", bbox=[18, 8, 40, 22], point_coords=[[21.5, 11.5]], point_labels=[0]).json()
    np.testing.assert_array_equal(drawn(feature), session.masks.union()[0])
    assert session.masks.union().any()


@pytest.mark.parametrize(
    ("path", "fields", "status", "message"),
    [
        ("sam3/", {"text_prompt": ""}, 400, "nothing is asked for"),
        ("sam3/", {"text_prompt": "a", "b64img": "???"}, 400, "no base64"),
        ("sam3/", {"text_prompt": "a", "b64img": ""}, 400, "image"),
        ("sam3/", {"text_prompt": "a", "positive_bboxes": [[1, 2, 0, 4]]}, 400, "with a size above 0"),
        ("sam3/", {"text_prompt": "a", "confidence_threshold": 3}, 400, "allowed is 0 to 1"),
        ("", {"point_coords": [[1, 2]], "point_labels": []}, 400, "1 points and 0 labels"),
        ("", {"point_coords": [[1, 2]], "point_labels": [0]}, 400, "neither a box nor a point"),
        ("", {"bbox": [1, 2, 3]}, 400, "allowed is [x0, y0, x1, y1]"),
        ("automask/", {}, 501, "this is not done here"),
    ],
)
def test_what_is_wrong_is_said(tool: TestClient, path: str, fields: dict[str, Any], status: int, message: str) -> None:
    answer = asked(tool, path, **fields)
    assert answer.status_code == status
    assert message in answer.json()["detail"]


def test_a_server_with_tokens_wants_one_here_too() -> None:
    with started(tokens=(TOKEN,), clients=dialects_named(["qupath"])) as client:
        assert client.get("/sam/version/").status_code == 401
