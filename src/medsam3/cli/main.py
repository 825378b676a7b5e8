"""The command `medsam3`: finds the command's module, runs it, and turns errors into one line and an exit code.

Exit codes: 0 done; 1 an error of ours; 2 bad input, of which the error line says what to do; 130 interrupted.
Only the module of the command that was asked for is imported, so that `medsam3 --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from medsam3 import __version__
from medsam3.cli.terminal import error_line, unexpected
from medsam3.errors import InputError

_log = logging.getLogger("medsam3")


@dataclass(frozen=True)
class Command:
    """A command: its module has `add_arguments(parser)` and `run(args) -> int`."""

    name: str
    module: str
    summary: str


COMMANDS = (
    Command("segment", "medsam3.cli.segment", "segment images, volumes and folders by phrases, boxes and points"),
    Command(
        "agent", "medsam3.cli.agent", "follow an instruction over an image: segment, look, refine, or find nothing"
    ),
    Command("convert", "medsam3.cli.convert", "convert masks between NIfTI, NRRD, MHA, DICOM, COCO, PNG"),
    Command("info", "medsam3.cli.info", "say what a file holds: size, spacing, type"),
    Command("concepts", "medsam3.cli.concepts", "list concepts with their synonyms"),
    Command("weights", "medsam3.cli.weights", "fetch the encoders' weights, list them, or convert those of SAM 3"),
    Command("train", "medsam3.cli.train", "train the detector on your own data"),
    Command("eval", "medsam3.cli.eval", "measure a model on a data folder"),
)
_EPILOG = """examples:
  medsam3 weights fetch
  medsam3 segment colonoscopy.png --text polyp
  medsam3 segment --help

Not a medical device: for research only."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are bad input like all other."""

    def error(self, message: str) -> NoReturn:
        """Raise the error in place of printing the usage.

        Raises:
            InputError: Always.
        """
        raise InputError(f"{message} (see: {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # PyTorch's threads spin while they wait, unless told before it loads: beside a busy process that costs six times.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        return _run(arguments)
    except SystemExit as stop:  # argparse ends --help and --version so
        return stop.code if isinstance(stop.code, int) else 0
    except InputError as error:
        _log.debug("bad input", exc_info=True)
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        _complain("interrupted; what was finished is kept")
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        _log.debug("unexpected error", exc_info=True)
        _complain(unexpected(error))
        return 1


def parser_for(arguments: Sequence[str]) -> Parser:
    """The whole parser, with the arguments of only that command that is named first."""
    common = Parser(add_help=False)
    common.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="log, with tracebacks, to stderr"
    )
    parser = Parser(
        prog="medsam3",
        description="Medical image segmentation by concept: a phrase and an image in, masks out.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"medsam3 {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    for command in COMMANDS:
        sub = commands.add_parser(
            command.name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[common],
            allow_abbrev=False,
        )
        if command.name == asked:
            module = importlib.import_module(command.module)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def _run(arguments: Sequence[str]) -> int:
    args = parser_for(arguments).parse_args(arguments)
    if getattr(args, "debug", False):
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        _log.setLevel(logging.DEBUG)
    code: int = args.run(args)
    sys.stdout.flush()
    return code


def _complain(message: str) -> None:
    print(error_line(message), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
