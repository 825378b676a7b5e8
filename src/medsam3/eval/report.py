"""The report of a run: one HTML page that needs no other file, markdown, and CSV. Writes files, measures nothing."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsam3.data.index import IndexRow
from medsam3.eval.cases import shown_mode
from medsam3.eval.overview import result_tables
from medsam3.eval.pictures import PREDICTED_COLOUR, REFERENCE_COLOUR, Picture, chosen_cases, draw_case
from medsam3.eval.plots import box_plots_svg, calibration_svg
from medsam3.eval.results import Results, write_results
from medsam3.eval.tables import MODE_NAMES, Table, cases_csv, markdown, number, rows_csv
from medsam3.store import replacing

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; background: #fff; max-width: 1240px; margin: 2em auto;
  padding: 0 1.2em; }
h1 { font-size: 1.7em; margin-bottom: .1em; }
h2 { font-size: 1.2em; margin: 2.2em 0 .3em; padding-top: .5em; border-top: 2px solid #dfe5ec; }
nav { display: flex; flex-wrap: wrap; gap: .3em 1.1em; margin: 1em 0; font-size: 14px; }
a { color: #0b5fa5; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; }
th { position: sticky; top: 0; background: #eef2f6; text-align: left; font-weight: 600; }
th, td { padding: .28em .9em .28em .45em; border-bottom: 1px solid #e3e8ee; white-space: nowrap; text-align: left; }
tr:hover td { background: #f6f9fc; }
tr.joined td { font-weight: 600; background: #f3f6f9; }
table.facts td:first-child { color: #56616d; }
table.facts td { white-space: normal; overflow-wrap: anywhere; }
figure { display: inline-block; margin: 0 .8em 1em 0; width: 260px; vertical-align: top; }
figcaption, .note { color: #56616d; font-size: 13px; max-width: 75em; }
summary { cursor: pointer; color: #0b5fa5; margin: .5em 0; }
.scroll { overflow-x: auto; }
.key { display: inline-block; width: 1.6em; height: .25em; vertical-align: middle; margin-right: .3em; }
"""


@dataclass(frozen=True)
class CaseFiles:
    """Where the pictures of cases come from.

    Attributes:
        folder: The data folder.
        rows: Its rows that were evaluated.
        masks: Folders of kept answers; the first that has one is taken.
    """

    folder: Path
    rows: tuple[IndexRow, ...]
    masks: tuple[Path, ...]


def write_report(results: Results, out: Path, files: CaseFiles | None) -> list[Path]:
    """Write results.json, report.html, report.md, and a CSV for the cases and for each kind of row into `out`.

    Args:
        results: What was found.
        out: The run's folder.
        files: For the pictures; None draws none.

    Raises:
        InputError: The folder cannot be written.
    """
    pictures = {} if files is None else _drawn(results, files)
    texts = {
        "report.html": html_page(results, pictures),
        "report.md": f"# Evaluation of {results.about.model}\n\n{_facts_markdown(results)}\n"
        + markdown(result_tables(results)),
        "cases.csv": cases_csv(results.cases),
        "outline.csv": rows_csv(results.summary.overlap),
        "presence.csv": rows_csv(results.summary.presence),
        "foreign.csv": rows_csv(results.summary.foreign),
        "confusions.csv": rows_csv(results.summary.confusions),
        "phrasings.csv": rows_csv(results.summary.synonyms),
        "beside.csv": rows_csv(results.extras.beside),
    }
    write_results(results, out / "results.json")
    for name, text in texts.items():
        with replacing(out / name, Path(name).suffix) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [out / "results.json", *(out / name for name in texts)]


def _drawn(results: Results, files: CaseFiles) -> dict[str, list[Picture]]:
    index = {(row.image.relative_to(files.folder).as_posix(), row.concept): row for row in files.rows}
    return {
        dataset: [found for case in cases if (found := draw_case(case, index, files.folder, files.masks)) is not None]
        for dataset, cases in chosen_cases(results.cases, shown_mode(results.config.modes)).items()
    }


def html_page(results: Results, pictures: dict[str, list[Picture]]) -> str:
    """The page: facts, tables, plots, pictures by data set, failures."""
    name = html.escape(results.about.model)
    sections = [
        *(_html_table(table) for table in result_tables(results)),
        *_plots(results),
        *_pictures(pictures),
        _failures(results),
        _section("How it was made", "", _html_rows(("", ""), facts(results), kind="facts")),
    ]
    shown = [section for section in sections if section is not None]
    links = "".join(f'<a href="#{section.anchor}">{html.escape(section.title)}</a>' for section in shown)
    notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in results.extras.notes)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>medsam3: evaluation of {name}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Evaluation of {name}</h1>",
        f"<p class=note>{html.escape(_subtitle(results))}</p>",
        f"<nav>{links}</nav>",
        notes,
        *(section.body for section in shown),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


@dataclass(frozen=True)
class _Section:
    title: str
    anchor: str
    body: str


