"""`medsam3 train`: the arguments, and the run from data to weights with a card.

The steps are those of `train.run`; this module only reads the arguments and shows what happens.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam3.cli.train_data import add_data_arguments, read_data, show_report, steps_shown
from medsam3.cli.train_sam3 import EXAMPLES, add_sam3_arguments, check_mini, run_sam3
from medsam3.errors import InputError
from medsam3.train.bars import Bars

if TYPE_CHECKING:
    from medsam3.data.samples import Sample
    from medsam3.train.mini_config import FitConfig
    from medsam3.train.run import RunResult, RunSettings
    from medsam3.train.workers import Workers

_EPILOG = f"""examples:
  medsam3 train data/ --out runs/mine
  medsam3 train --coco train.json --coco-val val.json --images images/ --out runs/mine --steps 800
  medsam3 train --folder images/ masks/ --labels "1|2=optic disc,2=optic cup" --out runs/eyes
  medsam3 train data/ --out runs/both --join runs/mine/mini.safetensors runs/frozen/mini.safetensors
  medsam3 train data/ --out runs/mean --join runs/mine/mini.safetensors runs/later/mini.safetensors --average
  medsam3 train data/ --out runs/careful --steps 6000 --absent 5 --val-every 300 --patience 4
  medsam3 train data/ --out runs/words --init runs/mine/mini.safetensors --trains text
  accelerate launch --cpu --num_processes 2 -m medsam3 train data/ --out runs/two
  medsam3 train data/ --leave-out cvc_clinicdb --weight busi=2 --out runs/unseen{EXAMPLES}

DATA is a folder with an index.csv (dataset, image, mask, concept, label_value, split, group, present). A COCO file's
categories are the phrases. The run resumes when the same command is given again. The result is OUT/mini.safetensors
with its card OUT/mini.json; use it with: medsam3 segment FILE --text ... --weights OUT/mini.safetensors
With --base sam3 it is OUT/model with OUT/model/card.json: medsam3 segment FILE --text ... --model OUT/model"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `medsam3 train`."""
    parser.epilog = _EPILOG
    add_data_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--cache", type=Path, help="folder of the cached features (default: OUT/cache)")
    parser.add_argument("--init", type=Path, help="weights of medsam3 train to start from (default: a fresh start)")
    parser.add_argument(
        "--join",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="train nothing: make one weight of several that answers with their mean",
    )
    parser.add_argument(
        "--average", action="store_true", help="with --join: take the mean of the weights in place of their answers"
    )
    parser.add_argument("--steps", type=int, help="updates (default: 1600; sam3: 2000)")
    parser.add_argument("--views", type=int, help="cached views an image, the plain one included (default: 2; sam3: 1)")
    parser.add_argument(
        "--views-of", default="", metavar="SET=N,SET=N", help="another number of views for some data sets"
    )
    parser.add_argument("--images-per-step", type=int, help="images a batch (default: 8; sam3: 1)")
    parser.add_argument(
        "--learning-rate", type=float, help="peak learning rate (default: 0.0008; sam3: 0.00008, adapter 0.00005)"
    )
    parser.add_argument(
        "--dataset-power", type=float, help="data sets are drawn by their size to this power (default: 0.6; sam3: 0.7)"
    )
    parser.add_argument("--seed", type=int, help="seed of weights, views and batches (default: 0)")
    parser.add_argument("--no-bf16", action="store_true", help="compute in float32 even if bfloat16 is fast here")
    parser.add_argument(
        "--image-encoder",
        choices=("lite0", "lite-medsam"),
        default="lite0",
        help="lite0 trains along, lite-medsam is frozen (the paper's recipe); default: lite0",
    )
    parser.add_argument(
        "--trains",
        choices=("detector", "text", "lora", "all"),
        help="the detector behind frozen encoders (the paper's recipe), its text projection alone, the detector with "
        "an adapter (small model: on the text encoder; sam3: MedSAM-3 v1's), or everything (default: detector, with "
        "lite0: all)",
    )
    _add_sampling_arguments(parser)
    parser.add_argument("--accumulate", type=int, metavar="N", help="batches an update (default: 1)")
    parser.add_argument("--warmup-steps", type=int, help="updates until the peak rate (default: 150; sam3: 100)")
    parser.add_argument("--save-every", type=int, help="updates between checkpoints (default: 100)")
    parser.add_argument(
        "--val-every", type=int, metavar="N", help="measure val every N updates and keep the best weights"
    )
    parser.add_argument("--patience", type=int, metavar="N", help="stop after N measurements without gain (default: 3)")
    parser.add_argument(
        "--board",
        action="store_true",
        help="write TensorBoard curves to OUT/board; without DATA, of a run that is there",
    )
    parser.add_argument("--dry-run", action="store_true", help="report on the data, describe the run, and stop")
    add_sam3_arguments(parser)


