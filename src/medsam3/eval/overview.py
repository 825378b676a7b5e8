"""The tables of a run, in the order of reading: modes side by side, other runs, the paper, jitter, presence, phrasings.

They are made of a summary's rows; nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Iterable

from medsam3.eval.cases import MODES, EvalMode
from medsam3.eval.paper import PAPER_ROWS, SOURCE
from medsam3.eval.results import Results
from medsam3.eval.summary import ALL, OverlapRow, Scope, Summary
from medsam3.eval.tables import (
    MODE_NAMES,
    Table,
    duplicates_table,
    interval,
    lengths_table,
    number,
    objects_table,
    outline_table,
    phrasings_by_concept_table,
    presence_table,
    signed,
)


def result_tables(results: Results) -> list[Table]:
    """The tables of a run; those without rows are left out, but for near-duplicates, of which none is good news."""
    summary = results.summary
    tables = [
        modes_table(summary),
        beside_table(results),
        paper_table(summary),
        jitter_table(summary),
        presence_table(summary),
        alarms_table(summary),
        confusions_table(summary),
        phrasings_table(summary),
        phrasings_by_concept_table(summary),
        objects_table(summary),
        lengths_table(summary, results.config.tolerance),
        outline_table(summary, results.config.tolerance),
    ]
    tables.append(pooled_table(results))
    found = [table for table in tables if table.rows]
    duplicates = results.extras.duplicates
    return found if duplicates is None else [*found, duplicates_table(duplicates, None)]


def modes_table(summary: Summary) -> Table:
    """Dice of every mode, a column each."""
    found = _by_scope(summary.overlap)
    modes = [mode for mode in MODES if any((scope, mode, 0.0) in found for scope in _scopes(found))]
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
    """This run against others, paired by case."""
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
    """The paper's rows, where our data has the same source."""
    found = _by_scope(summary.overlap)
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
    headings = (
        "data set",
        "this run",
        "U-Net",
        "MedSAM, box (oracle)",
        "SAM 3 T",
        "SAM 3 T+I (oracle)",
        "MedSAM-3 T",
        "MedSAM-3 T+I (oracle)",
        "agent",
    )
    note = f"Dice as quoted from {SOURCE}: other splits, other copies of the images, so no comparison by case."
    return Table("The paper's rows (other splits)", note, headings, tuple(rows))


def jitter_table(summary: Summary) -> Table:
    """What imprecise boxes cost, over each data set and everything."""
    found = _by_scope(summary.overlap)
    jitters = sorted({jitter for _, _, jitter in found})
    if len(jitters) < 2:
        return Table("Box jitter", "", (), ())
    rows = []
    for scope in _joined_scopes(found):
        for mode in ("I", "TI"):
            cells = [found.get((scope, mode, jitter)) for jitter in jitters]
            if any(cells):
                texts = ["-" if cell is None else interval(cell.dice) for cell in cells]
                rows.append((scope.dataset, scope.concept, MODE_NAMES[mode], *texts))
    headings = ("data set", "concept", "mode", *(f"{jitter:g} %" for jitter in jitters))
    note = "Mean Dice where each edge of each oracle box is moved at random by up to so much of that side."
    return Table("Box jitter", note, headings, tuple(rows))


def alarms_table(summary: Summary) -> Table:
    """Concepts of other kinds of image, asked where they cannot be."""
    rows = [
        (
            row.scope.dataset,
            row.scope.concept,
            str(row.alarms.cases),
            str(round(row.alarms.value * row.alarms.cases)),
            interval(row.alarms),
            number(row.presence.value),
        )
        for row in summary.foreign
    ]
    note = "Concepts of other kinds of image, asked by name where they cannot be."
    if summary.everything is not None:
        joined = summary.everything
        note += (
            f" Over these and all annotated cases together ({joined.positives} present, {joined.negatives} absent): "
            f"MCC {interval(joined.mcc_interval)}, sensitivity {number(joined.sensitivity)}, specificity "
            f"{number(joined.specificity)}, AUROC {interval(joined.auroc)}."
        )
    headings = ("images of", "asked for", "n", "false alarms", "share", "mean presence")
    return Table("False alarms on foreign concepts", note, headings, tuple(rows), is_detail=True)


def confusions_table(summary: Summary) -> Table:
    """Concepts that are easily taken for one another."""
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


def phrasings_table(summary: Summary) -> Table:
    """What phrasings cost, over all concepts."""
    rows = tuple(
        (row.phrase, str(row.dice.cases), interval(row.dice), signed(row.difference))
        for row in summary.synonyms
        if row.concept == ALL
    )
    note = (
        "Text alone, images in which the concept is present, every phrasing of each counted once. The difference is "
        "that from the concept's own name, paired by image. Unseen phrasings were never used in training."
    )
    return Table("Phrasings", note, ("phrasing", "n", "Dice", "difference"), rows)


def pooled_table(results: Results) -> Table:
    """The runs that were put together."""
    rows = tuple(
        (
            part.path,
            part.fold or "",
            ", ".join(part.datasets),
            str(part.cases),
            (part.about.weights_sha256 or "")[:12],
            (part.about.commit or "")[:12],
            part.about.date,
        )
        for part in results.extras.pooled
    )
    note = "Intervals are over the groups of all runs together. What each was made with is in results.json in full."
    headings = ("run", "fold", "data sets", "cases", "weights", "commit", "date")
    return Table("Runs pooled", note, headings, rows)


_Key = tuple[Scope, EvalMode, float]


def _by_scope(rows: Iterable[OverlapRow]) -> dict[_Key, OverlapRow]:
    return {(row.scope, row.mode, row.jitter_percent): row for row in rows}


def _scopes(found: Iterable[_Key]) -> list[Scope]:
    return list(dict.fromkeys(scope for scope, _, _ in found))


def _joined_scopes(found: Iterable[_Key]) -> list[Scope]:
    """Whole data sets and everything; single concepts where nothing joins them."""
    scopes = _scopes(found)
    joined = [scope for scope in scopes if scope.concept == ALL]
    lone = {scope.dataset for scope in scopes} - {scope.dataset for scope in joined}
    return [scope for scope in scopes if scope.concept == ALL or scope.dataset in lone]
