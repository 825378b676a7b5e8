from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from colour_data import ColourSegmenter, DataFolder, block, polyp_folder

from medsam3.cli.main import main
from medsam3.eval.agent_mode import AgentCase, difference_rows
from medsam3.models import registry


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    monkeypatch.setitem(registry.LOADERS, "colour", lambda weights, device: ColourSegmenter())
    return polyp_folder(tmp_path / "data")


def evaluated(data: DataFolder, *options: str) -> tuple[int, dict[tuple[str, str], AgentCase]]:
    out = data.path.parent / "out"
    code = main(["eval", str(data.path), "--model", "colour", "--out", str(out), *options])
    entry = json.loads((out / "agent.json").read_text())
    cases = [AgentCase(**case) for case in entry["cases"]]
    return code, {(Path(case.image).stem, case.concept): case for case in cases}


def test_the_oracle_is_measured_beside_the_plain_phrase(data: DataFolder) -> None:
    # e: red in two blocks of 4 x 8, of which one is the polyp: Dice 2 x 32 / (32 + 64); both are one object here
    both = block((4, 8), (6, 14)) | block((12, 16), (16, 24))
    data.add("gut", "e", both, block((4, 8), (6, 14)).astype(np.uint8), "polyp=1=p4")
    code, cases = evaluated(data, "--agent", "oracle", "--rounds", "1")
    assert code == 0
    assert [(cases[name, "polyp"].plain_dice, cases[name, "polyp"].agent_dice) for name in "abc"] == [
        (1, 1),
        (0.5, 0.5),
        (0, 0),
    ]
    assert cases["e", "polyp"].plain_dice == pytest.approx(2 / 3, abs=1e-6)
    assert cases["e", "polyp"].agent_dice == pytest.approx(2 / 3, abs=1e-6)
    assert cases["a", "optic disc"].outcome == "absent" and cases["a", "optic disc"].agent_dice is None
    assert cases["d", "polyp"].rounds == 0  # the oracle knows that it is not there


def test_the_offline_agent_shares_an_images_features(
    data: DataFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ColourSegmenter()
    monkeypatch.setitem(registry.LOADERS, "colour", lambda weights, device: model)
    code, cases = evaluated(data, "--agent", "offline")
    assert code == 0 and cases["a", "polyp"].agent_dice == 1 and not cases["d", "polyp"].agent_says
    assert cases["a", "polyp"].usd == 0 and cases["a", "polyp"].encodings + cases["a", "optic disc"].encodings <= 2
    assert "offline agent, 3 rounds" in capsys.readouterr().out


def test_a_run_goes_on_only_with_the_same_settings(data: DataFolder, capsys: pytest.CaptureFixture[str]) -> None:
    _, first = evaluated(data, "--agent", "offline")
    out = str(data.path.parent / "out")
    options = ["eval", str(data.path), "--model", "colour", "--out", out]
    assert main([*options, "--agent", "offline"]) == 2
    assert "--resume" in capsys.readouterr().err
    journal = data.path.parent / "out" / "agent-cases.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:3]) + lines[3][:10])
    _, again = evaluated(data, "--agent", "offline", "--resume")
    assert again.keys() == first.keys()
    assert main([*options, "--agent", "oracle", "--resume"]) == 2


def _case(dataset: str, plain: float | None, agent: float | None, says: tuple[bool, bool]) -> AgentCase:
    return AgentCase(
        dataset=dataset,
        image=f"{dataset}{plain}",
        concept="polyp",
        group=f"{plain}",
        is_present=plain is not None,
        plain_dice=plain,
        agent_dice=agent,
        plain_says=says[0],
        agent_says=says[1],
        outcome="found",
        rounds=2,
        encodings=1,
        seconds=3.0,
        tokens=0,
        usd=0.25,
    )


def test_differences_are_paired_and_false_alarms_counted_among_the_absent() -> None:
    cases = [
        _case("a", 0.5, 0.7, (True, True)),
        _case("a", 0.9, 0.8, (True, True)),
        _case("a", None, None, (True, False)),
        _case("b", 0.2, 0.2, (True, True)),
    ]
    rows = {row.dataset: row for row in difference_rows(cases)}
    assert rows["a"].difference.value == pytest.approx(0.05)  # (+.2 - .1) / 2
    assert (rows["a"].negatives, rows["a"].plain_alarms, rows["a"].agent_alarms) == (1, 1, 0)
    assert rows["all"].difference.value == pytest.approx(0.1 / 3) and rows["all"].usd == 1.0
    assert (rows["all"].rounds, rows["all"].seconds, rows["all"].positives) == (2, 3, 3)
