"""Small plots as SVG text for the report: calibration and box plots. They need no plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsam3.measure.presence import CalibrationCurve
from medsam3.page import render

_INK, _FAINT, _FILL = "#222", "#bbb", "#56b4e9"
_SIDE, _MARGIN = 260, 44
_ROW, _LABEL, _SPAN = 20, 340, 560


@dataclass(frozen=True)
class _Shape:
    """An SVG element: its attributes, the text within, and what is shown when the pointer rests on it."""

    tag: str
    attributes: Mapping[str, str]
    text: str = ""
    title: str = ""


def calibration_svg(curve: CalibrationCurve) -> str:
    """Draw what was said (x) against what was true (y), a dot a bin, its area by cases; the diagonal is perfect."""
    total = sum(found.count for found in curve.bins) or 1
    width = _SIDE + 2 * _MARGIN
    shapes = [
        _line(_MARGIN, _MARGIN + _SIDE, _MARGIN + _SIDE, _MARGIN, _FAINT),
        _line(_MARGIN, _MARGIN + _SIDE, _MARGIN + _SIDE, _MARGIN + _SIDE),
        _line(_MARGIN, _MARGIN, _MARGIN, _MARGIN + _SIDE),
        _text(_MARGIN + _SIDE / 2, width - 8, "stated probability of presence", "middle"),
        _text(_MARGIN, _MARGIN - 12, "share present"),
    ]
    for tick in (0, 0.5, 1):
        shapes.append(_text(_MARGIN + tick * _SIDE, _MARGIN + _SIDE + 16, f"{tick:g}", "middle"))
        shapes.append(_text(_MARGIN - 6, _MARGIN + (1 - tick) * _SIDE + 4, f"{tick:g}", "end"))
    for found in curve.bins:
        x = _MARGIN + found.mean_probability * _SIDE
        y = _MARGIN + (1 - found.share_present) * _SIDE
        title = f"said {found.mean_probability:.2f}, present {found.share_present:.2f}, {found.count} cases"
        shapes.append(_dot(x, y, 3 + 14 * (found.count / total) ** 0.5, _FILL, title))
    return _svg(width, width, "Calibration of the presence probability", shapes)


def box_plots_svg(samples: Mapping[str, Sequence[float]], label: str) -> str:
    """Draw a horizontal box plot for each sample in [0, 1]: quartiles, median, whiskers to the 5th and 95th percentile.

    Samples without values are left out.
    """
    shown = {name: np.asarray(values, dtype=np.float64) for name, values in samples.items() if len(values)}
    height = _ROW * len(shown) + 50
    shapes = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = _LABEL + tick * _SPAN
        shapes += [_line(x, 8, x, height - 40, _FAINT), _text(x, height - 24, f"{tick:g}", "middle")]
    shapes.append(_text(_LABEL + _SPAN / 2, height - 6, label, "middle"))
    for row, (name, values) in enumerate(shown.items()):
        shapes += _box(name, values, _ROW * row + 20)
    return _svg(_LABEL + _SPAN + 20, height, label, shapes)


def _box(name: str, values: NDArray[np.float64], y: float) -> list[_Shape]:
    marks = np.percentile(values, (5, 25, 50, 75, 95))
    x = [_LABEL + float(mark) * _SPAN for mark in marks]
    title = f"{name}: n {len(values)}, median {marks[2]:.3f}, quartiles {marks[1]:.3f} and {marks[3]:.3f}"
    beyond = values[(values < marks[0]) | (values > marks[4])]
    box = {"x": f"{x[1]:.1f}", "y": f"{y - 6:.1f}", "width": f"{max(x[3] - x[1], 1):.1f}", "height": "12"}
    return [
        *(_dot(_LABEL + float(value) * _SPAN, y, 1.8, _INK) for value in beyond),
        _text(_LABEL - 8, y + 4, f"{name} ({len(values)})", "end"),
        _line(x[0], y, x[4], y),
        _Shape("rect", {**box, "fill": _FILL, "stroke": _INK}, title=title),
        _line(x[2], y - 6, x[2], y + 6, width=2),
    ]


def _svg(width: float, height: float, title: str, shapes: Sequence[_Shape]) -> str:
    return render("eval/plots.svg.jinja", width=f"{width:g}", height=f"{height:g}", title=title, shapes=shapes)


def _line(x0: float, y0: float, x1: float, y1: float, colour: str = _INK, *, width: int = 1) -> _Shape:
    ends = {"x1": f"{x0:.1f}", "y1": f"{y0:.1f}", "x2": f"{x1:.1f}", "y2": f"{y1:.1f}"}
    return _Shape("line", {**ends, "stroke": colour, "stroke-width": str(width)})


def _dot(x: float, y: float, radius: float, fill: str, title: str = "") -> _Shape:
    place = {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": f"{radius:.1f}"}
    return _Shape("circle", {**place, "fill": fill, "fill-opacity": ".7", "stroke": _INK}, title=title)


def _text(x: float, y: float, text: str, anchor: str = "start") -> _Shape:
    return _Shape("text", {"x": f"{x:g}", "y": f"{y:g}", "text-anchor": anchor, "fill": _INK}, text)
