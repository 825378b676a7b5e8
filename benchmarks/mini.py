"""What the small model costs on this machine, in CPU seconds, and against another copy of the source.

    python benchmarks/mini.py [--runs 5]
    python benchmarks/mini.py --against OTHER/src    # both in turn, the ratio of this one to the other, and its goal
    python benchmarks/mini.py --folder 100           # `medsam3 segment` of a folder, by the clock, on all cores
    python benchmarks/mini.py --beside               # LiteMedSAM and MONAI's U-Net on the same picture (extra baseline)

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import skimage.data
from numpy.typing import NDArray

PHRASES = ("optic disc", "optic cup", "retinal blood vessel", "polyp")
SLICES = 6
GOALS = {
    "first phrase, found": 0.25,
    "further phrase": 0.35,
    "first box": 0.3,
    "slice": 0.3,
    "video frame, a phrase followed": 0.3,
    "peak GiB": 1.0,
    "folder, s a picture": 0.25,
}
"""Most that a cost may be of that on 2026-11-26, commit e5cecb2."""


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

    def followed(_: object) -> None:
        medsam3.segment(video, PHRASES[0], segmenter)

    video = medsam3.Image(np.stack([np.roll(rgb, n, axis=1) for n in range(SLICES)]), kind="video")
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
        "video frame, a phrase followed": cpu_seconds(lambda _: medsam3.segment(video, PHRASES[0], segmenter), 1)
        / SLICES,
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def beside_costs(runs: int) -> dict[str, float]:
    """CPU seconds of what a user would take instead, on the square of 256 pixels that `mini` sees."""
    import torch  # noqa: PLC0415
    from baselines.unet import unet  # noqa: PLC0415

    import medsam3  # noqa: PLC0415
    from medsam3.models.mini.letterbox import letterbox, square_tensor  # noqa: PLC0415

    segmenter: Any = medsam3.load("mini")
    square, _ = letterbox(picture())
    box, network, lite = torch.tensor([[125.0, 50.0, 175.0, 100.0]]), unet(1).eval(), segmenter.lite_medsam
    with torch.inference_mode():
        return {
            "mini, first phrase, found": cpu_seconds(
                lambda _: segmenter.decode(segmenter.encode(picture()), medsam3.Prompt(PHRASES[0])), runs
            ),
            "LiteMedSAM in PyTorch, first box": cpu_seconds(lambda _: lite.decode(lite.neck(square), box), runs),
            "LiteMedSAM in PyTorch, further box": cpu_seconds(
                lambda neck: lite.decode(neck, box), runs, lambda: lite.neck(square)
            ),
            "U-Net of MONAI, 256 pixels": cpu_seconds(lambda _: network(square_tensor(square)), runs),
        }


@dataclass(frozen=True)
class Child:
    """What a process printed, its CPU seconds, and how long it took."""

    printed: str
    cpu_s: float
    wall_s: float


def child(command: list[str], source: Path | None) -> Child:
    """Run a process to its end."""
    environment = {**os.environ, **({} if source is None else {"PYTHONPATH": str(source)})}
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Child(done.stdout, cpu_s, time.monotonic() - begun)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "medsam3", *arguments]


def round_of(source: Path | None, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """All costs of one source tree once; None is the one that is installed."""
    out = ("--overwrite", "--out", str(folder / "masks"))
    if args.folder:
        whole = child(command("segment", str(folder / "many"), "--text", PHRASES[0], *out), source)
        return {"folder, s a picture": whole.wall_s / args.folder, "folder, CPU s a picture": whole.cpu_s / args.folder}
    one = str(folder / "one.png")
    helped, cold = child(command("--help"), source), child(command("segment", one, "--text", "polyp", *out), source)
    warm = child([sys.executable, __file__, "--warm", "--runs", str(args.runs)], source)
    return {
        "--help, s": helped.wall_s,
        "segment from a cold start": cold.cpu_s,
        "segment from a cold start, s": cold.wall_s,
        **json.loads(warm.printed.splitlines()[-1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="with --against: how often both are measured in turn")
    parser.add_argument("--against", type=Path, metavar="SRC", help="another copy of the source folder")
    parser.add_argument("--folder", type=int, default=0, metavar="N", help="a folder of N pictures, and nothing else")
    parser.add_argument("--warm", action="store_true", help="costs of this process alone, as one line of JSON")
    parser.add_argument("--beside", action="store_true", help="costs of other models, as one line of JSON")
    args = parser.parse_args()
    if args.beside:
        print(json.dumps({name: round(value, 4) for name, value in beside_costs(args.runs).items()}))
        return
    if args.warm:
        print(json.dumps(warm_costs(args.runs)))
        return
    own = Path(__file__).parents[1] / "src"
    costs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        PIL.Image.fromarray(picture()).save(Path(folder) / "one.png")
        (Path(folder) / "many").mkdir()
        for n in range(args.folder):
            PIL.Image.fromarray(np.roll(picture(), n, axis=1)).save(Path(folder) / "many" / f"{n:04d}.png")
        for _ in range(args.rounds):
            for name, source in {"this": own, **({"other": args.against} if args.against else {})}.items():
                for what, value in round_of(source, Path(folder), args).items():
                    costs[what][name].append(value)
    result: dict[str, Any] = {"machine": f"{platform.machine()}, Python {platform.python_version()}"}
    for what, by_name in costs.items():
        figures = {name: round(statistics.median(values), 3) for name, values in by_name.items()}
        if args.against:
            paired = [one / two for one, two in zip(by_name["this"], by_name["other"], strict=True)]
            figures |= {"ratio": round(statistics.median(paired), 2)}
            figures |= {"goal": GOALS[what]} if what in GOALS else {}
        result[what] = figures
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
