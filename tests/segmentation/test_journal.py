"""Journals: what is found again after a cut, and what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medsam3.segmentation.journal import Journal


def ask(journal: Journal, name: str, value: int) -> int:
    def from_fields(fields: dict[str, Any]) -> int:
        return int(fields["v"])

    return journal.get_or_make(("k", name), lambda: value, to_fields=lambda v: {"v": v}, from_fields=from_fields)


def written(path: Path, work: str = "w") -> None:
    journal = Journal(path, work)
    assert [ask(journal, name, k) for k, name in enumerate("abc")] == [0, 1, 2]
    journal.close()


def test_records_are_found_again(tmp_path: Path) -> None:
    written(tmp_path / "j")
    again = Journal(tmp_path / "j", "w")
    assert [ask(again, name, 99) for name in "abcd"] == [0, 1, 2, 99]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_line_that_was_cut_off_is_made_again(cut: int, tmp_path: Path) -> None:
    written(tmp_path / "j")
    data = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(data[:-cut])
    again = Journal(tmp_path / "j", "w")
    assert [ask(again, name, 99) for name in "abc"] == [0, 1, 99]
    again.close()
    assert [ask(Journal(tmp_path / "j", "w"), name, 7) for name in "abc"] == [0, 1, 99]


def test_a_changed_byte_ends_the_reading(tmp_path: Path) -> None:
    written(tmp_path / "j")
    lines = (tmp_path / "j").read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"v":1', b'"v":8')
    (tmp_path / "j").write_bytes(b"".join(lines))
    again = Journal(tmp_path / "j", "w")
    assert [ask(again, name, 99) for name in "abc"] == [0, 99, 99]


def test_a_journal_of_other_work_is_begun_anew(tmp_path: Path) -> None:
    written(tmp_path / "j", "one")
    assert ask(Journal(tmp_path / "j", "two"), "a", 99) == 99


def test_without_a_path_nothing_is_kept() -> None:
    assert ask(Journal(None, "w"), "a", 3) == 3
