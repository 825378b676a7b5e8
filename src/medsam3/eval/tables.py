"""Results as tables of text, for the terminal, markdown and HTML alike, and as CSV of bare numbers.

Tables are made of a summary's rows, in the order of reading: modes side by side, other runs, the paper, jitter,
presence, phrasings. Nothing is measured here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from medsam3.data.duplicates import NearDuplicate
from medsam3.errors import printable
from medsam3.eval.cases import MODES, EvalMode
from medsam3.eval.compare import Comparison
from medsam3.eval.results import Results
from medsam3.eval.summary import ALL, OverlapRow, Scope, Summary
from medsam3.measure.intervals import Estimate
from medsam3.store import csv_text

MODE_NAMES: dict[EvalMode, str] = {
    "T": "text",
    "TB": "text, own box",
    "I": "box (oracle)",
    "TI": "text + box (oracle)",
}
PAPER = "arXiv 2511.19046, Table 2"


@dataclass(frozen=True)
class Table:
    """Cells of text under headings, with a title and a note that says how to read them.

    Attributes:
        is_detail: Long, and looked up rather than read: folded up in the page.
    """

    title: str
    note: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_detail: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(tuple(one_line(cell) for cell in row) for row in self.rows))


@dataclass(frozen=True)
class PaperRow:
    """Dice that the paper reports on one of its data sets, in 0..1.

    Attributes:
        name: The paper's data set.
        concept: What was segmented.
        datasets: Ours with the same source.
        unet: A U-Net.
        medsam: MedSAM with a box from the truth.
        sam3_text: SAM 3 by phrase.
        sam3_both: SAM 3 by phrase and a box from the truth.
        medsam3_text: MedSAM-3 by phrase.
        medsam3_both: MedSAM-3 by phrase and a box from the truth.
        agent: MedSAM-3's agent; None where it was not measured.
    """

    name: str
    concept: str
    datasets: tuple[str, ...]
    unet: float
    medsam: float
    sam3_text: float
    sam3_both: float
    medsam3_text: float
    medsam3_both: float
    agent: float | None = None


PAPER_ROWS = (
    PaperRow("BUSI", "breast tumor", ("busi",), 0.7618, 0.7514, 0.0, 0.7110, 0.2674, 0.7772, 0.8064),
    PaperRow("optic cup", "optic cup", ("drishti_gs",), 0.8480, 0.8479, 0.0, 0.8303, 0.0826, 0.8977),
    PaperRow("ISIC 2018", "skin lesion", ("ph2", "isic2017"), 0.8760, 0.9177, 0.2189, 0.8178, 0.5687, 0.9058),
    PaperRow("Kvasir-SEG", "polyp", ("kvasir_seg",), 0.8244, 0.7657, 0.0, 0.7671, 0.1441, 0.8831),
)
"""Quoted beside ours. The paper's images, sizes and splits are others, so they are no comparison by case."""


def one_line(text: str) -> str:
    """Show a text in one line of a table, with what a terminal would obey as Python's escapes."""
    return printable(text).replace("\n", "\\n")


def number(value: float, digits: int = 3) -> str:
    """Write a number without the 0 before its point, as tables of Dice have it; - if it is not known."""
    if not math.isfinite(value):
        return "-"
    text = f"{value:.{digits}f}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def interval(estimate: Estimate, digits: int = 3) -> str:
    """Write `.853 [.812, .889]`; without brackets if the interval is not known."""
    if not math.isfinite(estimate.low):
        return number(estimate.value, digits)
    ends = f"[{number(estimate.low, digits)}, {number(estimate.high, digits)}]"
    return f"{number(estimate.value, digits)} {ends}"


def signed(estimate: Estimate) -> str:
    """Write an interval of a difference, with + before gains."""
    text = interval(estimate)
    return f"+{text}" if estimate.value > 0 else text


def mode_name(mode: EvalMode, jitter_percent: float) -> str:
    """Name the mode in words, with the jitter if there is any."""
    return f"{MODE_NAMES[mode]}, jitter {jitter_percent:g} %" if jitter_percent else MODE_NAMES[mode]


def markdown(tables: Iterable[Table]) -> str:
    """Write the tables in GitHub's markdown."""
    parts = []
    for table in tables:
        lines = [f"## {table.title}", "", table.note, "", _markdown_row(table.headings)]
        lines.append("|" + "---|" * len(table.headings))
        lines += [_markdown_row(row) for row in table.rows]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def rows_csv(rows: Sequence[Any]) -> str:
    """Write rows that are dataclasses of one type as CSV; estimates become columns of value, ends and counts."""
    flat = [_flat(row) for row in rows]
    return csv_text(list(flat[0]) if flat else [], [list(row.values()) for row in flat])


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


