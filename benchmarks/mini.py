"""What the small model costs on this machine: time of a first and a further phrase, peak memory, start of the command.

Run: python benchmarks/mini.py [--runs 5]. Prints JSON; quote the medians, and the machine with them.
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

import numpy as np

import medsam3

PHRASES = ("optic disc", "optic cup", "retinal blood vessel", "polyp")


def picture(height: int = 384, width: int = 512) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """A smooth picture with a bright spot; the cost does not depend on what is shown."""
    rows, columns = np.mgrid[:height, :width]
    spot = np.exp(-((rows - 150) ** 2 + (columns - 300) ** 2) / 2000.0)
    return np.repeat((60 + 150 * spot).astype(np.uint8)[..., None], 3, axis=2)


def seconds(work: Callable[[], object], runs: int) -> dict[str, float]:
    """Wall and CPU seconds of `work`: the median of several runs after one that is not counted."""
    work()
    wall, cpu = [], []
    for _ in range(runs):
        started, started_cpu = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - started_cpu)
    return {"wall_s": round(statistics.median(wall), 3), "cpu_s": round(statistics.median(cpu), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    command = [sys.executable, "-m", "medsam3", "--help"]
    help_time = seconds(lambda: subprocess.run(command, check=True, capture_output=True), runs)
    started = time.perf_counter()
    segmenter = medsam3.load("mini")
    load_s = time.perf_counter() - started
    rgb = picture()
    features = segmenter.encode(rgb)
    result = {
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
        "help": help_time,
        "load_s": round(load_s, 2),
        "first_phrase": seconds(lambda: segmenter.decode(segmenter.encode(rgb), medsam3.Prompt(PHRASES[0])), runs),
        "further_phrase": seconds(lambda: [segmenter.decode(features, medsam3.Prompt(p)) for p in PHRASES], runs),
        "box": seconds(
            lambda: segmenter.decode(features, medsam3.Prompt(boxes=(medsam3.Box(250, 100, 350, 200),))), runs
        ),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    further = result["further_phrase"]
    assert isinstance(further, dict)
    result["further_phrase"] = {name: round(value / len(PHRASES), 3) for name, value in further.items()}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
