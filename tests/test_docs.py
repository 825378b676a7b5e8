"""The pages of the documentation: their Python runs, their commands are ones that the parser takes, the site builds."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from made_dicom import series
from medsam3.cli.main import parse
from medsam3.errors import InputError
from medsam3.models.mini.encoder_files import locate

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
    for line in re.findall(r"^(medsam3 [^#\n|;]*)", block.replace("\\\n", " "), flags=re.MULTILINE)
]
STARTS = sorted((ROOT / "docs" / "start").glob("*.md"))


def test_there_are_commands_on_many_pages() -> None:
    assert len({name for name, _ in COMMANDS}) >= 6


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_is_one_that_the_parser_takes(page: str, command: str) -> None:
    arguments = shlex.split(command)[1:]
    assert "--help" in arguments or parse(arguments) is not None


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
