"""Whether a concept is in a slice, decided with a look at its neighbours: hysteresis over each slice's presence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medsam3.errors import InputError
from medsam3.geometry import BoolArray

WEAK_SHARE = 0.5
"""A slice is weakly present from this share of the lowest presence that the model calls a yes in this stack."""


def held(presence: Sequence[float | None], is_present: Sequence[bool | None], *, weak_share: float) -> BoolArray:
    """(N,) the slices that count: those the model says yes to, and the weak ones in an unbroken run with one of them.

    A slice that was not asked (None) lies between keys: it counts where the nearest asked slices on both sides do, or
    the only one beside it does.

    Raises:
        InputError: A share outside 0..1.
    """
    if not 0 <= weak_share <= 1:
        raise InputError(f"weak share is {weak_share}, allowed is 0 to 1")
    asked = [n for n, verdict in enumerate(is_present) if verdict is not None]
    strong = [n for n in asked if is_present[n]]
    if not strong:
        return np.zeros(len(is_present), dtype=np.bool_)
    least = weak_share * min(presence[n] or 0.0 for n in strong)
    weak = [bool(is_present[n]) or (presence[n] or 0.0) >= least for n in asked]
    verdicts = _linked(weak, [bool(is_present[n]) for n in asked])
    result = np.zeros(len(is_present), dtype=np.bool_)
    result[asked] = verdicts
    for left, right in zip([None, *asked], [*asked, None], strict=True):
        ends = [n for n in (left, right) if n is not None]
        first, last = (0 if left is None else left + 1), (len(is_present) if right is None else right)
        result[first:last] = all(bool(result[n]) for n in ends)
    return result


def _linked(weak: Sequence[bool], strong: Sequence[bool]) -> list[bool]:
    """Runs of weak slices that hold a strong one."""
    linked = [False] * len(weak)
    start = 0
    while start < len(weak):
        stop = start
        while stop < len(weak) and weak[stop]:
            stop += 1
        if any(strong[start:stop]):
            linked[start:stop] = [True] * (stop - start)
        start = stop + 1
    return linked
