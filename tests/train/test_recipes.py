"""Recipes of shipped weights: what their files say, and a run of all stages that goes on where it was."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from made_data import data_folder
from medsam3.cli.main import main
from medsam3.errors import InputError
from medsam3.models.mini.clicker import WEIGHTS
from medsam3.models.mini.detector import MiniDetector, MiniDetectorConfig
from medsam3.models.mini.segmenter import SHIPPED_WEIGHTS
from medsam3.store import sha256_of
from medsam3.train.config import FitConfig
from medsam3.train.recipes import names, read_recipe
from medsam3.train.run import move_half_way


def test_every_shipped_model_has_a_recipe_and_its_stages_are_those_of_the_documentation() -> None:
    assert names() == ("mini", "mini-frozen", "mini-interactive", "mini-open")
    mini, frozen = read_recipe("mini"), read_recipe("mini-frozen")
    (long,) = mini
    assert isinstance(long.config, FitConfig)
    trained = [stage.config for stage in frozen if isinstance(stage.config, FitConfig)]
    card = json.loads((SHIPPED_WEIGHTS.with_suffix(".json")).read_text(encoding="utf-8"))
    ran = card["training"]
    assert (long.config.steps, long.config.learning_rate, long.config.seed) == (6924, 0.0016, 11)
    assert (ran["steps"], ran["learning_rate"], ran["seed"]) == (6924, 0.0016, 11)
    assert long.config.sampling.images * long.config.accumulate == ran["sampling"]["images"] == 64
    assert dict(long.weights) == card["dataset_weights"] and long.config.detector.image_encoder == "lite0"
    assert [stage.config.steps for stage in frozen] == [1100, 1800]
    assert [config.detector.image_encoder for config in trained] == ["lite-medsam"] * 2
    assert trained[1].views_in("dsb2018") == 8 and trained[1].views_in("busi") == 4
    (open_,) = read_recipe("mini-open")
    assert open_.only_open and open_.config.steps == 1300 and open_.weights == (("msd_hippocampus", 0.6),)
    sources = open_.sources((Path("data"),))
    assert sources.is_only_open and sources.slices is not None and sources.slices.every == 4


def test_the_interactive_decoder_was_made_by_its_recipe() -> None:
    (stage,) = read_recipe("mini-interactive")
    card = json.loads(WEIGHTS.with_suffix(".json").read_text(encoding="utf-8"))
    ran = dict(card["training"])
    assert ran.pop("levels_sha256") == card["stands_on"]["levels_sha256"]
    wanted = asdict(stage.config)
    del wanted["levels_sha256"]
    assert ran == wanted
    assert card["sha256"] == sha256_of(WEIGHTS)


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"stepps": 3}, "stepps"),
        ({"sampling": {"imagez": 3}}, "SamplingConfig has no imagez"),
        ({"trains": "clicks", "closer": 0.3}, "ClickFitConfig has no closer"),
        ({"trains": "clicks", "person": {"round": 3}}, "PersonConfig has no round"),
        ({"data": {"folds": 3}}, "data has folds, allowed are slices_every"),
        ({"data": {"slices_every": "many"}}, 'slices_every is "many": input should be a valid integer'),
        ({"data": {"weights": ["kvasir"]}}, "no attribute 'items'"),
        ({"steps": "many"}, 'steps is "many": input should be a valid integer'),
        ({"sampling": {"images": None}}, r"sampling\.images is null: input should be a valid integer"),
        ({"views_of": {"kvasir": 1e309}}, "cannot convert float infinity to integer"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(tmp_path: Path, stage: dict[str, object], said: str) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"stages": [stage]}))
    with pytest.raises(InputError, match=f"is no recipe .*{said}"):
        read_recipe(str(path))


def test_a_recipe_that_is_not_there_and_one_without_data_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, said in (
        (
            ["train", "data", "--recipe", "maxi"],
            "there is no recipe 'maxi', allowed are: mini, mini-frozen, mini-interactive, mini-open",
        ),
        (["train", "--recipe", "mini"], "--recipe was given without data"),
    ):
        assert main([*command, "--out", str(tmp_path / "run")]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert said in line
    assert not (tmp_path / "run").exists()


def test_the_mean_with_the_start_lies_half_way() -> None:
    config = MiniDetectorConfig(width=16, heads=2, feed_forward=16, encoder_layers=1, decoder_layers=1, queries=2)
    model, other = MiniDetector(config), MiniDetector(config)
    expected = [(a + b) / 2 for a, b in zip(model.parameters(), other.parameters(), strict=True)]
    move_half_way(model, other)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), expected, strict=True))


@pytest.mark.weights
def test_stages_follow_each_other_and_finished_ones_are_not_run_again(tmp_path: Path, feature_cache: Path) -> None:
    lite0 = {"image_encoder": "lite0"}
    few = {"detector": lite0, "sampling": {"images": 1, "prompts": 2}}
    stages = [{"steps": 1, **few}, {"steps": 2, **few, "mean_with_start": True}]
    recipe, out = tmp_path / "own.json", tmp_path / "run"
    recipe.write_text(json.dumps({"stages": stages}))
    command = ["train", str(data_folder(tmp_path / "data")), "--recipe", str(recipe), "--out", str(out)]
    command += ["--cache", str(feature_cache)]
    assert main(command) == 0
    first, last = (json.loads((folder / "mini.json").read_text()) for folder in (out / "stage1", out))
    assert last["started_from"]["sha256"] == first["sha256"] == last["training"]["initial_sha256"]
    assert (first["training"]["steps"], last["training"]["steps"], last["mean_with_start"]) == (1, 2, True)
    curves = (out / "stage1" / "curves.jsonl").stat().st_mtime_ns
    (out / "mini.safetensors").unlink()  # as if it had been killed before its end
    assert main(command) == 0
    assert (out / "stage1" / "curves.jsonl").stat().st_mtime_ns == curves
    again = json.loads((out / "mini.json").read_text())
    assert {key: again[key] for key in ("sha256", "curve")} == {key: last[key] for key in ("sha256", "curve")}
