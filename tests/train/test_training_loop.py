"""The loop on the small model: it learns, resumes as an unbroken run, and its folder stays bound to one run."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mini_tiny as tiny
import numpy as np
import PIL.Image
import pytest
import torch
from mini_tiny import CONFIG, losses
from safetensors.torch import save_file

from medsam3.errors import InputError
from medsam3.models.mini.letterbox import SIDE
from medsam3.store import replacing
from medsam3.train.batches import BatchMaker
from medsam3.train.config import FitConfig
from medsam3.train.loop import Hooks, Run, RunFolder, Validation, learning_rate, prefetched, update
from medsam3.train.pictures import LiveViews
from medsam3.train.trainee_mini import TRUNK, MiniTrainee, Start
from medsam3.train.workers import OneProcess, write_tensors

CPU = torch.device("cpu")


def test_a_run_killed_between_saves_has_the_curve_of_an_unbroken_one(tmp_path: Path) -> None:
    tiny.train(tmp_path / "whole")

    class KilledError(Exception):
        pass

    def kill(progress: object) -> None:
        if getattr(progress, "step", 0) == 5:
            raise KilledError

    with pytest.raises(KilledError):
        tiny.train(tmp_path / "cut", hooks=Hooks(on_step=kill))
    run, _ = tiny.train(tmp_path / "cut")
    assert run.step == 6
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    assert len(losses(tmp_path / "cut")) == 6


def test_the_loss_of_a_single_image_falls(tmp_path: Path) -> None:
    tiny.train(tmp_path, replace(CONFIG, steps=25, learning_rate=3e-3, save_every=25))
    curve = losses(tmp_path)
    assert np.mean(curve[-5:]) < 0.75 * np.mean(curve[:5])


def test_a_folder_refuses_another_configuration_by_name_and_other_data(tmp_path: Path) -> None:
    short = replace(CONFIG, steps=1)
    tiny.train(tmp_path, short)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"another configuration \(clip_norm, seed\)"):
        tiny.train(tmp_path, replace(short, seed=5, clip_norm=0.1))
    with pytest.raises(InputError, match="holds a run on other data: choose another --out"):
        tiny.train(tmp_path, short, data="another digest")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_more_steps_extend_a_run_and_fewer_are_refused(tmp_path: Path) -> None:
    _, first = tiny.train(tmp_path, replace(CONFIG, steps=2))
    curve, weights = losses(tmp_path), first.detector.state_dict()
    run, longer = tiny.train(tmp_path, replace(CONFIG, steps=4))
    assert run.step == 4
    assert losses(tmp_path)[:2] == curve and len(losses(tmp_path)) == 4
    assert any(not torch.equal(value, weights[name]) for name, value in longer.detector.state_dict().items())
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 4
    with pytest.raises(InputError, match="holds a run of 4 steps, --steps is 3: give 4 or more"):
        tiny.train(tmp_path, replace(CONFIG, steps=3))


def test_a_second_run_in_the_same_folder_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    with RunFolder(tmp_path, CONFIG, tiny.DATA), pytest.raises(InputError, match="open in another run"):
        RunFolder(tmp_path, CONFIG, tiny.DATA)
    RunFolder(tmp_path, CONFIG, tiny.DATA).__exit__(None, None, None)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut short"])
def test_a_damaged_checkpoint_is_one_line_and_the_run_is_kept(tmp_path: Path, content: bytes) -> None:
    tiny.train(tmp_path)
    curve = (tmp_path / "curves.jsonl").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"checkpoint.pt is damaged .*remove it to train from the start") as raised:
        tiny.train(tmp_path)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "checkpoint.pt").read_bytes() == content
    assert (tmp_path / "curves.jsonl").read_bytes() == curve


def test_a_full_disk_is_one_line_and_the_old_checkpoint_stays(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "checkpoint.pt"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with (
            pytest.raises(InputError, match=r"cannot be written \(the disk may be full\)"),
            replacing(path) as temporary,
        ):
            write_tensors(temporary, {"a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [(left.name, left.read_text()) for left in tmp_path.iterdir()] == [("checkpoint.pt", "old")]


def test_an_empty_config_and_the_temporary_files_of_a_killed_run_do_no_harm(tmp_path: Path) -> None:
    tiny.train(tmp_path, replace(CONFIG, steps=3))
    (tmp_path / "config.json").write_text("")
    left = tmp_path / f".{'0a' * 16}.json"
    left.write_text("half")
    run, _ = tiny.train(tmp_path)
    assert run.step == 6
    assert json.loads((tmp_path / "config.json").read_text())["steps"] == 6
    assert not left.exists()


def test_a_warm_up_takes_a_third_of_the_steps_at_most() -> None:
    config = FitConfig(steps=40, warmup_steps=150, learning_rate=1.0)
    assert learning_rate(12, config) == pytest.approx(1.0)  # 13 of 40 steps
    assert learning_rate(13, config) == pytest.approx(1.0)
    assert learning_rate(40, config) == pytest.approx(0.02)
    assert learning_rate(0, replace(config, steps=1)) == pytest.approx(1.0)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_a_fiftieth() -> None:
    config = FitConfig(steps=100, warmup_steps=10, learning_rate=1.0)
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert learning_rate(10, config) == pytest.approx(1.0)
    assert learning_rate(100, config) == pytest.approx(0.02)


def test_a_run_can_start_from_the_weights_of_another(tmp_path: Path) -> None:
    _, first = tiny.train(tmp_path / "first")
    weights = tmp_path / "mini.safetensors"
    save_file({name: value.contiguous() for name, value in first.average.state_dict().items()}, weights)
    second = tiny.started(replace(CONFIG, initial_sha256="of that file"), Start(weights))
    for name, value in first.average.state_dict().items():
        assert torch.equal(second.detector.state_dict()[name], value)
        assert torch.equal(second.average.state_dict()[name], value)


def test_weights_of_another_architecture_are_refused_as_a_start(tmp_path: Path) -> None:
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="does not fit the detector"):
        tiny.started(CONFIG, Start(tmp_path / "other.safetensors"))


def live_maker(folder: Path) -> BatchMaker:
    pixels = np.full((SIDE, SIDE, 3), 40, np.uint8)
    pixels[60:140, 30:200] = (200, 90, 60)
    PIL.Image.fromarray(pixels).save(folder / "a.png")

    return BatchMaker([tiny.polyp("a.png", folder / "a.png")], LiveViews(), CONFIG.sampling, seed=1)


def trunk_config(**changes: object) -> FitConfig:
    detector = replace(CONFIG.detector, image_encoder="lite0")
    return replace(CONFIG, detector=detector, **changes)  # type: ignore[arg-type]


def test_the_coarse_stages_of_a_trunk_learn_and_the_fine_ones_stay(tmp_path: Path) -> None:
    config = trunk_config(steps=2, save_every=2)
    before = MiniTrainee(config, tiny.texts()).detector.state_dict()
    after = tiny.train(tmp_path / "run", config, batches=live_maker(tmp_path))[1].detector.state_dict()
    # Blocks 0 to 2 lie at strides 2 and 4 (1 + 2 blocks), block 3 begins stride 8.
    for frozen in ("stem.conv.weight", "blocks.0.project.scale", "blocks.2.depthwise.conv.weight"):
        assert torch.equal(before[TRUNK + frozen], after[TRUNK + frozen])
    for learnt in ("blocks.3.depthwise.conv.weight", "blocks.15.project.scale"):
        assert not torch.equal(before[TRUNK + learnt], after[TRUNK + learnt])


def test_a_trunk_can_start_on_the_weights_of_a_frozen_encoder(tmp_path: Path) -> None:
    frozen = MiniTrainee(CONFIG, tiny.texts()).detector.state_dict()
    save_file({name: value.contiguous() for name, value in frozen.items()}, tmp_path / "mini.safetensors")
    config = trunk_config(seed=5)
    fresh = MiniTrainee(config, tiny.texts()).detector.state_dict()
    state = tiny.started(config, Start(tmp_path / "mini.safetensors")).detector.state_dict()
    assert torch.equal(state["text_projection.first.weight"], frozen["text_projection.first.weight"])
    assert torch.equal(state["levels.middle.0.weight"], fresh["levels.middle.0.weight"])  # of another shape: not taken


def one_update(*steps: int) -> tuple[float, MiniTrainee]:
    """The loss of an update of a fresh model by the batches of some numbers, and the model after it."""
    trainee = MiniTrainee(replace(CONFIG, accumulate=len(steps)), tiny.texts())
    run = Run(trainee.module, trainee.optimizer())
    batches = [(step, tiny.maker().batch(step)) for step in steps]
    return update(run, trainee, iter(batches), OneProcess(CPU))["total"], trainee


def test_two_batches_of_one_update_have_their_mean_gradient() -> None:
    losses = [one_update(step)[0] for step in (0, 3)]
    assert one_update(0, 3)[0] == pytest.approx(np.mean(losses), rel=1e-5)
    _, once = one_update(0)
    _, again = one_update(0, 0)
    for name, value in once.detector.state_dict().items():
        torch.testing.assert_close(again.detector.state_dict()[name], value, rtol=1e-3, atol=1e-6)


def measured_run(folder: Path, dice: list[float], **changes: object) -> tuple[Run, MiniTrainee, list[int]]:
    config = replace(CONFIG, save_every=1, **changes)  # type: ignore[arg-type]
    left, seen = iter(dice), list[int]()
    hooks = Hooks(on_measured=lambda step, value: seen.append(step))
    run, trainee = tiny.train(folder, config, hooks=hooks, validation=Validation(1, 2, lambda: next(left)))
    return run, trainee, seen


def test_a_run_stops_when_val_gains_no_more_and_keeps_its_best_weights(tmp_path: Path) -> None:
    run, trainee, seen = measured_run(tmp_path, [0.5, 0.7, 0.6, 0.7, 0.9])
    assert seen == [1, 2, 3, 4]  # two measurements after the best of step 2
    assert run.best is not None
    assert run.best.step == 2
    assert run.best.dice == pytest.approx(0.7)
    assert any(not torch.equal(value, run.best.weights[name]) for name, value in trainee.average.state_dict().items())
    again, _, seen = measured_run(tmp_path, [])  # a settled run has nothing to do again
    assert (again.step, seen) == (4, [])
    measured = [json.loads(line) for line in (tmp_path / "val.jsonl").read_text().splitlines()[1:]]
    assert [one["dice"] for one in measured] == [0.5, 0.7, 0.6, 0.7]
    longer, _, seen = measured_run(tmp_path, [0.6, 0.9, 0.8, 0.7], steps=8)  # more steps, and patience anew
    assert seen == [5, 6, 7, 8]
    assert longer.best is not None and longer.best.step == 6


def test_the_best_weights_outlive_a_kill(tmp_path: Path) -> None:
    with pytest.raises(StopIteration):  # measuring breaks at step 4
        measured_run(tmp_path, [0.5, 0.7, 0.6])
    run, _, seen = measured_run(tmp_path, [0.65])
    assert seen == [4]
    assert run.best is not None and run.best.step == 2


def test_values_are_made_ahead_in_order_and_an_error_reaches_the_loop() -> None:
    def make(step: int) -> int:
        if step == 3:
            raise OSError("disk gone")
        return step

    assert list(prefetched(make, range(3))) == [0, 1, 2]
    with pytest.raises(OSError, match="disk gone"):
        list(prefetched(make, range(5)))


@pytest.mark.slow
def test_two_processes_have_the_curve_of_one(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="needs accelerate")
    import mini_two_processes as two  # noqa: PLC0415

    two.train(tmp_path / "one")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    script = Path(__file__).with_name("mini_two_processes.py")
    subprocess.run([*launch, str(script), str(tmp_path / "two")], env=environment, check=True, timeout=600)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)


def test_checkpoints_and_curves_of_an_earlier_version_are_read_and_newer_ones_refused(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=1, save_every=1)
    tiny.train(tmp_path, config)
    checkpoint, curves = tmp_path / "checkpoint.pt", tmp_path / "curves.jsonl"
    content = torch.load(checkpoint, weights_only=True)
    assert content.pop("format") == 1
    torch.save(content, checkpoint)
    heading, *rest = curves.read_text().splitlines(keepends=True)
    found = json.loads(heading)
    assert found.pop("version") == 1
    curves.write_text(json.dumps(found) + "\n" + "".join(rest))
    assert tiny.train(tmp_path, config)[0].step == 1
    torch.save(content | {"format": 9}, checkpoint)
    with pytest.raises(InputError, match=r"checkpoint\.pt is in format 9, this version reads 1: update medsam3"):
        tiny.train(tmp_path, config)
