"""What a batch costs as it grows, and what a second worker gains.

    python benchmarks/batch.py scale --most 100000      time a picture and memory of the driver, from 100 pictures up
                                                        with a stand-in model that sleeps 2 ms
    python benchmarks/batch.py workers DATA --count 40  one worker against two, with `mini`, real pictures

Prints JSON. The second needs two idle cores.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Picture

import medsam3
from medsam3.batch.crew import Cluster, Crew
from medsam3.batch.pieces import Piece, find_pieces
from medsam3.batch.target import OutputTarget
from medsam3.batch.worker import BatchWork, Report
from medsam3.cli.batch import found_at
from medsam3.image import Kind, Masks
from medsam3.prompts import Prompt
from medsam3.segmentation.options import Options

FORMATS: dict[Kind, tuple[str, ...]] = {"picture": ("png",), "volume": ("nifti",), "video": ("coco",)}


class Sleeper:
    """Stands in for a model: sleeps, and finds a corner."""

    name = "sleeper"

    def encode(self, rgb: Any) -> Any:
        time.sleep(0.002)
        return rgb.shape[:2]

    def decode(self, features: Any, prompt: Prompt, *, threshold: float | None = None) -> Masks:
        mask = np.zeros((1, 1, *features), dtype=np.bool_)
        mask[..., :2, :3] = True
        return Masks.from_dense(mask, [0.9], concept=prompt.text or "", presence=0.9, is_present=True)


def work_of(model: str) -> BatchWork:
    load = Sleeper if model == "sleeper" else partial(medsam3.load, model)
    return BatchWork((Prompt("polyp"),), None, Options(), load, found_at, lambda prompt: prompt.to_json(), FORMATS)


def run(pieces: Iterator[Piece], out: Path, model: str, workers: int) -> tuple[Report, float]:
    """Run a batch, and time it from the moment all workers have their model."""
    target, total = OutputTarget(str(out)), Report()
    target.prepare()
    crew = Crew(work_of(model), str(out), target.known(), Cluster(workers=workers))
    first = crew.run(pieces)
    try:
        total.add(next(first))
        begun = time.monotonic()
        for report in first:
            total.add(report)
        return total, time.monotonic() - begun
    finally:
        crew.close()


def write_pictures(folder: Path, count: int) -> None:
    """Write small pictures that all differ, a thousand in each folder."""
    for n in range(count):
        place = folder / f"{n // 1000:04d}"
        if n % 1000 == 0:
            place.mkdir(parents=True)
        pixels = np.zeros((8, 8), dtype=np.uint8)
        pixels[0, :4] = (n & 255, n >> 8 & 255, n >> 16, 255)
        Picture.fromarray(pixels).save(place / f"{n:06d}.png")


def scale(most: int) -> None:
    count = 100
    while count <= most:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_pictures(folder / "in", count)
            report, seconds = run(find_pieces([str(folder / "in")]), folder / "out", "sleeper", 2)
            again, skipping = run(find_pieces([str(folder / "in")]), folder / "out", "sleeper", 2)
        row = {
            "pictures": count,
            "done": report.done,
            "ms_a_picture": round(1e3 * seconds / count, 2),
            "ms_a_picture_second_run": round(1e3 * skipping / count, 2),
            "skipped": again.skipped,
            "driver_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        }
        print(json.dumps(row), flush=True)
        count *= 10


def workers(data: Path, count: int) -> None:
    pictures = sorted((data / "kvasir_seg").rglob("*.jpg"))[:count] or sorted(data.rglob("*.png"))[:count]
    for number in (1, 2, 1, 2):
        with tempfile.TemporaryDirectory() as temporary:
            pieces = iter([Piece(str(file)) for file in pictures])
            report, seconds = run(pieces, Path(temporary) / "out", "mini", number)
        print(
            json.dumps({"workers": number, "done": report.done, "s_a_picture": round(seconds / count, 3)}), flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("scale").add_argument("--most", type=int, default=10_000)
    workers_parser = commands.add_parser("workers")
    workers_parser.add_argument("data", type=Path)
    workers_parser.add_argument("--count", type=int, default=40)
    arguments = parser.parse_args()
    if arguments.command == "scale":
        scale(arguments.most)
    else:
        workers(arguments.data, arguments.count)


if __name__ == "__main__":
    main()
