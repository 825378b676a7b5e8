"""A mask's outline as polygons along pixel edges, and the mask of such polygons again: exact both ways.

Points are (x, y) in float pixels with pixel centres at integers, so that outlines run at halves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medsam3.geometry import BoolArray, FloatArray

_Corner = tuple[int, int]
"""(column, row) of a pixel's upper left corner, counted in corners."""


def outlines(mask: BoolArray) -> list[FloatArray]:
    """Closed polygons (P, 2) around the 4-connected parts of (H, W), without repeating the first point.

    A hole is joined to the outline around it by a cut of no width (a keyhole), as RT structure sets want it.
    """
    found = []
    for outer, *holes in rings(mask):
        for hole in holes:
            outer = _joined(outer, hole)  # noqa: PLW2901  it grows
        found.append(outer)
    return found


def rings(mask: BoolArray) -> list[list[FloatArray]]:
    """Find for each 4-connected part of (H, W) its outline and those of its holes, each (P, 2).

    Outlines run from x towards y, holes the other way; the first point is not repeated.
    """
    loops = [_straightened(loop) for loop in _loops(_edges(mask))]
    outer = [loop for loop in loops if _signed_area(loop) > 0]
    found = [[loop - 0.5] for loop in outer]
    for hole in (loop for loop in loops if _signed_area(loop) < 0):
        found[_enclosing(hole, outer)].append(hole - 0.5)
    return found


def filled(polygons: Sequence[FloatArray], height: int, width: int) -> BoolArray:
    """Pixels of (H, W) whose centres lie within an odd number of the polygons."""
    mask = np.zeros((height, width), dtype=np.bool_)
    columns = np.arange(width)
    for polygon in polygons:
        start, end = polygon, np.roll(polygon, -1, axis=0)
        low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
        first, last = max(0, int(np.floor(low.min()))), min(height - 1, int(np.ceil(high.max())))
        for row in range(first, last + 1):
            crossing = (low <= row) & (row < high)
            if not crossing.any():
                continue
            a, b = start[crossing], end[crossing]
            x = a[:, 0] + (row - a[:, 1]) * (b[:, 0] - a[:, 0]) / (b[:, 1] - a[:, 1])
            inside = (np.searchsorted(np.sort(x), columns, side="left") % 2).astype(np.bool_)
            mask[row] ^= inside
    return mask


def _edges(mask: BoolArray) -> dict[_Corner, list[_Corner]]:
    """Directed pixel edges by their start, with the mask on the right hand of the way (rows run down)."""
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),  # above: to the right
        (padded[1:-1, 2:], (1, 0), (1, 1)),  # right: down
        (padded[2:, 1:-1], (1, 1), (0, 1)),  # below: to the left
        (padded[1:-1, :-2], (0, 1), (0, 0)),  # left: up
    )
    edges: dict[_Corner, list[_Corner]] = {}
    for neighbour, (x0, y0), (x1, y1) in sides:
        rows, columns = np.nonzero(inner & ~neighbour)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            edges.setdefault((column + x0, row + y0), []).append((column + x1, row + y1))
    return edges


def _loops(edges: dict[_Corner, list[_Corner]]) -> list[list[_Corner]]:
    loops: list[list[_Corner]] = []
    while edges:
        # A loop's extreme corners are never those where two pixels touch, so that there is always such a start.
        start = next(corner for corner, choices in edges.items() if len(choices) == 1)
        loop, came_from, at = [start], start, start
        while (following := _taken(edges, came_from, at)) != start:
            loop.append(following)
            came_from, at = at, following
        loops.append(loop)
    return loops


def _taken(edges: dict[_Corner, list[_Corner]], came_from: _Corner, at: _Corner) -> _Corner:
    """The next corner; where two pixels touch by a corner only, the right turn, which keeps them apart."""
    choices = edges[at]
    k = 0
    if len(choices) > 1:
        step = (at[0] - came_from[0], at[1] - came_from[1])
        right = (at[0] - step[1], at[1] + step[0])
        k = choices.index(right)
    following = choices.pop(k)
    if not choices:
        del edges[at]
    return following


def _straightened(loop: list[_Corner]) -> FloatArray:
    points = np.array(loop, dtype=np.float64)
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    is_turn = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    turns: FloatArray = points[is_turn]
    return turns


def _signed_area(loop: FloatArray) -> float:
    """Positive for an outer outline, negative for a hole."""
    x, y = loop.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


def _enclosing(hole: FloatArray, outer: Sequence[FloatArray]) -> int:
    """The smallest outline around a hole: a pixel just inside the hole's edge decides."""
    top = hole[np.lexsort((hole[:, 0], hole[:, 1]))[0]]
    # Left of a hole's topmost left corner and half a pixel down lies a pixel of the object around it.
    x, y = top[0] - 0.5, top[1] + 0.5
    around = [k for k, loop in enumerate(outer) if _is_inside(loop, x, y)]
    return min(around, key=lambda k: abs(_signed_area(outer[k])))


def _is_inside(loop: FloatArray, x: float, y: float) -> bool:
    start, end = loop, np.roll(loop, -1, axis=0)
    crossing = (start[:, 1] > y) != (end[:, 1] > y)
    return bool((start[crossing, 0] > x).sum() % 2)  # all crossed edges are upright


def _joined(outer: FloatArray, hole: FloatArray) -> FloatArray:
    distances = np.linalg.norm(outer[:, None] - hole[None], axis=2)
    a, b = np.unravel_index(distances.argmin(), distances.shape)
    around = np.roll(hole, -int(b), axis=0)
    return np.concatenate([outer[: a + 1], around, around[:1], outer[a:]])
