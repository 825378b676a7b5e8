"""What the small model costs on this machine, in CPU seconds, and against another copy of the source.

    python benchmarks/mini.py [--runs 5]
    python benchmarks/mini.py --against OTHER/src    # both in turn, and the ratio of this one to the other

Prints JSON; quote the medians, and the machine with them. Threads are as OMP_NUM_THREADS says. The picture is
scikit-image's, of the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import skimage.data
from numpy.typing import NDArray

PHRASES = ("optic disc", "optic cup", "retinal blood vessel", "polyp")
SLICES = 6


def picture(height: int = 384, width: int = 512) -> NDArray[np.uint8]:
    """A fundus photograph: the first two phrases are there and small, so closer looks are taken."""
    whole = PIL.Image.open(Path(skimage.data.data_dir) / "retina.jpg").convert("RGB")
    return np.asarray(whole.resize((width, height)))


def cpu_seconds(work: Callable[[Any], object], runs: int, prepare: Callable[[], Any] = lambda: None) -> float:
    """Median CPU seconds of `work` on what is prepared anew each time, after one run that is not counted."""
    work(prepare())
    costs = []
    for _ in range(runs):
        given = prepare()
        started = time.process_time()
        work(given)
        costs.append(time.process_time() - started)
    return statistics.median(costs)


def warm_costs(runs: int) -> dict[str, float]:
    """CPU seconds with the model loaded."""
    import medsam3  # noqa: PLC0415  from the source tree that is measured

    segmenter: Any = medsam3.load("mini")
    rgb = picture()

    def encoded() -> object:
        features = segmenter.encode(rgb)
        segmenter.decode(features, medsam3.Prompt(boxes=(medsam3.Box(0, 0, 9, 9),)))  # boxes need more features
        return features

    def sliced(_: object) -> None:
        for n in range(SLICES):
            segmenter.decode(segmenter.encode(np.roll(rgb, n, axis=1)), medsam3.Prompt(PHRASES[0]))

    box = medsam3.Prompt(boxes=(medsam3.Box(250, 100, 350, 200),))
    further = cpu_seconds(lambda known: [segmenter.decode(known, medsam3.Prompt(p)) for p in PHRASES], runs, encoded)
    return {
        "first phrase, found": cpu_seconds(
            lambda _: segmenter.decode(segmenter.encode(rgb), medsam3.Prompt(PHRASES[0])), runs
        ),
        "first phrase, absent": cpu_seconds(
            lambda _: segmenter.decode(segmenter.encode(rgb), medsam3.Prompt("polyp")), runs
        ),
        "further phrase": further / len(PHRASES),
        "first box": cpu_seconds(lambda _: segmenter.decode(segmenter.encode(rgb), box), runs),
        "further box": cpu_seconds(lambda features: segmenter.decode(features, box), runs, encoded),
        "slice": cpu_seconds(sliced, 1) / SLICES,
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def child(command: list[str], source: Path | None) -> tuple[str, float]:
    """What a process prints, and its CPU seconds."""
    environment = {**os.environ, **({} if source is None else {"PYTHONPATH": str(source)})}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def round_of(source: Path | None, folder: Path, runs: int) -> dict[str, float]:
    """All costs of one source tree once; None is the one that is installed."""
    segment = [sys.executable, "-m", "medsam3", "segment", str(folder / "one.png"), "--text", "polyp", "--overwrite"]
    _, cold = child([*segment, "--out", str(folder / "masks")], source)
    printed, _ = child([sys.executable, __file__, "--warm", "--runs", str(runs)], source)
    return {"segment from a cold start": cold, **json.loads(printed.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="with --against: how often both are measured in turn")
    parser.add_argument("--against", type=Path, metavar="SRC", help="another copy of the source folder")
    parser.add_argument("--warm", action="store_true", help="costs of this process alone, as one line of JSON")
    args = parser.parse_args()
    if args.warm:
        print(json.dumps(warm_costs(args.runs)))
        return
    own = Path(__file__).parents[1] / "src"
    costs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        PIL.Image.fromarray(picture()).save(Path(folder) / "one.png")
        for _ in range(args.rounds):
            for name, source in {"this": own, **({"other": args.against} if args.against else {})}.items():
                for what, value in round_of(source, Path(folder), args.runs).items():
                    costs[what][name].append(value)
    result: dict[str, Any] = {"machine": f"{platform.machine()}, Python {platform.python_version()}"}
    for what, by_name in costs.items():
        figures = {name: round(statistics.median(values), 3) for name, values in by_name.items()}
        if args.against:
            paired = [one / two for one, two in zip(by_name["this"], by_name["other"], strict=True)]
            figures |= {"ratio": round(statistics.median(paired), 2)}
        result[what] = figures
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
