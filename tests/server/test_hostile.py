"""What nobody should send: every case of a folder of hostile and odd files, mutated files, and fuzzed requests.

The server answers each with success or a problem document, keeps no path of its own in it, and lives on.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from made_files import files
from made_server import begun, png, serving, upload

CASES = Path(os.environ.get("MEDSAM3_CASES", Path(__file__).parents[2].parent / "shared" / "cases"))
LARGEST = 20 * 2**20
FUZZ = shutil.which("schemathesis") or shutil.which("schemathesis", path=str(Path(sys.executable).parent))


def case_uploads() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Each file by itself, and each folder as one image."""
    for path in sorted(CASES.rglob("*")):
        if path.is_file() and path.suffix != ".py" and path.stat().st_size <= LARGEST:
            yield str(path.relative_to(CASES)), [(path.name, path.read_bytes())]
        elif path.is_dir():
            inside = [one for one in sorted(path.iterdir()) if one.is_file() and one.stat().st_size <= LARGEST]
            if len(inside) > 1:
                yield f"{path.relative_to(CASES)}/", [(f"{path.name}/{one.name}", one.read_bytes()) for one in inside]


def tried(client: TestClient, name: str, sent: list[tuple[str, bytes]]) -> int:
    """Upload, look at, ask and take away as far as it goes; every answer is in order."""
    status = answered(name, upload(client, *sent))
    if status.status_code != 201:
        return int(status.status_code)
    image = f"/v1/images/{status.json()['id']}"
    for place in (f"{image}/frames/0.png", f"{image}/thumbnail.png", f"{image}/volume.nii"):
        answered(name, client.get(place))
    session = begun(client, image.rsplit("/", 1)[-1])
    answered(name, client.post(f"{session}/steps", json={"do": "segment", "phrase": "block", "frame": 0}))
    answered(name, client.post(f"{session}/steps", json={"do": "paint", "points": [[1, 1]], "frame": 0}))
    kept = client.post(f"{session}/results").json()
    for form in ("png", "nifti", "csv"):
        answered(name, client.get(f"/v1/results/{kept['id']}?format={form}"))
    assert client.delete(image).status_code == 204
    return 201


def answered(name: str, answer: Any) -> Any:
    """Check that an answer is success, or a problem document of one line without a path of the server's."""
    assert answer.status_code < 500, f"{name}: {answer.status_code} {answer.text[:300]}"
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/problem+json", name
        detail = answer.json()["detail"]
        assert "\n" not in detail and "medsam3-server-" not in detail and len(detail) < 1000, f"{name}: {detail}"
    return answer


@pytest.mark.slow
@pytest.mark.skipif(not CASES.is_dir(), reason="no folder of cases: set MEDSAM3_CASES")
def test_every_case_is_answered_in_order_and_the_server_lives_on(client: TestClient) -> None:
    statuses = [tried(client, name, sent) for name, sent in case_uploads()]
    assert 201 in statuses and 400 in statuses
    assert client.get("/healthz").status_code == 200
    restarts = [line for line in client.get("/metrics").text.splitlines() if line.startswith("medsam3_restarts{")]
    assert all(line.endswith(" 0.0") for line in restarts), restarts


def mutations(content: bytes, rng: random.Random) -> Iterator[bytes]:
    """Bytes changed, taken out, put in twice, and the end cut off."""
    for _ in range(3):
        changed = bytearray(content)
        for _ in range(rng.choice((1, 8, 64))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        yield bytes(changed)
    at, length = rng.randrange(len(content)), rng.randrange(1, 40)
    yield content[:at] + content[at + length :]
    yield content[:at] + content[at : at + length] + content[at:]
    yield content[: rng.randrange(1, len(content))]


def test_mutated_files_are_answered_in_order_and_the_server_lives_on(client: TestClient, tmp_path: Path) -> None:
    rng, made = random.Random(5), files(tmp_path)
    single = [made["block.png"], made["scan.nii.gz"], min((tmp_path / "study").iterdir())]
    for path in single:
        for content in mutations(path.read_bytes(), rng):
            answered(path.name, upload(client, (path.name, content)))
    pair = [("brain.mhd", (tmp_path / "brain.mhd").read_bytes()), ("brain.raw", (tmp_path / "brain.raw").read_bytes())]
    for content in mutations(pair[0][1], rng):
        answered("brain.mhd", upload(client, ("brain.mhd", content), pair[1]))
    assert upload(client, ("block.png", png())).status_code == 201


@pytest.mark.parametrize(
    ("frames", "about"),
    [
        (b"", b"{}"),
        (
            b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False, 'shape': (1, 2, 2, 1), }" + b" " * 60,
            b"{}",
        ),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr': '|u1', 'fortran_order': False, 'shape': (1, 99999, 99999, 1)}", b"{}"),
        (png(), b'{"kind": "picture"}'),
        (b"cposix\nsystem\n(S'echo'\ntR.", b"null"),
    ],
    ids=["empty", "objects", "large", "png", "pickle"],
)
def test_an_image_in_memory_that_is_none_is_refused(client: TestClient, frames: bytes, about: bytes) -> None:
    refused = answered("handed", upload(client, ("frames.npy", frames), ("about.json", about)))
    assert refused.status_code == 400


@pytest.mark.slow
@pytest.mark.skipif(FUZZ is None, reason="no schemathesis is installed")
def test_fuzzed_requests_meet_no_error_of_the_server(tmp_path: Path) -> None:
    assert FUZZ is not None
    with serving() as address:
        described = tmp_path / "openapi.json"
        described.write_bytes(httpx.get(f"{address}/openapi.json", timeout=120).content)
        checks = "not_a_server_error,content_type_conformance,status_code_conformance"
        asked = ["--checks", checks, "--phases", "fuzzing", "--max-examples", "6", "--seed", "3"]
        command = [FUZZ, "run", str(described), "--url", address, *asked, "--request-timeout", "120"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert httpx.get(f"{address}/healthz", timeout=120).status_code == 200
