"""`medsam3 train --base sam3`: its own arguments, and the run from weights and data to fine-tuned weights.

The data arguments are those of `train.command`, which hands its samples over. It imports torch only once it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam3.cli.train_data import show_report, steps_shown
from medsam3.errors import InputError
from medsam3.train.bars import Bars

if TYPE_CHECKING:
    import torch

    from medsam3.data.samples import Sample
    from medsam3.train.sam3_config import Sam3FitConfig

EXAMPLES = """
  medsam3 train --coco train.json --coco-val val.json --images images/ --base sam3 --weights facebook/sam3 --out runs/s3
  medsam3 train data/ --base sam3 --weights sam3.pt --trains lora --out runs/lora --dry-run
  accelerate launch --multi_gpu -m medsam3 train data/ --base sam3 --weights sam3.pt --trains all --out runs/all"""
_MINI_ONLY = ("init", "views_of", "join", "average", "absent", "val_every", "patience")


def add_sam3_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that belong to SAM 3 alone, and `--base`."""
    parser.add_argument(
        "--base", choices=("mini", "sam3"), default="mini", help="model to train (default: %(default)s)"
    )
    group = parser.add_argument_group("with --base sam3")
    group.add_argument("--weights", help="weights to start from: a folder, sam3.pt, or facebook/sam3")
    group.add_argument("--rank", type=int, help="of the adapter (default: 16; small model: 8)")
    group.add_argument("--alpha", type=float, help="of the adapter (default: 32)")
    group.add_argument("--image-size", type=int, help="side of the input in pixels: 1008, 672 or 336")
    group.add_argument("--no-cache", action="store_true", help="run the frozen image encoder in every step")
    group.add_argument("--keep-activations", action="store_true", help="compute nothing twice: faster, more memory")
    group.add_argument("--vocabulary", type=Path, help="CLIP's vocabulary, where it is not beside the weights")
    group.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: cuda if there is one, else cpu)")
    group.add_argument("--val-images", type=int, default=32, help="images of val to segment in the end, 0 for none")


def check_mini(args: argparse.Namespace) -> None:
    """Refuse options of SAM 3 where the small model is trained.

    Raises:
        InputError: One was given.
    """
    names = ("weights", "alpha", "image_size", "vocabulary", "device")
    for name in names:
        if getattr(args, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} belongs to SAM 3: add --base sam3, or leave it out")


def run_sam3(args: argparse.Namespace, samples: tuple[Sample, ...]) -> int:
    """Fine-tune SAM 3 on the samples.

    Raises:
        InputError: Weights that are missing or do not fit, an option out of range, a folder that holds another run.
    """
    config = config_from(args)
    from medsam3.train.sam3_run import (  # noqa: PLC0415  torch, and the code of the large model
        Reporter,
        Sam3Settings,
        describe_sam3,
        read_start,
        train_sam3,
    )
    from medsam3.train.workers import workers_for  # noqa: PLC0415

    workers = workers_for(_device(args.device))
    settings = Sam3Settings(
        weights=args.weights,
        out=args.out,
        cache=args.cache or args.out / "cache",
        config=config,
        vocabulary=args.vocabulary,
        val_images=args.val_images,
    )
    start = read_start(settings)
    if workers.rank == 0:
        if not args.no_data_report:
            show_report(samples, args.out)
        for line in describe_sam3(samples, settings, start, workers.device):
            print(line, file=sys.stderr)
    if args.dry_run:
        return 0
    if workers.rank > 0:
        train_sam3(samples, settings, start, workers)
        return 0
    with Bars() as bars, steps_shown(bars, args.out, has_board=args.board) as shown:
        report = Reporter(bars.phase, bars.item, shown.on_step)
        result = train_sam3(samples, settings, start, workers, report=report)
    assert result is not None, "the first process has a result"
    told: dict[str, Any] = {"model": str(result.model), "card": str(result.card), "val": result.val}
    if result.adapter is not None:
        told["adapter"] = str(result.adapter)
    print(json.dumps(told, indent=2))
    return 0


def config_from(args: argparse.Namespace) -> Sam3FitConfig:
    """The run's configuration: the recipe for what trains, changed by the options that were given.

    Raises:
        InputError: No weights, an option of the small model, or a value out of range.
    """
    from medsam3.train.sam3_config import LoraConfig, recipe  # noqa: PLC0415  torch, by the loss

    if args.weights is None:
        raise InputError("--base sam3 was given without --weights: name a folder, sam3.pt, or facebook/sam3")
    for name in _MINI_ONLY:
        if getattr(args, name):
            raise InputError(f"--{name.replace('_', '-')} belongs to the small model: leave it out with --base sam3")
    if args.trains == "text":
        raise InputError("--trains is 'text', which is a choice of the small model: take detector, lora or all")
    config = recipe(args.trains or "detector")
    if config.trains != "lora" and (args.rank is not None or args.alpha is not None):
        raise InputError("--rank and --alpha belong to the adapter: add --trains lora, or leave them out")
    if args.val_images < 0:
        raise InputError(f"--val-images is {args.val_images}, allowed is 0 and above")
    _check_positive(args)
    lora = LoraConfig(rank=_or(args.rank, config.lora.rank), alpha=_or(args.alpha, config.lora.alpha))
    sampling = replace(
        config.sampling,
        images=_or(args.images_per_step, config.sampling.images),
        prompts=_or(args.prompts, config.sampling.prompts),
        dataset_power=_or(args.dataset_power, config.sampling.dataset_power),
    )
    names = ("steps", "views", "learning_rate", "seed", "accumulate", "image_size", "warmup_steps", "save_every")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.warmup_steps is None:
        given["warmup_steps"] = min(config.warmup_steps, given.get("steps", config.steps) // 10)
    return replace(
        config,
        bf16=not args.no_bf16,
        is_cached=config.is_cached and not args.no_cache,
        is_checkpointed=not args.keep_activations,
        lora=lora,
        sampling=sampling,
        **given,
    )


def _check_positive(args: argparse.Namespace) -> None:
    counts = ("steps", "views", "learning_rate", "images_per_step", "prompts", "accumulate", "save_every")
    for name in (*counts, "seed", "warmup_steps"):
        value = getattr(args, name)
        if value is not None and (value <= 0 if name in counts else value < 0):
            least = "above 0" if name in counts else "0 and above"
            raise InputError(f"--{name.replace('_', '-')} is {value}, allowed is {least}")


def _or(given: Any, default: Any) -> Any:
    return default if given is None else given


def _device(name: str | None) -> torch.device:
    import torch  # noqa: PLC0415

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    from medsam3.models.detector import checked_device  # noqa: PLC0415

    return checked_device(name)
