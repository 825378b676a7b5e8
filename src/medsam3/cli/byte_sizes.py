"""Sizes in bytes as people write them."""

from __future__ import annotations

import re

from medsam3.errors import InputError

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {_letter: 1024**_power, f"{_letter}IB": 1024**_power, f"{_letter}B": 1000**_power}


def bytes_from(text: str, name: str = "size") -> int:
    """Read a size such as 2GiB, 500M, 500MB or 1000000; K, M, G and T alone are those of KiB, MiB, GiB and TiB.

    Args:
        text: What was given.
        name: What it is called in an error.

    Raises:
        InputError: It is no size, or 0.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    size = int(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0
    if size <= 0:
        raise InputError(
            f"{name} is {text!r}, allowed is a number with KiB, MiB, GiB, KB, MB, GB or nothing, such as 2GiB or 4GiB"
        )
    return size