def result_tables(results: Results) -> list[Table]:
    """Make the tables of a run. Those without rows are left out, but for near-duplicates: none is good news."""
    summary, tolerance = results.summary, results.config.tolerance
    tables = [
        modes_table(summary),
        beside_table(results),
        paper_table(summary),
        jitter_table(summary),
        presence_table(summary),
        alarms_table(summary),
        confusions_table(summary),
        *phrasing_tables(summary),
        objects_table(summary),
        outline_table(summary, tolerance, is_in_mm=True),
        outline_table(summary, tolerance),
        pooled_table(results),
    ]
    found = [table for table in tables if table.rows]
    duplicates = results.extras.duplicates
    return found if duplicates is None else [*found, duplicates_table(duplicates)]


_Key = tuple[Scope, EvalMode, float]


def _by_scope(summary: Summary) -> dict[_Key, OverlapRow]:
    return {(row.scope, row.mode, row.jitter_percent): row for row in summary.overlap}


def _scopes(found: Iterable[_Key]) -> list[Scope]:
    return list(dict.fromkeys(scope for scope, _, _ in found))


def _asked(row: OverlapRow, count: int) -> tuple[str, ...]:
    """Give the cells that every table of outlines begins with."""
    return row.scope.dataset, row.scope.concept, mode_name(row.mode, row.jitter_percent), str(count)


def modes_table(summary: Summary) -> Table:
    """Set the Dice of every mode side by side, a column each."""
    found = _by_scope(summary)
    modes = [mode for mode in MODES if any(key[1:] == (mode, 0.0) for key in found)]
    rows = []
    for scope in _scopes(found):
        cells = [found.get((scope, mode, 0.0)) for mode in modes]
        first = next((cell for cell in cells if cell is not None), None)
        if first is not None:
            texts = ["" if cell is None else interval(cell.dice) for cell in cells]
            rows.append((scope.dataset, scope.concept, str(first.dice.cases), *texts, str(first.missed)))
    headings = ("data set", "concept", "n", *(MODE_NAMES[mode] for mode in modes), "missed by the first")
    note = (
        "Mean Dice over images in which the concept is present, with 95 % intervals by bootstrap over groups; a missed "
        "object counts 0. Oracle boxes are drawn from the truth: they tell where the object is, and that it is there."
    )
    return Table("Modes side by side", note, headings, tuple(rows))


def beside_table(results: Results) -> Table:
    """Set this run against others, paired by case."""
    rows = tuple(
        (
            row.dataset,
            row.concept,
            str(row.difference.cases),
            MODE_NAMES[row.mode],
            number(row.ours),
            f"{row.other}, {MODE_NAMES[row.other_mode]}",
            number(row.theirs),
            signed(row.difference),
            ("better" if row.difference.value > 0 else "worse") if row.holds else "open",
        )
        for row in results.extras.beside
    )
    note = (
        "Dice of this run and of other runs on the same cases, and the paired difference with its 95 % interval; it is "
        "open where the interval holds 0. A row that joins everything counts each case once."
    )
    headings = ("data set", "concept", "n", "this run", "Dice", "other", "Dice", "difference", "")
    return Table("Beside other models, same cases", note, headings, rows)


def paper_table(summary: Summary) -> Table:
    """Quote the paper's rows whose data set has the same source as one of ours."""
    found = _by_scope(summary)
    rows = []
    for paper in PAPER_ROWS:
        own = [
            row
            for dataset in paper.datasets
            for mode in MODES
            if (row := found.get((Scope(dataset, paper.concept), mode, 0.0)))
        ]
        if own:
            ours = ", ".join(f"{row.scope.dataset} {row.mode} {number(row.dice.value)}" for row in own)
            quoted = (paper.unet, paper.medsam, paper.sam3_text, paper.sam3_both, paper.medsam3_text)
            agent = "-" if paper.agent is None else number(paper.agent)
            rows.append((paper.name, ours, *map(number, quoted), number(paper.medsam3_both), agent))
    models = ("U-Net", "MedSAM, box (oracle)", "SAM 3 T", "SAM 3 T+I (oracle)", "MedSAM-3 T", "MedSAM-3 T+I (oracle)")
    note = f"Dice as quoted from {PAPER}: other splits, other copies of the images, so no comparison by case."
    return Table("The paper's rows (other splits)", note, ("data set", "this run", *models, "agent"), tuple(rows))


