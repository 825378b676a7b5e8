"""Cost of SAM 3 with random weights: prompts on one image, number formats, memory, and a GPU where there is one.

    python benchmarks/sam3.py speed            CPU-seconds of the first and of further prompts, float32 and bfloat16
    python benchmarks/sam3.py memory           peak memory with 200 objects at 1024 x 1024
    python benchmarks/sam3.py gpu              latency in bfloat16 at batch 1 and 8, and of transformers' own call
    python benchmarks/sam3.py speed --tiny     the same on a model of a second, to try the script

Each case runs in its own process, so that one case's memory is not another's. CPU-seconds are those of all threads.
Random weights find objects anywhere: all whose boxes are apart are kept, so that a prompt always has masks to decode.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.models.sam3_video.configuration_sam3_video import Sam3VideoConfig

from medsam3.models.clip_phrases import PhraseTokenizer
from medsam3.models.sam3 import Precision, Sam3Options, Sam3Segmenter
from medsam3.models.sam3_network import (
    Architecture,
    architecture_from_json,
    at_image_size,
    blank_network,
    fill_network,
    full_size,
)
from medsam3.prompts import Prompt

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PHRASES = [f"concept {letter}" for letter in "abcdefghij"]
BARS = {
    "further prompt / first": 1 / 8,
    "ten phrases: encoding each / encoding once (at least)": 5.0,
    "bfloat16 first / float32 first": 0.65,
    "peak GiB float32": 4.5,
    "peak GiB bfloat16": 3.0,
}


class LetterTokenizer:
    """One token a letter: costs are those of a short phrase, without CLIP's vocabulary."""

    def no_padding(self) -> None:
        """Nothing to switch off."""

    def no_truncation(self) -> None:
        """Nothing to switch off."""

    def encode(self, phrase: str) -> LetterTokenizer:
        self.ids = [49406, *(ord(letter) for letter in phrase[-3:]), 49407]
        return self


