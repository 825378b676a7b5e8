"""The page in Debian's Chromium, against a server in a process of its own that can be killed and started again."""

from __future__ import annotations

import io
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)
WITH_GL = ("--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
WITHOUT_GL = ("--no-sandbox", "--disable-gpu", "--disable-3d-apis")
WAIT_MS = 300_000
HERO = 0.64
"""Share of the viewer that the slices take beside the two other planes."""
FAKE = (sys.executable, str(Path(__file__).with_name("serve_fake.py")), "{port}")
MINI = (sys.executable, "-m", "medsam3", "serve", "--port", "{port}")


class Process:
    """A server at an address of its own; the fake model unless another command is given."""

    def __init__(self, command: Sequence[str] = FAKE) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = command
        self.start()

    def start(self, *more: str) -> None:
        words = [word.format(port=self.port) for word in (*self.command, *more)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = f"http://127.0.0.1:{self.port}/"
        assert self.address in self.process.stdout.readline()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def end(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(120)


@contextmanager
def serving(command: Sequence[str] = FAKE) -> Iterator[Process]:
    process = Process(command)
    try:
        yield process
    finally:
        if process.process.poll() is None:
            process.end()


@contextmanager
def browsing(arguments: Sequence[str] = WITHOUT_GL) -> Iterator[Any]:
    """A browser that has WebGL or not by its arguments, whatever the machine: volumes are laid out by that."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  tests without it are skipped

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(arguments))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def shown(browser: Any, address: str, width: int = 1280, height: int = 800) -> Iterator[Any]:
    """The page with its sample segmented, which must raise no error and break no rule of the Content-Security-Policy.

    It has a context of its own, as another person's browser.
    """
    context = browser.new_context(
        viewport={"width": width, "height": height}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    page.set_default_timeout(WAIT_MS)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda told: errors.append(told.text) if "Content Security" in told.text else None)
    page.set_default_navigation_timeout(WAIT_MS)
    page.goto(address)
    page.wait_for_selector("#found h3")
    idle(page)
    yield page
    context.close()
    assert errors == []


def idle(page: Any) -> None:
    """Wait until nothing is under way."""
    page.wait_for_selector("#find:not([disabled])")


def drop(page: Any, *paths: Path) -> None:
    """Drop files or folders on the page, as a person does from a file manager."""
    box = page.locator("#stage").bounding_box()
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    driver = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        driver.send("Input.dispatchDragEvent", {"type": kind, **at, "data": data})


def dropped(page: Any, path: Path, name: str | None = None) -> None:
    """Drop one file or folder, and wait until it is shown."""
    drop(page, path)
    page.wait_for_selector(f'#images [aria-current="true"][title="{name or path.name}"]')
    page.wait_for_selector("#found .empty")
    idle(page)


def ask(page: Any, phrase: str) -> None:
    page.fill("#phrase", phrase)
    page.keyboard.press("Enter")
    page.wait_for_selector("#found h3")
    idle(page)


def place_of(page: Any, u: float, v: float, size: tuple[float, float], wide: float = 1.0) -> tuple[float, float]:
    """Where a picture's pixel (u, v), as it is seen, lies on the page; worked out without the page's own code.

    Args:
        page: The page, its picture fitted.
        u: Column.
        v: Row.
        size: (width, height) of the picture, pixels being square.
        wide: Share of the viewer's width that it is fitted into: `HERO` of three planes.
    """
    box = page.locator("#canvas").bounding_box()
    width = box["width"] * wide
    scale = min(width / size[0], box["height"] / size[1])
    left, top = box["x"] + (width - size[0] * scale) / 2, box["y"] + (box["height"] - size[1] * scale) / 2
    return left + (u + 0.5) * scale, top + (v + 0.5) * scale


def click(page: Any, at: tuple[float, float]) -> None:
    page.mouse.click(*at)
    idle(page)


def drag(page: Any, *points: tuple[float, float]) -> None:
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()
    idle(page)


def taken(page: Any, form: str, folder: Path) -> Path:
    page.select_option("#format", form)
    with page.expect_download() as download:
        page.click("#take")
    path = folder / str(download.value.suggested_filename)
    download.value.save_as(path)
    idle(page)
    return path


def pixels(page: Any, name: str = "#stage") -> Any:
    """What is seen of an element, (H, W, 3)."""
    return np.asarray(PIL.Image.open(io.BytesIO(page.locator(name).screenshot())).convert("RGB"))