def jitter_table(summary: Summary) -> Table:
    """Tell what imprecise boxes cost, over each data set and everything; single concepts if nothing joins them."""
    found = _by_scope(summary)
    jitters = sorted({jitter for _, _, jitter in found})
    joined = {scope.dataset for scope in _scopes(found) if scope.concept == ALL}
    rows = []
    for scope in _scopes(found):
        for mode in ("I", "TI"):
            cells = [found.get((scope, mode, jitter)) for jitter in jitters]
            if len(jitters) > 1 and any(cells) and (scope.concept == ALL or scope.dataset not in joined):
                texts = ["-" if cell is None else interval(cell.dice) for cell in cells]
                rows.append((scope.dataset, scope.concept, MODE_NAMES[mode], *texts))
    headings = ("data set", "concept", "mode", *(f"{jitter:g} %" for jitter in jitters))
    note = "Mean Dice where each edge of each oracle box is moved at random by up to so much of that side."
    return Table("Box jitter", note, headings, tuple(rows))


def presence_table(summary: Summary) -> Table:
    """Tell how well present and absent are told apart, by text alone."""
    rows = tuple(
        (
            row.scope.dataset,
            row.scope.concept,
            str(row.positives),
            str(row.negatives),
            interval(row.auroc),
            number(row.sensitivity),
            number(row.specificity),
            number(row.unsure),
            interval(row.mcc_interval),
            number(row.pmf1),
            number(row.cgf1),
        )
        for row in summary.presence
    )
    note = (
        "Text alone. Negatives are images of the same data set in which the concept is annotated as absent. AUROC of "
        'the presence probability, the rest at the model\'s own threshold, from which on it gives masks; "not sure" is '
        "the share of answers between that and the limit from which on it is sure; cgF1 = pmF1 x MCC."
    )
    counts = ("data set", "concept", "present", "absent")
    return Table(
        "Presence", note, (*counts, "AUROC", "sensitivity", "specificity", "not sure", "MCC", "pmF1", "cgF1"), rows
    )


def alarms_table(summary: Summary) -> Table:
    """Count false alarms on concepts of other kinds of image, asked where they cannot be."""
    rows = tuple(
        (
            row.scope.dataset,
            row.scope.concept,
            str(row.alarms.cases),
            str(round(row.alarms.value * row.alarms.cases)),
            interval(row.alarms),
            number(row.presence.value),
        )
        for row in summary.foreign
    )
    note = "Concepts of other kinds of image, asked by name where they cannot be."
    if summary.everything is not None:
        joined = summary.everything
        note += (
            f" Over these and all annotated cases together ({joined.positives} present, {joined.negatives} absent): "
            f"MCC {interval(joined.mcc_interval)}, sensitivity {number(joined.sensitivity)}, specificity "
            f"{number(joined.specificity)}, AUROC {interval(joined.auroc)}."
        )
    headings = ("images of", "asked for", "n", "false alarms", "share", "mean presence")
    return Table("False alarms on foreign concepts", note, headings, rows, is_detail=True)


def confusions_table(summary: Summary) -> Table:
    """Tell how often concepts are taken for one another."""
    rows = tuple(
        (
            row.concept,
            row.rival,
            str(row.both),
            interval(row.dice),
            interval(row.rival_dice),
            f"{row.taken} of {row.both}" if row.both else "",
            f"{row.alarms} of {row.without}" if row.without else "",
        )
        for row in summary.confusions
    )
    note = (
        "Concepts that look or sound alike, by name and text alone. Where both are in the image: Dice of the answer "
        "with the concept and with the other, and how often it fits the other better. Where only the other is there: "
        "false alarms."
    )
    headings = ("asked for", "other", "both there", "Dice", "Dice with other", "fits other", "false alarms")
    return Table("Confusing phrases", note, headings, rows)


def phrasing_tables(summary: Summary) -> Iterator[Table]:
    """Tell what phrasings cost, over all concepts, then every single one."""
    joined = [row for row in summary.synonyms if row.concept == ALL]
    rows = [(row.phrase, str(row.dice.cases), interval(row.dice), signed(row.difference)) for row in joined]
    note = (
        "Text alone, images in which the concept is present, every phrasing of each counted once. The difference is "
        "that from the concept's own name, paired by image. Unseen phrasings were never used in training."
    )
    yield Table("Phrasings", note, ("phrasing", "n", "Dice", "difference"), tuple(rows))
    single = tuple(
        (row.concept, row.phrase, row.phrasing, str(row.dice.cases), interval(row.dice), signed(row.difference))
        for row in summary.synonyms
        if row.concept != ALL
    )
    note = (
        "Text alone, images in which the concept is present. Difference from the concept's own name, paired by image."
    )
    headings = ("concept", "phrase", "kind", "n", "Dice", "difference")
    yield Table("Phrasings by concept", note, headings, single, is_detail=True)


