"""Results as tables of text, for the terminal, markdown and HTML alike, and as CSV of bare numbers."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from medsam3.data.duplicates import NearDuplicate
from medsam3.eval.cases import EvalMode
from medsam3.eval.compare import Comparison
from medsam3.eval.records import CaseResult
from medsam3.eval.summary import ALL, Scope, Summary
from medsam3.measure.intervals import Estimate

MODE_NAMES: dict[EvalMode, str] = {
    "T": "text",
    "TB": "text, own box",
    "I": "box (oracle)",
    "TI": "text + box (oracle)",
}


@dataclass(frozen=True)
class Table:
    """Cells of text under headings, with a title and a note that says how to read them."""

    title: str
    note: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_detail: bool = False
    """Long, and looked up rather than read: folded up in the page."""


def comparison_table(comparison: Comparison, first: str, second: str) -> Table:
    """Paired differences of two runs, `first` and `second` being their names."""
    rows = tuple(
        (
            row.dataset,
            row.concept,
            mode_name(row.mode, row.jitter_percent),
            str(row.difference.cases),
            number(row.first),
            number(row.second),
            signed(row.difference),
            "yes" if row.holds else "no",
        )
        for row in comparison.rows
    )
    note = (
        f"Dice of {second} minus {first}, paired by case; 95 % interval by bootstrap over groups. A difference holds "
        "where its interval excludes 0; with many rows, one in twenty would by chance alone."
    )
    if comparison.unpaired:
        note += f" {comparison.unpaired} cases are in one run only and were left out."
    if not comparison.is_same_data:
        note += " The runs' data differ (other hash)."
    headings = ("data set", "concept", "mode", "n", "first", "second", "difference", "holds")
    return Table(f"{first} and {second}", note, headings, rows)


def duplicates_table(pairs: Sequence[NearDuplicate], pictures: int | None) -> Table:
    """Pictures that stand in two splits; `pictures` is how many were looked at, where that is to be told."""
    rows = tuple(
        (pair.first, pair.second, " / ".join(pair.splits), str(pair.bits), number(1 - pair.correlation, 4))
        for pair in pairs
    )
    among = "" if pictures is None else f" among {pictures} pictures"
    note = f"{len(pairs)} pairs{among}. Bits of the 63 of a perceptual hash that differ, and cosine distance of "
    note += "fine detail (below .05). Compare them by eye, and leave one of each pair out."
    return Table("Near-duplicates across splits", note, ("first", "second", "splits", "bits", "feature distance"), rows)


def markdown(tables: Iterable[Table]) -> str:
    """The tables in GitHub's markdown."""
    parts = []
    for table in tables:
        lines = [f"## {table.title}", "", table.note, "", _markdown_row(table.headings)]
        lines.append("|" + "---|" * len(table.headings))
        lines += [_markdown_row(row) for row in table.rows]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def rows_csv(rows: Sequence[Any]) -> str:
    """Rows that are dataclasses of one type as CSV; estimates become columns of value, ends and counts."""
    stream = io.StringIO()
    flat = [_flat(row) for row in rows]
    writer = csv.DictWriter(stream, fieldnames=list(flat[0]) if flat else [])
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def cases_csv(cases: Sequence[CaseResult]) -> str:
    """One line a case."""
    return rows_csv(sorted(cases, key=lambda case: case.key))


def number(value: float, digits: int = 3) -> str:
    """A number without the 0 before its point, as tables of Dice have it; - where it is not known."""
    if not math.isfinite(value):
        return "-"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def interval(estimate: Estimate, digits: int = 3) -> str:
    """`.853 [.812, .889]`; without brackets where the interval is not known."""
    if not math.isfinite(estimate.low):
        return number(estimate.value, digits)
    ends = f"[{number(estimate.low, digits)}, {number(estimate.high, digits)}]"
    return f"{number(estimate.value, digits)} {ends}"


def signed(estimate: Estimate) -> str:
    """An interval of a difference, with + before gains."""
    text = interval(estimate)
    return f"+{text}" if estimate.value > 0 else text


def mode_name(mode: EvalMode, jitter_percent: float) -> str:
    """The mode in words, with the jitter where there is any."""
    return f"{MODE_NAMES[mode]}, jitter {jitter_percent:g} %" if jitter_percent else MODE_NAMES[mode]


