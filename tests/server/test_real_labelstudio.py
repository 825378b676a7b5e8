"""The real Label Studio on this machine: a project, our backend, predictions of a task, and brushes that are right."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from test_labelstudio import block, decoded

from made_archive import free_port
from made_clients import asked, client_python, serving
from made_server import png

pytestmark = pytest.mark.slow
KEY = "0123456789abcdef0123456789abcdef01234567"
ACCOUNT = ("--username", "made@up.example", "--password", "made-up-password", "--user-token", KEY)
LOCAL = {"ML_BLOCK_LOCAL_IP": "false", "SSRF_PROTECTION_ENABLED": "false"}
"""Without these Label Studio takes no backend on its own machine; docs/clients/labelstudio.md says so."""
QUIET = {"COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": ""}
START_S = 1500


@pytest.fixture
def label_studio(tmp_path: Path) -> Iterator[str]:
    """Label Studio with a database of its own, which it takes about a minute to make."""
    program = client_python("labelstudio").with_name("label-studio")
    if not program.exists():
        pytest.skip("Label Studio is not installed: docs/clients/README.md says how")
    port = free_port()
    command = [str(program), "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port), *ACCOUNT]
    own = {"LABEL_STUDIO_BASE_DATA_DIR": str(tmp_path / "data"), "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true"}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    (tmp_path / "data").mkdir()
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, env={**kept, **own, **LOCAL, **QUIET}, stdout=log, stderr=log)
    try:
        root, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while not is_up(root):
            assert process.poll() is None, (tmp_path / "log").read_text(errors="replace")[-2000:]
            assert time.monotonic() < deadline, "Label Studio did not start"
            time.sleep(1)
        yield root
    finally:
        process.terminate()
        process.wait(60)


def is_up(root: str) -> bool:
    try:
        return httpx.get(f"{root}/health", timeout=30).status_code == 200
    except httpx.TransportError:
        return False


def test_a_task_gets_brushes_of_its_labels(label_studio: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "block.png").write_bytes(png())
    monkeypatch.setenv("LABEL_STUDIO_URL", label_studio)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", KEY)
    with serving("labelstudio") as address:
        backend = f"{address}/labelstudio"
        told: Any = asked(
            "labelstudio", "ask_labelstudio.py", label_studio, KEY, backend, tmp_path / "block.png", timeout_s=900
        )
    assert told["wrong"] == 400  # an address at which no backend answers
    assert told["source"].startswith("/data/upload/")
    (prediction,) = told["predictions"]
    assert prediction["model_version"] == "medsam3 threshold"
    assert [one["value"]["brushlabels"] for one in prediction["result"]] == [["liver"], ["K"]]
    for mask in decoded(prediction["result"], tmp_path):
        np.testing.assert_array_equal(mask, block())