def objects_table(summary: Summary) -> Table:
    """Tell how well single objects are found, of the concepts that have many."""
    rows = tuple(
        (*_asked(row, row.f1.cases), f"{row.objects:.1f}", interval(row.f1), interval(row.pq))
        for row in summary.overlap
        if row.objects >= 1.5
    )
    note = "Concepts with more than one object an image on average. Matched one to one; F1 at IoU .5, panoptic quality."
    return Table("Objects", note, ("data set", "concept", "mode", "n", "objects", "F1", "PQ"), rows)


def outline_table(summary: Summary, tolerance: float, *, is_in_mm: bool = False) -> Table:
    """Give every metric of the outlines, a row for each scope and mode; or those in mm alone, with intervals."""
    chosen = [row for row in summary.overlap if not is_in_mm or row.unit == "mm"]
    units = {row.unit for row in chosen}
    unit = units.pop() if len(units) == 1 else "px or mm"
    nsd, asked = f"NSD at {tolerance:g} {unit}", ("data set", "concept", "mode", "n", "Dice")
    note = "Means with 95 % intervals by bootstrap over groups. A missed object counts Dice{} and NSD 0, HD95 and "
    note += "ASSD the image's diagonal."
    if is_in_mm:
        of = "Images with a known spacing in which the concept is present; volumes are measured whole, in three axes."
        said = note.format("")
        rows = tuple(
            (
                *_asked(row, row.dice.cases),
                *(interval(row.dice), interval(row.nsd), interval(row.hd95, 2), interval(row.assd, 2)),
                str(row.missed),
            )
            for row in chosen
        )
        return Table("Volumes, in mm", f"{of} {said}", (*asked, nsd, "HD95 (mm)", "ASSD (mm)", "missed"), rows)
    said = f"Images in which the concept is present. {note.format(', IoU')} Oracle boxes are drawn from the truth."
    rows = tuple(
        (
            *_asked(row, row.dice.cases),
            *(interval(row.dice), interval(row.iou), interval(row.nsd)),
            *(_length(row.hd95, row.unit), _length(row.assd, row.unit), str(row.missed)),
        )
        for row in chosen
    )
    return Table("Outline", said, (*asked, "IoU", nsd, "HD95", "ASSD", "missed"), rows, is_detail=True)


def _length(estimate: Estimate, unit: str) -> str:
    return f"{number(estimate.value, 1)} {unit}" if unit != "mixed" else "px and mm"


def pooled_table(results: Results) -> Table:
    """List the runs that were put together."""
    rows = tuple(
        (
            *(part.path, part.fold or "", ", ".join(part.datasets), str(part.cases)),
            *((part.about.weights_sha256 or "")[:12], (part.about.commit or "")[:12], part.about.date),
        )
        for part in results.extras.pooled
    )
    note = "Intervals are over the groups of all runs together. What each was made with is in results.json in full."
    return Table("Runs pooled", note, ("run", "fold", "data sets", "cases", "weights", "commit", "date"), rows)


def duplicates_table(pairs: Sequence[NearDuplicate], pictures: int | None = None) -> Table:
    """List pictures that stand in two splits; `pictures` is how many were looked at, if that is to be told."""
    rows = tuple(
        (pair.first, pair.second, " / ".join(pair.splits), str(pair.bits), number(1 - pair.correlation, 4))
        for pair in pairs
    )
    among = "" if pictures is None else f" among {pictures} pictures"
    note = f"{len(pairs)} pairs{among}. Bits of the 63 of a perceptual hash that differ, and cosine distance of "
    note += "fine detail (below .05). Compare them by eye, and leave one of each pair out."
    return Table("Near-duplicates across splits", note, ("first", "second", "splits", "bits", "feature distance"), rows)


def comparison_table(comparison: Comparison, first: str, second: str) -> Table:
    """List paired differences of two runs, `first` and `second` being their names."""
    rows = tuple(
        (
            *(row.dataset, row.concept, mode_name(row.mode, row.jitter_percent), str(row.difference.cases)),
            *(number(row.first), number(row.second), signed(row.difference), "yes" if row.holds else "no"),
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
