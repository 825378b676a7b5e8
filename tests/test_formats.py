"""What is kept on disk says its format: what an earlier version wrote is read, what a newer one wrote is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import medsam3
from medsam3.cli.main import main
from medsam3.errors import InputError
from medsam3.io.packed_masks import loaded
from medsam3.models.mini.card import read_card
from medsam3.models.mini.segmenter import SHIPPED_WEIGHTS
from medsam3.store import Journal, check_format
from threshold_segmenter import ThresholdSegmenter

pytestmark = pytest.mark.usefixtures("threshold_model")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = np.zeros((40, 60), dtype=np.uint8)
    pixels[10:20, 20:35] = 255
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def change(path: Path, changed: Callable[[dict[str, object]], None]) -> None:
    """Change the first line of a file of JSON lines, or the JSON that it is."""
    first, *rest = path.read_text(encoding="utf-8").splitlines(keepends=path.suffix == ".jsonl") or [""]
    text = first if path.suffix == ".jsonl" else path.read_text(encoding="utf-8")
    content = json.loads(text)
    changed(content)
    path.write_text(json.dumps(content) + "\n" + ("".join(rest) if path.suffix == ".jsonl" else ""))


def newer(name: str) -> Callable[[dict[str, object]], None]:
    return lambda content: content.update({name: 9})


def without(name: str) -> Callable[[dict[str, object]], None]:
    def changed(content: dict[str, object]) -> None:
        content.pop(name, None)

    return changed


def test_a_number_that_is_none_is_refused_too() -> None:
    check_format(None, 1, "it")
    check_format(2, 3, "it")
    for found in (0, 4, True, "1", 1.0, [1]):
        with pytest.raises(InputError, match=r"it is in format .*, this version reads 1 to 3: update medsam3"):
            check_format(found, 3, "it")


@pytest.mark.parametrize("other", ["refuse", "replace", "keep"])
def test_a_journal_of_an_earlier_version_is_read_and_one_of_a_newer_is_refused(other: str, tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"work": "a"}\n{"n": 1}\n')
    with Journal(path, {"work": "a", "version": 1}, other=other) as journal:  # type: ignore[arg-type]
        assert journal.records == [{"n": 1}]
    before = '{"work": "a", "version": 2}\n{"n": 1}\n'
    path.write_text(before)
    with pytest.raises(InputError, match=r"j\.jsonl is in format 2, this version reads 1: update medsam3"):
        Journal(path, {"work": "a", "version": 1}, other=other)  # type: ignore[arg-type]
    assert path.read_text() == before


def test_results_of_segment(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["segment", str(image), "--text", "block", "--model", "threshold", "--out", str(out)]
    assert main(command) == 0
    change(out / "results.jsonl", newer("version"))
    assert main(command) == 2
    assert "results.jsonl is in format 9, this version reads 1: update medsam3" in capsys.readouterr().err
    change(out / "results.jsonl", without("version"))
    assert main(command) == 0
    assert "done before" in capsys.readouterr().out


def test_transcripts(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = ["agent", str(image), "block", "--segmenter", "threshold", "--out", str(tmp_path / "out")]
    command += ["--transcript", str(run)]
    assert main(command) == 0
    change(run / "transcript.jsonl", newer("version"))
    assert main(command) == 2
    assert "transcript.jsonl is in format 9, this version reads 1: update medsam3" in capsys.readouterr().err
    change(run / "transcript.jsonl", without("version"))
    assert main(command) == 0


def test_sessions(image: Path) -> None:
    model = ThresholdSegmenter()
    session = medsam3.Session(image, model)
    session.segment("block")
    text = session.to_json()
    assert medsam3.Session.from_json(text, image, model).masks.union().sum() == 150
    with pytest.raises(InputError, match="the session is in format 9, allowed is 1: update medsam3"):
        medsam3.Session.from_json(json.dumps(json.loads(text) | {"format": 9}), image, model)


def test_masks_on_the_wire() -> None:
    with pytest.raises(InputError, match="the masks are in format 9, allowed is 1: update medsam3"):
        loaded(json.dumps({"format": 9, "masks": []}))


def test_batch_targets(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow")
    out = tmp_path / "out"
    command = ["batch", str(image), "--text", "block", "--model", "threshold", "--cluster", "none", "--out", str(out)]
    assert main(command) == 0
    [mark] = [path for path in out.iterdir() if path.is_file()]
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"version": 9}))
    assert main(command) == 2
    assert "was made by another version" in capsys.readouterr().err


def test_cards_of_weights(tmp_path: Path) -> None:
    weights = tmp_path / "own.safetensors"
    shutil.copy(SHIPPED_WEIGHTS, weights)
    shutil.copy(SHIPPED_WEIGHTS.with_suffix(".json"), weights.with_suffix(".json"))
    change(weights.with_suffix(".json"), without("format"))
    assert read_card(weights).concepts
    change(weights.with_suffix(".json"), newer("format"))
    with pytest.raises(InputError, match=r"own\.json is in format 9, this version reads 1: update medsam3"):
        read_card(weights)
