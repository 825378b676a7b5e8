"""Progress of training where stderr is a file."""

import pytest

from medsam3.cli.train_data import Bars
from medsam3.train.loop import StepReport


def test_a_log_file_gets_the_first_and_the_last_line_of_a_phase(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars() as bars:
        bars.phase("features", 3)
        for _ in range(3):
            bars.item()
        bars.phase("training", 2)
        bars.step(StepReport(1, 30.5, {}, 120.0))
        bars.step(StepReport(2, 20.25, {}, 0.0))
    assert capsys.readouterr().err.splitlines() == [
        "features: 1/3",
        "features: 3/3",
        "training: 1/2, loss 30.50, 2 min left",
        "training: 2/2, loss 20.25, 0 min left",
    ]
