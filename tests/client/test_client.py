"""`medsam3.Client` against a real server on loopback: its answers are those of the library, voxel by voxel."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
import pytest
from pydantic import BaseModel

import medsam3
from made_files import files, volume
from made_server import serving
from medsam3.client import wire
from medsam3.client.connection import ServerError
from medsam3.image import Image, Masks, Window
from medsam3.segmentation.options import TrackingRules
from medsam3.server import schemas
from slow_segmenter import SlowSegmenter

TOKEN = "t" * 32


@pytest.fixture(scope="module")
def client() -> Iterator[medsam3.Client]:
    with serving(TOKEN) as address, medsam3.Client(address, TOKEN) as client:
        yield client


def assert_same(found: Sequence[Masks], wanted: Sequence[Masks]) -> None:
    """Everything but the image, and the place of that."""
    assert [replace(one, image=None) for one in found] == [replace(one, image=None) for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.image is not None and other.image is not None
        assert (one.image.affine is None) == (other.image.affine is None)
        if one.image.affine is not None and other.image.affine is not None:
            np.testing.assert_array_equal(one.image.affine, other.image.affine)


@pytest.mark.parametrize("name", ["block.png", "scan.nii.gz", "study", "brain.mhd", "clip"])
def test_files_are_segmented_as_the_library_does(client: medsam3.Client, tmp_path: Path, name: str) -> None:
    path = files(tmp_path)[name]
    told: list[tuple[int, int]] = []
    found = client.segment(path, ["block", "absent"], progress=lambda done, count: told.append((done, count)))
    wanted = medsam3.segment(path, ["block", "absent"], SlowSegmenter())
    assert_same(found, wanted)
    assert len(found[0]) and found[0].union().sum() == wanted[0].union().sum()


def test_what_is_in_memory_is_segmented_with_its_window_and_place(client: medsam3.Client) -> None:
    affine = np.array([[0, 0, -0.7, 5], [0, 2.5, 0, 6], [4, 0, 0, 7], [0, 0, 0, 1.0]])
    grey = Image(volume().transpose(2, 1, 0)[..., None].astype(np.int16) - 90, "volume", affine, window=Window(0, 200))
    real = np.linspace(0, 1, 8 * 9).reshape(8, 9)
    colour = np.zeros((8, 9, 3), dtype=np.uint8)
    colour[2:5, 3:7] = 255
    for image in (grey, real, colour, replace(grey, affine=None), replace(grey, metadata={"modality": "CT"})):
        assert_same(client.segment(image, "block"), medsam3.segment(image, "block", SlowSegmenter()))
    placed = client.segment(real, "block", spacing_mm=(1, 2))
    assert_same(placed, medsam3.segment(real, "block", SlowSegmenter(), spacing_mm=(1, 2)))


def test_prompts_and_settings_are_heeded_as_by_the_library(client: medsam3.Client, tmp_path: Path) -> None:
    path = files(tmp_path)["scan.nii.gz"]
    box = medsam3.Box(1, 2, 7, 9)
    prompts = [
        medsam3.Prompt("block", boxes=(box,)),
        medsam3.Prompt(boxes=(box,), points=(medsam3.Point(3, 4), medsam3.Point(9, 9, False))),
        medsam3.Prompt("block", exemplars=(box, medsam3.Box(8, 8, 9, 9, is_positive=False))),
    ]
    options = medsam3.Options(at=2, window=Window(10.5, 180.25), tracking=TrackingRules(match_iou=0.2))
    with client.open(path) as image:
        found = client.segment(image, prompts, options, frames=[1, 2, 3])
        assert_same(found, medsam3.segment(path, prompts, SlowSegmenter(), options, frames=[1, 2, 3]))
        assert_same(
            client.segment(image, "block", threshold=0.9),
            medsam3.segment(path, "block", SlowSegmenter(), threshold=0.9),
        )
        vote = medsam3.Options(plane="vote")
        assert_same(client.segment(image, "block", vote), medsam3.segment(path, "block", SlowSegmenter(), vote))
    with pytest.raises(medsam3.InputError, match="journal and encode are of this machine"):
        client.segment(path, "block", medsam3.Options(journal=tmp_path / "j"))


def test_a_session_is_that_of_the_library_step_by_step(client: medsam3.Client, tmp_path: Path) -> None:
    path = files(tmp_path)["scan.nii.gz"]
    here = medsam3.Session(path, SlowSegmenter())
    with client.session(path) as there:
        steps: tuple[Callable[[Any], Masks], ...] = (
            lambda s: s.segment("block"),
            lambda s: s.click(9, 9, frame=2),
            lambda s: s.scribble([(3, 4), (5, 6)], positive=False, frame=2),
            lambda s: s.box(1, 1, 6, 8, frame=1),
            lambda s: s.paint([(10, 3), (12, 9)], radius=1.5, frame=4),
            lambda s: s.exemplar(1, 1, 6, 8, phrase="spot", frame=3),
            lambda s: s.undo(),
            lambda s: s.redo(),
            lambda s: s.select(0),
            lambda s: s.propagate(0),
            lambda s: s.accept(0),
            lambda s: s.remove(1),
        )
        for ask in steps:
            assert_same([ask(there)], [ask(here)])
            assert_same(there.masks_by_concept, here.masks_by_concept)
            assert (there.current, there.touched) == (here.current, here.touched)
            assert [one.number for one in there.objects] == [one.number for one in here.objects]
        assert_same([there.object_masks(0)], [here.object_masks(0)])
        with pytest.raises(medsam3.InputError, match="outside the image of 14 x 11 pixels"):
            there.click(99, 1, frame=2)
        with pytest.raises(medsam3.InputError, match="there is no object 77"):
            there.object_masks(77)


def test_a_job_can_be_watched_stopped_and_its_file_saved(client: medsam3.Client, tmp_path: Path) -> None:
    with client.open(files(tmp_path)["scan.nii.gz"]) as image:
        job = client.start(image, "block")
        saved = job.save("nifti", tmp_path / "out")
        assert saved.name.endswith("_mask.nii.gz")
        wanted = medsam3.segment(tmp_path / "scan.nii.gz", "block", SlowSegmenter())[0].union()
        np.testing.assert_array_equal(np.asarray(nib.load(saved).dataobj).transpose(2, 1, 0) > 0, wanted)
        slow = client.start(image, ["slow", "slow one"] * 20)
        assert slow.cancel() == "cancelled"
        with pytest.raises(ServerError, match="the job was stopped"):
            slow.wait()
        failed = client.start(image, "kill")
        with pytest.raises(ServerError, match="the process that did this ended"):
            failed.wait()


def test_the_agent_follows_an_instruction_there(client: medsam3.Client, tmp_path: Path) -> None:
    steps: list[str] = []
    found = client.agent(
        files(tmp_path)["block.png"],
        "block",
        transcript=tmp_path / "t",
        on_step=lambda step: steps.append(step["call"]),
    )
    here = medsam3.agent.run(medsam3.read(tmp_path / "block.png"), "block", SlowSegmenter())
    assert replace(found.verdict, marks=here.verdict.marks) == here.verdict and found.rounds == here.rounds
    assert_same([found.masks], [replace(here.masks, image=found.masks.image)])
    assert steps[-1] == "accept" and found.transcript is not None and "block" in found.transcript.read_text()
    with pytest.raises(medsam3.InputError, match="no LLM was set up"):
        client.agent(tmp_path / "block.png", "block", llm="google")


def test_a_refused_token_and_a_dead_server_are_told_in_one_line(client: medsam3.Client) -> None:
    for token in (None, "wrong" * 8):
        with pytest.raises(medsam3.InputError, match="refuses the token"):
            medsam3.Client(client._connection.url, token).segment(np.zeros((5, 5), np.uint8), "block")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(medsam3.InputError, match=f"no server answers at {address} .*medsam3 serve"):
        medsam3.Client(address).segment(np.zeros((5, 5), np.uint8), "block")
    for wrong, said in (("ftp://x", "allowed is an address"), ("x", "allowed is"), ("http://a:b@c", "token by itself")):
        with pytest.raises(medsam3.InputError, match=said):
            medsam3.Client(wrong)


class Busy(http.server.BaseHTTPRequestHandler):
    """Busy twice, then gives the models; what is no model is not ours."""

    asked: ClassVar[list[float]] = []

    def do_GET(self) -> None:
        self.asked.append(time.monotonic())
        is_busy = len(self.asked) <= 2
        self.send_response(503 if is_busy else 200)
        if is_busy:
            self.send_header("Retry-After", "1")
        self.end_headers()
        about = b'[{"name": "m", "concepts": [], "is_ready": true}]'
        self.wfile.write(b'{"detail": "the server has more to do"}' if is_busy else about)

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_: object) -> None:
        pass


def test_a_busy_server_is_asked_again_when_it_says() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert medsam3.Client(address).model()["name"] == "m"
        first, second, third = Busy.asked
        assert second - first >= 1 and third - second >= 1
        Busy.asked.clear()
        with pytest.raises(ServerError, match=r"the server has more to do \(waited 0 s\)") as caught:
            medsam3.Client(address, patience_s=0).model()
        assert caught.value.status == 503
        with pytest.raises(medsam3.InputError, match="not as medsam3 serve does"):
            medsam3.Client(address).segment(np.zeros((5, 5), np.uint8), "block")
        server.shutdown()


@pytest.mark.parametrize(
    ("read", "written"),
    [
        (wire.PromptBody, schemas.PromptAsked),
        (wire.ImageTold, schemas.ImageAnswer),
        (wire.FoundTold, schemas.Found),
        (wire.SessionTold, schemas.SessionAnswer),
        (wire.AgentTold, schemas.AgentAnswer),
        (wire.JobTold, schemas.JobAnswer),
        (wire.AgentStepTold, schemas.AgentStep),
        (wire.ModelTold, schemas.ModelAnswer),
        (wire.PhraseTold, schemas.PhraseAnswer),
        (wire.PoliciesTold, schemas.PoliciesAnswer),
    ],
)
def test_the_server_has_every_field_that_the_client_knows(read: type, written: type[BaseModel]) -> None:
    assert read.__annotations__.keys() <= written.model_fields.keys()
