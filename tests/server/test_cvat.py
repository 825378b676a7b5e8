"""CVAT: the function that cvat-cli loads, judged by cvat-sdk's own classes, and the serverless functions over HTTP."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest
from starlette.testclient import TestClient

import medsam3
from made_clients import client_python, dialect_client
from made_server import png
from medsam3.clients import cvat
from medsam3.errors import InputError
from medsam3.io.contours import filled
from threshold_segmenter import ThresholdSegmenter

MODULE = "medsam3.clients.cvat"


@pytest.fixture(scope="module")
def sdk() -> Iterator[Any]:
    """cvat-sdk, found after everything else that is installed."""
    folder = client_python("cvat").parents[1]
    (packages,) = folder.glob("lib/python*/site-packages")
    sys.path.append(str(packages))
    try:
        yield pytest.importorskip("cvat_sdk.auto_annotation")
    finally:
        sys.path.remove(str(packages))


@pytest.fixture(scope="module")
def tool() -> Iterator[TestClient]:
    with dialect_client("cvat") as client:
        yield client


def picture() -> PIL.Image.Image:
    pixels = np.zeros((40, 60), dtype=np.uint8)
    pixels[10:20, 20:35] = 255
    pixels[30:33, 3:9] = 255
    return PIL.Image.fromarray(pixels)


def loaded(**parameters: str) -> Any:
    """The function as cvat-cli loads it."""
    from cvat_cli._internal.common import FunctionLoader  # noqa: PLC0415

    return FunctionLoader(MODULE, None, {"model": "threshold", **parameters}).load()


def context(threshold: float | None = None, *, polygons: bool = False) -> Any:
    return SimpleNamespace(frame_name="a.png", conf_threshold=threshold, conv_mask_to_poly=polygons)


def remapped(function: Any, sdk: Any, annotations: list[Any], *names: str) -> list[Any]:
    """What cvat-sdk makes of a function's annotations for a task whose labels have numbers from 70 on."""
    from cvat_sdk import models  # noqa: PLC0415
    from cvat_sdk.auto_annotation.driver import _AnnotationMapper, _SpecNameMapping  # noqa: PLC0415

    labels = [
        models.Label(name=name, id=70 + k, type="any", attributes=[], sublabels=[]) for k, name in enumerate(names)
    ]
    mapper = _AnnotationMapper(
        SimpleNamespace(info=lambda *_: None, warning=lambda *_: None),
        function.spec.labels,
        labels,
        allow_unmatched_labels=False,
        spec_nm=_SpecNameMapping(),
        conv_mask_to_poly=False,
    )
    mapper.validate_and_remap(annotations, 0)
    return annotations


def test_masks_of_phrases_are_taken_by_cvat(sdk: Any, threshold_model: ThresholdSegmenter) -> None:
    from cvat_sdk.masks import decode_mask  # noqa: PLC0415

    function = loaded(labels="optic disc; cup = optic cup; none=absent")
    assert [(one.name, one.id) for one in function.spec.labels] == [("optic disc", 0), ("cup", 1), ("none", 2)]
    shapes = function.detect(context(), picture())
    assert [(one.label_id, one.type.value) for one in shapes] == [(0, "mask"), (1, "mask")]
    mask = decode_mask(shapes[0].points, image_width=60, image_height=40)
    np.testing.assert_array_equal(mask, np.asarray(picture()) > 0)
    shapes = remapped(function, sdk, shapes, "optic disc", "cup", "none")
    assert [one.label_id for one in shapes] == [70, 71]


def test_polygons_go_around_each_part(sdk: Any, threshold_model: ThresholdSegmenter) -> None:
    shapes = loaded(labels="thing").detect(context(polygons=True), picture())
    assert [one.type.value for one in shapes] == ["polygon", "polygon"]
    lines = [np.array(one.points).reshape(-1, 2) - 0.5 for one in shapes]
    np.testing.assert_array_equal(filled(lines, 40, 60), np.asarray(picture()) > 0)


def test_the_threshold_is_honoured(sdk: Any, threshold_model: ThresholdSegmenter) -> None:
    function = loaded(labels="thing")
    assert len(function.detect(context(0.75), picture())) == 1
    assert function.detect(context(0.76), picture()) == []


