"""Images and sessions over HTTP, with a model that takes what is brighter than 128."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
from starlette.testclient import TestClient

import medsam3
from made_server import begun, opened, png, started, step, upload
from medsam3.server.modelling import runs_of
from medsam3.server.pool import Progress, Worker
from medsam3.server.problems import RefusedError
from medsam3.server.settings import Limits
from slow_segmenter import SlowSegmenter


def dense(answer: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The first mask of a frame, from its runs."""
    flat = np.zeros(answer["height"] * answer["width"], dtype=np.bool_)
    at = 0
    for k, length in enumerate(answer["masks"][0]["runs"]):
        flat[at : at + length] = k % 2 == 1
        at += length
    assert at == flat.size
    return flat.reshape(answer["height"], answer["width"])


def volume(directions: tuple[float, float, float] = (-2.0, -3.0, 4.0)) -> tuple[bytes, np.ndarray[Any, Any]]:
    """A gzipped NIfTI of (x, y, z) 12 x 9 x 5 voxels with a bright block on slices 1 to 3."""
    voxels = np.zeros((12, 9, 5), dtype=np.uint8)
    voxels[2:6, 3:8, 1:4] = 200
    image = nib.Nifti1Image(voxels, np.diag([*directions, 1.0]))
    return gzip.compress(image.to_bytes()), voxels


def test_runs_begin_outside_and_go_row_by_row() -> None:
    assert runs_of(np.array([[False, True], [True, False]])) == [1, 2, 1]
    assert runs_of(np.array([[True, False]])) == [0, 1, 1]
    assert runs_of(np.zeros((2, 2), dtype=np.bool_)) == [4]


def test_a_picture_is_opened_shown_and_removed(client: TestClient) -> None:
    image = opened(client)
    assert (image["kind"], image["frames"], image["height"], image["width"]) == ("picture", 1, 40, 60)
    assert image["name"] == "block.png"
    shown = client.get(f"/v1/images/{image['id']}/frames/0.png")
    pixels = np.asarray(PIL.Image.open(io.BytesIO(shown.content)))
    assert pixels.shape == (40, 60, 3)
    assert pixels[15, 25].tolist() == [255] * 3
    small = client.get(f"/v1/images/{image['id']}/thumbnail.png")
    assert PIL.Image.open(io.BytesIO(small.content)).size == (60, 40)
    assert client.get(f"/v1/images/{image['id']}/frames/1.png").status_code == 400
    folder = client.app.state.service.holdings.image("local", image["id"]).folder  # type: ignore[attr-defined]
    assert folder.stat().st_mode & 0o077 == 0 or folder.parent.stat().st_mode & 0o077 == 0
    assert client.delete(f"/v1/images/{image['id']}").status_code == 204
    assert not folder.exists()
    assert client.get(f"/v1/images/{image['id']}").status_code == 404


def test_a_phrase_finds_the_block_and_undo_takes_it_back(client: TestClient) -> None:
    session = begun(client, opened(client)["id"])
    found = step(client, session, do="segment", phrase="block")
    (concept,) = found["found"]["concepts"]
    assert (concept["phrase"], concept["presence"], concept["is_present"]) == ("block", 0.9, True)
    assert (concept["pixels"], concept["objects"], concept["fullest_frame"]) == (150, 1, 0)
    assert (found["can_undo"], found["can_redo"]) == (True, False)
    mask = dense(client.get(f"{session}/masks?frame=0").json())
    assert mask[10:20, 20:35].all()
    assert mask.sum() == 150
    assert step(client, session, do="undo")["found"]["objects"] == []
    again = step(client, session, do="redo")
    assert again["found"]["objects"][0]["pixels"] == 150
    assert client.post(f"{session}/steps", json={"do": "redo"}).status_code == 400


