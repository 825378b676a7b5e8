"""`make results` measures every page's figures again, step by step, and goes on where it was broken off."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import all_results
import pytest
from all_results import STEPS, TAKEN, ResultStep, place_of, run_all, state_of_source, words_of

from medsam3.cli.main import parse

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/results.md", "docs/sam3.md", "docs/volumes.md", "docs/agent.md", "docs/mini.md"]


def test_the_plan_names_every_page_with_figures_and_the_hours(capsys: pytest.CaptureFixture[str]) -> None:
    assert all_results.main(["data", "--plan"]) == 0
    plan = capsys.readouterr().out
    results = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "results").glob("*.md")]
    assert [page for page in [*PAGES, *results] if page not in plan] == []
    quality = sum(step.minutes for step in STEPS if step.kind == "quality")
    assert f"quality {quality:g} (--jobs)" in plan
    assert all_results.main(["data", "--plan", "--kinds", "cost"]) == 0
    assert "medsam3 eval" not in capsys.readouterr().out


@pytest.mark.parametrize("step", [*STEPS, *TAKEN], ids=lambda step: step.name)
def test_a_step_is_a_command_that_is_there_and_its_pages_are_too(step: ResultStep, tmp_path: Path) -> None:
    assert [page for page in step.pages if not (ROOT / page).is_file()] == []
    python, *words = words_of(step, "data", tmp_path)
    assert python == sys.executable
    if words[0] == "-m":
        assert parse(words[2:]) is not None
    else:
        assert Path(words[0]).is_file()


def test_what_the_pages_show_is_what_is_asked() -> None:
    """A phrase, the box from the truth, and both: the modes of the tables in docs/results.md."""
    [mini] = [step for step in STEPS if step.name == "mini"]
    asked = "--modes T,I,TI --absent 3"
    assert asked in mini.command
    assert f"medsam3 eval DATA {asked} " in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of three scripts, which figures come from, and of a page."""
    scripts = tmp_path / "benchmarks"
    scripts.mkdir()
    (scripts / "good.py").write_text("import sys; print('good', *sys.argv[1:])")
    (scripts / "bad.py").write_text("import sys; sys.exit('bad')")
    (tmp_path / "page.md").write_text("1")
    monkeypatch.setattr(all_results, "ROOT", tmp_path)
    monkeypatch.setattr(all_results, "commit", lambda: "c0ffee")
    return tmp_path


GOOD = ResultStep("good", "quality", 1, ("README.md",), "benchmarks/good.py {data} {out}")
BAD = ResultStep("bad", "cost", 1, (), "benchmarks/bad.py")
TABLE = ResultStep("table", "table", 0, ("page.md",), "benchmarks/good.py {all}")


def lines(place: Path) -> list[tuple[str, int]]:
    records = [json.loads(line) for line in (place / "results.jsonl").read_text().splitlines()[1:]]
    return [(record["name"], record["exit_code"]) for record in records]


def test_a_step_that_is_done_is_not_done_again_and_one_that_failed_is(source: Path) -> None:
    out = source / "out"
    assert run_all([GOOD, BAD], "my data", out) == 1
    [place] = out.iterdir()
    assert (place / "good.txt").read_text() == f"good my data {place}/good\n"
    assert run_all([GOOD, BAD], "my data", out) == 1
    assert lines(place) == [("good", 0), ("bad", 1), ("bad", 1)]
    assert "| good |" in (place / "report.md").read_text()
    assert "| c0ffee |" in (place / "report.md").read_text()


def test_a_changed_page_makes_nothing_old_and_changed_code_is_measured_elsewhere(source: Path) -> None:
    out = source / "out"
    assert run_all([GOOD], "data", out) == 0
    (source / "page.md").write_text("2")
    assert run_all([GOOD], "data", out) == 0
    [first] = out.iterdir()
    before = (first / "report.md").read_bytes()
    assert lines(first) == [("good", 0)]
    (source / "benchmarks" / "good.py").write_text("print('better')")
    assert run_all([GOOD], "data", out) == 0
    second = place_of(out, state_of_source())
    assert second != first and (second / "good.txt").read_text() == "better\n"
    assert (first / "report.md").read_bytes() == before


def test_steps_of_quality_run_beside_each_other_and_tables_after_all(source: Path) -> None:
    waits = (
        "import pathlib, sys, time\n"
        "own, other = (pathlib.Path(sys.argv[1]).parent / name for name in sys.argv[2:])\n"
        "own.touch()\n"
        "until = time.monotonic() + 30\n"
        "while not other.exists():\n"
        "    assert time.monotonic() < until\n"
    )
    (source / "benchmarks" / "waits.py").write_text(waits)
    pair = [
        ResultStep(own, "quality", 1, (), f"benchmarks/waits.py {{out}} {own}.here {other}.here")
        for own, other in ("ab", "ba")
    ]
    assert run_all([TABLE, *pair], "data", source / "out", jobs=2) == 0
    assert lines(place_of(source / "out", state_of_source()))[2] == ("table", 0)


def test_no_page_is_taken_from_what_was_not_measured(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "--out", str(source / "out"), "--only", "goals", "--kinds", "cost", "--take"]
    assert all_results.main(arguments) == 1
    assert "mini was not measured on this state of the source" in capsys.readouterr().err
