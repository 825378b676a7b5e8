"""`medsam3 completion`: a script by which a shell completes commands, options and their values."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from cyclopts import App, Parameter

from medsam3.cli.job import Help
from medsam3.cli.main import COMMANDS, app_for
from medsam3.cli.terminal import say

Shell = Literal["bash", "zsh", "fish"]
_PLACES = {
    "bash": re.compile(r'"--[A-Z_]+" '),
    "zsh": re.compile(r"^\s*'--[A-Z_]+\[.*\n", re.MULTILINE),
    "fish": re.compile(r"^complete .* -l [A-Z_]+ .*\n", re.MULTILINE),
}
"""Names of what has its place and no dashes, which cyclopts lists among the options."""


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
