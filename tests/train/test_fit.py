"""The loop: it learns, and a killed run goes on as an unbroken one."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from medsam3.data.samples import Instances, Sample, Target
from medsam3.errors import InputError
from medsam3.models.mini.detector import MiniDetectorConfig
from medsam3.models.mini.letterbox import SIDE
from medsam3.models.mini.text_encoder import TextEncoder, TextTokens
from medsam3.train.batches import BatchMaker, SamplingConfig
from medsam3.train.cache import CachedView
from medsam3.train.fit import TRUNK, Hooks, RunState, Start, fit, learning_rate, new_state, resume, train_step
from medsam3.train.mini_config import FitConfig
from medsam3.train.pictures import CachedViews, LiveViews

TINY = MiniDetectorConfig(width=16, heads=2, feed_forward=16, encoder_layers=1, decoder_layers=1, queries=4)
CONFIG = FitConfig(
    steps=6, warmup_steps=2, bf16=False, save_every=3, detector=TINY, sampling=SamplingConfig(images=1, prompts=1)
)


class PhraseTexts:
    """Stands for the text encoder: a fixed random token for each phrase."""

    def encode(self, phrases: Sequence[str]) -> TextTokens:
        rows = [torch.randn(1, 384, generator=torch.Generator().manual_seed(len(phrase))) for phrase in phrases]
        return TextTokens(torch.stack(rows), torch.ones(len(rows), 1, dtype=torch.bool))


def texts() -> TextEncoder:
    return cast(TextEncoder, PhraseTexts())


def maker() -> BatchMaker:
    rng = np.random.default_rng(0)

    def load() -> Instances:
        labels = np.zeros((SIDE, SIDE), np.int32)
        labels[60:140, 30:200] = 1
        return labels

    sample = Sample("a.png", Path("a.png"), "one", "a", "train", (Target("polyp", True, load),))
    neck = rng.normal(size=(1, 256, 64, 64)).astype(np.float16)
    neck[0, :, 15:35, 8:50] += 1
    pixels = rng.integers(0, 255, size=(1, SIDE, SIDE, 3)).astype(np.uint8)
    views = CachedViews([CachedView(0, 0, {"a.png": 0}, neck, pixels)])
    return BatchMaker([sample], views, CONFIG.sampling, seed=1)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["total"] for line in (folder / "curves.jsonl").read_text().splitlines()]


def test_a_run_killed_between_saves_has_the_curve_of_an_unbroken_one(tmp_path: Path) -> None:
    fit(tmp_path / "whole", maker(), texts(), CONFIG)

    class KilledError(Exception):
        pass

    def kill(progress: object) -> None:
        if getattr(progress, "step", 0) == 5:
            raise KilledError

    with pytest.raises(KilledError):
        fit(tmp_path / "cut", maker(), texts(), CONFIG, hooks=Hooks(on_step=kill))
    state = fit(tmp_path / "cut", maker(), texts(), CONFIG)
    assert state.step == 6
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert len(losses(tmp_path / "cut")) == 6


def test_the_loss_of_a_single_image_falls(tmp_path: Path) -> None:
    fit(tmp_path, maker(), texts(), replace(CONFIG, steps=25, learning_rate=3e-3, save_every=25))
    curve = losses(tmp_path)
    assert np.mean(curve[-5:]) < 0.75 * np.mean(curve[:5])


def test_another_configuration_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, maker(), texts(), replace(CONFIG, steps=1))
    with pytest.raises(InputError, match="another configuration"):
        fit(tmp_path, maker(), texts(), replace(CONFIG, steps=2))


def test_the_learning_rate_rises_to_its_peak_and_falls_to_a_fiftieth() -> None:
    config = FitConfig(steps=100, warmup_steps=10, learning_rate=1.0)
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert learning_rate(10, config) == pytest.approx(1.0)
    assert learning_rate(100, config) == pytest.approx(0.02)


def test_a_run_can_start_from_the_weights_of_another(tmp_path: Path) -> None:
    first = fit(tmp_path / "first", maker(), texts(), CONFIG)
    weights = tmp_path / "mini.safetensors"
    save_file({name: value.contiguous() for name, value in first.average.state_dict().items()}, weights)
    config = replace(CONFIG, initial_sha256="of that file")
    state = resume(tmp_path / "second", config, Start(weights))
    for name, value in first.average.state_dict().items():
        assert torch.equal(state.model.state_dict()[name], value)
        assert torch.equal(state.average.state_dict()[name], value)
    assert state.step == 0


def test_weights_of_another_architecture_are_refused_as_a_start(tmp_path: Path) -> None:
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="does not fit the detector"):
        resume(tmp_path / "run", CONFIG, Start(tmp_path / "other.safetensors"))


def live_maker(folder: Path) -> BatchMaker:
    pixels = np.full((SIDE, SIDE, 3), 40, np.uint8)
    pixels[60:140, 30:200] = (200, 90, 60)
    PIL.Image.fromarray(pixels).save(folder / "a.png")

    def load() -> Instances:
        labels = np.zeros((SIDE, SIDE), np.int32)
        labels[60:140, 30:200] = 1
        return labels

    sample = Sample("a.png", folder / "a.png", "one", "a", "train", (Target("polyp", True, load),))
    return BatchMaker([sample], LiveViews(), CONFIG.sampling, seed=1)


def trunk_config(**changes: object) -> FitConfig:
    detector = replace(CONFIG.detector, image_encoder="lite0")
    return replace(CONFIG, detector=detector, **changes)  # type: ignore[arg-type]


def test_the_coarse_stages_of_a_trunk_learn_and_the_fine_ones_stay(tmp_path: Path) -> None:
    config = trunk_config(steps=2, save_every=2)
    before = new_state(config).model.state_dict()
    after = fit(tmp_path / "run", live_maker(tmp_path), texts(), config).model.state_dict()
    # Blocks 0 to 2 lie at strides 2 and 4 (1 + 2 blocks), block 3 begins stride 8.
    for frozen in ("stem.conv.weight", "blocks.0.project.scale", "blocks.2.depthwise.conv.weight"):
        assert torch.equal(before[TRUNK + frozen], after[TRUNK + frozen])
    for learnt in ("blocks.3.depthwise.conv.weight", "blocks.15.project.scale"):
        assert not torch.equal(before[TRUNK + learnt], after[TRUNK + learnt])


def test_a_trunk_can_start_on_the_weights_of_a_frozen_encoder(tmp_path: Path) -> None:
    frozen = new_state(CONFIG).model.state_dict()
    save_file({name: value.contiguous() for name, value in frozen.items()}, tmp_path / "mini.safetensors")
    config = trunk_config(seed=5)
    fresh = new_state(config).model.state_dict()
    state = resume(tmp_path / "run", config, Start(tmp_path / "mini.safetensors")).model.state_dict()
    assert torch.equal(state["text_projection.first.weight"], frozen["text_projection.first.weight"])
    assert torch.equal(state["levels.middle.0.weight"], fresh["levels.middle.0.weight"])  # of another shape: not taken


def test_two_batches_of_one_update_have_their_mean_gradient(tmp_path: Path) -> None:
    config = replace(CONFIG, bf16=False)
    once, twice, other = (new_state(config) for _ in range(3))
    first, second = maker().batch(0), maker().batch(3)
    assert first.pixels.shape == second.pixels.shape
    losses = [train_step(state, texts(), [batch], config)["total"] for state, batch in ((once, first), (other, second))]
    both = train_step(twice, texts(), [first, second], config)
    assert both["total"] == pytest.approx(np.mean(losses), rel=1e-5)
    again = new_state(config)
    train_step(again, texts(), [first, first], config)
    for name, value in once.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], value, rtol=1e-3, atol=1e-6)


def measured_run(folder: Path, dice: list[float], **changes: object) -> tuple[RunState, list[int]]:
    config = replace(CONFIG, val_every=1, patience=2, save_every=1, **changes)  # type: ignore[arg-type]
    left, seen = iter(dice), []
    hooks = Hooks(measure=lambda detector: next(left), on_measured=lambda step, value: seen.append(step))
    return fit(folder, maker(), texts(), config, hooks=hooks), seen


def test_a_run_stops_when_val_gains_no_more_and_keeps_its_best_weights(tmp_path: Path) -> None:
    state, seen = measured_run(tmp_path, [0.5, 0.7, 0.6, 0.7, 0.9])
    assert seen == [1, 2, 3, 4]  # two measurements after the best of step 2
    assert state.best is not None
    assert state.best.step == 2
    assert state.best.dice == pytest.approx(0.7)
    best = {name: value.clone() for name, value in state.best.weights.items()}
    assert any(not torch.equal(value, best[name]) for name, value in state.average.state_dict().items())
    for name, value in state.chosen().state_dict().items():
        assert torch.equal(value, best[name])
    again, seen = measured_run(tmp_path, [])  # a settled run has nothing to do again
    assert (again.step, seen) == (4, [])
    assert [json.loads(line)["dice"] for line in (tmp_path / "val.jsonl").read_text().splitlines()] == [
        0.5,
        0.7,
        0.6,
        0.7,
    ]


def test_the_best_weights_outlive_a_kill(tmp_path: Path) -> None:
    with pytest.raises(StopIteration):  # measuring breaks at step 4
        measured_run(tmp_path, [0.5, 0.7, 0.6])
    state, seen = measured_run(tmp_path, [0.65])
    assert seen == [4]
    assert state.best is not None
    assert state.best.step == 2


@pytest.mark.slow
def test_two_processes_have_the_curve_of_one(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="needs accelerate")
    import mini_two_processes as two  # noqa: PLC0415

    two.train(tmp_path / "one")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29537"]
    script = Path(__file__).with_name("mini_two_processes.py")
    subprocess.run([*launch, str(script), str(tmp_path / "two")], env=environment, check=True, timeout=600)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
