"""`medsam3 convert`: masks from one form to another, without segmenting anything again."""

from __future__ import annotations

import argparse
from pathlib import Path

from medsam3.cli.outputs import check_can_hold
from medsam3.errors import InputError

_EXAMPLES = """examples:
  medsam3 convert liver_mask.nii.gz liver.nrrd
  medsam3 convert liver_mask.nii.gz liver_seg.dcm --image study/ --series 3 --format seg
  medsam3 convert rtstruct.dcm structures.nii.gz --image study/
  medsam3 convert liver_seg.dcm liver.csv --image study/ --format csv

The image is needed for DICOM and COCO, which do not tell all of it, and for formats that show it. It is not changed.
Label maps of others have no names; each of their numbers becomes a concept `label 1`, `label 2` ..."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medsam3 convert`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("source", type=Path, metavar="MASKS", help="label map, DICOM SEG, RTSTRUCT or COCO JSON")
    parser.add_argument("target", type=Path, metavar="TARGET", help="file to write")
    parser.add_argument("--image", type=Path, metavar="PATH", help="the image that the masks are over")
    parser.add_argument("--series", metavar="NUMBER|UID", help="of a folder with several DICOM series: this one")
    parser.add_argument("--format", metavar="NAME", help="default: by the ending of TARGET")
    parser.add_argument(
        "--resample", action="store_true", help="lay a label map of another grid over the image, by nearest"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace TARGET if it exists")


def run(args: argparse.Namespace) -> int:
    """Run `medsam3 convert`."""
    from medsam3.io import NEEDS_PIXELS, read, write  # noqa: PLC0415
    from medsam3.io.read_masks import read_masks  # noqa: PLC0415

    if args.target.exists() and not args.overwrite:
        raise InputError(f"{args.target} exists: name another file, or replace it with --overwrite")
    check_can_hold(args.target.parent)
    if args.series is not None and args.image is None:
        raise InputError("--series chooses from the image's folder: give it with --image")
    needs_pixels = args.format in NEEDS_PIXELS or args.target.name.lower().endswith("_overlay.png")
    if needs_pixels and args.image is None:
        raise InputError("the format shows the image: give it with --image")
    image = None if args.image is None else read(args.image, series=args.series)
    masks, over = read_masks(args.source, image, is_resampled=args.resample)
    args.target.parent.mkdir(parents=True, exist_ok=True)
    write(masks, args.target, over, format=args.format)
    count = sum(len(found) for found in masks)
    print(f"{count} {'object' if count == 1 else 'objects'} of {len(masks)} concepts written to {args.target}")
    return 0