def tiny() -> Architecture:
    """The published shape at small sizes, for trying the script."""
    both = Sam3VideoConfig().to_dict()
    detector = both["detector_config"]
    detector["vision_config"]["backbone_config"].update(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, global_attn_indexes=[3]
    )
    detector["text_config"].update(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    both["tracker_config"]["vision_config"] = detector["vision_config"]
    return at_image_size(architecture_from_json(both), 336)


def random_segmenter(options: Sam3Options, *, is_tiny: bool) -> Sam3Segmenter:
    """SAM 3 with seeded random weights, made one tensor at a time in the final number format."""
    architecture = tiny() if is_tiny else full_size()
    network = blank_network(architecture)
    source = torch.Generator().manual_seed(1)
    dtype, tensors = DTYPES[options.precision], dict[str, Tensor]()
    for name, blank in network.state_dict().items():
        values = torch.randn(blank.shape, generator=source)
        scale = 1 / math.sqrt(blank[0].numel()) if blank.dim() >= 2 else 0.02
        values = values * scale + (1.0 if blank.dim() == 1 and name.endswith("weight") else 0.0)
        tensors[name] = values.to(torch.float32 if name.endswith("positional_embedding") else dtype)
    filled = fill_network(network, tensors, dtype=dtype, device=torch.device(options.device))
    return Sam3Segmenter(filled, PhraseTokenizer(LetterTokenizer()), options)


def picture(seed: int = 0, side: int = 1024) -> np.ndarray:
    """A smooth random picture (side, side, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((side // 16, side // 16, 1), dtype=np.uint8))


def _prompt_options(precision: Precision, device: str) -> Sam3Options:
    """Nothing cached, and as many objects as have boxes apart from each other."""
    return Sam3Options(
        device=device,
        precision=precision,
        threshold=0.0,
        suppression="boxes",
        suppression_iou=0.1,
        image_cache_bytes=0,
        text_cache_bytes=0,
    )


def speed(precision: Precision, is_tiny: bool) -> dict[str, float]:
    """CPU-seconds of one image: encoding, the first prompt with it, the median of nine further ones, all ten."""
    options = _prompt_options(precision, "cpu")
    model = random_segmenter(options, is_tiny=is_tiny)
    rgb = picture()
    if is_tiny:
        model.decode(model.encode(rgb), Prompt(text="warm up"))
    start = time.process_time()
    features = model.encode(rgb)
    encode = time.process_time() - start
    costs, objects = [], []
    for phrase in PHRASES:
        begun = time.process_time()
        objects.append(len(model.decode(features, Prompt(text=phrase))))
        costs.append(time.process_time() - begun)
    return {
        "encode": encode,
        "first": encode + costs[0],
        "further": statistics.median(costs[1:]),
        "ten": encode + sum(costs),
        "objects": statistics.median(objects),
    }


def memory(precision: Precision, is_tiny: bool) -> dict[str, float]:
    """Peak resident memory in GiB with every query an object, at 1024 x 1024."""
    options = Sam3Options(precision=precision, threshold=0.0, suppression="off")
    model = random_segmenter(options, is_tiny=is_tiny)
    loaded = peak_gib()
    masks = model.decode(model.encode(picture()), Prompt(text=PHRASES[0]))
    return {"objects": len(masks), "loaded GiB": loaded, "peak GiB": peak_gib()}


def peak_gib() -> float:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def gpu(precision: Precision, is_tiny: bool) -> dict[str, float]:
    """Median milliseconds on a GPU: encoding 1 and 8 images, 1 and 8 prompts, and transformers' own call."""
    if not torch.cuda.is_available():
        raise SystemExit("no GPU here")
    options = _prompt_options(precision, "cuda")
    model = random_segmenter(options, is_tiny=is_tiny)
    frames = [picture(seed) for seed in range(8)]
    features = model.encode(frames[0])
    prompts = [Prompt(text=phrase) for phrase in PHRASES[:8]]
    side = model.network.image_size
    pixels = torch.zeros(1, 3, side, side, device="cuda", dtype=DTYPES[precision])
    ids = torch.tensor([[49406, 97, 98, 99, 49407]], device="cuda")
    stock = model.network.detector_model

    def own_call() -> None:
        with torch.inference_mode():
            stock(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids))

    def network_alone() -> None:
        with torch.inference_mode():
            model.network.encode_images(pixels)

    calls: dict[str, Callable[[], object]] = {
        "network encode 1": network_alone,
        "encode 1": lambda: model.encode(frames[0]),
        "encode 8": lambda: model.encode_many(frames),
        "decode 1": lambda: model.decode(features, prompts[0]),
        "decode 8 prompts": lambda: model.decode_many(features, prompts),
        "encode and decode 1": lambda: model.decode(model.encode(frames[0]), prompts[0]),
        "transformers' own call 1": own_call,
    }
    timed: dict[str, float] = {name: milliseconds(call) for name, call in calls.items()}
    timed["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return timed


def milliseconds(run: Callable[[], object], repeats: int = 20) -> float:
    """Median wall time of a call that ends in a synchronised GPU."""
    times = []
    for _ in range(repeats + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[3:])


CASES = {"speed": speed, "memory": memory, "gpu": gpu}


def report(part: str, results: dict[str, dict[str, float]]) -> dict[str, float]:
    """The figures that the bars are about."""
    single, half = results.get("float32", {}), results.get("bfloat16", {})
    if part == "memory":
        return {f"peak GiB {name}": case["peak GiB"] for name, case in results.items()}
    if part == "gpu":
        return {}
    encoding_each = 10 * (single["encode"] + single["further"])
    return {
        "further prompt / first": single["further"] / single["first"],
        "ten phrases: encoding each / encoding once (at least)": encoding_each / single["ten"],
        "bfloat16 first / float32 first": half["first"] / single["first"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=CASES)
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script")
    parser.add_argument("--json", type=Path, help="write the results there as well")
    parser.add_argument("--precision", choices=DTYPES, help="one case alone, in this process; prints JSON")
    args = parser.parse_args()
    if args.precision:
        print(json.dumps(CASES[args.part](args.precision, args.tiny)))
        return
    results = {}
    for precision in ("bfloat16",) if args.part == "gpu" else DTYPES:
        command = [sys.executable, __file__, args.part, "--precision", precision, *(["--tiny"] if args.tiny else [])]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results[precision] = json.loads(done.stdout.splitlines()[-1])
    device = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if args.part == "gpu":
        device = torch.cuda.get_device_name()
    for precision, figures in results.items():
        print(precision, *(f"{name} {value:.3g}" for name, value in figures.items()), sep="  ")
    for name, value in report(args.part, results).items():
        print(f"{name}: {value:.3g} (bar {BARS[name]:.3g})")
    print(f"on {device}, torch {torch.__version__}, {'tiny' if args.tiny else 'full size'}, random weights")
    if args.json:
        args.json.write_text(json.dumps({"device": device, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
