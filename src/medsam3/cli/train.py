"""`medsam3 train`: the arguments, and the run from data to weights with a card, of the small model and of SAM 3.

The steps are those of `train.run` and `train.sam3_run`; this module only reads the arguments and shows what happens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from cyclopts import Parameter

from medsam3.cli.job import ABOVE_0, COUNT, FLAT, FROM_0, SEVERAL, Help
from medsam3.cli.terminal import say_json, tell
from medsam3.cli.train_data import Bars, DataChoice, number_folders, show_report, steps_shown
from medsam3.errors import InputError
from medsam3.store import sha256_of

if TYPE_CHECKING:
    import torch

    from medsam3.data.samples import Sample
    from medsam3.train.config import FitConfig, Sam3FitConfig
    from medsam3.train.run import RunSettings
    from medsam3.train.workers import Workers

_SAM3_ONLY = ("weights", "alpha", "image_size", "vocabulary", "device")
_MINI_ONLY = ("init", "views_of", "join", "absent", "val_every", "patience")
_OF_BOTH = ("steps", "views", "learning_rate", "warmup_steps", "save_every", "accumulate", "seed")


@dataclass(frozen=True)
class Train:
    """Arguments of `medsam3 train`."""

    EXAMPLES: ClassVar[str] = """examples:
  medsam3 train data/ --out runs/mine
  medsam3 train --coco train.json --coco-val val.json --images images/ --out runs/mine --steps 800
  medsam3 train --folder images/ masks/ --labels "1|2=optic disc,2=optic cup" --out runs/eyes
  medsam3 train data/ --out runs/both --join runs/mine/mini.safetensors runs/frozen/mini.safetensors
  medsam3 train data/ --out runs/mini --recipe mini
  medsam3 train data/ --out runs/careful --steps 6000 --absent 5 --val-every 300 --patience 4
  medsam3 train data/ --out runs/words --init runs/mine/mini.safetensors --trains text
  accelerate launch --cpu --num_processes 2 -m medsam3 train data/ --out runs/two
  medsam3 train data/ --leave-out cvc_clinicdb --weight busi=2 --out runs/unseen
  medsam3 train --coco train.json --coco-val val.json --images images/ --base sam3 --weights facebook/sam3 --out runs/s3
  medsam3 train data/ --base sam3 --weights sam3.pt --trains lora --out runs/lora --dry-run
  accelerate launch --multi_gpu -m medsam3 train data/ --base sam3 --weights sam3.pt --trains all --out runs/all

