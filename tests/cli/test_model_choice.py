"""The weights' identity: what is hashed, and that a change of content alone makes results anew."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import medsam3
from medsam3.cli.job import ModelChoice, Sam3Choice
from medsam3.cli.main import main
from threshold_segmenter import ThresholdSegmenter


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_of_mini_the_weights_and_their_card_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "own.safetensors").write_bytes(b"weights")
    (tmp_path / "own.json").write_bytes(b"card")
    expected = {"own.safetensors": _sha256(b"weights"), "own.json": _sha256(b"card")}
    assert ModelChoice(weights=tmp_path / "own.safetensors").sha256 == expected


def test_of_mini_without_weights_the_shipped_ones_are_hashed() -> None:
    shipped = Path(medsam3.__file__).parent / "weights"
    expected = {
        path.name: _sha256(path.read_bytes())
        for path in (shipped / "mini.json", shipped / "mini.safetensors")
        if path.is_file()
    }
    if not expected:
        pytest.skip("needs the weights of mini, which are not in this checkout")
    assert ModelChoice().sha256 == expected


def test_of_sam3_the_files_that_are_read_are_hashed(tmp_path: Path) -> None:
    for name in ("sam3.pt", "config.json", "notes.txt"):
        (tmp_path / name).write_text(name)
    names = {name: _sha256(name.encode()) for name in ("sam3.pt", "config.json")}
    assert ModelChoice(str(tmp_path / "sam3.pt")).sha256 == names
    assert ModelChoice(str(tmp_path)).sha256 == names
    (tmp_path / "model.safetensors").write_text("a")  # is taken before sam3.pt
    assert ModelChoice(str(tmp_path)).sha256 == {
        "model.safetensors": _sha256(b"a"),
        "config.json": _sha256(b"config.json"),
    }


def test_an_adapter_is_hashed_with_its_yaml_apart_from_the_weights(tmp_path: Path) -> None:
    (tmp_path / "sam3.pt").write_bytes(b"weights")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "sam3.pt").write_bytes(b"adapter")
    (tmp_path / "lora" / "a.yaml").write_bytes(b"yaml")
    choice = ModelChoice(str(tmp_path / "sam3.pt"), sam3=Sam3Choice(tmp_path / "lora" / "sam3.pt"))
    assert choice.sha256 == {
        "sam3.pt": _sha256(b"weights"),
        "lora/sam3.pt": _sha256(b"adapter"),
        "lora/a.yaml": _sha256(b"yaml"),
    }


def test_files_that_are_missing_are_left_to_loading(tmp_path: Path) -> None:
    assert ModelChoice(weights=tmp_path / "gone.safetensors").sha256 == {}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold_model: ThresholdSegmenter) -> Path:
    del threshold_model
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(np.zeros((6, 8), dtype=np.uint8)).save("scan.png")
    (tmp_path / "own.safetensors").write_bytes(b"weights 1")
    return tmp_path


def _run(capsys: pytest.CaptureFixture[str], weights: str = "own.safetensors") -> Any:
    arguments = ["--text", "polyp", "--model", "threshold", "--weights", weights, "--json"]
    assert main(["segment", "scan.png", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_weights_of_other_content_make_the_result_anew_even_of_the_same_size_and_time(
    work: Path, capsys: pytest.CaptureFixture[str], threshold_model: ThresholdSegmenter
) -> None:
    state = (work / "own.safetensors").stat()
    assert _run(capsys)["weights_sha256"] == {"own.safetensors": _sha256(b"weights 1")}
    assert _run(capsys)["skipped"] == 1
    (work / "own.safetensors").write_bytes(b"weights 2")
    os.utime(work / "own.safetensors", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert _run(capsys)["skipped"] == 0
    assert threshold_model.encoded == 2


@pytest.mark.parametrize("change", ["time", "place"])
def test_weights_of_the_same_content_do_not(
    work: Path, capsys: pytest.CaptureFixture[str], threshold_model: ThresholdSegmenter, change: str
) -> None:
    _run(capsys)
    weights = "own.safetensors"
    if change == "time":
        os.utime(work / weights, ns=(0, 2_000_000_000_000_000_000))
    else:
        (work / "moved").mkdir()
        (work / weights).rename(work / "moved" / weights)
        weights = f"moved/{weights}"
    assert _run(capsys, weights)["skipped"] == 1
    assert threshold_model.encoded == 1
