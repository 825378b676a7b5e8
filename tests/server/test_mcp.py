"""The protocol's own client, over stdio, over HTTP and in one process, against tools with a model without weights."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from PIL import Image as Picture

from medsam3.io.measures import Measures
from medsam3.server.mcp import Places, mcp_server
from threshold_segmenter import ThresholdSegmenter

mcp = pytest.importorskip("mcp", reason="mcp is not installed: pip install 'medsam3[mcp]'")
TOOLS = {"segment", "session", "save", "measure", "info", "concepts", "convert"}


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """One picture with a bright rectangle of 10 x 6 pixels, beside a file that is none of the tools' business."""
    folder = tmp_path / "scans"
    folder.mkdir()
    pixels = np.zeros((30, 40), dtype=np.uint8)
    pixels[5:11, 8:18] = 255
    Picture.fromarray(pixels).save(folder / "a.png")
    (tmp_path / "secret.png").write_bytes((folder / "a.png").read_bytes())
    return folder


async def called(client: Any, name: str, **arguments: Any) -> Any:
    answer = await client.call_tool(name, arguments)
    assert not answer.is_error, answer.content
    return answer.structured_content


async def refusal(client: Any, name: str, **arguments: Any) -> str:
    answer = await client.call_tool(name, arguments)
    assert answer.is_error
    text: str = answer.content[0].text
    return text


def with_client(folder: Path, questions: Any, *, shows: bool = False) -> None:
    """Ask questions of a server in this process."""

    async def run() -> None:
        places = Places((folder,), folder.parent / "out")
        async with mcp.Client(mcp_server(ThresholdSegmenter, places, shows=shows)) as client:
            await questions(client)

    anyio.run(run)


def test_an_image_is_segmented_corrected_saved_and_measured(scans: Path) -> None:
    async def questions(client: Any) -> None:
        opened = await called(client, "segment", path="a.png", phrases=["polyp", "absent"])
        polyp, absent = opened["found"]["concepts"]
        assert (polyp["phrase"], polyp["is_present"], polyp["pixels"]) == ("polyp", True, 60)
        assert (absent["is_present"], absent["pixels"]) == (False, 0)
        name = opened["session"]
        step = {"do": "box", "box": [8, 5, 12, 10]}
        changed = await called(client, "session", session=name, step=step)
        assert len(changed["found"]["objects"]) == 2
        undone = await called(client, "session", session=name, step={"do": "undo"})
        assert undone["found"]["objects"] == opened["found"]["objects"]
        (mask,) = (await called(client, "save", session=name, formats=["png"]))["result"]
        assert (np.asarray(Picture.open(mask)) > 0).sum() == 60
        again = (await called(client, "save", session=name, formats=["png"]))["result"]
        assert again != [mask]
        rows = (await called(client, "measure", masks=mask, image="a.png"))["result"]
        assert [row["voxels"] for row in rows] == [60]
        assert list(rows[0]) == [field.name for field in fields(Measures)]
        nrrd = (await called(client, "convert", masks=mask, image="a.png", to="nrrd"))["result"]
        assert Path(nrrd).is_file()

    with_client(scans, questions)


def test_facts_and_concepts_are_told(scans: Path) -> None:
    async def questions(client: Any) -> None:
        told = await called(client, "info", path="a.png")
        assert (told["rows"], told["columns"]) == (30, 40)
        listed = (await called(client, "concepts", query="optic cup", limit=3))["result"]
        assert listed[0]["name"] == "optic cup"
        assert len(listed) <= 3

    with_client(scans, questions)


def test_pictures_go_out_only_if_that_was_asked_for(scans: Path) -> None:
    async def without(client: Any) -> None:
        assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS

    async def looking(client: Any) -> None:
        opened = await called(client, "segment", path="a.png", phrases=["polyp"])
        answer = await client.call_tool("look", {"session": opened["session"]})
        assert answer.content[0].mime_type == "image/png"

    with_client(scans, without)
    with_client(scans, looking, shows=True)


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("segment", {"path": "../secret.png", "phrases": ["polyp"]}, "outside the folders"),
        ("info", {"path": "/etc/hostname"}, "outside the folders"),
        ("info", {"path": "b.png"}, "does not exist"),
        ("segment", {"path": "a.png", "phrases": [""]}, "phrase is empty"),
        ("segment", {"path": "a.png", "phrases": ["no liver"]}, "liver"),
        ("save", {"session": "gone"}, "no session"),
        ("session", {"step": {"do": "undo"}}, "either session, or path"),
        ("session", {"path": "a.png", "step": {"do": "click", "x": 500, "y": 2}}, "outside"),
        ("convert", {"masks": "a.png", "to": "docx"}, "allowed are"),
    ],
)
def test_bad_input_is_told_in_one_line(scans: Path, tool: str, arguments: dict[str, Any], said: str) -> None:
    async def questions(client: Any) -> None:
        text = await refusal(client, tool, **arguments)
        assert said in text
        assert "\n" not in text

    with_client(scans, questions)
    assert not (scans.parent / "out").exists() or not any((scans.parent / "out").iterdir())


def test_a_link_out_of_the_folder_is_not_followed(scans: Path) -> None:
    (scans / "link.png").symlink_to(scans.parent / "secret.png")

    async def questions(client: Any) -> None:
        assert "outside the folders" in await refusal(client, "info", path="link.png")

    with_client(scans, questions)


@pytest.mark.weights
def test_the_command_answers_over_stdio_with_the_small_model(scans: Path) -> None:
    async def run() -> None:
        command = ["-m", "medsam3", "mcp", "--data", str(scans), "--out", str(scans.parent / "out")]
        server = mcp.StdioServerParameters(command=sys.executable, args=command)
        async with mcp.Client(server, read_timeout_seconds=120) as client:
            assert {tool.name for tool in (await client.list_tools()).tools} == TOOLS
            opened = await called(client, "segment", path="a.png", phrases=["polyp"])
            assert opened["found"]["concepts"][0]["presence"] is not None

    anyio.run(run)


def test_the_command_answers_over_http_on_this_machine(scans: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "medsam3", "mcp", "--transport", "http", "--port", str(port), "--data", str(scans)]
    with subprocess.Popen(command, cwd=scans.parent, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port)

            async def run() -> None:
                async with mcp.Client(f"http://127.0.0.1:{port}/mcp") as client:
                    assert (await called(client, "info", path="a.png"))["rows"] == 30

            anyio.run(run)
        finally:
            process.terminate()


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("the server did not start")