def test_clicks_boxes_and_scribbles_are_those_of_the_library(client: TestClient, tmp_path: Path) -> None:
    session = begun(client, opened(client)["id"])
    step(client, session, do="segment", phrase="block")
    step(client, session, do="click", x=40, y=15)
    step(client, session, do="scribble", points=[[21, 11], [30, 11]], positive=False)
    step(client, session, do="box", box=[18, 8, 40, 22])
    answer = client.get(f"{session}/masks?grid=file").json()
    path = tmp_path / "block.png"
    path.write_bytes(png())
    alone = medsam3.Session(path, SlowSegmenter())
    alone.segment("block")
    alone.click(40, 15)
    alone.scribble([(21, 11), (30, 11)], positive=False)
    alone.box(18, 8, 40, 22)
    wanted = alone.object_masks(alone.objects[0].number).union()[0]
    assert len(answer["masks"]) == len(alone.objects) == 2
    np.testing.assert_array_equal(dense(answer), wanted)


def test_a_step_that_is_refused_changes_nothing(client: TestClient) -> None:
    session = begun(client, opened(client)["id"])
    before = step(client, session, do="segment", phrase="block")
    refused = client.post(f"{session}/steps", json={"do": "click", "x": 400, "y": 5})
    assert refused.status_code == 400
    assert "outside the image of 60 x 40 pixels" in refused.json()["detail"]
    assert client.get(session).json() == before


def test_the_display_of_a_volume_leads_back_to_its_file(client: TestClient) -> None:
    data, _ = volume()
    image = opened(client, ("scan.nii.gz", data))
    assert (image["kind"], image["frames"], image["spacing_mm"]) == ("volume", 5, [4.0, 3.0, 2.0])
    session = begun(client, image["id"])
    found = step(client, session, do="segment", phrase="block")["found"]
    assert found["concepts"][0]["pixels"] == 60
    assert round(found["concepts"][0]["volume_ml"], 6) == 60 * 24 / 1000
    in_file = dense(client.get(f"{session}/masks?frame=2&grid=file").json())
    shown = client.get(f"{session}/masks?frame=2").json()
    display = image["display"]
    assert (shown["height"], shown["width"]) == (display["height"], display["width"])
    (a, b, c), (d, e, f) = display["to_file"]
    for v, u in np.argwhere(dense(shown)):
        x, y = round(a * u + b * v + c), round(d * u + e * v + f)
        assert in_file[y, x]
    lit = np.asarray(PIL.Image.open(io.BytesIO(client.get(f"/v1/images/{image['id']}/frames/2.png").content)))[..., 0]
    np.testing.assert_array_equal(lit > 128, dense(shown))


def test_letters_say_where_the_edges_point(client: TestClient) -> None:
    image = opened(client, ("scan.nii.gz", volume()[0]))
    assert image["display"]["letters"] == ["R", "L", "A", "P"]


def test_a_volume_is_propagated_as_a_job(client: TestClient) -> None:
    session = begun(client, opened(client, ("scan.nii.gz", volume()[0]))["id"])
    found = step(client, session, do="segment", phrase="block", frame=2)
    assert (found["found"]["objects"][0]["first_frame"], found["found"]["objects"][0]["last_frame"]) == (2, 2)
    job = client.post(f"{session}/steps/job", json={"do": "propagate"}).json()
    events = client.get(f"/v1/jobs/{job['id']}/events")
    assert events.headers["content-type"].startswith("text/event-stream")
    assert '"state":"done"' in events.text.split("data: ")[-1]
    after = client.get(session).json()["found"]["objects"][0]
    assert (after["first_frame"], after["last_frame"]) == (1, 3)


def test_a_session_is_made_again_after_its_worker_was_killed(client: TestClient) -> None:
    session = begun(client, opened(client)["id"])
    step(client, session, do="segment", phrase="block")
    step(client, session, do="click", x=40, y=15)
    before = client.get(f"{session}/masks").json()
    killed = client.post(f"{session}/steps", json={"do": "segment", "phrase": "kill"})
    assert killed.status_code == 500
    assert "the process that did this ended" in killed.json()["detail"]
    assert client.get(f"{session}/masks").json() == before
    assert step(client, session, do="undo")["steps"] == 3


