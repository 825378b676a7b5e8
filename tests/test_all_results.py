"""`make results` measures every page's figures again, step by step, and goes on where it was broken off."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import all_results
import pytest
from all_results import STEPS, ResultStep, run_all, words_of

from medsam3.cli.main import parse

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/results.md", "docs/sam3.md", "docs/volumes.md", "docs/agent.md", "docs/mini.md"]


def test_the_plan_names_every_page_with_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert all_results.main(["data", "--plan"]) == 0
    plan = capsys.readouterr().out
    results = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "results").glob("*.md")]
    assert [page for page in [*PAGES, *results] if page not in plan] == []


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_a_step_is_a_command_that_is_there_and_its_pages_are_too(step: ResultStep, tmp_path: Path) -> None:
    assert [page for page in step.pages if not (ROOT / page).is_file()] == []
    python, *words = words_of(step, "data", tmp_path)
    assert python == sys.executable
    if words[0] == "-m":
        assert parse(words[2:]) is not None
    else:
        assert Path(words[0]).is_file()


def test_a_step_that_is_done_is_not_done_again_and_one_that_failed_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (scripts / "good.py").write_text("import sys; print('good', *sys.argv[1:])")
    (scripts / "bad.py").write_text("import sys; sys.exit('bad')")
    monkeypatch.setattr(all_results, "ROOT", tmp_path)
    monkeypatch.setattr(all_results, "commit", lambda: "c0ffee")
    steps = [
        ResultStep("good", ("README.md",), "scripts/good.py {data} {out}"),
        ResultStep("bad", (), "scripts/bad.py"),
    ]
    out = tmp_path / "out"
    assert run_all(steps, "my data", out) == 1
    assert (out / "good.txt").read_text() == f"good my data {out}/good\n"
    assert run_all(steps, "my data", out) == 1
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()[1:]]
    assert [(record["name"], record["code"]) for record in records] == [("good", 0), ("bad", 1), ("bad", 1)]
    assert "| good |" in (out / "report.md").read_text()
    monkeypatch.setattr(all_results, "commit", lambda: "decade")
    assert run_all(steps[:1], "my data", out) == 0  # another commit, so it is measured again
    assert len((out / "results.jsonl").read_text().splitlines()) == 5
