"""The loop on SAM 3: it learns, a killed run goes on as an unbroken one, and several processes do what one does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sam3_killed_run as killed
import sam3_tiny as tiny
import torch

from medsam3.errors import InputError
from medsam3.train.config import Sam3Trains
from medsam3.train.workers import workers_for

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.weights_folder(tmp_path_factory.mktemp("weights"))


def environment(**further: str) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **further}


def lines(folder: Path) -> int:
    path = folder / "curves.jsonl"
    return max(0, path.read_text().count("\n") - 1) if path.exists() else 0  # without the heading


@pytest.mark.slow
def test_a_run_killed_by_signal_9_between_saves_has_the_curve_and_weights_of_an_unbroken_one(
    tmp_path: Path, weights: Path
) -> None:
    whole = killed.train(weights, tmp_path / "pictures", tmp_path / "whole")
    out = tmp_path / "cut"
    command = [sys.executable, str(HERE / "sam3_killed_run.py"), str(weights), str(tmp_path / "pictures"), str(out)]
    with subprocess.Popen(command, env=environment()) as process:
        deadline = time.monotonic() + 120
        while lines(out) < 5 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert 5 <= lines(out) < 7, "killed after the save at update 3 and before the one at 6"
    again = killed.train(weights, tmp_path / "pictures", out)
    assert len(tiny.curve(out)) == 7
    assert tiny.curve(out) == pytest.approx(tiny.curve(tmp_path / "whole"), rel=1e-4)
    for name, tensor in whole.items():
        assert torch.allclose(again[name], tensor, atol=1e-4), name


@pytest.mark.parametrize("trains", ["detector", "lora", "all"])
def test_the_loss_falls_whatever_trains(tmp_path: Path, weights: Path, trains: Sam3Trains) -> None:
    config = tiny.configured(trains=trains, steps=25, learning_rate=3e-3, is_cached=False, save_every=25)
    trained = killed.train(weights, tmp_path / "pictures", tmp_path / "run", config=config)
    curve = tiny.curve(tmp_path / "run")
    assert sum(curve[-5:]) < 0.5 * sum(curve[:5])
    assert all((".lora." in name) == (trains == "lora") for name in trained)


def test_a_loss_that_is_no_number_stops_the_run_with_advice(tmp_path: Path, weights: Path) -> None:
    config = tiny.configured(steps=8, learning_rate=1e30, warmup_steps=0, is_cached=False)
    with pytest.raises(InputError, match="lower --learning-rate"):
        killed.train(weights, tmp_path / "pictures", tmp_path / "run", config=config)


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    assert workers_for(torch.device("cpu")).count == 1


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "sharded"])
def test_two_processes_do_what_one_does_with_twice_the_batches(tmp_path: Path, weights: Path, layout: str) -> None:
    pytest.importorskip("accelerate", reason="needs accelerate: pip install 'medsam3[accelerate]'")
    killed.train(weights, tmp_path / "pictures", tmp_path / "one")  # accumulates two batches an update
    places = [str(weights), str(tmp_path / "pictures"), str(tmp_path / "two")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    for part in ("first", "rest"):
        subprocess.run(
            [*launch, str(HERE / "sam3_two_processes.py"), layout, part, *places],
            env=environment(ACCELERATE_USE_CPU="true"),
            check=True,
            capture_output=True,
            timeout=900,
        )
    assert tiny.curve(tmp_path / "two") == pytest.approx(tiny.curve(tmp_path / "one"), rel=1e-3)
