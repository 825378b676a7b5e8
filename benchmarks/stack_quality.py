"""Quality of volumes and clips: slice by slice, and with objects followed through the stack.

    python benchmarks/stack_quality.py volumes --data DATA --split test
    python benchmarks/stack_quality.py clips --data DATA --split test

DATA is a folder with an `index.csv` (see docs/metrics.md). `volumes` takes the NIfTI rows of `--dataset` (by default
msd_hippocampus), text only, and sets the ways of `medsam3 eval --volumes` side by side: Dice and NSD at 1 mm of each
volume, slice by slice, with propagation, and where asked by a vote of three planes. `--nearest K` adds the baseline of
asking every K-th slice and taking the nearest one's mask. For a report with intervals take `medsam3 eval`.
`clips` takes the sequences of `--dataset` (cvc_clinicdb): mean Dice, Dice of neighbouring frames of the prediction, and
the flicker rate, which is the share of neighbouring pairs in which the prediction comes or goes and the reference does
not; then a box around the reference on the first frame alone, followed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import medsam3
from medsam3.data.index import IndexRow, concept_mask, load_label_map, read_index
from medsam3.eval.cases import VolumeWay
from medsam3.eval.run import Truths, options_for
from medsam3.geometry import box_of_mask
from medsam3.image import Image
from medsam3.io import read
from medsam3.measure.outline import boundary_distances, dice
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Box, Prompt
from medsam3.segmentation.options import Options
from medsam3.segmentation.run import segment

Mask = NDArray[np.bool_]
FOLLOWED = Options(is_followed=True)


class KeptNecks:
    """A small model's image encoder that remembers, so that each way of segmenting a stack does not encode it anew."""

    def __init__(self, model: Any) -> None:
        self._model, self.decode = model, model.decode
        self.known: dict[bytes, Any] = {}

    def neck(self, square: NDArray[np.uint8]) -> Any:
        key = hashlib.sha256(square.tobytes()).digest()
        if key not in self.known:
            self.known[key] = self._model.neck(square)
        return self.known[key]


def volumes(rows: Sequence[IndexRow], model: Any, args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, list[tuple[float, float]]] = defaultdict(list)
    by_image: dict[Path, list[IndexRow]] = defaultdict(list)
    for row in rows:
        by_image[row.image].append(row)
    for image, own in list(by_image.items())[: args.limit]:
        model.lite_medsam.known.clear()
        stack = read(image)
        maps, phrases = Truths(stack, own), [row.concept for row in own]
        ways: dict[str, VolumeWay] = {"slice by slice": "slices", "propagated": "follow"}
        if args.vote:
            ways["vote of three planes"] = "vote"
        plane = {} if args.plane == "auto" else {"plane": args.plane}
        answers = {
            name: [found.union() for found in segment(stack, phrases, model, replace(options_for(way), **plane))]
            for name, way in ways.items()
        }
        if args.nearest:
            answers[f"nearest of every {args.nearest}"] = [
                nearest(mask, args.nearest) for mask in answers["slice by slice"]
            ]
        for name, found in answers.items():
            for row, mask in zip(own, found, strict=True):
                reference = maps.of(row).mask
                near = boundary_distances(reference, mask, stack.spacing_mm).nsd(1.0)
                figures[f"{row.concept}, {name}"].append((dice(reference, mask), near))
        told(image.name, {name: round(pairs[-1][0], 3) for name, pairs in figures.items()})
    return {
        name: {
            "volumes": len(pairs),
            "Dice": mean([pair[0] for pair in pairs]),
            "NSD 1 mm": mean([p[1] for p in pairs]),
        }
        for name, pairs in sorted(figures.items())
    }


def segment_all(stack: Image, prompts: list[Prompt], model: Segmenter, options: Options) -> list[Mask]:
    return [found.union() for found in segment(stack, prompts, model, options)]


def nearest(mask: Mask, every: int) -> Mask:
    """Each slice as the nearest of those that were asked."""
    count = mask.shape[0]
    keys = np.array([*range(0, count, every)])
    chosen = [int(keys[np.abs(keys - n).argmin()]) for n in range(count)]
    return mask[chosen]


def clips(rows: Sequence[IndexRow], model: Any, args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, list[dict[str, float]]] = defaultdict(list)
    sequences: dict[str, list[IndexRow]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row.image.name):
        sequences[row.group].append(row)
    for own in list(sequences.values())[: args.limit]:
        model.lite_medsam.known.clear()
        stack = clip_of([row.image for row in own])
        reference = np.stack([concept_mask(load_label_map(row.mask), row.label_values) for row in own])
        edges = box_of_mask(reference[0])
        prompt = Prompt(text=own[0].concept)
        answers = {
            "frame by frame": segment_all(stack, [prompt], model, Options(is_followed=False))[0],
            "propagated": segment_all(stack, [prompt], model, FOLLOWED)[0],
        }
        if edges is not None:
            answers["box on the first frame"] = segment_all(stack, [Prompt(boxes=(Box(*edges),))], model, FOLLOWED)[0]
        for name, mask in answers.items():
            figures[name].append(consistency(reference, mask))
        told(own[0].group, {name: own[-1]["Dice"] for name, own in figures.items()})
    return {
        name: {"clips": len(own), **{key: mean([one[key] for one in own]) for key in own[0]}}
        for name, own in figures.items()
    }


def told(name: str, scores: dict[str, float]) -> None:
    """How far it is, beside the results."""
    print(name, json.dumps(scores), file=sys.stderr, flush=True)


def clip_of(paths: Sequence[Path]) -> Image:
    return Image(np.stack([read(path).pixels(0) for path in paths]), "video")


def consistency(reference: Mask, mask: Mask) -> dict[str, float]:
    scores = [dice(a, b) for a, b in zip(reference, mask, strict=True)]
    neighbours = [dice(a, b) for a, b in pairwise(mask)]
    held, wanted = mask.any(axis=(1, 2)), reference.any(axis=(1, 2))
    flickers = (held[1:] != held[:-1]) & (wanted[1:] == wanted[:-1])
    return {
        "Dice": mean([1.0 if np.isnan(score) else score for score in scores]),
        "Dice of neighbours": mean([1.0 if np.isnan(score) else score for score in neighbours]),
        "Dice of neighbours, reference": mean([dice(a, b) for a, b in pairwise(reference)]),
        "flicker rate": float(flickers.mean()),
    }


def mean(values: Sequence[float]) -> float:
    return round(float(np.nanmean(values)), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("volumes", "clips"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--dataset", help="default: msd_hippocampus, cvc_clinicdb")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--plane", default="auto")
    parser.add_argument("--vote", action="store_true", help="also segment by a vote of three planes")
    parser.add_argument("--nearest", type=int, help="also take the nearest of every K-th slice")
    parser.add_argument("--limit", type=int, help="only the first so many volumes or clips")
    args = parser.parse_args()
    dataset = args.dataset or {"volumes": "msd_hippocampus", "clips": "cvc_clinicdb"}[args.what]
    rows = [row for row in read_index(args.data) if row.dataset == dataset and row.split == args.split]
    model = medsam3.load("mini", weights=args.weights)
    model.lite_medsam = KeptNecks(model.lite_medsam)
    measure = volumes if args.what == "volumes" else clips
    print(json.dumps(measure(rows, model, args), indent=1))


if __name__ == "__main__":
    main()
