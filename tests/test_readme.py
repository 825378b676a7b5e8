"""The README's Python is run as it stands, and what it says of commands and files is true."""

from __future__ import annotations

import hashlib
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest

from medsam3.cli.demo import PHRASES
from medsam3.cli.main import main, parse
from medsam3.errors import InputError
from medsam3.models.mini.encoder_files import locate

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = re.findall(
    r"^(medsam3 [^#\n]*)", "\n".join(re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)), re.MULTILINE
)


def _require_weights() -> None:
    try:
        locate()
    except InputError as error:
        pytest.skip(f"needs the encoders' weights: {error}")
    shipped = ROOT / "src" / "medsam3" / "weights" / "mini.safetensors"
    if not shipped.is_file():
        pytest.skip("needs the weights of mini, which are not in this checkout")


def test_there_are_snippets_and_commands() -> None:
    assert len(SNIPPETS) == 4
    assert len(COMMANDS) >= 6
    assert len([line for line in SNIPPETS[0].splitlines() if line]) == 5


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _require_weights()
    pixels = np.zeros((1000, 1400, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(40, 200, 1400)
    PIL.Image.fromarray(pixels).save(tmp_path / "fundus.jpg")
    voxels = np.random.default_rng(0).integers(0, 900, (20, 24, 3), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 3.0, 1.0])), tmp_path / "brain.nii.gz")
    monkeypatch.chdir(tmp_path)
    exec(compile(SNIPPETS[number], f"README snippet {number}", "exec"), {"__name__": "readme"})
    if number == 0:
        assert PIL.Image.open(tmp_path / "disc.png").size == (1400, 1000)
    if number == 1:
        assert nibabel.load(tmp_path / "hippocampus.nii.gz").shape == (20, 24, 3)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_one_that_the_parser_takes(command: str) -> None:
    arguments = shlex.split(command)[1:]
    assert parse(arguments) is not None


def test_every_command_of_the_makefile_that_is_named_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)


def test_every_link_to_a_file_leads_to_one() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert missing == []


def test_the_places_of_the_tree_exist() -> None:
    missing = [name for name in ("tests", "benchmarks", "docs", "examples") if not (ROOT / name).is_dir()]
    assert missing == []


def test_the_project_asks_for_the_python_that_the_readme_names() -> None:
    assert sys.version_info >= (3, 11)
    assert "Python 3.11" in README


def test_the_demo_phrases_are_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(PHRASES) == 4
    for phrase in PHRASES:
        assert main(["concepts", phrase]) == 0
        assert phrase in capsys.readouterr().out


def test_the_measured_results_are_those_of_the_kept_report() -> None:
    kept = ROOT / "docs" / "results" / "mini.json"
    shown = README.split("<!-- results -->\n")[1].split("<!-- /results -->")[0]
    module = runpy.run_path(str(ROOT / "benchmarks" / "readme_results.py"))
    assert shown == module["table"](json.loads(kept.read_text(encoding="utf-8")))


def test_the_measured_results_are_of_the_shipped_weights() -> None:
    kept = json.loads((ROOT / "docs" / "results" / "mini.json").read_text(encoding="utf-8"))
    weights = ROOT / "src" / "medsam3" / "weights" / "mini.safetensors"
    assert kept["about"]["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert kept["config"]["split"] == "test"