def test_the_steps_of_a_session_make_the_same_session_on_another_server(client: TestClient) -> None:
    session = begun(client, opened(client)["id"])
    for asked in ({"do": "segment", "phrase": "block"}, {"do": "click", "x": 40, "y": 15}, {"do": "undo"}):
        step(client, session, **asked)
    steps = client.get(f"{session}/steps").json()
    assert [one["do"] for one in steps] == ["segment", "click", "undo"]
    with started() as replica:
        other = begun(replica, opened(replica)["id"])
        for asked in steps:
            step(replica, other, **asked)
        assert replica.get(f"{other}/masks").json() == client.get(f"{session}/masks").json()


def test_a_step_that_is_stopped_leaves_the_session_as_it_was(client: TestClient) -> None:
    session = begun(client, opened(client, ("scan.nii.gz", volume()[0]))["id"])
    before = step(client, session, do="segment", phrase="block", frame=2)
    job = client.post(f"{session}/steps/job", json={"do": "segment", "phrase": "slow"}).json()["id"]
    deadline = time.monotonic() + 30
    while client.get(f"/v1/jobs/{job}").json()["done"] < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert client.delete(f"/v1/jobs/{job}").json()["state"] == "cancelled"
    assert client.get(session).json() == before
    assert dense(client.get(f"{session}/masks?frame=2&grid=file").json()).sum() == 20
    assert step(client, session, do="propagate")["found"]["objects"][0]["last_frame"] == 3


def test_a_job_tells_its_progress_and_can_be_cancelled(client: TestClient) -> None:
    image = opened(client, ("scan.nii.gz", volume()[0]))
    job = client.post("/v1/jobs", json={"image": image["id"], "phrases": ["slow"] * 20}).json()
    place = f"/v1/jobs/{job['id']}"
    deadline = time.monotonic() + 30
    while client.get(place).json()["done"] < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    stopped = client.delete(place).json()
    assert stopped["state"] == "cancelled"
    assert 1 <= stopped["done"] < stopped["count"]


def test_a_worker_killed_in_mid_job_fails_that_job_alone(client: TestClient) -> None:
    image = opened(client, ("scan.nii.gz", volume()[0]))["id"]
    first = client.post("/v1/jobs", json={"image": image, "phrases": ["slow"] * 20}).json()["id"]
    second = client.post("/v1/jobs", json={"image": image, "phrases": ["block"]}).json()["id"]
    deadline = time.monotonic() + 30
    while client.get(f"/v1/jobs/{first}").json()["done"] < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    (worker,) = client.app.state.service.modellers  # type: ignore[attr-defined]
    os.kill(worker.pid, signal.SIGKILL)
    for job in (first, second):
        client.get(f"/v1/jobs/{job}/events")
    failed, done = (client.get(f"/v1/jobs/{job}").json() for job in (first, second))
    assert failed["state"] == "failed"
    assert "the process that did this ended" in failed["error"]
    assert done["state"] == "done"
    assert client.get(f"/v1/results/{done['result']}").json()["found"]["concepts"][0]["pixels"] == 60


