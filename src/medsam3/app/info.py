"""`medsam3 info`: what a file holds, in technical facts only, never whose it is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medsam3.app.terminal import print_table

_EXAMPLES = """examples:
  medsam3 info scan.dcm
  medsam3 info series_folder/ --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medsam3 info`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("file", type=Path, metavar="FILE", help="an image, a volume, or a folder with a DICOM series")
    parser.add_argument("--json", action="store_true", help="print JSON to stdout")


def run(args: argparse.Namespace) -> int:
    """Run `medsam3 info`."""
    from medsam3.io import info  # noqa: PLC0415

    facts = info(args.file)
    if args.json:
        print(json.dumps(facts, indent=2, default=str))
    else:
        print_table(("what", "value"), [(name, str(value)) for name, value in facts.items()], title=str(args.file))
    return 0
