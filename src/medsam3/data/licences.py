"""Under which licence each known data set is, and which may train weights that anybody may use.

The table lies beside this module in `licences.json`; its facts are those of THIRD_PARTY.md. A set is open where the
original itself is under CC0, CC BY, CC BY-SA or MIT; what only a copy says does not count, nor does an unknown set.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Licence:
    """The licence of a data set as far as known.

    Attributes:
        licence: In words.
        is_open: See the module.
        why: What `is_open` rests on.
    """

    licence: str
    is_open: bool
    why: str


@cache
def licences() -> Mapping[str, Licence]:
    """The table, by the data set's name in an index."""
    text = resources.files("medsam3.data").joinpath("licences.json").read_text(encoding="utf-8")
    return {entry.pop("dataset"): Licence(**entry) for entry in json.loads(text)}


def is_open(dataset: str) -> bool:
    """The set is in the table, and open."""
    known = licences().get(dataset)
    return known is not None and known.is_open
