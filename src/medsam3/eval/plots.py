"""Small plots as SVG text for the report: calibration and box plots. They need no plotting library."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np

from medsam3.measure.presence import Calibration

_INK, _FAINT, _FILL = "#222", "#bbb", "#56b4e9"
_SIDE, _MARGIN = 260, 44
_ROW, _LABEL, _SPAN = 20, 340, 560


def calibration_svg(calibration: Calibration) -> str:
    """What was said (x) against what was true (y), a dot a bin, its area by cases; the diagonal is perfect."""
    total = sum(found.count for found in calibration.bins) or 1
    width = _SIDE + 2 * _MARGIN
    parts = [
        _line(_MARGIN, _MARGIN + _SIDE, _MARGIN + _SIDE, _MARGIN, _FAINT),
        _line(_MARGIN, _MARGIN + _SIDE, _MARGIN + _SIDE, _MARGIN + _SIDE, _INK),
        _line(_MARGIN, _MARGIN, _MARGIN, _MARGIN + _SIDE, _INK),
        _text(_MARGIN + _SIDE / 2, width - 8, "stated probability of presence", "middle"),
        _text(_MARGIN, _MARGIN - 12, "share present"),
    ]
    for tick in (0, 0.5, 1):
        parts.append(_text(_MARGIN + tick * _SIDE, _MARGIN + _SIDE + 16, f"{tick:g}", "middle"))
        parts.append(_text(_MARGIN - 6, _MARGIN + (1 - tick) * _SIDE + 4, f"{tick:g}", "end"))
    for found in calibration.bins:
        x = _MARGIN + found.mean_probability * _SIDE
        y = _MARGIN + (1 - found.share_present) * _SIDE
        radius = 3 + 14 * (found.count / total) ** 0.5
        title = f"said {found.mean_probability:.2f}, present {found.share_present:.2f}, {found.count} cases"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{_FILL}" fill-opacity=".7" stroke="{_INK}">'
            f"<title>{html.escape(title)}</title></circle>"
        )
    return _svg(width, width, "Calibration of the presence probability", parts)


def box_plots_svg(samples: Mapping[str, Sequence[float]], label: str) -> str:
    """One horizontal box plot a sample of values in [0, 1]: quartiles, median, whiskers to the 5th and 95th percentile.

    Samples without values are left out.
    """
    shown = {name: np.asarray(values, dtype=np.float64) for name, values in samples.items() if len(values)}
    height = _ROW * len(shown) + 50
    parts = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = _LABEL + tick * _SPAN
        parts.append(_line(x, 8, x, height - 40, _FAINT))
        parts.append(_text(x, height - 24, f"{tick:g}", "middle"))
    parts.append(_text(_LABEL + _SPAN / 2, height - 6, label, "middle"))
    for row, (name, values) in enumerate(shown.items()):
        parts += _box(name, values, _ROW * row + 20)
    return _svg(_LABEL + _SPAN + 20, height, label, parts)


def _box(name: str, values: np.ndarray[tuple[int], np.dtype[np.float64]], y: float) -> list[str]:
    marks = np.percentile(values, (5, 25, 50, 75, 95))
    x = [_LABEL + float(mark) * _SPAN for mark in marks]
    title = f"{name}: n {len(values)}, median {marks[2]:.3f}, quartiles {marks[1]:.3f} and {marks[3]:.3f}"
    beyond = values[(values < marks[0]) | (values > marks[4])]
    dots = [f'<circle cx="{_LABEL + float(v) * _SPAN:.1f}" cy="{y}" r="1.8" fill="{_INK}"/>' for v in beyond]
    return [
        *dots,
        _text(_LABEL - 8, y + 4, f"{name} ({len(values)})", "end"),
        _line(x[0], y, x[4], y, _INK),
        f'<rect x="{x[1]:.1f}" y="{y - 6:.1f}" width="{max(x[3] - x[1], 1):.1f}" height="12" fill="{_FILL}" '
        f'stroke="{_INK}"><title>{html.escape(title)}</title></rect>',
        f'<line x1="{x[2]:.1f}" y1="{y - 6:.1f}" x2="{x[2]:.1f}" y2="{y + 6:.1f}" stroke="{_INK}" stroke-width="2"/>',
    ]


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'role="img" aria-label="{html.escape(title)}" font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, *parts, "</svg>"])


def _line(x0: float, y0: float, x1: float, y1: float, colour: str) -> str:
    return f'<line x1="{x0:g}" y1="{y0:g}" x2="{x1:g}" y2="{y1:g}" stroke="{colour}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{_INK}">{html.escape(text)}</text>'
