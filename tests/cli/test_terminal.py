"""What reaches a terminal or a pipe: no control characters, and no traceback if the place cannot take the output."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import PIL.Image
import pytest

import medsam3.cli
from medsam3.cli.terminal import in_options, speak_for
from medsam3.errors import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("optic disc", "optic disc"),
        ("ポリープ é", "ポリープ é"),
        ("two\nlines", "two\nlines"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("a\rb\tc\x7f", r"a\rb\tc\x7f"),
        ("scan\u202egnp.exe", r"scan\u202egnp.exe"),
        ("scan\udcff.png", r"scan\udcff.png"),
    ],
)
def test_control_characters_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("message", "with_options", "without"),
    [
        (
            "a.nii: the file has 3 time points: choose one with frame=, from 0 to 2",
            "a.nii: the file has 3 time points: choose one with --frame, from 0 to 2",
            "a.nii: the file has 3 time points: save one as a file of its own",
        ),
        (
            "page 1 is (2, 3) but page 0 is (4, 5): choose one page with frame=",
            "page 1 is (2, 3) but page 0 is (4, 5): choose one page with --frame",
            "page 1 is (2, 3) but page 0 is (4, 5): save one page as a file of its own",
        ),
        (
            "the folder holds 2 series: 1, 2; choose one by series=, its number or the UID's end",
            "the folder holds 2 series: 1, 2; choose one by --series, its number or the UID's end",
            "the folder holds 2 series: 1, 2; give each a folder of its own",
        ),
        (
            "too large; of a slide, give a smaller level's file, or a part of it by region=",
            "too large; of a slide, give a smaller level's file, or a part of it by --region",
            "too large; of a slide, give a smaller level's file",
        ),
        ("said=frame=3 and my-frame= stay", "said=frame=3 and my-frame= stay", "said=frame=3 and my-frame= stay"),
    ],
)
def test_only_options_that_the_command_has_are_advised(message: str, with_options: str, without: str) -> None:
    speak_for({"--frame", "--series", "--level", "--region"})
    assert in_options(message) == with_options
    speak_for({"--out"})
    assert in_options(message) == without


def test_each_command_advises_its_own_options(tmp_path: Path) -> None:
    times = tmp_path / "times.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((6, 5, 4, 3), dtype=np.int16), np.eye(4)), times)
    for line, advice in (
        ("info times.nii", "choose one with --frame, from 0 to 2"),
        ("convert times.nii out.nrrd", "save one as a file of its own"),
        ("agent times.nii 'segment the liver'", "save one as a file of its own"),
    ):
        done = medsam3_in(tmp_path, f"medsam3 {line}")
        assert (done.returncode, done.stderr.decode().strip().rpartition(": ")[2]) == (2, advice)


def test_only_the_terminal_prints() -> None:
    for path in sorted(Path(medsam3.cli.__file__).parent.glob("*.py")):
        names = {
            node.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Name)
        }
        assert path.name == "terminal.py" or "print" not in names, path.name


def medsam3_in(folder: Path, command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of the shell with `medsam3` in it."""
    line = command.replace("medsam3", f"{sys.executable} -m medsam3", 1)
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=os.environ | environment, capture_output=True, check=False
    )


def test_a_name_that_is_no_utf8_or_full_of_escapes_is_shown_harmlessly(tmp_path: Path) -> None:
    for name in (b"a\xff.png", b"b\x1b[2J.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as stream:  # noqa: PTH118, PTH123  bytes
            PIL.Image.new("L", (8, 6)).save(stream, "PNG")
    for name, shown in ((b"a\xff.png", rb"a\udcff.png"), (b"b\x1b[2J.png", rb"b\x1b[2J.png")):
        done = medsam3_in(tmp_path, f"medsam3 info $'{ascii(os.fsdecode(name))[1:-1].replace('udc', 'x')}'")
        assert (done.returncode, done.stderr) == (0, b"")
        assert shown in done.stdout and b"\x1b" not in done.stdout
        gone = medsam3_in(tmp_path, f"medsam3 info gone$'{ascii(os.fsdecode(name))[1:-1].replace('udc', 'x')}'")
        assert gone.returncode == 2
        assert gone.stderr.count(b"\n") == 1 and b"\x1b" not in gone.stderr


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}])
def test_a_terminal_that_knows_ascii_alone_gets_ascii(tmp_path: Path, environment: dict[str, str]) -> None:
    environment = environment | {"PYTHONUTF8": "0"}
    table = medsam3_in(tmp_path, "medsam3 concepts polyp", **environment)
    assert (table.returncode, table.stderr) == (0, b"") and table.stdout.isascii()
    assert medsam3_in(tmp_path, "medsam3 info --help", **environment).returncode == 0
    refused = medsam3_in(tmp_path, "medsam3 info ポリープ.png", **environment)
    assert refused.returncode == 2 and refused.stderr.isascii() and refused.stderr.count(b"\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("arguments", ["concepts", "concepts --json", "--help", "info --help", "--version"])
def test_a_full_disk_is_one_line_and_exit_code_2(tmp_path: Path, arguments: str) -> None:
    done = medsam3_in(tmp_path, f"medsam3 {arguments} > /dev/full")
    assert done.returncode == 2
    assert done.stderr == b"medsam3: error: the output cannot be written (No space left on device): send it elsewhere\n"


@pytest.mark.parametrize("arguments", ["concepts", "concepts --json", "train --help"])
def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, arguments: str) -> None:
    done = medsam3_in(tmp_path, f"medsam3 {arguments} | true; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("arguments", ["concepts", "info --help", "--version"])
def test_a_closed_stdout_or_stderr_is_no_error(tmp_path: Path, arguments: str) -> None:
    assert medsam3_in(tmp_path, f"medsam3 {arguments} >&-").stderr == b""
    assert medsam3_in(tmp_path, f"medsam3 {arguments} >&-").returncode == 0
    assert medsam3_in(tmp_path, "medsam3 info gone.png 2>&-").returncode == 2
    assert medsam3_in(tmp_path, "medsam3 info gone.png 2>/dev/full").returncode == 2
