"""TensorBoard's curves: read back by TensorBoard itself, from a run that goes and from one that is done."""

import json
import sys
from pathlib import Path

import pytest

from medsam3.cli.main import main
from medsam3.cli.train_data import Bars, steps_shown
from medsam3.errors import InputError
from medsam3.train.board import Board, write_board
from medsam3.train.loop import StepReport

REASON = "needs tensorboard: pip install 'medsam3[tensorboard]'"


def curves(out: Path) -> dict[str, list[tuple[int, float]]]:
    """All curves of a run, by name: (step, value)."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason=REASON)
    events = accumulator.EventAccumulator(str(out / "board"))
    events.Reload()
    return {
        name: [(event.step, round(event.value, 4)) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def write_curves(out: Path, totals: list[float]) -> None:
    lines = [json.dumps({"step": step, "total": total, "presence": total / 2}) for step, total in enumerate(totals)]
    heading = json.dumps({"config": {"seed": 0}, "data": "a digest"})
    (out / "curves.jsonl").write_text("\n".join([heading, *lines]) + "\n")


def test_curves_of_a_finished_run_are_those_of_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard", reason=REASON)
    write_curves(tmp_path, [4.0, 2.0])
    with (tmp_path / "curves.jsonl").open("a") as file:
        file.write('{"step": 2, "tot')  # of a killed run
    expected = {"loss/total": [(0, 4.0), (1, 2.0)], "loss/presence": [(0, 2.0), (1, 1.0)]}
    assert main(["train", "--out", str(tmp_path), "--board"]) == 0
    assert "2 steps; look at them with: tensorboard --logdir" in capsys.readouterr().err
    assert curves(tmp_path) == expected
    assert write_board(tmp_path) == 2  # made anew, not twice
    assert curves(tmp_path) == expected


def test_a_run_that_is_resumed_goes_on_without_the_steps_that_were_lost(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason=REASON)
    with Board(tmp_path) as board:
        board.add(5, {"total": 9.0})  # lost with a kill: the file does not have it
    write_curves(tmp_path, [4.0, 2.0])
    with Bars() as bars, steps_shown(bars, tmp_path, has_board=True) as shown:
        bars.phase("training", 3)
        shown.on_step(StepReport(step=3, loss=1.0, terms={"total": 1.0, "presence": 0.5}, seconds_left=0.0))
    assert curves(tmp_path)["loss/total"] == [(0, 4.0), (1, 2.0), (2, 1.0)]
    assert curves(tmp_path)["loss/presence"] == [(0, 2.0), (1, 1.0), (2, 0.5)]


def test_without_a_board_nothing_is_written(tmp_path: Path) -> None:
    with Bars() as bars, steps_shown(bars, tmp_path, has_board=False) as shown:
        bars.phase("training", 1)
        shown.on_step(StepReport(step=1, loss=1.0, terms={}, seconds_left=0.0))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_run_and_a_missing_package_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"holds no curves\.jsonl"):
        write_board(tmp_path)
    write_curves(tmp_path, [1.0])
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'medsam3\[tensorboard\]'"):
        write_board(tmp_path)