DATA is a folder with an index.csv (dataset, image, mask, concept, label_value, split, group, present). A COCO file's
categories are the phrases. The run resumes when the same command is given again. The result is OUT/mini.safetensors
with its card OUT/mini.json; use it with: medsam3 segment FILE --text ... --weights OUT/mini.safetensors
With --base sam3 it is OUT/model with OUT/model/card.json: medsam3 segment FILE --text ... --model OUT/model"""
    prepare: ClassVar = staticmethod(number_folders)

    data: Annotated[
        tuple[Path, ...], Parameter(name="DATA"), Help("folders with an index.csv, or COCO exports of Roboflow")
    ] = ()
    _: KW_ONLY
    sources: Annotated[DataChoice, FLAT] = field(default_factory=DataChoice)
    out: Annotated[Path, Help("folder of the run")]
    cache: Annotated[Path | None, Help("folder of the cached features (default: OUT/cache)")] = None
    init: Annotated[
        Path | None, Help("weights of medsam3 train to start from, or mini: the shipped ones (default: a fresh start)")
    ] = None
    join: Annotated[
        tuple[Path, ...], SEVERAL, Help("train nothing: make one weight of several FILES that answers with their mean")
    ] = ()
    recipe: Annotated[
        str | None,
        Help("follow the recipe of shipped weights (mini, mini-open, mini-frozen, mini-interactive) or of a FILE"),
    ] = None
    steps: Annotated[
        int | None,
        COUNT,
        Help("updates (default: 1600; with --init one an image, two if a concept is new; sam3: 2000)"),
    ] = None
    views: Annotated[int | None, COUNT, Help("cached views an image, the plain one included (default: 2; sam3: 1)")] = (
        None
    )
    views_of: Annotated[str, Help("SET=N,SET=N: another number of views for some data sets")] = ""
    images_per_step: Annotated[int | None, COUNT, Help("images a batch (default: 8; sam3: 1)")] = None
    learning_rate: Annotated[
        float | None,
        ABOVE_0,
        Help(
            "peak learning rate (default: 8e-4; with --init 1e-4, 2e-4 if a concept is new; sam3: 8e-5, adapter 5e-5)"
        ),
    ] = None
    dataset_power: Annotated[
        float | None, FROM_0, Help("data sets are drawn by their size to this power (default: 0.6; sam3: 0.7)")
    ] = None
    seed: Annotated[int | None, FROM_0, Help("seed of weights, views and batches (default: 0)")] = None
    no_bf16: Annotated[bool, Help("compute in float32 even if bfloat16 is fast here")] = False
    image_encoder: Annotated[
        Literal["lite0", "lite-medsam"],
        Help("lite0 trains along, lite-medsam is frozen (the paper's recipe); default: lite0"),
    ] = "lite0"
    trains: Annotated[
        Literal["detector", "text", "lora", "all"] | None,
        Help(
            "the detector behind frozen encoders (the paper's recipe), its text projection alone, the detector with "
            "an adapter (small model: on the text encoder; sam3: MedSAM-3 v1's), or everything (default: detector, "
            "with lite0: all)"
        ),
    ] = None
    prompts: Annotated[int | None, COUNT, Help("prompts an image (default: 2; sam3: 4)")] = None
    negative: Annotated[float | None, FROM_0, Help("share of the further prompts that are absent (default: 0.5)")] = (
        None
    )
    closer: Annotated[
        float | None, FROM_0, Help("share of the views that enlarge a window around an object (default: 0.3)")
    ] = None
    absent: Annotated[int | None, FROM_0, Help("N more absent prompts an image (default: 0)")] = None
    accumulate: Annotated[int | None, COUNT, Help("batches an update (default: 1)")] = None
    warmup_steps: Annotated[int | None, FROM_0, Help("updates until the peak rate (default: 150; sam3: 100)")] = None
    save_every: Annotated[int | None, COUNT, Help("updates between checkpoints (default: 100)")] = None
    val_every: Annotated[int | None, FROM_0, Help("measure val every N updates and keep the best weights")] = None
    patience: Annotated[int | None, COUNT, Help("stop after N measurements without gain (default: 3)")] = None
    board: Annotated[bool, Help("write TensorBoard curves to OUT/board; without DATA, of a run that is there")] = False
    dry_run: Annotated[bool, Help("report on the data, describe the run, and stop")] = False
    base: Annotated[
        Literal["mini", "sam3"], Help("model to train (default: mini); the options below are for sam3, but --rank")
    ] = "mini"
    weights: Annotated[str | None, Help("weights to start from: a folder, sam3.pt, or facebook/sam3")] = None
    rank: Annotated[int | None, COUNT, Help("rank of the adapter (default: 16; small model: 8)")] = None
    alpha: Annotated[float | None, ABOVE_0, Help("alpha of the adapter (default: 32)")] = None
    image_size: Annotated[int | None, Help("side of the input in pixels: 1008, 672 or 336")] = None
    no_cache: Annotated[bool, Help("run the frozen image encoder in every step")] = False
    keep_activations: Annotated[bool, Help("compute nothing twice: faster, more memory")] = False
    vocabulary: Annotated[Path | None, Help("CLIP's vocabulary, if it is not beside the weights")] = None
    device: Annotated[str | None, Help("cpu, cuda, cuda:1 or mps (default: cuda if there is one, else cpu)")] = None
    val_images: Annotated[int, FROM_0, Help("images of val to segment in the end, 0 for none (default: 32)")] = 32

    def run(self) -> int:
        """Train, choose thresholds, write weights and card.

        Raises:
            InputError: No data, an option out of range, or a folder that holds another run.
        """
        if self.board and not (self.data or self.sources.coco or self.sources.folder):
            from medsam3.train.board import write_board  # noqa: PLC0415

            tell(f"{write_board(self.out)} steps; look at them with: tensorboard --logdir {self.out}")
            return 0
        if self.recipe is not None:
            return follow_recipe(self, self.recipe)
        for name in _SAM3_ONLY if self.base == "mini" else _MINI_ONLY:
            if getattr(self, name):
                whose = "SAM 3: add --base sam3" if self.base == "mini" else "the small model: leave out --base sam3"
                raise InputError(f"--{name.replace('_', '-')} belongs to {whose}, or leave it out")
        from medsam3.data.sources import read_samples  # noqa: PLC0415

        samples = read_samples(self.sources.sources(self.data))
        return train_mini(self, samples) if self.base == "mini" else train_sam3(self, samples)


def _given(args: Train, names: Sequence[str]) -> dict[str, Any]:
    """Give the options among `names` that were given."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def train_mini(args: Train, samples: tuple[Sample, ...]) -> int:
    """Train the small model, or join weights of it."""
    config = mini_config(args, samples)
    from medsam3.models.mini.card import read_card  # noqa: PLC0415

    for path in args.join:
        read_card(path)  # before anything is written
    from medsam3.data.samples import contents_digest  # noqa: PLC0415
    from medsam3.train.loop import check_folder  # noqa: PLC0415  torch only when it is needed
    from medsam3.train.run import RunSettings, describe, estimate_run, starting_weights  # noqa: PLC0415
    from medsam3.train.workers import workers_for  # noqa: PLC0415

    workers = workers_for("cpu")
    if workers.rank == 0:
        if not args.join:
            check_folder(args.out, config, contents_digest(samples))
        if not args.sources.no_data_report:
            show_report(samples, args.out)
        for line in [] if args.join else describe(samples, config, args.out):
            tell(line)
    initial = None if args.init is None else starting_weights(args.init)
    settings = RunSettings(out=args.out, cache=args.cache or args.out / "cache", config=config, initial=initial)
    if not args.dry_run:
        return _run_mini(args, samples, settings, workers)
    try:
        lines = estimate_run(samples, settings)
    except InputError as error:  # the encoders are not there to be measured
        lines = [f"time and memory are not known: {error}"]
    for line in lines:
        tell(line)
    return 0


