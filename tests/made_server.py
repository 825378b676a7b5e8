"""A server with the fast fake model, and what is asked of it through its HTTP client."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from starlette.testclient import TestClient

from medsam3.server.app import make_app
from medsam3.server.settings import Settings
from slow_segmenter import load_fake


@contextmanager
def started(**changes: Any) -> Iterator[TestClient]:
    settings = Settings(**{"model": "threshold", "load": load_fake, **changes})
    with TestClient(make_app(settings), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def serving(*tokens: str, port: int = 0) -> AbstractContextManager[str]:
    """A server with the fake model in a process of its own, at an address."""
    return _process(str(Path(__file__).parent / "serve_fake.py"), str(port), *tokens)


def serving_mini(*more: str) -> AbstractContextManager[str]:
    """`medsam3 serve` as a user starts it."""
    return _process("-m", "medsam3", "serve", "--port", "0", *more)


@contextmanager
def _process(*arguments: str) -> Iterator[str]:
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = process.stdout.readline()
            yield next(word for word in told.split() if word.startswith("http")).rstrip("/")
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def png(height: int = 40, width: int = 60) -> bytes:
    """A black picture with a bright block on rows 10 to 19 and columns 20 to 34."""
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[10:20, 20:35] = 255
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def upload(client: TestClient, *files: tuple[str, bytes], **more: Any) -> Any:
    return client.post("/v1/images", files=[("files", one) for one in files], **more)


def opened(client: TestClient, *files: tuple[str, bytes]) -> dict[str, Any]:
    answer = upload(client, *(files or (("block.png", png()),)))
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def begun(client: TestClient, image: str) -> str:
    answer = client.post(f"/v1/images/{image}/sessions", json={})
    assert answer.status_code == 201, answer.text
    return f"/v1/images/{image}/sessions/{answer.json()['id']}"


def step(client: TestClient, session: str, **asked: Any) -> dict[str, Any]:
    answer = client.post(f"{session}/steps", json=asked)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found
