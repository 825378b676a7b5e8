"""The fuzzer's own parts, and a short run of it."""

from __future__ import annotations

import gzip
import random
import time
import zlib
from pathlib import Path

import fuzz
import pytest


def test_the_same_number_damages_a_file_the_same_way() -> None:
    content = bytes(range(200)) * 5
    damaged = [fuzz.damaged(content, random.Random(number)) for number in range(50)]
    assert damaged == [fuzz.damaged(content, random.Random(number)) for number in range(50)]
    assert sum(one != content for one in damaged) > 40


@pytest.mark.parametrize("content", [b"", b"a", b"12"])
def test_short_files_can_be_damaged(content: bytes) -> None:
    for number in range(200):
        fuzz.damaged(content, random.Random(number))


def test_what_a_gzip_file_holds_is_damaged_too() -> None:
    packed = gzip.compress(bytes(range(256)) * 4)
    held = [fuzz.repacked(packed, random.Random(number)) for number in range(40)]
    whole = 0
    for one in held:
        try:
            whole += gzip.decompress(one) != bytes(range(256)) * 4
        except (OSError, EOFError, ValueError, zlib.error):
            continue
    assert whole > 5


@pytest.mark.slow
def test_two_minutes_of_damaged_files_find_nothing(tmp_path: Path) -> None:
    campaign = fuzz.Campaign(tmp_path / "found", "")
    campaign.run(0, 10**9, time.monotonic() + 120)
    assert campaign.findings == []
    assert campaign.done.total() > 0
