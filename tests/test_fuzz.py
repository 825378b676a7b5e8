"""The fuzzer's own parts, and a short run of it."""

from __future__ import annotations

import gzip
import random
import subprocess
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
def test_every_kind_of_file_is_made_and_read_as_it_stands(tmp_path: Path) -> None:
    from fuzz_seeds import seeds  # noqa: PLC0415  with them come all readers
    from fuzz_texts import texts  # noqa: PLC0415

    kinds = (*seeds(), *texts())
    names = {seed.name for seed in kinds}
    assert len(names) == len(kinds) >= 58
    assert names >= {"nifti", "dicom-jpeg-ls", "masks-seg", "transcript", "results-list", "list-csv", "sam3-config"}
    for seed in kinds:
        assert len(fuzz._good(seed, tmp_path / seed.name)) > 0, seed.name


@pytest.mark.slow
def test_a_short_run_reads_damaged_files_in_a_process_of_its_own_and_finds_nothing(tmp_path: Path) -> None:
    campaign = fuzz.Campaign(tmp_path / "found", "list-,rules")
    campaign.run(0, 60, time.monotonic() + 600)
    assert campaign.findings == []
    assert set(campaign.done) == {"list-csv", "list-jsonl", "rules"} and campaign.done.total() == 60


def test_the_slow_part_of_the_tests_ends_with_damaged_files() -> None:
    planned = subprocess.run(
        ["make", "--dry-run", "test-all"], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert "benchmarks/fuzz.py --seconds 600" in planned.stdout