def test_clicks_and_boxes_are_those_of_a_session(sdk: Any, threshold_model: ThresholdSegmenter) -> None:
    from cvat_sdk.masks import decode_mask  # noqa: PLC0415

    function = loaded(kind="interactor")
    image = function.preprocess_image(None, picture())
    box = ((18.0, 8.0), (40.0, 22.0))
    asked = SimpleNamespace(pos_points=[(25.5, 15.5)], neg_points=[(21.5, 11.5)], bounding_box=box)
    session = medsam3.Session(picture().convert("RGB"), threshold_model)
    session.box(17.5, 7.5, 39.5, 21.5)
    session.click(25, 15)
    session.click(21, 11, positive=False)
    for _ in range(2):  # the image is as it was afterwards
        (shape,) = function.detect(None, image, asked)
        mask = decode_mask(shape.points, image_width=60, image_height=40)
        np.testing.assert_array_equal(mask, session.masks.union()[0])
    with pytest.raises(InputError, match="neither a box nor a click"):
        function.detect(None, image, SimpleNamespace(pos_points=[], neg_points=[(1, 1)], bounding_box=None))


def test_labels_that_are_wrong_are_refused() -> None:
    for text, message in {
        "": "no labels were given",
        "a;b;a": "'a' is there twice",
        "a=b\0": "cannot be printed",
    }.items():
        with pytest.raises(InputError, match=message):
            cvat.labels_in(text)
    with pytest.raises(InputError, match="allowed are detector and interactor"):
        cvat.create(labels="a", kind="tracker")


def invoked(client: TestClient, name: str, **asked: Any) -> Any:
    asked = {"image": base64.b64encode(png()).decode()} | asked
    return client.post("/api/function_invocations", json=asked, headers={"x-nuclio-function-name": name})


def test_functions_are_listed_as_nuclio_does(tool: TestClient) -> None:
    listed = tool.get("/api/functions", headers={"x-nuclio-project-name": "cvat"}).json()
    assert set(listed) == {"medsam3-abdominal-ct-and-mri", "medsam3-clicks"}
    about = listed["medsam3-abdominal-ct-and-mri"]
    labels = json.loads(about["metadata"]["annotations"]["spec"])
    assert [one["name"] for one in labels] == ["liver", "kidney"]
    assert about["status"]["state"] == "ready"
    assert tool.get("/api/functions/medsam3-clicks").json() == listed["medsam3-clicks"]
    assert tool.get("/api/functions/other").status_code == 404


def test_a_detector_gives_masks_in_their_boxes(tool: TestClient) -> None:
    answer = invoked(tool, "medsam3-abdominal-ct-and-mri")
    assert [one["label"] for one in answer.json()] == ["liver", "kidney"]
    first = answer.json()[0]
    assert first["mask"] == [1] * 150 + [20, 10, 34, 19]
    assert (first["type"], first["confidence"]) == ("mask", "0.7500")
    line = np.array(first["points"]).reshape(-1, 2) - 0.5
    assert filled([line], 40, 60).sum() == 150
    assert invoked(tool, "medsam3-abdominal-ct-and-mri", threshold=0.9).json() == []


def test_the_interactor_gives_the_mask_of_a_session(tool: TestClient, tmp_path: Any) -> None:
    from slow_segmenter import TaughtSegmenter  # noqa: PLC0415

    path = tmp_path / "block.png"
    path.write_bytes(png())
    session = medsam3.Session(path, TaughtSegmenter())
    session.click(25, 15)
    first = invoked(tool, "medsam3-clicks", pos_points=[[25.5, 15.5]], neg_points=[])
    np.testing.assert_array_equal(np.array(first.json()["mask"], bool), session.masks.union()[0])
    session.click(21, 11, positive=False)
    second = invoked(tool, "medsam3-clicks", pos_points=[[25.5, 15.5]], neg_points=[[21.5, 11.5]], obj_bbox=None)
    np.testing.assert_array_equal(np.array(second.json()["mask"], bool), session.masks.union()[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "???"}, "no base64"),
        ({"image": ""}, "is empty"),
        ({"image": base64.b64encode(b"no picture").decode()}, "image"),
        ({"pos_points": [[1]]}, "points are pairs"),
        ({"neg_points": [[1, 1]]}, "neither a box nor a click"),
        ({"pos_points": [[100, 5]]}, "outside the image of 60 x 40 pixels"),
    ],
)
def test_what_is_wrong_is_said(tool: TestClient, changes: dict[str, Any], message: str) -> None:
    answer = invoked(tool, "medsam3-clicks", **changes)
    assert answer.status_code == 400
    assert message in answer.json()["detail"]
