"""Sizes in bytes, with and without units."""

from __future__ import annotations

import pytest

from medsam3.cli.byte_sizes import bytes_from
from medsam3.errors import InputError


@pytest.mark.parametrize(("text", "size"), [("4GiB", 2**32), ("500M", 500 * 2**20), ("1.5k", 1536), ("77", 77)])
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert bytes_from(text) == size


def test_sizes_are_read_with_their_units() -> None:
    assert [bytes_from(text) for text in ("2GiB", "1.5 kb", "300")] == [2 * 2**30, 1500, 300]
    for wrong in ("", "two", "0", "-1", "5 apples"):
        with pytest.raises(InputError, match="2GiB"):
            bytes_from(wrong)


@pytest.mark.parametrize("text", ["", "much", "-3", "0"])
def test_what_is_no_size_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(InputError, match=r"^--memory is .* 4GiB"):
        bytes_from(text, "--memory")
