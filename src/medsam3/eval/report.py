"""The report of a run: one HTML page that needs no other file, markdown, and CSV. Writes files, measures nothing."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path

from medsam3.eval.pictures import Picture, chosen_cases, draw_case
from medsam3.eval.plots import box_plots_svg, calibration_svg
from medsam3.eval.results import Results, write_results
from medsam3.eval.tables import Table, cases_csv, markdown, number, result_tables, rows_csv
from medsam3.io.files import replacing
from medsam3.io.index import IndexRow

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .2em .7em .2em 0; border-bottom: 1px solid #ddd; white-space: nowrap; }
figure { display: inline-block; margin: 0 .8em 1em 0; width: 288px; vertical-align: top; }
figcaption, .note { color: #555; font-size: 13px; }
section { overflow-x: auto; }
"""


def write_report(results: Results, rows: Iterable[IndexRow], folder: Path, out: Path) -> list[Path]:
    """Write results.json, report.html, report.md, cases.csv, outline.csv and presence.csv into `out`.

    Args:
        results: What was found.
        rows: The rows that were evaluated.
        folder: The data folder, for the pictures.
        out: The run's folder, which holds the kept answers in `masks`.

    Raises:
        InputError: The folder cannot be written.
    """
    index = {(row.image.relative_to(folder).as_posix(), row.concept): row for row in rows}
    pictures = {
        dataset: [picture for case in cases if (picture := draw_case(case, index, folder, out / "masks")) is not None]
        for dataset, cases in chosen_cases(results.cases).items()
    }
    texts = {
        "report.html": html_page(results, pictures),
        "report.md": f"# Evaluation of {results.about.model}\n\n{_facts_markdown(results)}\n"
        + markdown(result_tables(results)),
        "cases.csv": cases_csv(results.cases),
        "outline.csv": rows_csv(results.summary.overlap),
        "presence.csv": rows_csv(results.summary.presence),
    }
    write_results(results, out / "results.json")
    for name, text in texts.items():
        with replacing(out / name, Path(name).suffix) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [out / "results.json", *(out / name for name in texts)]


def html_page(results: Results, pictures: dict[str, list[Picture]]) -> str:
    """The page: facts, tables, plots, pictures by data set, failures."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>medsam3: evaluation of {html.escape(results.about.model)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Evaluation of {html.escape(results.about.model)}</h1>",
        "<p class=note>For research only; not a medical device.</p>",
        _html_rows(("", ""), facts(results)),
        *(_html_table(table) for table in result_tables(results)),
        _plots(results),
        *_pictures(pictures),
        _failures(results),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def facts(results: Results) -> list[tuple[str, str]]:
    """What the numbers were made with, as pairs of name and value."""
    about, config = results.about, results.config
    found = [
        ("model", about.model),
        ("weights", about.weights_sha256 or "no file of its own"),
        ("data", about.data_sha256),
        ("split", config.split),
        ("commit", about.commit or "not in a repository"),
        ("command", about.command),
        ("date", about.date),
        ("versions", ", ".join(f"{name} {version}" for name, version in about.versions.items())),
        ("cases", str(len(results.cases))),
        ("volumes left out", f"{results.skipped_volumes} rows (only pictures are evaluated yet)"),
        ("not evaluated", f"{len(results.failures)} (listed at the end)" if results.failures else "0"),
    ]
    if any(mode in ("I", "TI") for mode in config.modes):
        rule = "each part or instance" if config.box_rule == "parts" else "the whole concept"
        found.append(("oracle boxes", f"drawn from the truth around {rule}"))
    return found


def _facts_markdown(results: Results) -> str:
    return "".join(f"- {name}: {value}\n" for name, value in facts(results))


def _html_table(table: Table) -> str:
    head = f"<section><h2>{html.escape(table.title)}</h2><p class=note>{html.escape(table.note)}</p>"
    return head + _html_rows(table.headings, table.rows) + "</section>"


def _html_rows(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>"


def _plots(results: Results) -> str:
    text = [case for case in results.cases if case.mode == "T" and case.phrasing == "name"]
    if not text:
        return ""
    samples: dict[str, list[float]] = {}
    for case in sorted(text, key=lambda case: case.key):
        if case.dice is not None:
            samples.setdefault(f"{case.dataset}: {case.concept}", []).append(case.dice)
    found = results.summary.calibration
    note = f"Expected calibration error {number(found.error)}, Brier score {number(found.brier)}, text alone."
    return (
        "<section><h2>Dice by case, text alone</h2><p class=note>Box: quartiles and median; line: 5th to 95th "
        f"percentile.</p>{box_plots_svg(samples, 'Dice')}</section>\n"
        f"<section><h2>Calibration of presence</h2><p class=note>{note}</p>{calibration_svg(found)}</section>"
    )


def _pictures(pictures: dict[str, list[Picture]]) -> list[str]:
    parts = []
    for dataset, own in pictures.items():
        figures = "".join(
            f'<figure><img alt="{html.escape(picture.caption)}" src="data:image/png;base64,{picture.png_base64}">'
            f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
            for picture in own
        )
        if figures:
            parts.append(f"<section><h2>{html.escape(dataset)}: worst and best</h2>{figures}</section>")
    if parts:
        parts.insert(0, "<p class=note>Outlines: green the reference, orange the answer to text alone.</p>")
    return parts


def _failures(results: Results) -> str:
    if not results.failures:
        return ""
    rows = [(failure.image, failure.concept or "all", failure.error) for failure in results.failures]
    return "<section><h2>Not evaluated</h2>" + _html_rows(("image", "concept", "reason"), rows) + "</section>"