def _section(title: str, note: str, content: str) -> _Section:
    anchor = "".join(letter if letter.isalnum() else "-" for letter in title.lower())
    said = f"<p class=note>{html.escape(note)}</p>" if note else ""
    body = f'<section id="{anchor}"><h2>{html.escape(title)}</h2>{said}<div class=scroll>{content}</div></section>'
    return _Section(title, anchor, body)


def _subtitle(results: Results) -> str:
    sets = len({case.dataset for case in results.cases})
    images = len({case.image for case in results.cases})
    return (
        f"{_split(results)}, {sets} data sets, {images} images, {len(results.cases)} answers; {results.about.date}. "
        "For research only; not a medical device."
    )


def _split(results: Results) -> str:
    folds = sorted({part.fold for part in results.extras.pooled if part.fold is not None})
    if folds:
        return f"folds {', '.join(folds)}, split anew by group"
    fold = results.config.fold
    return f"split {results.config.split}" if fold is None else f"fold {fold}, split anew by group"


def facts(results: Results) -> list[tuple[str, str]]:
    """What the numbers were made with, as pairs of name and value."""
    about, config = results.about, results.config
    found = [
        ("model", about.model),
        ("weights", about.weights_sha256 or ("see the runs" if results.extras.pooled else "no file of its own")),
        ("data", about.data_sha256),
        ("split", _split(results)),
        ("commit", about.commit or ("see the runs" if results.extras.pooled else "not in a repository")),
        ("command", about.command),
        ("date", about.date),
        ("versions", ", ".join(f"{name} {version}" for name, version in about.versions.items())),
        ("cases", str(len(results.cases))),
        ("volumes left out", _left_out(results)),
        ("not evaluated", f"{len(results.failures)} (listed at the end)" if results.failures else "0"),
    ]
    if any(mode in ("I", "TI") for mode in config.modes):
        rule = "each part or instance" if config.box_rule == "parts" else "the whole concept"
        found.append(("oracle boxes", f"drawn from the truth around {rule}"))
    if config.absent:
        found.append(("foreign concepts", f"{config.absent} a picture, drawn by seed {config.seed}"))
    found += [("note", note) for note in results.extras.notes]
    return found


def _left_out(results: Results) -> str:
    if not results.skipped_volumes:
        return "0"
    return f"{results.skipped_volumes} rows (volumes are asked by text, and of a model alone)"


def _facts_markdown(results: Results) -> str:
    return "".join(f"- {name}: {value}\n" for name, value in facts(results))


def _html_table(table: Table) -> _Section:
    content = _html_rows(table.headings, table.rows)
    if table.is_detail:
        content = f"<details><summary>{len(table.rows)} rows</summary>{content}</details>"
    return _section(table.title, table.note, content)


def _html_rows(headings: Iterable[str], rows: Iterable[Sequence[str]], *, kind: str = "") -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "\n".join(
        f"<tr{_row_class(row)}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    named = f' class="{kind}"' if kind else ""
    return f"<table{named}><tr>{head}</tr>\n{body}</table>"


def _row_class(row: Sequence[str]) -> str:
    return ' class="joined"' if "all" in row[:2] else ""


def _plots(results: Results) -> list[_Section]:
    mode = shown_mode(results.config.modes)
    named = [case for case in results.cases if case.phrasing == "name" and not case.is_foreign]
    shown = [case for case in named if case.mode == mode and not case.jitter_percent]
    if not shown:
        return []
    samples: dict[str, list[float]] = {}
    for case in sorted(shown, key=lambda case: case.key):
        if case.dice is not None:
            samples.setdefault(f"{case.dataset}: {case.concept}", []).append(case.dice)
    sections = [
        _section(
            "Dice by case",
            f"{MODE_NAMES[mode]}. Box: quartiles and median; line: 5th to 95th percentile; dots: cases beyond it.",
            box_plots_svg(samples, "Dice"),
        )
    ]
    found = results.summary.calibration
    if mode == "T":
        note = (
            f"Expected calibration error {number(found.error)}, Brier score {number(found.brier)}; text alone, "
            "annotated cases. A dot a bin, its area by cases."
        )
        sections.append(_section("Calibration of presence", note, calibration_svg(found)))
    return sections


def _pictures(pictures: dict[str, list[Picture]]) -> list[_Section]:
    parts = []
    for dataset, own in pictures.items():
        figures = "".join(
            f'<figure><img alt="{html.escape(picture.caption)}" src="data:image/png;base64,{picture.png_base64}">'
            f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
            for picture in own
        )
        if figures:
            parts.append(f"<h3>{html.escape(dataset)}</h3>{figures}")
    if not parts:
        return []
    key = "".join(
        f'<span class=key style="background: rgb{colour}"></span>{name} &nbsp; '
        for name, colour in (("reference", REFERENCE_COLOUR), ("answer", PREDICTED_COLOUR))
    )
    note = "Of each data set the cases of worst Dice, the best, and the false alarm of highest presence."
    return [_section("Worst and best cases", note, f"<p class=note>{key}</p>" + "\n".join(parts))]


def _failures(results: Results) -> _Section | None:
    if not results.failures:
        return None
    rows = [(failure.image, failure.concept or "every concept", failure.error) for failure in results.failures]
    return _section("Not evaluated", "", _html_rows(("image", "concept", "reason"), rows))
