"""A server on a port of its own, and the real clients of other tools, each in an environment of its own.

`MEDSAM3_CLIENTS` names the folder of these environments (docs/clients/README.md says how to make them); a test whose
client is not there is skipped.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient

from made_server import started
from medsam3.server.app import make_app
from medsam3.server.clients import dialects_named
from medsam3.server.settings import Settings
from slow_segmenter import load_taught

TOKEN = "a-token-of-the-tests-0123456789"
SCRIPTS = Path(__file__).parent / "server" / "clients"


@contextmanager
def serving(*clients: str, **changes: Any) -> Iterator[str]:
    """Serve the fake model that was taught liver and kidney, in a thread; gives the address."""
    settings = Settings(**{"model": "taught", "load": load_taught, "clients": dialects_named(clients), **changes})
    server = uvicorn.Server(uvicorn.Config(make_app(settings), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


def client_python(name: str) -> Path:
    """The interpreter of a client's environment; skips the test if there is none."""
    folder = os.environ.get("MEDSAM3_CLIENTS")
    python = Path(folder or "nowhere") / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"the client {name} is not installed: MEDSAM3_CLIENTS names no folder with it")
    return python


def asked(client: str, script: str, *arguments: object, timeout_s: float = 600) -> Any:
    """Run a script with a real client and give the JSON that it prints last."""
    done = subprocess.run(
        [client_python(client), SCRIPTS / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def scan() -> tuple[bytes, np.ndarray[Any, Any]]:
    """A gzipped NIfTI of (x, y, z) 12 x 9 x 5 voxels, oblique: 150 in a block on slices 1 to 3, 250 in its midst."""
    voxels = np.zeros((12, 9, 5), dtype=np.uint8)
    voxels[2:8, 3:8, 1:4] = 150
    voxels[3:6, 4:6, 2] = 250
    c, s = np.cos(0.2), np.sin(0.2)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag([-0.8, -1.3, 3.0])
    affine[:3, 3] = [12, 7, -31]
    return gzip.compress(nib.Nifti1Image(voxels, affine).to_bytes()), voxels


@contextmanager
def dialect_client(*names: str, **changes: Any) -> Iterator[TestClient]:
    """A server inside this process that speaks the named dialects, once its model is loaded."""
    with started(**{"load": load_taught, "clients": dialects_named(names), **changes}) as client:
        deadline = time.monotonic() + 60
        while client.get("/readyz").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        yield client
