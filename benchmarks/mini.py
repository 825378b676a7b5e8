"""What the small model costs on this machine: time of a first and a further phrase, peak memory, start of the command.

Run: python benchmarks/mini.py [--runs 5]. Prints JSON; quote the medians, and the machine with them. The picture is
scikit-image's, of the extra `demo`.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import skimage.data
from numpy.typing import NDArray

import medsam3

PHRASES = ("optic disc", "optic cup", "retinal blood vessel", "polyp")


def picture(height: int = 384, width: int = 512) -> NDArray[np.uint8]:
    """A fundus photograph: the first two phrases are there and small, so closer looks are taken."""
    whole = PIL.Image.open(Path(skimage.data.data_dir) / "retina.jpg").convert("RGB")
    return np.asarray(whole.resize((width, height)))


def seconds(work: Callable[[Any], object], runs: int, prepare: Callable[[], Any] = lambda: None) -> dict[str, float]:
    """Wall and CPU seconds of `work` on what is prepared anew each time: medians after one run that is not counted."""
    work(prepare())
    wall, cpu = [], []
    for _ in range(runs):
        given = prepare()
        started, started_cpu = time.perf_counter(), time.process_time()
        work(given)
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - started_cpu)
    return {"wall_s": round(statistics.median(wall), 3), "cpu_s": round(statistics.median(cpu), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    command = [sys.executable, "-m", "medsam3", "--help"]
    help_time = seconds(lambda _: subprocess.run(command, check=True, capture_output=True), runs)
    started = time.perf_counter()
    segmenter = medsam3.load("mini")
    load_s = time.perf_counter() - started
    rgb = picture()

    def encoded() -> object:
        features = segmenter.encode(rgb)
        segmenter.decode(features, medsam3.Prompt(boxes=(medsam3.Box(0, 0, 9, 9),)))  # boxes need more features
        return features

    box = medsam3.Prompt(boxes=(medsam3.Box(250, 100, 350, 200),))
    further = seconds(lambda features: [segmenter.decode(features, medsam3.Prompt(p)) for p in PHRASES], runs, encoded)
    result = {
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        "help": help_time,
        "load_s": round(load_s, 2),
        "first_phrase": seconds(lambda _: segmenter.decode(segmenter.encode(rgb), medsam3.Prompt(PHRASES[0])), runs),
        "further_phrase": {name: round(value / len(PHRASES), 3) for name, value in further.items()},
        "box": seconds(lambda features: segmenter.decode(features, box), runs, encoded),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