def outline_table(summary: Summary, tolerance: float) -> Table:
    """Every metric of the outlines, a row for each scope and mode."""
    rows = tuple(
        (
            *_scope(row.scope),
            mode_name(row.mode, row.jitter_percent),
            str(row.dice.cases),
            interval(row.dice),
            interval(row.iou),
            interval(row.nsd),
            _length(row.hd95, row.unit),
            _length(row.assd, row.unit),
            str(row.missed),
        )
        for row in summary.overlap
    )
    note = (
        "Images in which the concept is present. Means with 95 % intervals by bootstrap over groups. A missed object "
        "counts Dice, IoU and NSD 0, HD95 and ASSD the image's diagonal. Oracle boxes are drawn from the truth."
    )
    units = {row.unit for row in summary.overlap}
    unit = units.pop() if len(units) == 1 else "px or mm"
    nsd = f"NSD at {tolerance:g} {unit}"
    headings = ("data set", "concept", "mode", "n", "Dice", "IoU", nsd, "HD95", "ASSD", "missed")
    return Table("Outline", note, headings, rows, is_detail=True)


def lengths_table(summary: Summary, tolerance: float) -> Table:
    """Outlines of volumes and of what else has a spacing, in physical units."""
    rows = tuple(
        (
            *_scope(row.scope),
            mode_name(row.mode, row.jitter_percent),
            str(row.dice.cases),
            interval(row.dice),
            interval(row.nsd),
            interval(row.hd95, 2),
            interval(row.assd, 2),
            str(row.missed),
        )
        for row in summary.overlap
        if row.unit == "mm"
    )
    note = (
        "Images with a known spacing in which the concept is present; volumes are measured whole, in three axes. Means "
        "with 95 % intervals by bootstrap over groups; a missed object counts Dice and NSD 0 and the image's diagonal."
    )
    headings = (
        *("data set", "concept", "mode", "n", "Dice"),
        *(f"NSD at {tolerance:g} mm", "HD95 (mm)", "ASSD (mm)", "missed"),
    )
    return Table("Volumes, in mm", note, headings, rows)


def _length(estimate: Estimate, unit: str) -> str:
    return f"{number(estimate.value, 1)} {unit}" if unit != "mixed" else "px and mm"


def objects_table(summary: Summary) -> Table:
    """Objects of the concepts that have many."""
    rows = tuple(
        (
            *_scope(row.scope),
            mode_name(row.mode, row.jitter_percent),
            str(row.f1.cases),
            f"{row.objects:.1f}",
            interval(row.f1),
            interval(row.pq),
        )
        for row in summary.overlap
        if row.objects >= 1.5
    )
    note = "Concepts with more than one object an image on average. Matched one to one; F1 at IoU .5, panoptic quality."
    return Table("Objects", note, ("data set", "concept", "mode", "n", "objects", "F1", "PQ"), rows)


def presence_table(summary: Summary) -> Table:
    """Present or absent, by text alone."""
    rows = tuple(
        (
            *_scope(row.scope),
            str(row.positives),
            str(row.negatives),
            interval(row.auroc),
            number(row.sensitivity),
            number(row.specificity),
            interval(row.mcc_interval),
            number(row.pmf1),
            number(row.cgf1),
        )
        for row in summary.presence
    )
    note = (
        "Text alone. Negatives are images of the same data set in which the concept is annotated as absent. AUROC of "
        "the presence probability, the rest at the model's own threshold; cgF1 = pmF1 x MCC."
    )
    headings = (
        "data set",
        "concept",
        "present",
        "absent",
        "AUROC",
        "sensitivity",
        "specificity",
        "MCC",
        "pmF1",
        "cgF1",
    )
    return Table("Presence", note, headings, rows)


def phrasings_by_concept_table(summary: Summary) -> Table:
    """What every single phrasing costs."""
    rows = tuple(
        (
            row.concept,
            row.phrase,
            row.phrasing or "joined",
            str(row.dice.cases),
            interval(row.dice),
            signed(row.difference),
        )
        for row in summary.synonyms
        if row.concept != ALL
    )
    note = (
        "Text alone, images in which the concept is present. Difference from the concept's own name, paired by image."
    )
    headings = ("concept", "phrase", "kind", "n", "Dice", "difference")
    return Table("Phrasings by concept", note, headings, rows, is_detail=True)


def _scope(scope: Scope) -> tuple[str, str]:
    return scope.dataset, scope.concept


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _flat(row: Any, prefix: str = "") -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if is_dataclass(value):
            cells.update(_flat(value, "" if isinstance(value, Scope) else f"{prefix}{field.name}_"))
        elif isinstance(value, float):
            cells[prefix + field.name] = f"{value:.6g}" if math.isfinite(value) else ""
        elif isinstance(value, tuple):
            cells[prefix + field.name] = " ".join(item if isinstance(item, str) else f"{item:.4g}" for item in value)
        else:
            cells[prefix + field.name] = value
    return cells