def _run_mini(args: Train, samples: tuple[Sample, ...], settings: RunSettings, workers: Workers) -> int:
    """Run, show how far it is, and say what was made; only the first of several processes does the latter two."""
    from medsam3.train.loop import Hooks  # noqa: PLC0415
    from medsam3.train.run import join_and_export, train_and_export  # noqa: PLC0415

    if workers.rank > 0:
        if not args.join:
            train_and_export(samples, settings, workers)
        return 0
    with Bars() as bars, steps_shown(bars, args.out, has_board=args.board) as shown:
        hooks = Hooks(bars.phase, bars.item, shown.on_step, shown.on_measured)
        if args.join:
            result = join_and_export(args.join, samples, settings, hooks=hooks)
        else:
            trained = train_and_export(samples, settings, workers, hooks=hooks)
            assert trained is not None, "the first process has a result"
            result = trained
    if kept := result.summary.get("presence_kept"):
        tell(f"! {kept}")
    say_json({"weights": str(result.weights), "card": str(result.card), "val": result.summary})
    return 0


def mini_config(args: Train, samples: tuple[Sample, ...]) -> FitConfig:
    """Give the configuration of a run of the small model: its defaults, changed by the options that were given.

    Raises:
        InputError: A choice that does not go with another, or with the data.
    """
    from medsam3.train.config import TEXT_RANK, FitConfig  # noqa: PLC0415
    from medsam3.train.run import init_defaults, starting_weights  # noqa: PLC0415

    is_frozen = args.image_encoder == "lite-medsam"
    trains = args.trains or ("detector" if is_frozen else "all")
    if trains == "all" and is_frozen:
        raise InputError(
            "--trains is 'all', but lite-medsam stays frozen: take --image-encoder lite0, or another choice"
        )
    if args.rank is not None and trains != "lora":
        raise InputError(f"--rank is {args.rank}, it belongs to --trains lora")
    if args.warmup_steps == 0:
        raise InputError("--warmup-steps is 0, it must be positive")
    images = sum(sample.split == "train" for sample in samples)
    if args.images_per_step is not None and args.images_per_step > images:
        raise InputError(f"--images-per-step is {args.images_per_step}, there are only {images} train images")
    initial = None if args.init is None else starting_weights(args.init)
    further = None if initial is None else init_defaults(samples, initial)
    config = FitConfig(
        bf16=not args.no_bf16,
        trains=trains,
        views_of=_views_of(args.views_of),
        initial_sha256=None if initial is None else sha256_of(initial),
        **({} if further is None else {"learning_rate": further.learning_rate, "steps": further.steps(images)})
        | _given(args, (*_OF_BOTH, "val_every", "patience")),
    )
    sampling = replace(
        config.sampling,
        images=min(args.images_per_step or config.sampling.images, images),
        **_given(args, ("prompts", "absent", "closer", "negative", "dataset_power")),
    )
    rank = (args.rank or TEXT_RANK) if trains == "lora" else 0
    detector = replace(config.detector, image_encoder=args.image_encoder, text_rank=rank)
    return replace(config, detector=detector, sampling=sampling)


