"""SAM 3 through the command line: converting its weights, an adapter, and segmenting with them; small and random."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file

import medsam3
from medsam3.cli.main import main
from medsam3.errors import InputError
from medsam3.models import registry
from medsam3.models.sam3 import checkpoints
from sam3_small import random_tensors, small_architecture

QKV = "backbone.vision_backbone.trunk.blocks.0.attn.qkv"
Q_WEIGHT = "detector_model.vision_encoder.backbone.layers.0.attention.q_proj.weight"
MERGES = "#version: 0.2\np o\nl y\nly p</w>\npo lyp</w>\n"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without CLIP's vocabulary, with `sam3.pt`, its `config.json`, an adapter and a picture."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    torch.save(random_tensors(small_architecture()), "sam3.pt")
    Path("config.json").write_text(json.dumps(small_architecture().to_json(), default=str))
    Path("adapter").mkdir()
    factors = {f"{QKV}.lora.lora_A": torch.ones(32, 1), f"{QKV}.lora.lora_B": torch.ones(1, 96)}
    torch.save(factors, "adapter/best_lora_weights.pt")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save("scan.png")
    return tmp_path


LORA = ("--lora", "adapter/best_lora_weights.pt")


def _json(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def _vocabulary(folder: Path) -> Path:
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress(MERGES.encode()))
    return path


# converting


def test_weights_are_converted_to_a_folder_that_loads(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "convert", "sam3.pt", "--out", "deep/folder"]) == 0
    captured = capsys.readouterr()
    assert "written to deep/folder" in captured.out
    assert "phrases need CLIP's vocabulary" in captured.err
    assert sorted(path.name for path in (work / "deep/folder").iterdir()) == ["config.json", "model.safetensors"]
    expected = torch.load("sam3.pt", weights_only=True)
    written = load_file("deep/folder/model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in expected.items())
    assert main(["segment", "scan.png", "--box", "2,3,30,20", "--model", "deep/folder"]) == 0


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.half)])
def test_the_number_format_is_the_one_asked_for(
    work: Path, capsys: pytest.CaptureFixture[str], name: str, dtype: torch.dtype
) -> None:
    assert main(["weights", "convert", "sam3.pt", "--out", "out", "--dtype", name, "--json"]) == 0
    answer = _json(capsys)
    written = load_file("out/model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {dtype}
    assert (answer["dtype"], answer["tensors"], answer["has_tracker"]) == (name, len(written), True)


@pytest.mark.parametrize("told_by", ["flag", "yaml beside", "yaml"])
def test_an_adapter_is_merged_with_its_alpha(work: Path, capsys: pytest.CaptureFixture[str], told_by: str) -> None:
    options = ["--alpha", "3", "--rank", "1"]
    if told_by != "flag":
        place = "adapter" if told_by == "yaml beside" else "."
        Path(place, "lora.yaml").write_text("lora:\n  rank: 1\n  alpha: 3\n")
        options = [] if told_by == "yaml beside" else ["--lora-config", "lora.yaml"]
    assert main(["weights", "convert", "sam3.pt", "--out", "out", *LORA, *options, "--json"]) == 0
    assert _json(capsys)["adapted"] == 1
    before = torch.load("sam3.pt", weights_only=True)[Q_WEIGHT]
    # alpha 3 over rank 1 times a product of ones adds 3 to every weight
    torch.testing.assert_close(load_file("out/model.safetensors")[Q_WEIGHT], before + 3)


def test_the_vocabulary_is_copied_from_where_it_lies(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _vocabulary(work / "adapter")
    assert main(["weights", "convert", "sam3.pt", "--out", "out", "--vocabulary", str(path), "--json"]) == 0
    assert _json(capsys)["has_vocabulary"] is True
    assert (work / "out" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.pt", "--out", "out"], "weights gone.pt are not there"),
        (["empty.pt", "--out", "out"], "weights empty.pt are empty"),
        (["cut.pt", "--out", "out"], "weights cut.pt are cut short or damaged"),
        (["scan.png", "--out", "out"], "weights scan.png end in '.png', allowed are"),
        (["other.safetensors", "--out", "out"], "none of SAM 3's"),
        (["sam3.pt", "--out", "scan.png"], "output folder scan.png cannot be written"),
        (["sam3.pt", "--out", "scan.png/out"], "output folder scan.png/out cannot be written"),
        (["sam3.pt", "--out", "."], ". holds weights already (sam3.pt): name another folder"),
        (["sam3.pt", "--out", "out", *LORA], "alpha of adapter/best_lora_weights.pt is unknown"),
        (["sam3.pt", "--out", "out", *LORA, "--alpha", "-1"], "--alpha. Must be > 0"),
        (["sam3.pt", "--out", "out", *LORA, "--alpha", "1", "--rank", "4"], "rank is said to be 4, the weights have 1"),
        (["sam3.pt", "--out", "out", *LORA, "--rank", "0"], "--rank. Must be >= 1"),
        (["sam3.pt", "--out", "out", "--lora", "gone.pt"], "adapter gone.pt is not a file"),
        (["sam3.pt", "--out", "out", "--lora", "sam3.pt"], "holds no adapter of MedSAM-3's"),
        (["sam3.pt", "--out", "out", "--lora-config", "a.yaml"], "--lora-config belongs to an adapter"),
        (["sam3.pt", "--out", "out", "--vocabulary", "gone"], "--vocabulary gone does not exist"),
        (["sam3.pt", "--out", "out", "--dtype", "int8"], 'Invalid value "int8" for --dtype'),
        (["sam3.pt"], "--out is missing"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("empty.pt").touch()
    Path("cut.pt").write_bytes(Path("sam3.pt").read_bytes()[:3000])
    save_file({"a": torch.zeros(1)}, "other.safetensors")
    before = sorted(work.rglob("*"))
    assert main(["weights", "convert", *arguments]) == 2
    assert message in _error(capsys)
    assert sorted(work.rglob("*")) == before


# segmenting


def test_sam3_pt_its_folder_and_its_hub_name_are_the_same_model(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkpoints, "locate", lambda source, **_: work if source == "facebook/sam3" else Path(source))
    answers = []
    for number, model in enumerate(
        (
            ["--model", "sam3.pt"],
            ["--model", "."],
            ["--model", "facebook/sam3"],
            ["--model", "facebook/sam3", "--weights", "sam3.pt"],
        )
    ):
        assert main(["segment", "scan.png", "--box", "2,3,30,20", "--out", f"out{number}", "--json", *model]) == 0
        answers.append(_json(capsys))
    assert [answer["results"] for answer in answers] == [answers[0]["results"]] * 4
    assert all("sam3.pt" in answer["weights_sha256"] for answer in answers)
    assert len(answers[0]["results"][0]["objects"]) == 1


def test_a_phrase_is_answered_once_its_vocabulary_is_given(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["segment", "scan.png", "--text", "polyp", "--threshold", "0", "--model", "sam3.pt", "--json"]
    assert main(command) == 2
    assert "phrases need CLIP's vocabulary and there is none beside the weights" in _error(capsys)
    assert not (work / "medsam3_out").exists()
    path = _vocabulary(work / "adapter")
    assert main([*command, "--vocabulary", str(path)]) == 0
    [row] = _json(capsys)["results"]
    assert row["concept"] == "polyp"
    assert 0 <= row["presence"] <= 1


def test_an_adapter_changes_what_is_found_and_makes_the_result_anew(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["segment", "scan.png", "--box", "2,3,30,20", "--model", "sam3.pt", "--json"]
    scores = []
    for options in ([], [*LORA, "--alpha", "0.5"], [*LORA, "--alpha", "1"]):
        assert main([*command, *options]) == 0
        answer = _json(capsys)
        assert answer["skipped"] == 0
        assert ("lora/best_lora_weights.pt" in answer["weights_sha256"]) == bool(options)
        scores.append(answer["results"][0]["objects"][0]["score"])
    assert len(set(scores)) == 3
    assert main([*command, *LORA, "--alpha", "1"]) == 0
    assert _json(capsys)["skipped"] == 1


def test_an_adapter_reaches_the_model_from_python(work: Path) -> None:
    Path("adapter/lora.yaml").write_text("lora:\n  rank: 1\n  alpha: 1\n")
    assert medsam3.load("sam3.pt", lora="adapter/best_lora_weights.pt").name == "sam3+lora"
    assert medsam3.load(".").name == "sam3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lora", "gone.pt"], "adapter gone.pt is not a file"),
        (LORA, "alpha of adapter/best_lora_weights.pt is unknown"),
        (["--weights", "sam3.pt"], "model sam3.pt is a place of weights, and weights sam3.pt were given too"),
        (["--device", "nowhere"], "device 'nowhere' is not here"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["segment", "scan.png", "--box", "2,3,30,20", "--model", "sam3.pt", *arguments]) == 2
    assert message in _error(capsys)
    assert not (work / "medsam3_out").exists()


def test_sam3_is_not_asked_mirrored_pictures(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", "scan.png", "--text", "polyp", "--model", "sam3.pt", "--flips"]) == 2
    assert "model sam3.pt does not ask mirrored pictures, mini does" in _error(capsys)


def test_mini_takes_no_adapter() -> None:
    with pytest.raises(InputError, match="model mini takes no adapter and no vocabulary, SAM 3 does"):
        registry.load("mini", lora="best_lora_weights.pt")