def test_a_task_that_takes_too_much_memory_or_time_fails_alone() -> None:
    with started(limits=Limits(worker_bytes=900 << 20)) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        image = opened(client)["id"]
        while client.get("/readyz").status_code != 200:
            time.sleep(0.1)
        session = begun(client, image)
        before = step(client, session, do="segment", phrase="block")
        greedy = client.post("/v1/jobs", json={"image": image, "phrases": ["greedy"]}).json()["id"]
        client.get(f"/v1/jobs/{greedy}/events")
        failed = client.get(f"/v1/jobs/{greedy}").json()
        assert failed["state"] == "failed"
        assert failed["error"] == "this took more than 900 MiB of memory and was stopped: ask for less at once"
        settings = service.settings
        service.settings = replace(settings, limits=Limits(step_s=3.0))
        stuck = client.post(f"{session}/steps", json={"do": "segment", "phrase": "stuck"})
        assert stuck.status_code == 504
        assert "took longer than 3 s and was stopped" in stuck.json()["detail"]
        service.settings = settings
        assert client.get(session).json() == before
        assert step(client, session, do="click", x=40, y=15)["steps"] == 2
        restarts = 'medsam3_restarts{worker="model-0"} 2.0'
        assert restarts in client.get("/metrics").text


def test_a_job_that_fails_says_why(client: TestClient) -> None:
    image = opened(client)["id"]
    job = client.post("/v1/jobs", json={"image": image, "boxes": [[100, 100, 120, 120]]}).json()
    client.get(f"/v1/jobs/{job['id']}/events")
    ended = client.get(f"/v1/jobs/{job['id']}").json()
    assert ended["state"] == "failed"
    assert "outside the image" in ended["error"]


def test_too_many_waiting_tasks_are_refused_and_say_when_to_come_back() -> None:
    with started(limits=Limits(waiting=1)) as client:
        image = opened(client, ("scan.nii.gz", volume()[0]))["id"]
        while client.get("/readyz").status_code != 200:
            time.sleep(0.1)
        asked = {"image": image, "phrases": ["slow"] * 9}
        job = client.post("/v1/jobs", json=asked).json()
        deadline = time.monotonic() + 20
        while client.get(f"/v1/jobs/{job['id']}").json()["state"] == "waiting" and time.monotonic() < deadline:
            time.sleep(0.02)
        refused = client.post("/v1/jobs", json=asked)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        client.delete(f"/v1/jobs/{job['id']}")


def test_a_job_that_was_taken_on_waits_where_a_step_is_refused() -> None:
    async def tried() -> None:
        worker = Worker("one", most_waiting=1, most_bytes=2**33)
        try:
            first = asyncio.create_task(worker.run(time.sleep, 0.5, limit_s=60))
            await asyncio.sleep(0.1)
            with pytest.raises(RefusedError, match="more to do"):
                await worker.run(time.sleep, 0, limit_s=60)
            await worker.run(time.sleep, 0, limit_s=60, progress=Progress())
            assert first.done()
        finally:
            worker.close()

    asyncio.run(tried())


def test_what_was_not_used_for_its_time_is_removed() -> None:
    with started(limits=Limits(kept_s=0.3)) as client:
        image = opened(client)["id"]
        holdings = client.app.state.service.holdings  # type: ignore[attr-defined]
        deadline = time.monotonic() + 10
        while list(holdings.folder.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert list(holdings.folder.iterdir()) == []
        assert client.get(f"/v1/images/{image}").status_code == 404
        folder = holdings.folder
    assert not folder.exists()


def test_several_pictures_are_frames_in_the_order_of_their_numbers(client: TestClient) -> None:
    def grey(value: int) -> bytes:
        stream = io.BytesIO()
        PIL.Image.fromarray(np.full((8, 9), value, dtype=np.uint8)).save(stream, "PNG")
        return stream.getvalue()

    image = opened(client, ("clip/f10.png", grey(100)), ("clip/f9.png", grey(90)), ("clip/f1.png", grey(10)))
    assert (image["kind"], image["frames"], image["name"]) == ("video", 3, "clip")
    values = [
        np.asarray(PIL.Image.open(io.BytesIO(client.get(f"/v1/images/{image['id']}/frames/{n}.png").content)))[0, 0, 0]
        for n in range(3)
    ]
    assert values == [10, 90, 100]


def test_upload_without_a_file_is_refused(client: TestClient) -> None:
    assert upload(client).status_code in (400, 422)
