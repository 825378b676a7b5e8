"""What a run trains and takes: parts counted by hand, steps that are timed, and lines that say what is measured."""

import time
from dataclasses import replace
from pathlib import Path

import mini_tiny as tiny
import pytest
import torch
from torch import nn

from made_data import data_folder
from medsam3.cli.main import main
from medsam3.models.mini.detector import MiniDetector, MiniDetectorConfig
from medsam3.models.mini.text_encoder import blank_text_model
from medsam3.models.mini.tinyvit import TinyViT
from medsam3.train.batches import Batch
from medsam3.train.estimate import PartSize, RunCost, cost_lines, measure, mini_sizes, peak_gib, sizes_by_part, table_of
from medsam3.train.trainee_mini import MiniTrainee

CPU = torch.device("cpu")


def small() -> nn.Module:
    model = nn.ModuleDict({"eye": nn.Linear(2, 3), "head": nn.Linear(3, 5), "tail": nn.Linear(1, 1, bias=False)})
    model["head"].lora = nn.Linear(3, 2, bias=False)  # 6, an adapter's, on top of 3 * 5 + 5
    return model


def test_each_part_is_counted_once_and_an_adapter_on_top() -> None:
    parts = (("eye", ("eye.",)), ("head", ("head.",)))
    is_trained = {name: name.startswith("head.") for name, _ in small().named_parameters()}
    assert sizes_by_part(small(), is_trained, parts) == [
        PartSize("eye", 2 * 3 + 3, 0),
        PartSize("head", 20, 26),
        PartSize("other", 1, 0),
    ]
    assert [size.trained for size in sizes_by_part(small(), dict.fromkeys(is_trained, True), parts)] == [9, 26, 1]


def test_a_model_without_parameters_has_parts_of_0() -> None:
    assert sizes_by_part(nn.Identity(), {}, (("a", ("a",)),)) == [PartSize("a", 0, 0)]


def test_the_small_model_trains_all_of_its_detector_and_nothing_else() -> None:
    detector = MiniDetector(MiniDetectorConfig())
    sizes = mini_sizes(TinyViT(), blank_text_model(), detector)
    assert [size.name for size in sizes] == [
        *("image encoder", "text encoder", "level adapter", "text projection", "geometry encoder", "encoder"),
        *("decoder and presence", "mask head", "scoring"),
    ]
    assert [size.trained for size in sizes[:2]] == [0, 0]
    assert all(size.trained == size.total > 0 for size in sizes[2:])
    assert sum(size.trained for size in sizes) == sum(p.numel() for p in detector.parameters())
    # norm 384 + 384, first 384 * 192 + 192, second 192 * 96 + 96
    assert sizes[3].total == 768 + 384 * 192 + 192 + 192 * 96 + 96


def test_the_table_says_frozen_and_adds_up() -> None:
    lines = table_of([PartSize("eye", 1200, 0), PartSize("head", 20, 26)])
    assert [line.split() for line in lines] == [
        ["part", "parameters", "trained"],
        ["eye", "1,200", "frozen"],
        ["head", "20", "26"],
        ["all", "1,220", "26"],
    ]


class SlowFirst:
    """Batches of which the first takes half a second."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.one = tiny.maker().batch(0)

    def batch(self, step: int) -> Batch:
        time.sleep(0.5 if step == 0 else 0.0)
        self.steps.append(step)
        return self.one


def test_the_first_step_does_not_count_and_real_updates_are_timed() -> None:
    trainee, maker = MiniTrainee(replace(tiny.CONFIG, steps=100), tiny.texts()), SlowFirst()
    before = trainee.detector.text_projection.first.weight.clone()
    cost = measure(trainee, maker, CPU, missing_views=3, view_s=1.5)
    assert cost.step_s > 0
    assert maker.steps[:4] == [0, 1, 2, 3]
    assert (cost.steps, cost.missing_views, cost.view_s) == (100, 3, 1.5)
    assert not torch.equal(trainee.detector.text_projection.first.weight, before)
    assert measure(MiniTrainee(replace(tiny.CONFIG, steps=1), tiny.texts()), maker, CPU).step_s > 0


def test_the_lines_say_what_is_measured_and_what_follows_from_it() -> None:
    cost = RunCost(steps=1600, step_s=2.0, missing_views=30, view_s=1.5, peak_gib=2.25)
    first, second, third = cost_lines(cost)
    assert first == "measured: 2.00 s a step (3 steps after 1); estimated from it: 53 min for 1600 steps"
    assert second.endswith("estimated from it: 45 s for 30 views that are not cached")
    assert third == "measured: 2.2 GiB of memory at most in these steps"
    assert len(cost_lines(replace(cost, missing_views=0, peak_gib=None))) == 1


def test_the_peak_is_that_of_a_process() -> None:
    peak = peak_gib(torch.device("cpu"))
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