def _add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", type=int, help="prompts an image (default: 2; sam3: 4)")
    parser.add_argument("--negative", type=float, help="share of the further prompts that are absent (default: 0.5)")
    parser.add_argument(
        "--closer",
        type=float,
        metavar="S",
        help="share of the views that enlarge a window around an object (default: 0.3)",
    )
    parser.add_argument("--absent", type=int, metavar="N", help="N more absent prompts an image (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Train, choose thresholds, write weights and card.

    Raises:
        InputError: No data, an option out of range, or a folder that holds another run.
    """
    if args.board and not (args.data or args.coco or args.folder):
        from medsam3.train.board import write_board  # noqa: PLC0415

        print(f"{write_board(args.out)} steps; look at them with: tensorboard --logdir {args.out}", file=sys.stderr)
        return 0
    if args.base == "sam3":
        return run_sam3(args, read_data(args))
    check_mini(args)
    samples = read_data(args)
    config = _config(args, samples)
    _check_cards(args.join or ())
    if args.average and len(args.join or ()) < 2:
        raise InputError("--average was given without several weights to average: name them with --join")
    from medsam3.train.workers import workers_for  # noqa: PLC0415

    workers = workers_for("cpu")
    if workers.rank == 0:
        if not args.no_data_report:
            show_report(samples, args.out)
        if not args.join:
            _describe(samples, config, args.out)
    from medsam3.train.run import RunSettings  # noqa: PLC0415  torch only when it is needed

    cache = args.cache or args.out / "cache"
    settings = RunSettings(out=args.out, cache=cache, config=config, initial=args.init)
    if args.dry_run:
        _estimate(samples, settings)
        return 0
    return _train(args, samples, settings, workers)


def _train(args: argparse.Namespace, samples: tuple[Sample, ...], settings: RunSettings, workers: Workers) -> int:
    """Run, show how far it is, and say what was made; only the first of several processes does the latter two."""
    from medsam3.train.run import RunHooks, join_and_export, train_and_export  # noqa: PLC0415

    if workers.rank > 0:
        if not args.join:
            train_and_export(samples, settings, workers)
        return 0
    with Bars() as bars, steps_shown(bars, args.out, has_board=args.board) as shown:
        hooks = RunHooks(bars.phase, bars.item, shown.on_step, shown.on_measured)
        if args.join:
            result: RunResult | None = join_and_export(args.join, samples, settings, averages=args.average, hooks=hooks)
        else:
            result = train_and_export(samples, settings, workers, hooks=hooks)
    assert result is not None  # the first process has a result
    if "presence_kept" in result.summary:
        print(f"! {result.summary['presence_kept']}", file=sys.stderr)
    print(json.dumps({"weights": str(result.weights), "card": str(result.card), "val": result.summary}, indent=2))
    return 0


def _check_cards(weights: Sequence[Path]) -> None:
    """Before anything is written."""
    from medsam3.models.mini.card import read_card  # noqa: PLC0415

    for path in weights:
        read_card(path)


def _config(args: argparse.Namespace, samples: tuple[Sample, ...]) -> FitConfig:
    from medsam3.models.registry import check_safetensors  # noqa: PLC0415
    from medsam3.train.mini_config import FitConfig  # noqa: PLC0415

    config = FitConfig(bf16=not args.no_bf16)
    if args.init is not None:
        config = replace(config, initial_sha256=hashlib.sha256(check_safetensors(args.init).read_bytes()).hexdigest())
    positive = ("steps", "views", "learning_rate", "warmup_steps", "save_every", "patience", "accumulate")
    config = replace(config, **_given(args, positive), **_given(args, ("seed", "val_every"), least=0))
    config = replace(config, views_of=_views_of(args.views_of))
    config = _with_parts(args, config)
    shares = _given(args, ("absent", "closer", "negative", "dataset_power"), least=0)
    sampling = replace(config.sampling, **_given(args, ("prompts",)), **shares)
    if args.images_per_step is not None:
        sampling = replace(sampling, images=args.images_per_step)
    config = replace(config, sampling=sampling)
    train_images = sum(sample.split == "train" for sample in samples)
    if args.images_per_step is not None and args.images_per_step > train_images:
        raise InputError(f"--images-per-step is {args.images_per_step}, there are only {train_images} train images")
    return replace(config, sampling=replace(config.sampling, images=min(config.sampling.images, train_images)))


def _with_parts(args: argparse.Namespace, config: FitConfig) -> FitConfig:
    """The configuration with its encoders and what trains of them.

    Raises:
        InputError: A choice that the image encoder does not have.
    """
    from medsam3.train.mini_config import TEXT_RANK, Trains  # noqa: PLC0415

    is_frozen = args.image_encoder == "lite-medsam"
    trains: Trains = args.trains or ("detector" if is_frozen else "all")
    if trains == "all" and is_frozen:
        raise InputError(
            "--trains is 'all', but lite-medsam stays frozen: take --image-encoder lite0, or another choice"
        )
    if args.rank is not None and (trains != "lora" or args.rank < 1):
        raise InputError(f"--rank is {args.rank}, it must be positive and belongs to --trains lora")
    rank = (args.rank or TEXT_RANK) if trains == "lora" else 0
    detector = replace(config.detector, image_encoder=args.image_encoder, text_rank=rank)
    return replace(config, trains=trains, detector=detector)


def _given(args: argparse.Namespace, names: Sequence[str], *, least: float = 1e-9) -> dict[str, Any]:
    """The options among `names` that were given.

    Raises:
        InputError: One is below `least`.
    """
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    for name, value in given.items():
        if value < least:
            allowed = "positive" if least else "0 or above"
            raise InputError(f"--{name.replace('_', '-')} is {value}, it must be {allowed}")
    return given


def _views_of(text: str) -> tuple[tuple[str, int], ...]:
    pairs = []
    for part in filter(None, text.split(",")):
        name, _, count = part.partition("=")
        if not count.isdigit() or int(count) < 1:
            raise InputError(f"--views-of has {part!r}, allowed is SET=N with N from 1, joined by commas")
        pairs.append((name, int(count)))
    return tuple(pairs)


def _describe(samples: tuple[Sample, ...], config: FitConfig, out: Path) -> None:
    """Sizes by data set and split, concepts, what trains, and what the cache will take."""
    from medsam3.train.run import describe  # noqa: PLC0415

    for line in describe(samples, config, out):
        print(line, file=sys.stderr)


def _estimate(samples: tuple[Sample, ...], settings: RunSettings) -> None:
    """Time and memory of the run, where the encoders are there to measure them."""
    from medsam3.train.run import estimate_run  # noqa: PLC0415

    try:
        lines = estimate_run(samples, settings)
    except InputError as error:
        lines = [f"time and memory are not known: {error}"]
    for line in lines:
        print(line, file=sys.stderr)
