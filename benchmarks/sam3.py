"""Cost of SAM 3 with random weights: prompts on one image, number formats, memory, training, and a GPU if there is one.

    python benchmarks/sam3.py speed            CPU-seconds of the first and of further prompts, in torch and OpenVINO
    python benchmarks/sam3.py memory           peak memory with 200 objects at 1024 x 1024
    python benchmarks/sam3.py gpu              latency in bfloat16 at batch 1 and 8, and of transformers' own call
    python benchmarks/sam3.py train            a training step from cached features and from pixels, and its peak memory
    python benchmarks/sam3.py speed --tiny     the same on a model of a second, to try the script

Each case runs in its own process, so that one case's memory is not another's, on one thread unless `--threads` says
otherwise: CPU-seconds of several threads count their waiting for each other, which grows on a busy machine.
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
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers.models.sam3.modeling_sam3 import Sam3Model
from transformers.models.sam3_video.configuration_sam3_video import Sam3VideoConfig

from medsam3.models.sam3.clip_phrases import PhraseTokenizer
from medsam3.models.sam3.compiled import use_openvino
from medsam3.models.sam3.network import (
    Architecture,
    Sam3Network,
    architecture_from_json,
    at_image_size,
    blank_network,
    fill_constants,
    fill_network,
    full_size,
)
from medsam3.models.sam3.segmenter import Precision, Sam3Options, Sam3Segmenter
from medsam3.prompts import Prompt
from medsam3.train.batches import Batch, Question
from medsam3.train.cache import FeatureCache
from medsam3.train.config import Sam3FitConfig
from medsam3.train.losses import PromptTarget
from medsam3.train.sam3_run import encode_all
from medsam3.train.trainee_sam3 import Sam3Trainee, drop_text_encoder, drop_trunk, halve_trunk, sides_of

Case = Literal["float32", "bfloat16", "openvino"]
DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PHRASES = [f"concept {letter}" for letter in "abcdefghij"]
BARS = {
    "further prompt / first": 1 / 8,
    "ten phrases: encoding each / encoding once (at least)": 5.0,
    "bfloat16 first / float32 first": 0.65,
    "OpenVINO bfloat16 first / float32 first": 0.6,
    "peak GiB float32": 4.5,
    "peak GiB bfloat16": 3.0,
    "step from pixels / cached (at least)": 2.5,
    "peak GiB of a step with 50 objects": 12.0,
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
    """SAM 3 with seeded random weights."""
    architecture = tiny() if is_tiny else full_size()
    network = random_network(architecture, DTYPES[options.precision], torch.device(options.device))
    return Sam3Segmenter(network, PhraseTokenizer(LetterTokenizer()), options)


def random_network(architecture: Architecture, dtype: torch.dtype, device: torch.device) -> Sam3Network:
    """Seeded random weights, cut from one pool and made one tensor at a time in the final number format."""
    network = blank_network(architecture)
    pool = torch.randn(4_000_037, generator=torch.Generator().manual_seed(1))  # a prime, so that rows do not repeat
    tensors = dict[str, Tensor]()
    for number, (name, blank) in enumerate(network.state_dict().items()):
        values = pool.roll(997 * number).repeat(1 + blank.numel() // len(pool))[: blank.numel()].view(blank.shape)
        scale = 1 / math.sqrt(blank[0].numel()) if blank.dim() >= 2 else 0.02
        values = values * scale + (1.0 if blank.dim() == 1 and name.endswith("weight") else 0.0)
        tensors[name] = values.to(torch.float32 if name.endswith("positional_embedding") else dtype)
    return fill_network(network, tensors, dtype=dtype, device=device)


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


def speed(case: Case, is_tiny: bool) -> dict[str, float]:
    """CPU-seconds of one image: encoding, the first prompt with it, the median of further ones, all ten in float32."""
    model = random_segmenter(_prompt_options("float32" if case == "openvino" else case, "cpu"), is_tiny=is_tiny)
    if case == "openvino":
        model = use_openvino(model, precision="bfloat16")
    rgb = picture()
    if is_tiny:
        model.decode(model.encode(rgb), Prompt(text="warm up"))
    start = time.process_time()
    features = model.encode(rgb)
    encode = time.process_time() - start
    costs, objects = [], []
    print(f"encode {encode:.2f}", file=sys.stderr, flush=True)
    for phrase in PHRASES if case == "float32" else PHRASES[:3]:
        begun = time.process_time()
        objects.append(len(model.decode(features, Prompt(text=phrase))))
        costs.append(time.process_time() - begun)
        print(f"prompt {costs[-1]:.2f}", file=sys.stderr, flush=True)
    figures = {"encode": encode, "first": encode + costs[0], "further": statistics.median(costs[1:])}
    ten = {"ten": encode + sum(costs)} if case == "float32" else {}
    return {**figures, **ten, "objects": statistics.median(objects), "peak GiB": peak_gib()}


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
    with torch.device("meta"):
        stock = Sam3Model(model.network.detector_model.config).eval()
    stock.load_state_dict(model.network.detector_model.state_dict(), assign=True)
    fill_constants(stock, model.network.device)

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


def train(precision: Precision, is_tiny: bool) -> dict[str, float]:
    """CPU-seconds of an update of the detector, batch 1, from pixels and from cached features; and peak memory.

    One prompt with 50 objects (tiny: 20), the paper's recipe: both encoders frozen, text features cached. Pixels come
    first, since they need most memory. What is cached is random, as the weights are: it costs the same.
    """
    sizes = (tiny() if is_tiny else full_size()).without_tracker()
    network = random_network(sizes, torch.float32, torch.device("cpu"))
    config = Sam3FitConfig(bf16=precision == "bfloat16", is_cached=False)
    phrases = encode_all(network, PhraseTokenizer(LetterTokenizer()), PHRASES[:1])
    drop_text_encoder(network)
    if config.bf16:
        halve_trunk(network)
    trainee = Sam3Trainee(network, config, phrases=phrases)
    optimizer = torch.optim.AdamW(trainee.groups())
    truth = many_objects(20 if is_tiny else 50, sides_of(network).mask)
    side = network.image_size
    pixels = torch.from_numpy(picture(side=side // 16 * 16)).permute(2, 0, 1)[None, :, :side, :side]
    whole = Batch(pixels, None, (Question(0, PHRASES[0], None, truth),))

    def from_pixels() -> None:
        step(trainee, optimizer, whole)

    costs = {"from pixels": cpu_seconds(from_pixels)}
    peak = peak_gib()
    with tempfile.TemporaryDirectory() as folder:
        trunk = network.detector_model.config.vision_config.backbone_config
        shape = (trunk.hidden_size, side // trunk.patch_size, side // trunk.patch_size)
        cache = FeatureCache(Path(folder), "random", np.dtype(np.int16), shape, 0)
        path = Path(folder) / "a.npy"
        cache.put(path, torch.randn(shape).bfloat16().view(torch.int16).numpy())
        drop_trunk(network)

        def from_cache() -> None:
            features = torch.from_numpy(cache.get(path)).view(torch.bfloat16)[None]
            step(trainee, optimizer, Batch(None, features, whole.questions))

        costs["from cache"] = cpu_seconds(from_cache)
        mebibytes = path.stat().st_size / 2**20
    return {**costs, "objects": len(truth.boxes_cxcywh), "peak GiB": peak, "cached MiB": mebibytes}


def step(trainee: Sam3Trainee, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One update."""
    optimizer.zero_grad(set_to_none=True)
    loss, _ = trainee(lambda: batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainee.parameters(), trainee.config.clip_norm)
    optimizer.step()


