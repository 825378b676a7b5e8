"""Recipes: files beside the shipped weights that say how these are made from published ones, and the run of a recipe.

A recipe is a list of stages. Each is a run of its own that starts from the weights of the one before; all that a stage
depends on besides the data is in the file, so that the same command goes on after a kill.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from medsam3.data.sources import Sources, read_samples
from medsam3.data.volumes import SlicePlan
from medsam3.errors import InputError, reason_of, value_error
from medsam3.models.mini.click_decoder import ClickDecoderConfig
from medsam3.models.mini.detector import MiniDetectorConfig
from medsam3.models.mini.segmenter import SHIPPED_WEIGHTS
from medsam3.store import JsonObject, sha256_of
from medsam3.train.clicks_run import RunPlace, train_clicks
from medsam3.train.config import ClickFitConfig, FitConfig, SamplingConfig
from medsam3.train.loop import Hooks
from medsam3.train.person import PersonConfig
from medsam3.train.run import RunResult, RunSettings, train_and_export
from medsam3.train.workers import Workers

_ENDING = ".recipe.json"
_DATA = ("slices_every", "only_open", "weights", "left_out")
Settings = TypeVar("Settings", ClickDecoderConfig, ClickFitConfig, PersonConfig, SamplingConfig, MiniDetectorConfig)


@dataclass(frozen=True)
class Stage:
    """One run of a recipe.

    Attributes:
        config: Its settings, but for the weights that it starts from; those of the interactive decoder, which
            stands on the shipped weights and is a stage by itself, where `trains` is "clicks".
        slices_every: Every so many slices of volumes are trained on; 0 leaves volumes out.
        only_open: Take only data sets with an open licence.
        weights: How much more often than by its size a data set is drawn.
        is_mean_with_start: The result is the mean of the parameters at the start and at the end.
        left_out: Data sets that are not read.
    """

    config: FitConfig | ClickFitConfig
    slices_every: int = 2
    only_open: bool = False
    weights: tuple[tuple[str, float], ...] = ()
    is_mean_with_start: bool = False
    left_out: tuple[str, ...] = ()

    def sources(self, folders: tuple[Path, ...]) -> Sources:
        """Say what of the data folders the stage reads."""
        slices = SlicePlan(every=self.slices_every) if self.slices_every else None
        return Sources(
            folders, slices=slices, is_only_open=self.only_open, weights=self.weights, left_out=self.left_out
        )


def names() -> tuple[str, ...]:
    """List the recipes that ship."""
    return tuple(sorted(path.name.removesuffix(_ENDING) for path in SHIPPED_WEIGHTS.parent.glob(f"*{_ENDING}")))


def read_recipe(name: str) -> tuple[Stage, ...]:
    """Read a recipe that ships, by its name, or one in a file.

    Raises:
        InputError: There is no such recipe, or a setting that does not exist.
    """
    path = SHIPPED_WEIGHTS.with_name(f"{name}{_ENDING}") if name in names() else Path(name)
    try:
        stages: Sequence[JsonObject] = json.loads(path.read_text(encoding="utf-8"))["stages"]
        return tuple(_stage(dict(stage)) for stage in stages)
    except OSError as error:
        raise InputError(f"there is no recipe {name!r}, allowed are: {', '.join(names())}, or a file") from error
    except (ValueError, ArithmeticError, AttributeError, LookupError, TypeError, RecursionError) as error:
        reason = value_error(error.errors()[0]) if isinstance(error, ValidationError) else reason_of(error)
        raise InputError(f"{path} is no recipe ({reason}): see those that ship beside the weights") from error


def _stage(given: JsonObject) -> Stage:
    data = given.pop("data", {})
    is_mean = bool(given.pop("mean_with_start", False))
    config = _clicks(given) if given.get("trains") == "clicks" else _detector(given)
    unknown = sorted(set(data) - set(_DATA))
    if unknown:
        raise ValueError(f"data has {', '.join(unknown)}, allowed are {', '.join(_DATA)}")
    weights = tuple((name, float(weight)) for name, weight in data.pop("weights", {}).items())
    left_out = tuple(data.pop("left_out", ()))
    stage = Stage(config, weights=weights, is_mean_with_start=is_mean, left_out=left_out, **data)
    checked = TypeAdapter(type(config)).validate_python(asdict(config))  # JSON may hold a text for a number
    return TypeAdapter(Stage).validate_python({**vars(stage), "config": checked})


def _clicks(given: JsonObject) -> ClickFitConfig:
    own = {name: value for name, value in given.items() if name not in ("trains", "decoder", "person")}
    config = _filled(ClickFitConfig(), own)
    decoder = _filled(ClickDecoderConfig(), given.get("decoder", {}))
    return replace(config, decoder=decoder, person=_filled(PersonConfig(), given.get("person", {})))


def _detector(given: JsonObject) -> FitConfig:
    return FitConfig(
        **{
            **given,
            "views_of": tuple((name, int(count)) for name, count in given.pop("views_of", {}).items()),
            "detector": _filled(MiniDetectorConfig(), given.pop("detector", {})),
            "sampling": _filled(SamplingConfig(), given.pop("sampling", {})),
        }
    )


def _filled(default: Settings, given: JsonObject) -> Settings:
    unknown = sorted(set(given) - {field.name for field in fields(default)})
    if unknown:
        raise ValueError(f"{type(default).__name__} has no {', '.join(unknown)}")
    return replace(default, **given)


def follow(
    stages: Sequence[Stage],
    folders: tuple[Path, ...],
    out: Path,
    workers: Workers,
    *,
    cache: Path | None = None,
    hooks: Hooks | None = None,
    on_stage: Callable[[int, Stage], None] = lambda number, stage: None,
) -> RunResult | None:
    """Run all stages, and go on where an earlier call was killed; a finished stage is not run again.

    Args:
        stages: Of a recipe.
        folders: Data folders with an `index.csv`.
        out: The last stage's folder; those before lie in it as `stage1`, `stage2` and so on.
        workers: The processes that train together.
        cache: Folder of the cached features; None takes one in `out`.
        hooks: Of the first process.
        on_stage: Called before each stage that runs, with its number from 1.

    Returns:
        What the last stage has made; None in all processes but the first.

    Raises:
        InputError: See `read_samples` and `train_and_export`.
    """
    initial: Path | None = None
    result: RunResult | None = None
    for number, stage in enumerate(stages, start=1):
        folder = out if number == len(stages) else out / f"stage{number}"
        if isinstance(stage.config, ClickFitConfig):
            on_stage(number, stage)
            place = RunPlace(folder, cache or out / "cache")
            result = train_clicks(read_samples(stage.sources(folders)), place, stage.config, workers, hooks=hooks)
            continue
        config = replace(stage.config, initial_sha256=None if initial is None else sha256_of(initial))
        settings = RunSettings(folder, cache or out / "cache", config, initial, stage.is_mean_with_start)
        if number == len(stages) or not _is_done(settings):
            on_stage(number, stage)
            samples = read_samples(stage.sources(folders))
            images = min(config.sampling.images, sum(sample.split == "train" for sample in samples))
            fitting = replace(config, sampling=replace(config.sampling, images=images))
            result = train_and_export(samples, replace(settings, config=fitting), workers, hooks=hooks)
        workers.wait()
        initial = folder / "mini.safetensors"
    return result


def _is_done(settings: RunSettings) -> bool:
    """Tell whether the folder holds the finished weights of these settings."""
    weights = settings.out / "mini.safetensors"
    try:
        card = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
        made, wanted = card["training"], json.loads(json.dumps(asdict(settings.config)))
        for one in (made, wanted):
            del one["sampling"]["images"]  # fewer if there are fewer images
        return bool(made == wanted and card["sha256"] == sha256_of(weights))
    except (OSError, ValueError, KeyError, TypeError):
        return False
