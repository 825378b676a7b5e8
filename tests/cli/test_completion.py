"""A shell completes commands, options, values and files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from medsam3.cli.doctor import Shell, script_for
from medsam3.cli.main import COMMANDS, main

ASKED = """
source {script}
asked() {{
  COMP_WORDS=(medsam3 "$@"); COMP_CWORD=$#; COMPREPLY=()
  _medsam3 medsam3 "${{COMP_WORDS[COMP_CWORD]}}" ""
  echo "${{COMPREPLY[*]}}" | tr -s ' \\n' ' '; echo
}}
"""


def completed(tmp_path: Path, *words: str) -> list[str]:
    script = tmp_path / "medsam3.bash"
    script.write_text(script_for("bash"), encoding="utf-8")
    command = ASKED.format(script=script) + "asked " + " ".join(f"'{word}'" for word in words)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_options_and_values(tmp_path: Path) -> None:
    assert completed(tmp_path, "seg") == ["segment"]
    assert {"convert", "fetch", "list"} <= set(completed(tmp_path, "weights", ""))
    assert completed(tmp_path, "segment", "--prop") == ["--propagate"]
    assert completed(tmp_path, "segment", "--plane", "s") == ["sagittal"]
    options = completed(tmp_path, "convert", "--")
    assert "--resample" in options
    assert not any(option.isupper() for option in options)  # --MASKS is a place, and no option


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_offers_files_where_nothing_else_fits(tmp_path: Path) -> None:
    script = tmp_path / "medsam3.bash"
    script.write_text(script_for("bash"), encoding="utf-8")
    told = subprocess.run(["bash", "-c", f"source {script}; complete -p medsam3"], capture_output=True, check=True)
    assert told.stdout.decode().strip() == "complete -o bashdefault -o default -F _medsam3 medsam3"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_names_every_command_and_its_shell_can_read_it(
    shell: Shell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    text = script.read_text(encoding="utf-8")
    assert all(word in text for command in COMMANDS for word in command.name.split())
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([program, "-n", str(script)], check=True)


def test_a_shell_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "tcsh" in capsys.readouterr().err
