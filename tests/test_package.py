"""The wheel and the sdist are built, and the wheel runs where nothing of the repository is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import HeaderParser
from importlib.util import find_spec
from pathlib import Path

import pytest

import medsam3

ROOT = Path(__file__).parents[1]
MOST_BYTES = 60_000_000
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    if find_spec("build") is None or find_spec("hatchling") is None:
        pytest.skip("build and hatchling are not installed: pip install 'medsam3[dev]'")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def fresh(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, whose dependencies are those of this environment, on a path of their own.

    Torch alone takes minutes to install anew, so they are not. What is tested is the wheel: its files, its command.
    """
    place = tmp_path_factory.mktemp("fresh") / "env"
    venv.create(place, with_pip=True)
    wheel = next(built.glob("*.whl"))
    install = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    packages = Path(next(place.glob("lib/python*/site-packages")))
    dependencies = {Path(entry) for entry in sys.path if entry.endswith("site-packages")}
    (packages / "dependencies.pth").write_text("\n".join(map(str, sorted(dependencies))) + "\n")
    return place


def run(fresh: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(fresh / "bin" / "medsam3"), *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_wheel_is_small_and_holds_what_a_run_needs(built: Path) -> None:
    wheel = next(built.glob("*.whl"))
    assert wheel.name == f"medsam3-{medsam3.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size <= MOST_BYTES
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = ROOT / "src" / "medsam3"
    expected = {
        f"medsam3/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected <= names
    assert not [
        name for name in names if not name.startswith(("medsam3/", f"medsam3-{medsam3.__version__}.dist-info/"))
    ]


def test_the_sdist_builds_the_wheel_and_holds_no_data(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "src/medsam3/__init__.py", "tests/conftest.py"} <= names
    assert not [name for name in names if name.startswith((".git/", ".venv", "shared"))]


def test_one_version_stands_everywhere(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        about = HeaderParser().parsestr(archive.read(f"medsam3-{medsam3.__version__}.dist-info/METADATA").decode())
    assert about["Version"] == medsam3.__version__
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == about["Version"]  # type: ignore[index]
    assert f"## [{about['Version']}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


@pytest.mark.weights
def test_the_installed_wheel_makes_the_demo_and_is_well(fresh: Path, tmp_path: Path) -> None:
    done = run(fresh, tmp_path, "demo")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "demo_out" / "demo.png").is_file()
    told = run(fresh, tmp_path, "doctor", "--json")
    assert told.returncode == 0, told.stderr
    checks = {check["name"]: check for check in json.loads(told.stdout)["checks"]}
    assert checks["medsam3"]["found"].startswith(f"{medsam3.__version__}, {fresh}")
    assert checks["test picture"]["state"] == "ok"
