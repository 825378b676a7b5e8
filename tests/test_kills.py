"""Work that is killed at random moments ends as work that nobody killed; `benchmarks/kills.py` does so at length."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from kill_works import WORKS, Missing
from kills import Tally, list_troubles, table, tree_troubles
from warm_starts import WarmStarts, until_told


def test_files_that_are_lost_doubled_cut_or_other_are_told_apart(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    for folder, names in ((whole, "abc"), (out, "bcd")):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(f"{name}, the same")
    (out / "c").write_text("c, another")
    (out / ".half").write_text("")
    (out / "list.jsonl").write_text("compared by the caller")
    found = list(tree_troubles(whole, out, ("list",)))
    assert found == ["lost a", "half-written .half", "doubled d", "different c"]


def test_records_are_counted() -> None:
    assert list(list_troubles("it", ["a", "b"], ["a", "a"])) == [
        "different it: b is not there",
        "doubled it: a is there 1 times more",
    ]
    assert list(list_troubles("it", ["a"], [])) == ["lost it: a is not there"]
    assert list(list_troubles("it", ["a", "b"], ["b", "a"])) == []


def test_the_table_counts_each_trouble() -> None:
    tally = Tally("folder", kills=9, in_work=7, trials=3, troubles=["lost a", "lost b", "left sleep"])
    assert table([tally]).splitlines()[-1] == "| folder | 9 | 7 | 3 | 2 | 0 | 0 | 0 | 1 |"


def test_a_warm_start_is_a_process_of_its_own_with_the_imports_of_those_before(tmp_path: Path) -> None:
    script, log, modules = tmp_path / "script.py", tmp_path / "log", tmp_path / "modules"
    script.write_text(
        "import os, sys, time\n"
        "print('known' if 'colorsys' in sys.modules else 'new', os.getsid(0) == os.getpid(), flush=True)\n"
        "import colorsys\n"
        "time.sleep(float(sys.argv[1]))\n"
        "sys.exit(3)\n"
    )
    with WarmStarts(os.environ) as starts:
        first = starts.start([sys.executable, str(script), "0"], log, modules)
        assert first.wait(60) == 3
        starts.warm(modules)
        second = starts.start([sys.executable, str(script), "600"], log)
        until_told(log, "known True", second, 60)
        with pytest.raises(TimeoutError):
            second.wait(0)
        second.kill()
        assert second.wait(60) == -signal.SIGKILL
    assert log.read_text().splitlines() == ["new True", "known True"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(WORKS) - {"ray"}))
def test_what_is_killed_ends_as_what_is_not(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for proxy in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    for setting in ("MEDSAM3_DICOMWEB_USER", "MEDSAM3_DICOMWEB_PASSWORD", "MEDSAM3_DICOMWEB_TOKEN"):
        monkeypatch.setenv(setting, "")  # so that they are put back
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    try:
        with WORKS[name](tmp_path / "in") as trials:
            tally = trials(tmp_path / "out", 2, 7, lambda text: None)
    except Missing as missing:
        pytest.skip(str(missing))
    assert tally.kills >= 2
    assert tally.troubles == []
