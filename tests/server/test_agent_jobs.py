"""The agent over HTTP: steps as they happen, a transcript, and nothing sent before it was said what goes where."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import pytest
from starlette.testclient import TestClient

from blocks_segmenter import load_blocks
from llm_server import KEY, Answer, Call, LlmServer, Request
from made_server import opened, started
from medsam3.errors import InputError
from medsam3.server.settings import Settings

SEGMENT = Answer("I ask.", (Call("segment", {"phrase": "nodule"}),))
ACCEPT = Answer("", (Call("accept", {"masks": [1], "reason": "the larger one"}),))
LOOK = Answer("", (Call("look", {"window": [0, 0, 500, 500]}), Call("next_slice", {})))


def scripted(request: Request) -> Answer:
    """Segment and accept; look for ever if that is asked for."""
    if "for ever" in request.text:
        return LOOK
    return ACCEPT if "I ask." in request.text else SEGMENT


def two_blocks() -> bytes:
    """A dark picture with bright blocks of 8 x 10 and 4 x 5 pixels."""
    pixels = np.full((40, 48), 20, dtype=np.uint8)
    pixels[6:14, 8:18] = 220
    pixels[28:32, 30:35] = 220
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def llm() -> Iterator[LlmServer]:
    with LlmServer(scripted) as server:
        yield server


@pytest.fixture(scope="module")
def agent(llm: LlmServer) -> Iterator[TestClient]:
    pytest.importorskip("pydantic_ai")
    with pytest.MonkeyPatch.context() as patch:
        model = llm.model(patch, "openai")
        with started(model="blocks", load=load_blocks, llm=model, sends_images=True) as client:
            yield client


def ended(client: TestClient, asked: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The steps that the events of a job tell, and the job at its end."""
    begun = client.post("/v1/jobs", json=asked)
    assert begun.status_code == 202, begun.text
    place = f"/v1/jobs/{begun.json()['id']}"
    events = [one.split("\n") for one in client.get(f"{place}/events").text.strip().split("\n\n")]
    steps = [json.loads(lines[-1].removeprefix("data: ")) for lines in events if lines[0] == "event: step"]
    return steps, client.get(place).json() | {"place": place}


def test_an_instruction_is_followed_without_an_llm_and_its_steps_are_told(agent: TestClient) -> None:
    image = opened(agent, ("two.png", two_blocks()))["id"]
    steps, job = ended(agent, {"kind": "agent", "image": image, "instruction": "the larger of the two nodules"})
    assert job["state"] == "done", job
    assert [one["number"] for one in steps] == list(range(1, len(steps) + 1))
    assert (steps[0]["call"], steps[-1]["call"]) == ("segment", "accept")
    assert (job["agent"]["outcome"], job["agent"]["usage"]["requests"]) == ("found", 0)
    taken = agent.get(f"/v1/results/{job['result']}?format=png")
    mask = np.asarray(PIL.Image.open(io.BytesIO(taken.content))) > 0
    assert mask[6:14, 8:18].all() and mask.sum() == 80
    page = agent.get(f"{job['place']}/transcript")
    assert page.headers["content-disposition"].startswith("attachment")
    assert "the larger of the two nodules" in page.text and "two.png" not in page.text


def test_nothing_goes_anywhere_without_an_llm(client: TestClient) -> None:
    image = opened(client, ("two.png", two_blocks()))["id"]
    asked = {"image": image, "instruction": "nodule"}
    assert client.get("/v1/agent").json() == {"llm": None, "sent_to": None, "may_send_images": False}
    said = client.post("/v1/agent/preview", json=asked).json()
    assert (said["sent_to"], said["text"], said["pictures"]) == (None, "", [])
    refused = client.post("/v1/jobs", json={"kind": "agent", **asked, "policy": "llm"})
    assert refused.status_code == 400 and "no LLM was set up" in refused.json()["detail"]
    assert client.post("/v1/jobs", json={"kind": "dream", "image": image}).status_code == 422
    segmented = client.post("/v1/jobs", json={"image": image, "phrases": ["nodule"]}).json()["id"]
    client.get(f"/v1/jobs/{segmented}/events")
    assert client.get(f"/v1/jobs/{segmented}/transcript").status_code == 404


@pytest.mark.parametrize("sends_images", [True, False])
def test_an_llm_is_asked_only_after_what_is_sent_was_shown(
    agent: TestClient, llm: LlmServer, sends_images: bool
) -> None:
    llm.requests.clear()
    image = opened(agent, ("Mrs Doe.png", two_blocks()))["id"]
    asked = {"kind": "agent", "image": image, "instruction": "the larger nodule", "policy": "llm"}
    asked |= {"send_images": sends_images}
    refused = agent.post("/v1/jobs", json=asked)
    assert refused.status_code == 400 and "/v1/agent/preview" in refused.json()["detail"]
    said = agent.post("/v1/agent/preview", json=asked).json()
    assert (said["sent_to"], said["model"], llm.requests) == ("openai", "gpt-4o", [])
    other = agent.post("/v1/jobs", json=asked | {"instruction": "another", "consent": said["consent"]})
    assert other.status_code == 400
    steps, job = ended(agent, asked | {"consent": said["consent"]})
    assert job["state"] == "done", job
    assert [one["call"] for one in steps] == ["segment", "accept"]
    first = llm.requests[0]
    assert said["system"] in first.text and said["text"] in first.text and "Doe" not in str(first.body)
    assert [base64.b64decode(one["png"]) for one in said["pictures"]] == list(first.pictures)
    assert len(first.pictures) == sends_images
    page = agent.get(f"{job['place']}/transcript").text
    assert KEY not in page and "the larger one" in page


def test_a_run_of_the_agent_can_be_stopped(agent: TestClient) -> None:
    image = opened(agent, ("two.png", two_blocks()))["id"]
    asked = {"kind": "agent", "image": image, "instruction": "look for ever", "policy": "llm", "rounds": 20}
    consent = agent.post("/v1/agent/preview", json=asked).json()["consent"]
    job = agent.post("/v1/jobs", json=asked | {"consent": consent}).json()["id"]
    deadline = time.monotonic() + 30
    while agent.get(f"/v1/jobs/{job}").json()["state"] == "waiting" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert agent.delete(f"/v1/jobs/{job}").json()["state"] == "cancelled"


def test_pictures_do_not_leave_a_server_that_was_not_started_to_send_them() -> None:
    with started(model="blocks", load=load_blocks, llm="http://127.0.0.1:9/v1#none") as client:
        image = opened(client, ("two.png", two_blocks()))["id"]
        asked = {"image": image, "instruction": "nodule", "policy": "llm", "send_images": True}
        refused = client.post("/v1/agent/preview", json=asked)
        assert refused.status_code == 400 and "pictures may not leave this server" in refused.json()["detail"]
    with pytest.raises(InputError, match="none is named"):
        Settings(sends_images=True)
