"""`medsam3 info`: what a file holds, in technical facts only, never whose it is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medsam3.cli.inputs import Input
from medsam3.cli.reading import frame_ranges, part, read_chosen
from medsam3.cli.terminal import print_table

_EXAMPLES = """examples:
  medsam3 info scan.dcm
  medsam3 info series_folder/ --json
  medsam3 info study_folder/ --series 3 --frame 10-20"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medsam3 info`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("file", type=Path, metavar="FILE", help="an image, a volume, or a folder with a DICOM series")
    parser.add_argument("--series", metavar="NUMBER|UID", help="of a folder with several DICOM series: this one")
    parser.add_argument(
        "--frame",
        "--slice",
        dest="frame",
        metavar="N|A-B",
        help="of these frames or slices alone, from 0; of a 4-D NIfTI, of the time point",
    )
    parser.add_argument("--json", action="store_true", help="print JSON to stdout")


def run(args: argparse.Namespace) -> int:
    """Run `medsam3 info`."""
    ranges = frame_ranges(None if args.frame is None else [args.frame])
    item = Input(args.file, args.series)
    from medsam3.io import facts  # noqa: PLC0415

    found = facts(part(read_chosen(item, ranges)))
    if args.json:
        print(json.dumps(found, indent=2, default=str))
    else:
        print_table(("what", "value"), [(name, str(value)) for name, value in found.items()], title=item.label)
    return 0
