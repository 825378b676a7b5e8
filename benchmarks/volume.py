"""CPU seconds a slice for 1, 3 and 10 concepts, and the peak memory over stacks of growing length.

    python benchmarks/volume.py speed --slices 6
    python benchmarks/volume.py memory --slices 50 200 400
    python benchmarks/volume.py video --frames 1000
    python benchmarks/volume.py sam3 --side 336

The stacks are made up (a bright ellipsoid in noise, 512 x 512 x N; a moving disc, 512 x 384), so that nothing has to be
fetched but the model; times and memory do not depend on what is seen, save that following and closer looks cost only
where something was found. OMP_NUM_THREADS=1 gives the time of one core. Each memory figure is measured in a process of
its own. With `--stand-in` the model runs once, and then something that takes no time answers in its place, with
features of the same size: that is the memory of all the rest, for long stacks. `sam3` takes SAM 3 at full size with
random weights over four slices: a phrase on each, and a box on slice 1 that is followed both ways; `--side` is that of
the model's square.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from medsam3.prompts import Box, Prompt

CONCEPTS = (
    *("liver", "kidney", "pancreas", "spleen", "stomach"),
    *("kidney tumor", "lung", "left atrium", "small bowel", "large bowel"),
)
SIDE = 512


def write_ct(path: Path, slices: int) -> None:
    """A CT of 512 x 512 x N as uncompressed NIfTI, written a slice at a time."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    rng = np.random.default_rng(0)
    header = nibabel.Nifti1Header()
    header.set_data_shape((SIDE, SIDE, slices))
    header.set_data_dtype(np.int16)
    header.set_sform(np.diag([0.8, 0.8, 2.5, 1.0]), code=1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with path.open("wb") as stream:
        stream.write(header.binaryblock + b"\0\0\0\0")
        for n in range(slices):
            half = 160 * np.sqrt(max(0.0, 1 - ((n - slices / 2) / (slices / 2.5)) ** 2))
            body = (rows - 256) ** 2 / 220**2 + (columns - 256) ** 2 / 200**2 < 1
            organ = (rows - 230) ** 2 + (columns - 180) ** 2 < half**2 / 4
            plane = np.where(body, 40, -1000) + 60 * organ + rng.normal(0, 12, (SIDE, SIDE))
            stream.write(plane.astype(np.int16).tobytes())


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds, which hold on a busy machine too."""
    start = time.process_time()
    work()
    return time.process_time() - start


def speed(slices: int, weights: Path | None, propagate: bool) -> dict[str, float]:
    """Seconds a slice, and the same when every concept encodes the slices anew."""
    import medsam3  # noqa: PLC0415
    from medsam3.io import read  # noqa: PLC0415
    from medsam3.segmentation.options import Options  # noqa: PLC0415
    from medsam3.segmentation.run import segment  # noqa: PLC0415

    model = medsam3.load("mini", weights=weights)
    options = Options(is_followed=propagate)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_ct(Path(folder) / "ct.nii", slices)
        stack = read(Path(folder) / "ct.nii")
        prompts = [Prompt(text=name) for name in CONCEPTS]
        segment(stack, prompts[:1], model, options)  # warm
        for count in (1, 3, 10):
            took = seconds(lambda count=count: segment(stack, prompts[:count], model, options))  # type: ignore[misc]
            figures[f"{count} concepts, s a slice"] = took / slices
        alone = seconds(lambda: [segment(stack, [prompt], model, options) for prompt in prompts[:3]])
        figures["3 concepts, each encoding anew, s a slice"] = alone / slices
    further = (figures["10 concepts, s a slice"] - figures["1 concepts, s a slice"]) / 9
    figures["a further concept, share of the first"] = further / figures["1 concepts, s a slice"]
    return figures


@dataclass(frozen=True)
class StandInFeatures:
    """As much as the small model's tracker keeps of a frame."""

    bright: NDArray[np.bool_]
    neck: Any

    @property
    def nbytes(self) -> int:
        return int(self.neck.nbytes) + self.bright.nbytes


class StandIn:
    """Answers with what is bright, and gives features of the size of the small model's, which stays in memory."""

    name = "stand-in"

    def __init__(self, model: Any) -> None:
        self._model = model
        self._neck = model.encode(np.zeros((SIDE, SIDE, 3), dtype=np.uint8)).neck.half()

    def encode(self, rgb: NDArray[np.uint8]) -> StandInFeatures:
        return StandInFeatures(rgb[..., 0] > 140, self._neck.clone())

    def decode(self, features: StandInFeatures, prompt: Any, *, threshold: float | None = None) -> Any:
        from medsam3.image import Masks  # noqa: PLC0415

        is_there = bool(features.bright.any())
        told = {} if prompt.text is None else {"presence": 0.9 if is_there else 0.1, "is_present": is_there}
        found = features.bright[None, None] if is_there else features.bright[None, None][:0]
        return Masks.from_dense(found, [0.9] * len(found), concept=prompt.text or "", **told)


def load(args: argparse.Namespace) -> Any:
    import medsam3  # noqa: PLC0415

    model = medsam3.load("mini", weights=args.weights)
    model.decode(model.encode(np.zeros((SIDE, SIDE, 3), dtype=np.uint8)), Prompt(text="liver"), threshold=0.0)
    return StandIn(model) if args.stand_in else model


def memory(args: argparse.Namespace) -> dict[str, float]:
    """Peak of this process over a whole run with a box that is followed, in MiB, and what the model alone takes."""
    from medsam3.io import read  # noqa: PLC0415
    from medsam3.segmentation.options import Options  # noqa: PLC0415
    from medsam3.segmentation.run import segment  # noqa: PLC0415

    slices, model = args.slices[0], load(args)
    before = peak_mib()
    with tempfile.TemporaryDirectory() as folder:
        write_ct(Path(folder) / "ct.nii", slices)
        stack = read(Path(folder) / "ct.nii")
        # A phrase on every slice, and a box that is followed to both ends: all caches fill.
        prompts = [Prompt(text="liver"), Prompt(boxes=(Box(100, 150, 260, 310),))]
        options = Options(at=slices // 2, plane="native")
        found = segment(stack, prompts, model, options)
        held = sum(item.voxels for one in found for item in one.objects)
    return {"slices": slices, "model and one slice, MiB": before, "peak, MiB": peak_mib(), "voxels found": held}


def video(args: argparse.Namespace) -> dict[str, float]:
    """Resident memory of a streamed video at frame 100 and at the last, in MiB."""
    from medsam3.segmentation.stream import segment_stream  # noqa: PLC0415

    model, frames = load(args), args.frames
    figures: dict[str, float] = {}
    prompts = [Prompt(text="polyp"), Prompt(boxes=(Box(100, 100, 200, 200),))]
    for frame in segment_stream(moving_disc(frames), prompts, model):
        if frame.n in (99, frames - 1):
            figures[f"resident at frame {frame.n + 1}, MiB"] = resident_mib()
    figures["peak, MiB"] = peak_mib()
    return figures


def sam3(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds and slices of the full-size path, in bfloat16."""
    import torch  # noqa: PLC0415
    from sam3 import LetterTokenizer, random_network  # noqa: PLC0415  the script beside this one

    from medsam3.image import Image  # noqa: PLC0415
    from medsam3.models.sam3.clip_phrases import PhraseTokenizer  # noqa: PLC0415
    from medsam3.models.sam3.network import at_image_size, full_size  # noqa: PLC0415
    from medsam3.models.sam3.segmenter import Sam3Options, Sam3Segmenter  # noqa: PLC0415
    from medsam3.segmentation.options import Options, TrackingRules  # noqa: PLC0415
    from medsam3.segmentation.run import segment  # noqa: PLC0415

    network = random_network(at_image_size(full_size(), args.side), torch.bfloat16, torch.device("cpu"))
    model = Sam3Segmenter(network, PhraseTokenizer(LetterTokenizer()), Sam3Options(precision="bfloat16"))
    frames = list(moving_disc(4))
    stack = Image(np.stack(frames), "video")
    figures: dict[str, Any] = {"parameters, M": round(sum(one.numel() for one in network.parameters()) / 1e6)}
    # Random weights hold on to nothing: nothing but the end of the stack stops them.
    rules = TrackingRules(stop_iou=0.0, largest_growth=1e9)
    (boxed,), box_s = timed(
        lambda: segment(stack, [Prompt(boxes=(Box(100, 100, 200, 200),))], model, Options(at=1, tracking=rules))
    )
    (asked,), phrase_s = timed(lambda: segment(stack, [Prompt(text="concept a")], model, Options(is_followed=False)))
    figures["box on slice 1: slices reached"] = np.flatnonzero(boxed.union().any(axis=(1, 2))).tolist()
    figures["phrase: presence"] = round(asked.presence, 3)
    return figures | {"box, CPU s": box_s, "phrase, CPU s": phrase_s, "peak, MiB": peak_mib()}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return work(), round(time.process_time() - start, 1)


def moving_disc(frames: int) -> Iterator[NDArray[np.uint8]]:
    rows, columns = np.mgrid[:384, :512]
    rng = np.random.default_rng(0)
    for n in range(frames):
        centre = 150 + 100 * np.sin(n / 60)
        disc = (rows - 150) ** 2 + (columns - centre) ** 2 < 50**2
        grey = 90 + 80 * disc + rng.normal(0, 8, disc.shape)
        yield np.stack([grey, 0.7 * grey, 0.6 * grey], axis=-1).astype(np.uint8)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory", "video", "sam3"))
    parser.add_argument("--slices", type=int, nargs="+", default=[6])
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--side", type=int, default=1008)
    parser.add_argument("--weights", type=Path, help="default: the weights that come with the package")
    parser.add_argument("--propagate", action="store_true", help="speed: follow objects, as videos are by themselves")
    parser.add_argument("--stand-in", action="store_true", help="memory and video: the model is loaded and not asked")
    args = parser.parse_args()
    if args.what == "speed":
        print(json.dumps(speed(args.slices[0], args.weights, args.propagate), indent=1))
    elif args.what == "video":
        print(json.dumps(video(args), indent=1))
    elif args.what == "sam3":
        print(json.dumps(sam3(args), indent=1))
    elif len(args.slices) == 1:
        print(json.dumps(memory(args)))
    else:
        for count in args.slices:
            given = [] if args.weights is None else ["--weights", str(args.weights)]
            given += ["--stand-in"] if args.stand_in else []
            subprocess.run([sys.executable, __file__, "memory", "--slices", str(count), *given], check=True)


if __name__ == "__main__":
    main()
