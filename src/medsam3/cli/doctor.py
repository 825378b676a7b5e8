"""Commands about the installation.

`medsam3 doctor`: what is installed, what is missing, where weights lie, and one picture segmented as a test.
`medsam3 completion`: a script by which a shell completes commands, options and their values.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import KW_ONLY, asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from cyclopts import App, Parameter

import medsam3
from medsam3.cli.job import Help
from medsam3.cli.main import COMMANDS, app_for
from medsam3.cli.terminal import print_table, say, say_json
from medsam3.errors import InputError

Shell = Literal["bash", "zsh", "fish"]
State = Literal["ok", "missing", "broken", "note"]
_EXTRA = re.compile(r"extra\s*==\s*['\"]([a-z0-9]+)['\"]")
_GATHERED = ("all", "dev")
"""Extras that only name others."""
_PLACES = {
    "bash": re.compile(r'"--[A-Z_]+" '),
    "zsh": re.compile(r"^\s*'--[A-Z_]+\[.*\n", re.MULTILINE),
    "fish": re.compile(r"^complete .* -l [A-Z_]+ .*\n", re.MULTILINE),
}
"""Names of what has its place and no dashes, which cyclopts lists among the options."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: The thing.
        state: How it is; `missing` concerns what is optional, `broken` what nothing works without.
        found: The version, the place, or what is wrong.
        advice: The thing to do; "" if nothing is.
    """

    name: str
    state: State
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Doctor:
    """Arguments of `medsam3 doctor`."""

    EXAMPLES: ClassVar[str] = """examples:
  medsam3 doctor
  medsam3 doctor --json
  medsam3 doctor --no-test

Nothing is changed and nothing is fetched. Exit codes: 0 the default model works; 2 it does not, with the reason."""

    _: KW_ONLY
    json: Annotated[bool, Help("print JSON to stdout")] = False
    no_test: Annotated[bool, Help("leave the test picture out")] = False

    def run(self) -> int:
        """Look at everything and say how it is."""
        checks = [*_machine(), *_packages(), *_weights()]
        if not self.no_test:
            checks.append(_tested())
        is_well = not any(check.state == "broken" for check in checks)
        if self.json:
            say_json({"is_well": is_well, "checks": [asdict(check) for check in checks]})
        else:
            rows = [(check.name, check.state, check.found, check.advice) for check in checks]
            print_table(("what", "state", "found", "to do"), rows)
            say("all is well" if is_well else "something that every command needs is broken, see above")
        return 0 if is_well else 2


def _machine() -> Iterator[Check]:
    yield Check("medsam3", "ok", f"{medsam3.__version__}, {Path(medsam3.__file__).parent}")
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Check("cores", "ok", str(os.cpu_count()))
    yield _devices()
    for program in ("ffmpeg", "dcmdump"):  # handy beside medsam3, never needed
        place = shutil.which(program)
        if place:
            yield Check(program, "note", place)


def _devices() -> Check:
    try:
        torch = importlib.import_module("torch")
        names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
        names += ["mps"] if torch.backends.mps.is_available() else []
    except Exception as error:
        return Check("devices", "broken", f"{type(error).__name__}: {error}", "pip install --force-reinstall torch")
    return Check("devices", "ok", ", ".join(["cpu", *names]))


def _packages() -> Iterator[Check]:
    """Look at each package that the installation names, needed ones first."""
    for requirement in sorted(metadata.requires("medsam3") or (), key=lambda text: ("extra" in text, text)):
        extra = _EXTRA.search(requirement)
        name = re.split(r"[\s;<>=!~\[]", requirement, maxsplit=1)[0]
        if name == "medsam3" or (extra is not None and extra[1] in _GATHERED):
            continue
        title = name if extra is None else f"{name} ({extra[1]})"
        try:
            yield Check(title, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            if extra is None:
                yield Check(title, "broken", "not installed", "pip install --force-reinstall medsam3")
            else:
                yield Check(title, "missing", "not installed", f"pip install 'medsam3[{extra[1]}]' if you need it")


def _weights() -> Iterator[Check]:
    from medsam3.models.mini import encoder_files  # noqa: PLC0415

    folder = encoder_files.default_folder()
    needed = encoder_files.needed(is_for_training=False)
    for pinned in encoder_files.needed(is_for_training=True):
        state = encoder_files.state_of(pinned, folder)
        if state == "ready":
            yield Check(pinned.name, "ok", str(folder / pinned.name))
        elif pinned in needed:
            yield Check(pinned.name, "broken", f"{state} in {folder}", "medsam3 weights fetch")
        else:
            yield Check(pinned.name, "missing", state, "medsam3 weights fetch --training, to train")


def _tested() -> Check:
    """Segment a drawn picture with the default model."""
    try:
        import numpy as np  # noqa: PLC0415

        start = time.monotonic()
        rows, columns = np.mgrid[:192, :192]
        picture = np.full((192, 192, 3), (196, 96, 84), dtype=np.uint8)
        picture[(rows - 90) ** 2 + (columns - 110) ** 2 < 900] = (232, 200, 120)
        [found] = medsam3.segment(picture, "optic disc", medsam3.load("mini"))
        seconds = time.monotonic() - start
    except InputError as error:
        return Check("test picture", "broken", str(error))
    except Exception as error:
        return Check("test picture", "broken", f"unexpected {type(error).__name__}: {error}")
    return Check(
        "test picture", "ok", f"presence {found.presence:.2f}, {len(found)} objects, {seconds:.1f} s with loading"
    )


@dataclass(frozen=True)
class Completion:
    """Arguments of `medsam3 completion`."""

    EXAMPLES: ClassVar[str] = """examples:
  medsam3 completion bash > ~/.local/share/bash-completion/completions/medsam3
  medsam3 completion zsh > ~/.zfunc/_medsam3      # with fpath+=~/.zfunc before compinit in ~/.zshrc
  medsam3 completion fish > ~/.config/fish/completions/medsam3.fish

The script is static: a TAB starts no Python. Write it again after an update."""

    shell: Annotated[Shell, Parameter(name="SHELL"), Help("bash, zsh or fish")]

    def run(self) -> int:
        """Print the script."""
        say(script_for(self.shell).rstrip())
        return 0


def script_for(shell: Shell) -> str:
    """Make the script of a shell; in bash, where nothing else fits, files are offered."""
    app = App(name="medsam3", version_flags=())
    groups: dict[str, App] = {}
    for command in COMMANDS:
        *above, name = command.name.split()
        parent = app
        for group in above:
            if group not in groups:
                groups[group] = App(name=group)
                app.command(groups[group])
            parent = groups[group]
        parent.command(app_for(command), name=name)
    script = _PLACES[shell].sub("", app.generate_completion(shell=shell))
    return script.replace("complete -F ", "complete -o bashdefault -o default -F ")
