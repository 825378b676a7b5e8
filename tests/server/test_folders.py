"""Many images are one job over HTTP: each has its result or its reason, and all are taken away as one zip."""

from __future__ import annotations

import csv
import io
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import pytest
from starlette.testclient import TestClient
from test_results import oblique

from made_server import opened, png, started


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with started() as made:
        yield made


def begun_over(client: TestClient, images: list[str], *phrases: str, **more: Any) -> str:
    answer = client.post("/v1/jobs", json={"kind": "folder", "images": images, "phrases": list(phrases), **more})
    assert answer.status_code == 202, answer.text
    job: str = answer.json()["id"]
    return job


def ended(client: TestClient, job: str) -> dict[str, Any]:
    client.get(f"/v1/jobs/{job}/events")
    found: dict[str, Any] = client.get(f"/v1/jobs/{job}").json()
    return found


def zipped(client: TestClient, results: list[str], form: str) -> zipfile.ZipFile:
    answer = client.get("/v1/results.zip", params={"result": results, "format": form})
    assert answer.status_code == 200, answer.text
    return zipfile.ZipFile(io.BytesIO(answer.content))


def test_each_image_has_its_masks_in_one_zip_with_a_table(client: TestClient) -> None:
    images = [opened(client, ("one.png", png()))["id"], opened(client, ("one.png", png(50, 70)))["id"]]
    job = ended(client, begun_over(client, images, "block", "absent"))
    assert (job["state"], job["done"], job["count"], job["failures"]) == ("done", 2, 2, {})
    packed = zipped(client, [job["results"][one] for one in images], "png")
    assert sorted(packed.namelist()) == ["found.csv", "one-2_mask.png", "one_mask.png"]
    for name, shape in (("one_mask.png", (40, 60)), ("one-2_mask.png", (50, 70))):
        labels = np.asarray(PIL.Image.open(io.BytesIO(packed.read(name))))
        wanted = np.zeros(shape, dtype=np.uint8)
        wanted[10:20, 20:35] = 1
        np.testing.assert_array_equal(labels, wanted)
    rows = list(csv.DictReader(io.StringIO(packed.read("found.csv").decode())))
    assert [(row["file"], row["phrase"], row["verdict"], row["objects"], row["pixels"]) for row in rows] == [
        ("one.png", "block", "yes", "1", "150"),
        ("one.png", "absent", "no", "0", "0"),
    ] * 2


def test_an_image_that_cannot_be_asked_so_is_named_with_its_reason_and_the_others_go_on(client: TestClient) -> None:
    picture, volume = opened(client)["id"], opened(client, ("scan.nii.gz", oblique()))["id"]
    job = ended(client, begun_over(client, [picture, volume], "block", frames=[3]))
    assert (job["state"], job["done"], list(job["results"])) == ("done", 2, [volume])
    assert list(job["failures"]) == [picture]
    assert "frame 3" in job["failures"][picture]
    both = [job["results"][volume], job["results"][volume]]
    assert sorted(zipped(client, both, "nifti").namelist()) == ["found.csv", "scan-2_mask.nii.gz", "scan_mask.nii.gz"]
    refused = client.get("/v1/results.zip", params={"result": both, "format": "gif"})
    assert refused.status_code == 400
    assert "scan.nii.gz: format 'gif' is not known" in refused.json()["detail"]


def test_a_stopped_job_keeps_what_was_done(client: TestClient) -> None:
    images = [opened(client)["id"] for _ in range(20)]
    job = begun_over(client, images, "slow")
    while client.get(f"/v1/jobs/{job}").json()["done"] < 2:
        time.sleep(0.05)
    stopped = client.delete(f"/v1/jobs/{job}").json()
    assert stopped["state"] == "cancelled"
    assert 2 <= stopped["done"] == len(stopped["results"]) < 20
    assert zipped(client, list(stopped["results"].values()), "png").testzip() is None


def test_nothing_of_another_is_asked_or_taken() -> None:
    tokens = ("anna-anna-anna-anna", "bert-bert-bert-bert")
    with started(tokens=tokens) as client:
        anna, bert = ({"Authorization": f"Bearer {one}"} for one in tokens)
        client.headers = anna
        image = opened(client)["id"]
        job = ended(client, begun_over(client, [image], "block"))
        client.headers = bert
        asked = {"kind": "folder", "images": [image], "phrases": ["block"]}
        assert client.post("/v1/jobs", json=asked).status_code == 404
        result = {"result": [job["results"][image]], "format": "png"}
        assert client.get("/v1/results.zip", params=result).status_code == 404


@pytest.mark.parametrize("asked", [{"images": []}, {"phrases": []}, {"images": ["nothing"] * 1001}])
def test_a_job_without_images_or_phrases_or_with_too_many_is_refused(client: TestClient, asked: dict[str, Any]) -> None:
    whole = {"kind": "folder", "images": ["nothing"], "phrases": ["block"], **asked}
    assert client.post("/v1/jobs", json=whole).status_code == 422
