"""`--server` gives the files that the command line writes by itself, and tells in one line what is wrong there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from made_files import files
from made_server import png, serving
from medsam3.cli.main import main
from threshold_segmenter import ThresholdSegmenter

TOKEN = "k" * 32


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(TOKEN) as address:
        yield address


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSAM3_TOKEN", TOKEN)


def written(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.rglob("*") if one.is_file() and one.name != "results.jsonl"}


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("name", ["block.png", "scan.nii.gz", "study"])
def test_segment_writes_the_same_files_byte_by_byte(
    name: str, server: str, tmp_path: Path, threshold_model: ThresholdSegmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    path = files(tmp_path)[name]
    asked = ["segment", str(path), "--text", "liver and kidney", "--format", "nifti,csv", "--json"]
    rows = []
    for out, more in (("here", ["--model", "threshold"]), ("there", ["--server", server])):
        assert main([*asked, "--out", str(tmp_path / out), *more]) == 0
        rows.append(json.loads(capsys.readouterr().out)["results"])
    assert rows[0] == rows[1] and len(rows[0]) == 2
    here, there = written(tmp_path / "here"), written(tmp_path / "there")
    assert here == there and len(here) == 4
    assert main([*asked, "--out", str(tmp_path / "there"), "--server", server]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 1


@pytest.mark.usefixtures("token")
def test_agent_writes_the_same_mask_and_saves_the_transcript(
    server: str, tmp_path: Path, threshold_model: ThresholdSegmenter, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "block.png"
    path.write_bytes(png())
    for out, more in (("here", ["--segmenter", "threshold"]), ("there", ["--server", server])):
        transcript = ["--transcript", str(tmp_path / out / "t")]
        assert main(["agent", str(path), "block", "--out", str(tmp_path / out), *transcript, *more]) == 0
    here, there = written(tmp_path / "here"), written(tmp_path / "there")
    assert here["block_agent_mask.png"] == there["block_agent_mask.png"]
    assert b"block" in there["transcript.html"]
    for more, said in (
        (["--model", "google:x"], "the server's LLM is none"),
        (["--send-images", "google"], "pictures would go to nobody"),
        (["--budget-usd", "1"], "leave --budget"),
    ):
        assert main(["agent", str(path), "block", "--server", server, *more]) == 2
        assert said in capsys.readouterr().err


def test_what_is_wrong_with_a_server_is_told_in_one_line(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "block.png").write_bytes(png())
    monkeypatch.setenv("MEDSAM3_TOKEN", "")
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    asked = ["segment", str(tmp_path / "study"), "--text", "block", "--out", str(tmp_path / "out")]
    for more, said in (
        (["--server", server], "refuses the token"),
        (["--server", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9"),
        (["--server", "nonsense"], "allowed is an address"),
        (["--server", server, "--model", "mini-open"], "its own model"),
        (["--token-file", str(tmp_path / "token")], "name that with --server"),
    ):
        assert main([*asked, *more]) == 2
        printed = capsys.readouterr()
        assert said in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    assert main([*asked, "--server", server, "--token-file", str(tmp_path / "token")]) == 0


@pytest.mark.slow
@pytest.mark.weights
def test_mini_gives_the_same_mask_there_as_here(tmp_path: Path) -> None:
    from skimage import data  # noqa: PLC0415

    from made_server import serving_mini  # noqa: PLC0415

    path = Path(data.data_dir) / "retina.jpg"
    asked = ["segment", str(path), "--text", "optic disc", "--text", "opptic cup", "--format", "png,coco"]
    assert main([*asked, "--out", str(tmp_path / "here")]) == 0
    with serving_mini() as address:
        assert main([*asked, "--out", str(tmp_path / "there"), "--server", address]) == 0
        assert written(tmp_path / "here") == written(tmp_path / "there")
        lines = [(tmp_path / one / "results.jsonl").read_text() for one in ("here", "there")]
        assert '"opptic cup"' in lines[0] and [len(one.splitlines()) for one in lines] == [
            5,
            5,
        ]  # heading, and of each phrase its files and its result
        assert (
            main([*asked, "--out", str(tmp_path / "here"), "--server", address]) == 0
        )  # done: the weights are the same
        assert (tmp_path / "here" / "results.jsonl").read_text() == lines[0]