def _views_of(text: str) -> tuple[tuple[str, int], ...]:
    pairs = []
    for part in filter(None, text.split(",")):
        name, _, count = part.partition("=")
        if not count.isdigit() or int(count) < 1:
            raise InputError(f"--views-of has {part!r}, allowed is SET=N with N from 1, joined by commas")
        pairs.append((name, int(count)))
    return tuple(pairs)


def train_sam3(args: Train, samples: tuple[Sample, ...]) -> int:
    """Fine-tune SAM 3 on the samples.

    Raises:
        InputError: Weights that are missing or do not fit, an option out of range, a folder that holds another run.
    """
    config = sam3_config(args)
    from medsam3.data.samples import contents_digest  # noqa: PLC0415
    from medsam3.train import sam3_run  # noqa: PLC0415  torch, and the code of the large model
    from medsam3.train.loop import Hooks, check_folder  # noqa: PLC0415
    from medsam3.train.workers import workers_for  # noqa: PLC0415

    assert args.weights is not None, "sam3_config has checked it"
    workers = workers_for(_device(args.device))
    settings = sam3_run.Sam3Settings(
        weights=args.weights,
        out=args.out,
        cache=args.cache or args.out / "cache",
        config=config,
        vocabulary=args.vocabulary,
        val_images=args.val_images,
    )
    start = sam3_run.read_start(settings)
    if workers.rank == 0:
        check_folder(args.out, start.config, contents_digest(samples))
        if not args.sources.no_data_report:
            show_report(samples, args.out)
        for line in sam3_run.describe_sam3(samples, settings, start, workers.device):
            tell(line)
    if args.dry_run:
        for line in sam3_run.estimate_sam3(samples, settings, start, workers.device):
            tell(line)
        return 0
    if workers.rank > 0:
        sam3_run.train_sam3(samples, settings, start, workers)
        return 0
    with Bars() as bars, steps_shown(bars, args.out, has_board=args.board) as shown:
        hooks = Hooks(bars.phase, bars.item, shown.on_step)
        result = sam3_run.train_sam3(samples, settings, start, workers, hooks=hooks)
    assert result is not None, "the first process has a result"
    told = {"model": str(result.model), "card": str(result.card), "val": result.val}
    say_json(told if result.adapter is None else told | {"adapter": str(result.adapter)})
    return 0


def sam3_config(args: Train) -> Sam3FitConfig:
    """Give the configuration of a run of SAM 3: the recipe for what trains, changed by the options that were given.

    Raises:
        InputError: No weights, or a choice that does not go with another.
    """
    from medsam3.train.config import LoraConfig, recipe  # noqa: PLC0415  torch, by the loss

    if args.weights is None:
        raise InputError("--base sam3 was given without --weights: name a folder, sam3.pt, or facebook/sam3")
    if args.trains == "text":
        raise InputError("--trains is 'text', which is a choice of the small model: take detector, lora or all")
    config = recipe(args.trains or "detector")
    if config.trains != "lora" and (args.rank is not None or args.alpha is not None):
        raise InputError("--rank and --alpha belong to the adapter: add --trains lora, or leave them out")
    given = _given(args, (*_OF_BOTH, "image_size"))
    images = {} if args.images_per_step is None else {"images": args.images_per_step}
    return replace(
        config,
        bf16=not args.no_bf16,
        is_cached=config.is_cached and not args.no_cache,
        is_checkpointed=not args.keep_activations,
        lora=LoraConfig(args.rank or config.lora.rank, args.alpha or config.lora.alpha),
        sampling=replace(config.sampling, **images, **_given(args, ("prompts", "dataset_power"))),
        **given,
    )


def follow_recipe(args: Train, name: str) -> int:
    """Make weights by a recipe.

    Raises:
        InputError: No data, no such recipe, or as `recipes.follow` says.
    """
    from medsam3.train.loop import Hooks  # noqa: PLC0415  torch only when it is needed
    from medsam3.train.recipes import follow, read_recipe  # noqa: PLC0415
    from medsam3.train.workers import workers_for  # noqa: PLC0415

    stages = read_recipe(name)
    if not args.data:
        raise InputError("--recipe was given without data: name the folders with an index.csv")
    workers = workers_for("cpu")
    with Bars() as bars:
        hooks = Hooks(bars.phase, bars.item, bars.step, bars.measured) if workers.rank == 0 else Hooks()
        result = follow(stages, args.data, args.out, workers, cache=args.cache, hooks=hooks)
    if result is not None:
        say_json({"weights": str(result.weights), "card": str(result.card), "val": result.summary})
    return 0


def _device(name: str | None) -> torch.device:
    import torch  # noqa: PLC0415

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    from medsam3.models.detector import checked_device  # noqa: PLC0415

    return checked_device(name)
