"""The cost of a run: timed with a clock that is known, and the share of features that are still to be made."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from made_data import data_folder
from medsam3.cli.main import main
from medsam3.data.samples import RGB, samples_from_index
from medsam3.train.batches import Batch, SamplingConfig
from medsam3.train.cache import NECK_SHAPE, load_or_make_view
from medsam3.train.mini_config import FitConfig
from medsam3.train.mini_estimate import RunCost, cost_lines, measure, peak_gib, planned, time_steps

CONFIG = FitConfig(steps=100, views=1, sampling=SamplingConfig(images=1))


class Numbers:
    """Batches that are their own number."""

    def batch(self, step: int) -> int:
        return step


def encode(square: RGB) -> np.ndarray:
    assert square.shape == (256, 256, 3)
    return np.full(NECK_SHAPE, 0.5, np.float16)


def test_the_first_step_does_not_count() -> None:
    steps: list[int] = []

    def step(number: int) -> None:
        steps.append(number)
        time.sleep(0.5 if number == 0 else 0.02)

    assert 0.02 <= time_steps(Numbers(), step, steps=3) < 0.2
    assert steps == [0, 1, 2, 3]


def test_steps_are_timed_on_real_batches_before_anything_is_cached(tmp_path: Path) -> None:
    samples = samples_from_index(data_folder(tmp_path / "data"))
    train, val = samples[:2], samples[2:]
    plans = [planned(train, 0, tmp_path / "view0"), planned(val, 0, tmp_path / "val")]
    batches: list[Batch] = []
    cost = measure(train, plans, encode, CONFIG, batches.append)
    assert len(batches) == 4
    neck = batches[0].neck
    assert neck is not None and float(neck.max()) == 0.5
    assert any(question.truth.is_present for batch in batches for question in batch.questions)
    assert (cost.steps, cost.missing_views) == (100, 3)
    assert not (tmp_path / "view0").exists()


def test_cached_features_are_used_and_not_counted(tmp_path: Path) -> None:
    samples = samples_from_index(data_folder(tmp_path / "data"))
    train, val = samples[:2], samples[2:]
    for own, name in ((train, "view0"), (val, "val")):
        load_or_make_view(tmp_path / name, own, 0, encode, seed=0)
    plans = [planned(train, 0, tmp_path / "view0"), planned(val, 0, tmp_path / "val")]
    assert [plan.is_complete for plan in plans] == [True, True]

    def never(square: RGB) -> np.ndarray:
        raise AssertionError("all features are cached")

    cost = measure(train, plans, never, CONFIG, lambda batch: None)
    assert (cost.missing_views, cost.view_s) == (0, 0.0)


def test_the_lines_say_what_is_measured_and_what_follows_from_it() -> None:
    cost = RunCost(steps=1600, step_s=2.0, missing_views=30, view_s=1.5, peak_gib=2.25)
    first, second, third = cost_lines(cost)
    assert first == "measured: 2.00 s a step (3 steps after 1); estimated from it: 53 min for 1600 steps"
    assert second.endswith("estimated from it: 45 s for 30 views that are not cached")
    assert third == "measured: 2.2 GiB of memory at most in these steps"
    assert len(cost_lines(replace(cost, missing_views=0, peak_gib=None))) == 1


def test_the_peak_is_that_of_a_process() -> None:
    peak = peak_gib()
    assert peak is None or 0.05 < peak < 1000


def test_without_the_encoders_a_dry_run_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path / "nowhere"))
    command = ["train", str(data_folder(tmp_path / "data")), "--out", str(tmp_path / "run"), "--dry-run"]
    assert main(command) == 0
    assert "time and memory are not known: the encoder weights" in capsys.readouterr().err


@pytest.mark.weights
def test_a_dry_run_measures_real_steps_and_writes_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", str(data_folder(tmp_path / "data")), "--out", str(tmp_path / "run"), "--dry-run"]
    command += ["--images-per-step", "1", "--views", "1", "--image-encoder", "lite-medsam"]
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "s a step (3 steps after 1); estimated from it" in told
    assert "for 3 views that are not cached" in told
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"data.html", "data.json"}
