"""`medsam3 concepts`: the listed concepts with their synonyms and codes; cards say which ones weights were taught."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from medsam3.cli.terminal import print_table

_EXAMPLES = """examples:
  medsam3 concepts
  medsam3 concepts "optic cup"
  medsam3 concepts nucleus --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medsam3 concepts`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("query", nargs="?", default="", metavar="QUERY", help="a word or phrase to look for")
    parser.add_argument("--json", action="store_true", help="print JSON to stdout")


def run(args: argparse.Namespace) -> int:
    """Run `medsam3 concepts`."""
    from medsam3.concepts import search  # noqa: PLC0415

    found = search(args.query)
    if args.json:
        print(json.dumps([asdict(concept) for concept in found], indent=2))
        return 0
    if not found:
        print(f"no concept like {args.query!r} is listed; any phrase may still be asked for")
        return 0
    print_table(("concept", "synonyms"), [(concept.name, ", ".join(concept.synonyms)) for concept in found])
    return 0