def cpu_seconds(run: Callable[[], object]) -> float:
    """CPU-seconds of one call."""
    start = time.process_time()
    run()
    cost = time.process_time() - start
    print(f"step {cost:.2f}, peak {peak_gib():.2f} GiB", file=sys.stderr, flush=True)
    return cost


def many_objects(count: int, side: int) -> PromptTarget:
    """Squares in rows, that do not touch."""
    rows = math.ceil(math.sqrt(count))
    cell = side // rows
    masks, boxes = torch.zeros(count, side, side), torch.zeros(count, 4)
    for number in range(count):
        y, x = (cell * place + 1 for place in divmod(number, rows))
        masks[number, y : y + cell - 2, x : x + cell - 2] = 1
        boxes[number] = torch.tensor([x + cell / 2 - 1, y + cell / 2 - 1, cell - 2, cell - 2]) / side
    return PromptTarget(boxes, masks, masks.amax(dim=0), is_present=True)


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


CASES = {"speed": speed, "memory": memory, "train": train, "gpu": gpu}
CASES_OF: dict[str, tuple[Case, ...]] = {
    "speed": ("float32", "bfloat16", "openvino"),
    "memory": ("float32", "bfloat16"),
    "train": ("float32",),
    "gpu": ("bfloat16",),
}


def report(part: str, results: dict[str, dict[str, float]]) -> dict[str, float]:
    """The figures that the bars are about."""
    single, half = results.get("float32", {}), results.get("bfloat16", {})
    if part == "memory":
        return {f"peak GiB {name}": case["peak GiB"] for name, case in results.items()}
    if part == "gpu":
        return {}
    if part == "train":
        ratio = single["from pixels"] / single["from cache"]
        return {
            "step from pixels / cached (at least)": ratio,
            "peak GiB of a step with 50 objects": single["peak GiB"],
        }
    encoding_each = 10 * (single["encode"] + single["further"])
    return {
        "further prompt / first": single["further"] / single["first"],
        "ten phrases: encoding each / encoding once (at least)": encoding_each / single["ten"],
        "bfloat16 first / float32 first": half["first"] / single["first"],
        "OpenVINO bfloat16 first / float32 first": results["openvino"]["first"] / single["first"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=CASES)
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script")
    parser.add_argument("--json", type=Path, help="write the results there as well")
    parser.add_argument("--threads", type=int, default=1, help="threads of a CPU (default: %(default)s)")
    parser.add_argument("--case", choices=CASES_OF["speed"], help="one case alone, in this process; prints JSON")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.case:
        print(json.dumps(CASES[args.part](args.case, args.tiny)))
        return
    results = {}
    for case in CASES_OF[args.part]:
        command = [sys.executable, __file__, args.part, "--case", case, "--threads", str(args.threads)]
        command += ["--tiny"] if args.tiny else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        results[case] = json.loads(done.stdout.splitlines()[-1])
        print(case, *(f"{name} {value:.3g}" for name, value in results[case].items()), sep="  ", flush=True)
    device = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if args.part == "gpu":
        device = torch.cuda.get_device_name()
    for name, value in report(args.part, results).items():
        print(f"{name}: {value:.3g} (bar {BARS[name]:.3g})")
    print(f"on {device}, torch {torch.__version__}, {'tiny' if args.tiny else 'full size'}, random weights")
    if args.json:
        args.json.write_text(json.dumps({"device": device, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
