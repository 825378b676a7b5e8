"""`medsam3 weights convert`: SAM 3's weights, with or without an adapter, as one folder in transformers' layout."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam3.cli.model_choice import adapter_from, add_sam3_arguments, vocabulary_from
from medsam3.cli.outputs import check_can_hold
from medsam3.errors import InputError

if TYPE_CHECKING:
    from medsam3.models.sam3.checkpoints import Conversion

EXAMPLES = """examples:
  medsam3 weights convert sam3.pt --out sam3_folder
  medsam3 weights convert facebook/sam3 --out medsam3_folder --lora best_lora_weights.pt --dtype bf16
  medsam3 weights convert sam3.pt --out medsam3_folder --lora best_lora_weights.pt --alpha 32 --rank 16
  medsam3 segment colonoscopy.png --text polyp --model medsam3_folder

SOURCE is Meta's sam3.pt, a folder in transformers' layout, a .safetensors file, or facebook/sam3 of the hub.
The folder gets config.json, model.safetensors, and CLIP's vocabulary where it is found, which phrases need."""
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "sam3.pt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medsam3 weights convert`."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="SOURCE", help="the weights to convert")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder without weights, or a new one")
    add_sam3_arguments(parser)
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="number format, default: %(default)s"
    )
    parser.add_argument("--json", action="store_true", help="print JSON to stdout")


def run(args: argparse.Namespace) -> int:
    """Run `medsam3 weights convert`."""
    adapter = adapter_from(args)
    vocabulary = vocabulary_from(args)
    _check_out(args.out)
    from medsam3.models.registry import convert_sam3  # noqa: PLC0415

    lora = None if adapter is None else adapter.source()
    try:
        made = convert_sam3(args.source, args.out, lora=lora, dtype=args.dtype, vocabulary=vocabulary)
    except OSError as error:
        raise InputError(
            f"{args.out} cannot be written ({error.strerror or error}): name another folder, or free space there"
        ) from error
    if args.json:
        print(json.dumps({**asdict(made), "folder": str(made.folder), "dtype": args.dtype}, indent=2))
    else:
        _show(made, args)
    return 0


def _check_out(out: Path) -> None:
    check_can_hold(out)
    there = [name for name in _WEIGHTS if (out / name).exists()]
    if there:
        raise InputError(f"{out} holds weights already ({there[0]}): name another folder with --out")


def _show(made: Conversion, args: argparse.Namespace) -> None:
    from medsam3.cli.terminal import print_table  # noqa: PLC0415

    facts: dict[str, Any] = {"tensors": f"{made.tensors} ({args.dtype})"}
    if made.left_over:
        facts["left out"] = f"{len(made.left_over)} that the model has no place for"
    if args.lora is not None:
        facts["adapter"] = f"merged into {made.adapted} modules"
    facts["points and boxes"] = "by the tracker's head" if made.has_tracker else "boxes by the detector, no points"
    facts["vocabulary"] = "copied" if made.has_vocabulary else "not found"
    print_table(("what", "value"), list(facts.items()))
    print(f"written to {made.folder}")
    if not made.has_vocabulary:
        print(
            "phrases need CLIP's vocabulary: convert again with --vocabulary, or copy it into the folder",
            file=sys.stderr,
        )
