"""The pages of the documentation: their Python runs, their commands are ones that the parser takes, the site builds."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest

import medsam3
from made_dicom import series
from made_server import serving
from medsam3.cli.main import main, parse
from medsam3.errors import InputError
from medsam3.models import registry
from medsam3.models.mini.encoder_files import locate
from threshold_segmenter import ThresholdSegmenter

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "results" not in path.parts)
BLOCKS = [
    (page.relative_to(ROOT).as_posix(), block)
    for page in PAGES
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
]
COMMANDS = [
    (name, line.strip())
    for name, block in BLOCKS
    for line in re.findall(r"^(medsam3 [^#\n|;>]*)", block.replace("\\\n", " "), flags=re.MULTILINE)
]
SCRIPT = re.compile(r"(?:^|[ `])(?:python )?((?:benchmarks|examples|training)/[\w/]+\.\w+)", re.MULTILINE)
TARGET = re.compile(r"(?:^|`)make ([a-z-]+)", re.MULTILINE)
STARTS = sorted((ROOT / "docs" / "start").glob("*.md"))


def test_there_are_commands_on_many_pages() -> None:
    assert len({name for name, _ in COMMANDS}) >= 6


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_is_one_that_the_parser_takes(page: str, command: str) -> None:
    arguments = shlex.split(command)[1:]
    assert "--help" in arguments or parse(arguments) is not None


def test_the_examples_give_commands_that_the_parser_takes() -> None:
    """The container and the queue are not run here; what they start is."""
    yaml = pytest.importorskip("yaml")
    compose = yaml.safe_load((ROOT / "examples" / "compose.yaml").read_text(encoding="utf-8"))
    assert parse(compose["services"]["medsam3"]["command"]) is not None
    [docker] = re.findall(r"^CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert parse(json.loads(docker)) is not None
    batch = (ROOT / "examples" / "segment.sbatch").read_text(encoding="utf-8")
    [started] = re.findall(r"'medsam3 (batch .*)' \\$", batch, flags=re.MULTILINE)
    assert parse(shlex.split(started.replace("$((SLURM_PROCID + 1))/$SLURM_NTASKS", "1/16"))) is not None


def test_every_script_and_make_target_that_a_page_names_is_there() -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in [*PAGES, *ROOT.glob("[!C]*.md")]}
    scripts = {(page.name, script) for page, text in texts.items() for script in SCRIPT.findall(text)}
    targets = {(page.name, target) for page, text in texts.items() for target in TARGET.findall(text)}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert len(scripts) > 10 and len(targets) > 5
    assert {(page, script) for page, script in scripts if not (ROOT / script).is_file()} == set()
    assert {one for one in targets if not re.search(rf"^{one[1]}:", makefile, flags=re.MULTILINE)} == set()


@pytest.mark.parametrize("page", STARTS, ids=lambda page: page.stem)
def test_the_python_of_a_first_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    if not snippets:
        return
    try:
        locate()
    except InputError as error:
        pytest.skip(f"needs the encoders' weights: {error}")
    (tmp_path / "images").mkdir()
    pixels = np.zeros((160, 200, 3), dtype=np.uint8)
    pixels[40:110, 60:150] = (210, 120, 100)
    PIL.Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    series(tmp_path / "ct")
    monkeypatch.chdir(tmp_path)
    for number, snippet in enumerate(snippets):
        given = snippet.replace('"ct.nii.gz"', '"ct"')
        exec(compile(given, f"{page.name} {number}", "exec"), {"__name__": "page"})


SNIPPETS = {
    (page.relative_to(ROOT).as_posix(), number): snippet
    for page in PAGES
    if page not in STARTS
    for number, snippet in enumerate(re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL))
}
NOT_RUN = {
    ("docs/sam3.md", 0): "needs SAM 3's weights, which are gated, and MedSAM-3's adapter",
    ("docs/sam3.md", 2): "needs SAM 3's weights, which are gated",
}
"""Snippets that the tests do not run, and why."""


def test_snippets_that_are_not_run_are_there() -> None:
    assert set(NOT_RUN) <= set(SNIPPETS)
    assert len(SNIPPETS) - len(NOT_RUN) >= 5


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The files and names that snippets take as given; a fast stand-in answers for `mini`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry.LOADERS, "mini", lambda weights, device: ThresholdSegmenter())
    pixels = np.zeros((400, 420), dtype=np.uint8)
    pixels[90:180, 130:250] = 255
    for name in ("breast.png", "colonoscopy.png", "chest.png", "fundus.jpg", "scans/a.png"):
        Path(name).parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(pixels).save(name)
    voxels = np.zeros((20, 24, 45), dtype=np.int16)
    voxels[5:12, 6:15, 20:30] = 900
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1.0, 2.0, 1.0])), "ct.nii.gz")
    return {"__name__": "page", "medsam3": medsam3, "model": ThresholdSegmenter()}


@pytest.mark.parametrize(("page", "number"), sorted(set(SNIPPETS) - set(NOT_RUN)))
def test_the_python_of_a_page_runs(page: str, number: int, prepared: dict[str, object]) -> None:
    snippet = SNIPPETS[page, number]
    if "read_parquet" in snippet:
        pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
        command = ["batch", "scans", "--text", "polyp", "--cluster", "none", "--out", "results"]
        assert main(command) == 0
    with serving() if "Client(" in snippet else nullcontext("") as address:
        given = snippet.replace("http://127.0.0.1:8080", address)
        exec(compile(given, f"{page} {number}", "exec"), prepared)


def test_every_page_of_the_site_is_named_and_there() -> None:
    named = set(re.findall(r":\s+(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    beside = {path.name for path in ROOT.glob("*.md")}
    assert pages <= named
    assert named <= pages | beside


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: make docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "segment" in (tmp_path / "reference.html").read_text(encoding="utf-8")
