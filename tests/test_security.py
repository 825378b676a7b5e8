"""Each row of SECURITY.md names tests that are there; what belongs to no other module's tests stands here."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from medsam3.cli.main import main
from medsam3.data.report import report_on
from medsam3.data.samples import Instances, Sample, Target
from medsam3.errors import InputError
from medsam3.io.coco import read_coco
from medsam3.models.mini.card import read_card
from medsam3.store import sha256_of
from medsam3.train.data_page import write_page

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| (?!threat|---).*$", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def test_there_are_rows() -> None:
    assert len(ROWS) >= 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_a_row_names_tests_that_are_there(row: str) -> None:
    named = NAMED.findall(row)
    assert named, "no test is named"
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name == "" or name in names, f"{path} has no {name}"


def picture(path: Path) -> Path:
    pixels = np.zeros((40, 60), dtype=np.uint8)
    pixels[10:20, 20:35] = 255
    PIL.Image.fromarray(pixels).save(path)
    return path


def claiming(path: Path, height: int, width: int) -> Path:
    """COCO JSON whose one mask says that it has height x width pixels, in a few bytes."""
    rle = {"size": [height, width], "counts": [0, height * width]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": height, "width": width}],
        "categories": [{"id": 1, "name": "polyp"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": rle}],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_coco_masks_that_claim_a_thousand_million_pixels_take_no_memory(tmp_path: Path) -> None:
    import medsam3  # noqa: PLC0415

    image = medsam3.read(picture(tmp_path / "a.png"))
    file = claiming(tmp_path / "a.json", 31_623, 31_623)
    tracemalloc.start()
    with pytest.raises(InputError):
        read_coco(file, image)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 10_000_000


def test_training_data_that_claim_a_thousand_million_pixels_are_refused_by_their_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "a.png")
    file = claiming(tmp_path / "a.json", 31_623, 31_623)
    command = ["train", "--coco", str(file), "--coco-val", str(file), "--out", str(tmp_path / "run")]
    assert main(command) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_safetensors_that_claim_a_thousand_million_numbers_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}}).encode()
    weights = tmp_path / "own.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
    card = json.loads((ROOT / "src" / "medsam3" / "weights" / "mini.json").read_text(encoding="utf-8"))
    weights.with_suffix(".json").write_text(json.dumps(card | {"sha256": sha256_of(weights)}))
    assert read_card(weights).concepts  # the card fits, so the tensors are looked at
    command = ["segment", str(picture(tmp_path / "a.png")), "--text", "polyp", "--weights", str(weights)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "own.safetensors" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("threshold_model")
def test_a_link_where_a_result_belongs_is_replaced_and_what_it_leads_to_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.write_text("somebody's")
    (out / "a_block_mask.png").symlink_to(elsewhere)
    command = ["segment", str(picture(tmp_path / "a.png")), "--text", "block", "--model", "threshold"]
    command += ["--out", str(out), "--format", "png"]
    assert main(command) == 2
    assert "was not written by this command" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert elsewhere.read_text() == "somebody's"
    assert not (out / "a_block_mask.png").is_symlink()


class _Away(BaseHTTPRequestHandler):
    """Leads every request to the server's other place, and keeps what was asked there."""

    seen: list[tuple[str, str | None]] = []  # noqa: RUF012  of this test alone

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        self.send_response(302)
        self.send_header("Location", f"http://{self.headers['Host']}/private")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def away() -> Iterator[str]:
    _Away.seen.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Away)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_server_that_leads_elsewhere_gets_no_picture_there_and_the_token_is_in_no_log(
    away: str, tmp_path: Path
) -> None:
    environment = {**os.environ, "MEDSAM3_TOKEN": "secret-0123456789"}
    command = [sys.executable, "-m", "medsam3", "segment", str(picture(tmp_path / "a.png")), "--text", "block"]
    command += ["--server", away, "--out", str(tmp_path / "out"), "--debug"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" in done.stderr  # the log is on
    assert "secret-0123456789" not in done.stdout + done.stderr
    assert _Away.seen
    assert "/private" not in {path for path, _ in _Away.seen}


def test_a_page_on_training_data_shows_names_and_runs_none_of_them(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"

    def load() -> Instances:
        labels = np.zeros((40, 60), np.int32)
        labels[10:20, 20:35] = 1
        return labels

    image = picture(tmp_path / "a.png")
    samples = [Sample(evil, image, evil, "g", "train", (Target(evil, True, load),))]
    write_page(report_on(samples), samples, tmp_path)
    page = (tmp_path / "data.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.usefixtures("threshold_model")
def test_a_table_for_a_spreadsheet_holds_no_formula_of_a_phrase(tmp_path: Path) -> None:
    command = ["segment", str(picture(tmp_path / "a.png")), "--text", "=cmd|' /C calc'!A0", "--model", "threshold"]
    assert main([*command, "--out", str(tmp_path / "out"), "--format", "csv"]) == 0
    [table] = (tmp_path / "out").glob("*.csv")
    text = table.read_text(encoding="utf-8")
    assert "=cmd" in text
    assert not re.search(r"(^|,)\"?=", text, flags=re.MULTILINE)


IN_NAMESPACE = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname(), timeout=5).close()
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    print("apart:", error.strerror)
"""


def in_namespace(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command where there is loopback and no other network."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    apart = ["unshare", "--net", *([] if os.getuid() == 0 else ["--map-root-user"])]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a network namespace needs root, or user namespaces")
    whole = [*apart, sys.executable, str(ROOT / "tests" / "loopback_only.py"), *command]
    return subprocess.run(whole, cwd=folder, capture_output=True, text=True, check=False)


def test_there_is_loopback_and_no_other_network_in_the_namespace(tmp_path: Path) -> None:
    done = in_namespace(sys.executable, "-c", IN_NAMESPACE, folder=tmp_path)
    assert done.stdout.strip() == "apart: Network is unreachable", done.stderr


@pytest.mark.slow
@pytest.mark.weights
def test_a_picture_is_segmented_where_there_is_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medsam3", "segment", str(picture(tmp_path / "a.png")), "--text", "polyp"]
    done = in_namespace(*command, "--out", str(tmp_path / "out"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
