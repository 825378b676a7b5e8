"""Files that outlive a killed process: whole or not there, and resumed where they were."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medsam3.errors import InputError
from medsam3.store import Journal, csv_text, remembered_sha256, replacing, sha256_of, without_nan, write_json

HEADING = {"work": "a"}


def lines(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_block_that_ends_well_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path, ".txt") as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.suffix == ".txt"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"), replacing(tmp_path / "no" / "a.txt") as temporary:
        temporary.write_text("new")


def test_what_a_killed_process_left_is_written_over_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    script = (
        "import os, pathlib, sys\n"
        "from medsam3.store import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1]), '.txt') as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.read_text() == "half"
    with replacing(path, ".txt") as temporary:
        assert temporary == left
        temporary.write_text("whole")
    assert [one.read_text() for one in tmp_path.iterdir()] == ["whole"]


def test_two_who_write_one_file_at_a_time_do_not_touch_each_others(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            assert second != first
            second.write_text("second")
        assert (path.read_text(), first.read_text()) == ("second", "first")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_leaves_the_old_file_and_one_that_writes_an_empty_file_does_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(InputError, match="No such file"), replacing(path):
        pass
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("")
    assert path.read_text() == ""
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"b": math.nan})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}


def test_the_hash_is_that_of_hashlib(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000  # more than one piece
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_records_are_there_when_the_journal_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "j.jsonl"
    with Journal(path, HEADING, other="refuse") as journal:
        journal.append({"n": 1})
        journal.append({"n": (2, 3)})
        assert journal.records == [{"n": 1}, {"n": [2, 3]}]
    assert lines(path) == [HEADING, {"n": 1}, {"n": [2, 3]}]
    with Journal(path, HEADING, other="refuse") as journal:
        assert journal.records == [{"n": 1}, {"n": [2, 3]}]


@pytest.mark.parametrize("torn", [b'{"n": 2', b'{"n": 2}', b"\xff\xfe\n", b"[2]\n", b"nothing\n"])
def test_what_follows_the_last_whole_record_is_cut_off(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, HEADING, other="refuse") as journal:
        journal.append({"n": 1})
    with path.open("ab") as stream:
        stream.write(torn)
    with Journal(path, HEADING, other="refuse") as journal:
        journal.append({"n": 9})
    assert lines(path) == [HEADING, {"n": 1}, {"n": 9}]


def test_a_heading_that_a_kill_cut_off_begins_the_file(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'{"wor')
    with Journal(path, HEADING, other="refuse") as journal:
        assert journal.records == []
    assert lines(path) == [HEADING]


def test_other_work_is_refused_or_replaced_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, HEADING, other="refuse") as journal:
        journal.append({"n": 1})
    with pytest.raises(InputError, match="other work"):
        Journal(path, {"work": "b"}, other="refuse")
    assert lines(path) == [HEADING, {"n": 1}]
    with Journal(path, {"work": "b"}, other="replace") as journal:
        assert journal.records == []
    assert lines(path) == [{"work": "b"}]


def test_a_file_that_is_no_journal_is_never_emptied(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary\n")
    with pytest.raises(InputError, match="damaged"):
        Journal(path, HEADING, other="refuse")
    assert path.read_text() == "dear diary\n"


def test_records_can_be_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, HEADING, other="refuse") as journal:
        for number in range(4):
            journal.append({"n": number})
        journal.truncate(2)
        journal.append({"n": 9})
    assert lines(path) == [HEADING, {"n": 0}, {"n": 1}, {"n": 9}]


def test_records_that_stay_are_not_written_again_when_others_are_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, HEADING, other="refuse") as journal:
        for number in range(4):
            journal.append({"n": number})
    limits, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Journal(path, HEADING, other="refuse") as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # whoever writes fails, as one who is killed
        try:
            journal.truncate(2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, ignored)
    assert lines(path) == [HEADING, {"n": 0}, {"n": 1}]


def test_without_a_path_nothing_is_written() -> None:
    with Journal(None, HEADING, other="refuse") as journal:
        journal.append({"n": 1})
        assert journal.records == [{"n": 1}]


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / "j.jsonl"
    code = (
        "import sys; from pathlib import Path; from medsam3.store import Journal\n"
        f"journal = Journal(Path({str(path)!r}), {HEADING!r}, other='refuse')\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == "open\n"
        with pytest.raises(InputError, match="another run"):
            Journal(path, HEADING, other="refuse")
        child.stdin.close()
    with Journal(path, HEADING, other="refuse") as journal:
        assert journal.records == []


def test_a_device_is_no_journal() -> None:
    with pytest.raises(InputError, match="is no file"):
        Journal(Path("/dev/null"), HEADING, other="replace")


def test_a_full_disk_is_one_line_and_leaves_whole_records(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "j.jsonl"
    code = (
        "import resource; from pathlib import Path; from medsam3.store import Journal\n"
        "from medsam3.errors import InputError\n"
        f"journal = Journal(Path({str(path)!r}), {HEADING!r}, other='refuse')\n"
        "journal.append({'n': 1})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40, 40))\n"
        "try:\n    journal.append({'n': 'x' * 100})\n"
        "except InputError as error:\n    print(error)\n"
    )
    assert resource is not None
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "cannot be written (File too large)" in printed
    assert lines(path) == [HEADING, {"n": 1}]


def test_numbers_that_json_lacks_become_null_at_any_depth() -> None:
    value = {"a": [float("nan"), 1 / 3], "b": {"c": (float("inf"), 2)}, "d": "NaN"}
    assert without_nan(value) == {"a": [None, 0.333333], "b": {"c": [None, 2]}, "d": "NaN"}


def test_texts_that_a_spreadsheet_would_run_are_quoted_and_numbers_are_not() -> None:
    cells = ["=1+1", "+x", "-x", "@SUM(A1)", " =1", "\tx", "-0.5", "a=b", -1, None]
    assert list(csv.reader(io.StringIO(csv_text(["h"] * len(cells), [cells]))))[1] == [
        *("'=1+1", "'+x", "'-x", "'@SUM(A1)", "' =1", "'\tx", "-0.5", "a=b", "-1", ""),
    ]


def test_a_file_is_hashed_again_only_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path / "home"))
    path = tmp_path / "weights.bin"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert remembered_sha256(path, least_bytes=0) == known
    state = path.stat()
    path.write_bytes(b"xyz")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert remembered_sha256(path, least_bytes=0) == known  # same size and time: nothing is read
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert remembered_sha256(path, least_bytes=0) == hashlib.sha256(b"xyz").hexdigest()
    path.write_bytes(b"longer")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert remembered_sha256(path, least_bytes=0) == hashlib.sha256(b"longer").hexdigest()


@pytest.mark.parametrize("spoilt", ["[1, ", "[1]", '{"a": 1}'])
def test_a_spoilt_or_unwritable_ledger_only_costs_the_hashing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str
) -> None:
    home, path = tmp_path / "home", tmp_path / "weights.bin"
    monkeypatch.setenv("MEDSAM3_HOME", str(home))
    path.write_bytes(b"abc")
    home.mkdir()
    (home / "sha256.json").write_text(spoilt)
    assert remembered_sha256(path, least_bytes=0) == hashlib.sha256(b"abc").hexdigest()
    monkeypatch.setenv("MEDSAM3_HOME", str(path / "no folder"))
    assert remembered_sha256(path, least_bytes=0) == hashlib.sha256(b"abc").hexdigest()
