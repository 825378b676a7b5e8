"""The page in a real browser, against a server in a process of its own; skipped where no Chromium is installed."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image
import pytest

import medsam3
from made_server import png
from slow_segmenter import SlowSegmenter

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]
SERVE = Path(__file__).parents[1] / "serve_fake.py"
WAIT_MS = 30_000


class Process:
    """A server that can be killed and started again at the same address."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self, *tokens: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, SERVE, str(self.port), *tokens], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address == f"http://127.0.0.1:{self.port}/"

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(20)


@pytest.fixture
def server() -> Iterator[Process]:
    process = Process()
    yield process
    if process.process.poll() is None:
        process.end()


@pytest.fixture
def page(server: Process) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1280, "height": 800})
        shown.set_default_timeout(WAIT_MS)
        errors: list[str] = []
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.on("console", lambda told: errors.append(told.text) if "Content Security" in told.text else None)
        shown.goto(server.address)
        shown.wait_for_selector("#found h3")  # the sample, segmented
        yield shown
        browser.close()
        assert errors == []


def opened(page: Any, path: Path) -> None:
    page.set_input_files("#files", str(path))
    page.wait_for_selector(f'#images [aria-current="true"][title="{path.name}"]')
    page.wait_for_selector("#found .empty")


def click_at(page: Any, x: float, y: float, width: int, height: int) -> None:
    """Click the picture's pixel (x, y); the picture of width x height is fitted into the canvas."""
    box = page.locator("#canvas").bounding_box()
    scale = min(box["width"] / width, box["height"] / height)
    left, top = box["x"] + (box["width"] - width * scale) / 2, box["y"] + (box["height"] - height * scale) / 2
    page.mouse.click(left + (x + 0.5) * scale, top + (y + 0.5) * scale)


def clicked(path: Path, x: float, y: float, *, positive: bool) -> medsam3.Masks:
    """The block after a click, by the library."""
    session = medsam3.Session(path, SlowSegmenter())
    session.segment("block")
    return session.click(x, y, positive=positive)


def taken(page: Any, form: str, folder: Path) -> Path:
    page.select_option("#format", form)
    with page.expect_download() as download:
        page.click("#take")
    path = folder / str(download.value.suggested_filename)
    download.value.save_as(path)
    return path


def test_a_picture_is_asked_clicked_undone_and_taken_away(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "block.png"
    path.write_bytes(png())
    opened(page, path)
    page.fill("#phrase", "block")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=The image shows it (presence 90\u00a0%): 1 object.")
    assert page.locator(".objects button.pick").inner_text() == "1: 150 px, score 0.75"
    click_at(page, 40, 15, 60, 40)
    wanted = clicked(path, 40, 15, positive=True).union()[0]
    page.wait_for_selector(f"text=1: {wanted.sum()} px")
    pixels = np.asarray(PIL.Image.open(taken(page, "png", tmp_path)))
    np.testing.assert_array_equal(pixels > 0, wanted)
    page.keyboard.press("Control+z")
    page.wait_for_selector("text=1: 150 px")
    assert page.locator("text=Not a medical device.").is_visible()
    page.click("#copy-shell")
    page.wait_for_selector("#copied:not(:empty)")


def test_the_keyboard_alone_is_enough(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "block.png"
    path.write_bytes(png())
    opened(page, path)
    page.keyboard.press("/")
    page.keyboard.type("block")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=1: 150 px")
    page.locator("#canvas").focus()
    page.keyboard.press("n")
    page.keyboard.press("ArrowUp")  # the cross begins in the middle, at (30, 20), and goes to the block at (30, 19)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"text=1: {clicked(path, 30, 19, positive=False).union().sum()} px")
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")


def test_a_volume_is_asked_scrolled_and_taken_away(page: Any, tmp_path: Path) -> None:
    voxels = np.zeros((12, 9, 5), dtype=np.uint8)
    voxels[2:6, 3:8, 1:4] = 200
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(nib.Nifti1Image(voxels, np.diag([-2.0, -3.0, 4.0, 1.0])).to_bytes()))
    opened(page, path)
    assert page.locator("#slice-number").inner_text() == "3 of 5"
    assert page.locator("#edge-left").inner_text() == "R"
    page.fill("#phrase", "block")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=1: 1.44 mL, score 0.75, slices 2 to 4")
    page.locator("#canvas").focus()
    page.keyboard.press("PageDown")
    page.wait_for_selector("#slice-number:text-is('3 of 5')")
    image = nib.load(taken(page, "nifti", tmp_path))
    np.testing.assert_array_equal(np.asarray(image.dataobj) > 0, voxels > 0)


def test_a_server_that_was_killed_is_noticed_and_the_work_goes_on(page: Any, server: Process, tmp_path: Path) -> None:
    path = tmp_path / "block.png"
    path.write_bytes(png())
    opened(page, path)
    page.fill("#phrase", "block")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=1: 150 px")
    click_at(page, 40, 15, 60, 40)
    page.wait_for_selector(f"text=1: {clicked(path, 40, 15, positive=True).union().sum()} px")
    left = set(Path(tempfile.gettempdir()).glob("medsam3-serve-*"))
    server.kill()
    page.wait_for_selector("#lost:not([hidden])")
    server.start()
    page.wait_for_selector("#lost", state="hidden")
    page.wait_for_selector("#undo:not([disabled])")
    page.keyboard.press("Control+z")
    page.wait_for_selector("text=1: 150 px")
    now = set(Path(tempfile.gettempdir()).glob("medsam3-serve-*"))
    assert len(now) <= len(left), "the killed server's folder was removed by the next one"


def test_the_page_asks_once_for_the_token(server: Process) -> None:
    server.end()
    server.start("0123456789abcdef")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(WAIT_MS)
        page.goto(server.address)
        page.fill("#token", "0123456789abcdef")
        page.keyboard.press("Enter")
        page.wait_for_selector("#found h3")
        assert not page.locator("#token-dialog").is_visible()
        browser.close()


def test_no_process_and_no_file_is_left_when_the_server_ends(server: Process) -> None:
    children = _children(server.process.pid)
    deadline = time.monotonic() + 20
    while not children and time.monotonic() < deadline:
        time.sleep(0.1)
        children = _children(server.process.pid)
    folders = {one for one in Path(tempfile.gettempdir()).glob("medsam3-serve-*")}
    assert children
    assert folders
    server.end()
    deadline = time.monotonic() + 10
    while any(_is_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_is_alive(pid) for pid in children)
    assert any(not folder.exists() for folder in folders)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(one) for one in tasks.read_text().split()] if tasks.exists() else []


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[-1][:3]
