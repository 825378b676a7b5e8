"""Files by several processes: in order, as one process does it, and a process that dies costs one file."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from medsam3.cli.main import main
from medsam3.cli.side_by_side import Died, SideBySide, can_fork
from medsam3.models import registry
from threshold_segmenter import ThresholdSegmenter

pytestmark = pytest.mark.skipif(not can_fork(), reason="processes share a model on Linux, with OMP_NUM_THREADS=1")


def doubled(wait_s: Callable[[int], float] = lambda n: 0.0) -> Callable[[], Callable[[int], int]]:
    def work(n: int) -> int:
        time.sleep(wait_s(n))
        return 2 * n

    return lambda: work


def test_answers_come_in_the_order_of_the_items_and_not_of_their_ends() -> None:
    with SideBySide[int, int, int](doubled(lambda n: 0.3 if n == 0 else 0.0), 2) as crew:
        assert list(crew.run((n, n) for n in range(9))) == [(n, 2 * n) for n in range(9)]


def test_an_item_that_asks_for_nothing_keeps_its_place_and_starts_no_process() -> None:
    begun = []

    def begin() -> Callable[[int], int]:
        begun.append(os.getpid())
        return lambda n: n

    with SideBySide[str, int, int](begin, 2) as crew:
        assert list(crew.run([("a", None), ("b", None)])) == [("a", None), ("b", None)]
        assert begun == []
        assert list(crew.run([("a", None), ("b", 3), ("c", None)])) == [("a", None), ("b", 3), ("c", None)]
    assert begun == [os.getpid()]


def test_items_are_done_in_other_processes_than_this_one() -> None:
    with SideBySide[int, int, int](lambda: lambda n: os.getpid(), 2) as crew:
        pids = {pid for _, pid in crew.run((n, n) for n in range(20))}
    assert os.getpid() not in pids
    assert 1 <= len(pids) <= 2


def test_a_process_that_dies_is_replaced_and_its_item_tried_once_more(tmp_path: Path) -> None:
    def work(n: int) -> int:
        tries = tmp_path / f"{n}"
        tries.open("a").write("x")
        if n == 3 or (n == 5 and len(tries.read_text()) == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    with SideBySide[int, int, int](lambda: work, 2) as crew:
        found = [answer for _, answer in crew.run((n, n) for n in range(8))]
    assert found == [0, 1, 2, Died("its process ended by SIGKILL"), 4, 5, 6, 7]
    assert [len((tmp_path / str(n)).read_text()) for n in range(8)] == [1, 1, 1, 2, 1, 2, 1, 1]


def test_what_a_process_logs_is_logged_here(caplog: pytest.LogCaptureFixture) -> None:
    def work(n: int) -> int:
        logging.getLogger("medsam3.there").warning("item %d", n)
        return n

    with SideBySide[int, int, int](lambda: work, 2) as crew:
        list(crew.run([(0, 7)]))
    assert [(one.name, one.getMessage()) for one in caplog.records] == [("medsam3.there", "item 7")]


def test_processes_end_with_the_one_that_started_them_even_if_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from medsam3.cli.side_by_side import SideBySide\n"
        "def work(n):\n"
        "    Path(sys.argv[1], str(os.getpid())).touch()\n"
        "    time.sleep(600)\n"
        "with SideBySide(lambda: work, 2) as crew:\n"
        "    list(crew.run((n, n) for n in range(4)))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    pids = [int(path.name) for path in tmp_path.iterdir()]
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


class NarrowKills(ThresholdSegmenter):
    """A picture of 13 pixels' width ends its process, as one does that takes all memory."""

    def encode(self, rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
        if rgb.shape[1] == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(rgb)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that loaded the model `narrow`."""
    pids: list[int] = []

    def load(weights: Path | None, running: Any) -> NarrowKills:
        pids.append(os.getpid())
        return NarrowKills()

    monkeypatch.setitem(registry.LOADERS, "narrow", load)
    return pids


def pictures(folder: Path, widths: list[int]) -> Path:
    folder.mkdir()
    for n, width in enumerate(widths):
        grey = np.zeros((9, width), dtype=np.uint8)
        grey[n % 4 : n % 4 + 3, 2:5] = 255
        PIL.Image.fromarray(grey).save(folder / f"{n:02d}.png")
    return folder


def segmented(folder: Path, out: Path, *more: str) -> int:
    return main(["segment", str(folder), "--text", "polyp", "--out", str(out), "--model", "narrow", *more])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_several_workers_write_what_one_does_in_its_order(
    tmp_path: Path, loads: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "scans", [8 + n % 5 for n in range(12)])
    (folder / "05.png").write_bytes(b"no picture")
    assert segmented(folder, tmp_path / "one", "--workers", "1") == 2
    alone = capsys.readouterr()
    assert segmented(folder, tmp_path / "three", "--workers", "3") == 2
    beside = capsys.readouterr()
    assert beside.out.replace("three", "one") == alone.out
    assert beside.err == alone.err
    assert "05.png" in alone.err
    assert contents(tmp_path / "three") == contents(tmp_path / "one")
    assert loads == [os.getpid()] * 2  # once each, in this process: the others share it


def test_a_second_run_takes_up_what_a_first_one_left(
    tmp_path: Path, loads: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "scans", [8] * 6)
    some = [str(path) for path in sorted(folder.iterdir())[::2]]
    assert main(["segment", *some, "--text", "polyp", "--out", str(tmp_path / "out"), "--model", "narrow"]) == 0
    capsys.readouterr()
    assert segmented(folder, tmp_path / "out", "--workers", "2", "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["skipped"] == 3
    assert [Path(row["file"]).name for row in answer["results"]] == [f"{n:02d}.png" for n in range(6)]


def test_a_picture_that_kills_its_process_fails_alone(
    tmp_path: Path, loads: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "scans", [8, 13, 9, 10])
    assert segmented(folder, tmp_path / "out", "--workers", "2", "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert [Path(row["file"]).name for row in answer["results"]] == ["00.png", "02.png", "03.png"]
    [failure] = answer["failures"]
    assert Path(failure["file"]).name == "01.png"
    assert "its process ended by SIGKILL, twice" in failure["error"]
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".writing-")]


@pytest.mark.parametrize("more", [["--device", "cuda"]])
def test_several_workers_are_refused_where_they_cannot_share_a_model(
    more: list[str], tmp_path: Path, loads: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "scans", [8, 9])
    assert segmented(folder, tmp_path / "out", "--workers", "2", *more) == 2
    assert "leave --workers out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
