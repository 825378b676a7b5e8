"""The command `medsam3`: finds the command's class, reads its arguments, runs it, and turns errors into one line.

Exit codes: 0 done; 1 an error of ours; 2 bad input, of which the error line says what to do; 130 interrupted.
Only the module of the command that was asked for is imported, so that `medsam3 --help` answers at once.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from medsam3 import __version__
from medsam3.cli.terminal import (
    WarningLines,
    complain,
    drop_stdout,
    finish_stdout,
    prepare_streams,
    say,
    say_help,
    speak_for,
    unexpected,
)
from medsam3.errors import InputError, reason_of

if TYPE_CHECKING:
    from cyclopts import App

_log = logging.getLogger("medsam3")


class Arguments(Protocol):
    """A command's arguments: a frozen dataclass, of which each field is an argument."""

    EXAMPLES: ClassVar[str]

    def run(self) -> int:
        """Do what was asked for and give the exit code."""


@dataclass(frozen=True)
class Command:
    """A command: the module and the name of the class of its arguments."""

    name: str
    module: str
    arguments: str
    summary: str

    def load(self) -> type[Arguments]:
        """Import the class of the arguments."""
        found: type[Arguments] = getattr(importlib.import_module(self.module), self.arguments)
        return found


COMMANDS = (
    Command(
        "segment", "medsam3.cli.segment", "SegmentFiles", "segment images, volumes and folders by phrases and boxes"
    ),
    Command(
        "batch", "medsam3.cli.batch", "BatchFiles", "segment very many files on all cores, a cluster or a share of them"
    ),
    Command("agent", "medsam3.cli.agent", "Agent", "follow an instruction: segment, look, refine, or find nothing"),
    Command(
        "watch", "medsam3.cli.watch", "Watch", "segment new series of a hospital archive by rules, store results back"
    ),
    Command("serve", "medsam3.cli.serve", "Serve", "open a page and an HTTP API on this machine"),
    Command("mcp", "medsam3.cli.serve", "Mcp", "offer tools to LLM clients by the Model Context Protocol"),
    Command("convert", "medsam3.cli.files", "Convert", "convert masks between NIfTI, NRRD, MHA, DICOM, COCO, PNG"),
    Command("info", "medsam3.cli.files", "Info", "say what a file holds: size, spacing, type"),
    Command("demo", "medsam3.cli.demo", "Demo", "segment a photograph that is there by four phrases"),
    Command("doctor", "medsam3.cli.doctor", "Doctor", "say what is installed and what is missing, and try one picture"),
    Command("completion", "medsam3.cli.doctor", "Completion", "print a script by which a shell completes commands"),
    Command("concepts", "medsam3.cli.files", "Concepts", "list concepts with their synonyms"),
    Command("weights fetch", "medsam3.cli.weights", "Fetch", "download the encoders' weights"),
    Command("weights list", "medsam3.cli.weights", "List", "show which weights are there"),
    Command("weights convert", "medsam3.cli.weights", "ConvertWeights", "write SAM 3's weights as a folder"),
    Command("train", "medsam3.cli.train", "Train", "train the detector on your own data"),
    Command("eval", "medsam3.cli.eval", "Eval", "measure a model on a data folder"),
)
_EXAMPLES = """examples:
  medsam3 weights fetch
  medsam3 segment colonoscopy.png --text polyp
  medsam3 segment --help

--debug, with any command, logs to stderr, with tracebacks.
Not a medical device: for research only."""
_HELP = ("--help", "-h")
_SAID = {
    r"--([A-Z_]+)\b": r"\1",  # what has its place has a name in capitals, and no dashes
    r"^Parameter (\S+) requires an argument": r"\1 is missing, or has no value",
    r"^Unused Tokens: \[(.*)\]": r"there is no place for \1",
}
"""What is said in place of cyclopts' messages."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    prepare_streams()
    # PyTorch's threads spin while they wait, unless told before it loads: beside a busy process that costs six times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = run(list(sys.argv[1:] if argv is None else argv))
        finish_stdout()
        return code
    except InputError as error:
        _log.debug("bad input", exc_info=True)
        complain(str(error))
        code = 2
    except KeyboardInterrupt:
        complain("interrupted; what was finished is kept")
        code = 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        drop_stdout()
        return 0
    except Exception as error:
        _log.debug("unexpected error", exc_info=True)
        complain(unexpected(error))
        code = 1
    try:
        finish_stdout()
    except (InputError, BrokenPipeError):
        _log.debug("stdout cannot be written", exc_info=True)
    return code


def run(tokens: list[str]) -> int:
    """Run one command.

    Raises:
        InputError: The command line, or what it names, is not as it must be.
    """
    if "--debug" in tokens:
        tokens.remove("--debug")
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        _log.setLevel(logging.DEBUG)
    elif not _log.handlers:
        _log.addHandler(WarningLines())
    if tokens == ["--version"]:
        say(f"medsam3 {__version__}")
        return 0
    words = tokens[: 2 if tokens[:1] == ["weights"] else 1]
    if not words or any(word in _HELP for word in words):
        if not words:
            raise InputError(f"no command was given, allowed are {_names()} (see: medsam3 --help)")
        say(_overview([command for command in COMMANDS if words[0] in (*_HELP, command.name.split()[0])]))
        return 0
    arguments = parse(tokens)
    return 0 if arguments is None else arguments.run()


def parse(tokens: Sequence[str]) -> Arguments | None:
    """Read a command line into the arguments of its command; None if it asked for help, which is then printed.

    Raises:
        InputError: A command, an option or a value that is not allowed.
    """
    command = _command(tokens)
    app, rest = app_for(command), _with_negative_numbers(tokens[len(command.name.split()) :])
    if any(word in _HELP for word in rest):
        say_help(app, command.load().EXAMPLES)
        return None
    from cyclopts import CycloptsError  # noqa: PLC0415

    speak_for({name for argument in app.assemble_argument_collection() for name in argument.names})
    prepare = getattr(command.load(), "prepare", None)
    try:
        call, bound, _ = app.parse_args(
            rest if prepare is None else prepare(rest), exit_on_error=False, print_error=False
        )
        made: Arguments = call(*bound.args, **bound.kwargs)
    except CycloptsError as error:
        named = next((token for token in rest if token[:1] == "-" and Path(token).exists()), None)
        if named is not None:
            raise InputError(f"{named} is read as an option: write ./{named} for the file") from error
        message = reason_of(error).removesuffix(".")
        for pattern, said in _SAID.items():
            message = re.sub(pattern, said, message)
        raise InputError(f"{message} (see: medsam3 {command.name} --help)") from error
    return made


def _with_negative_numbers(tokens: Sequence[str]) -> list[str]:
    """Tie a value such as -5,0,30,40 to its option, so that it is not taken for an option itself."""
    tied: list[str] = []
    for token in tokens:
        if re.match(r"-\.?\d", token) and tied and tied[-1].startswith("--") and "=" not in tied[-1]:
            tied[-1] += f"={token}"
        else:
            tied.append(token)
    return tied


def app_for(command: Command) -> App:
    """Make the parser of one command."""
    from cyclopts import App, Parameter  # noqa: PLC0415  .15 s

    arguments = command.load()
    app = App(
        name=f"medsam3 {command.name}",
        help=f"{command.summary[0].upper()}{command.summary[1:]}.",
        help_format="plaintext",
        version_flags=(),
        default_parameter=Parameter(negative=(), show_default=False, allow_repeating=True),  # the last one counts
        result_action="return_value",
    )
    app.default(arguments)
    return app


def _command(tokens: Sequence[str]) -> Command:
    for command in COMMANDS:
        words = command.name.split()
        if list(tokens[: len(words)]) == words:
            return command
    asked = " ".join(tokens[: 2 if tokens[0] == "weights" else 1])
    near = difflib.get_close_matches(asked, [command.name for command in COMMANDS], n=1)
    hint = f"did you mean {near[0]}?" if near else f"allowed are {_names()}"
    raise InputError(f"there is no command {asked!r}: {hint} (see: medsam3 --help)")


def _names() -> str:
    return ", ".join(command.name for command in COMMANDS)


def _overview(commands: Sequence[Command]) -> str:
    lines = "\n".join(f"  {command.name:<16} {command.summary}" for command in commands)
    examples = _EXAMPLES if len(commands) == len(COMMANDS) else commands[0].load().EXAMPLES
    return (
        "usage: medsam3 COMMAND [ARGUMENTS]\n\n"
        "Medical image segmentation by concept: a phrase and an image in, masks out.\n\n"
        f"commands:\n{lines}\n\n{examples}"
    )


if __name__ == "__main__":
    sys.exit(main())
