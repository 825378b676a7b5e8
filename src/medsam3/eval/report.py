"""The report of a run: one HTML page that needs no other file, markdown, and CSV. Writes files, measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsam3.data.index import IndexRow
from medsam3.eval.case_pictures import PREDICTED_COLOUR, REFERENCE_COLOUR, CasePicture, chosen_cases, draw_case
from medsam3.eval.cases import shown_mode
from medsam3.eval.plots import box_plots_svg, calibration_svg
from medsam3.eval.results import Results, write_results
from medsam3.eval.tables import MODE_NAMES, Table, markdown, number, one_line, result_tables, rows_csv
from medsam3.page import render
from medsam3.store import write_text


@dataclass(frozen=True)
class CaseFiles:
    """The folders that the pictures of cases come from.

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
        "report.md": f"# Evaluation of {one_line(results.about.model)}\n\n{_facts_markdown(results)}\n"
        + markdown(result_tables(results)),
        "cases.csv": rows_csv(sorted(results.cases, key=lambda case: case.key)),
        "outline.csv": rows_csv(results.summary.overlap),
        "presence.csv": rows_csv(results.summary.presence),
        "foreign.csv": rows_csv(results.summary.foreign),
        "confusions.csv": rows_csv(results.summary.confusions),
        "phrasings.csv": rows_csv(results.summary.synonyms),
        "clicks.csv": rows_csv(results.summary.clicks),
        "beside.csv": rows_csv(results.extras.beside),
    }
    write_results(results, out / "results.json")
    for name, text in texts.items():
        write_text(out / name, text)
    return [out / "results.json", *(out / name for name in texts)]


def _drawn(results: Results, files: CaseFiles) -> dict[str, list[CasePicture]]:
    index = {(row.image.relative_to(files.folder).as_posix(), row.concept): row for row in files.rows}
    return {
        dataset: [found for case in cases if (found := draw_case(case, index, files.folder, files.masks)) is not None]
        for dataset, cases in chosen_cases(results.cases, shown_mode(results.config.modes)).items()
    }


@dataclass(frozen=True)
class _Section:
    """A part of the page under a title: a table, a plot, or pictures by data set."""

    title: str
    note: str = ""
    table: Table | None = None
    svg: str = ""
    pictures: Mapping[str, Sequence[CasePicture]] | None = None
    kind: str = ""

    @property
    def anchor(self) -> str:
        """The title as a link names it."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())


def html_page(results: Results, pictures: Mapping[str, Sequence[CasePicture]]) -> str:
    """Write the page: tables, plots, pictures by data set, failures, facts."""
    sections = [_Section(table.title, table.note, table) for table in result_tables(results)]
    sections += _plots(results)
    if any(pictures.values()):
        note = "Of each data set the cases of worst Dice, the best, and the false alarm of highest presence."
        sections.append(_Section("Worst and best cases", note, pictures=pictures))
    if results.failures:
        rows = tuple((failure.image, failure.concept or "every concept", failure.error) for failure in results.failures)
        sections.append(_Section("Not evaluated", table=Table("", "", ("image", "concept", "reason"), rows)))
    made = Table("", "", ("", ""), tuple(facts(results)))
    sections.append(_Section("How it was made", table=made, kind="facts"))
    return render(
        "eval/report.html.jinja",
        name=results.about.model,
        subtitle=_subtitle(results),
        notes=results.extras.notes,
        sections=sections,
        colours={"reference": REFERENCE_COLOUR, "answer": PREDICTED_COLOUR},
    )


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
    """List what the numbers were made with, as pairs of name and value."""
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
    return "".join(f"- {name}: {one_line(value)}\n" for name, value in facts(results))


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
    note = f"{MODE_NAMES[mode]}. Box: quartiles and median; line: 5th to 95th percentile; dots: cases beyond it."
    sections = [_Section("Dice by case", note, svg=box_plots_svg(samples, "Dice"))]
    found = results.summary.calibration
    if mode == "T":
        note = (
            f"Expected calibration error {number(found.error)}, Brier score {number(found.brier)}; text alone, "
            "annotated cases. A dot a bin, its area by cases."
        )
        sections.append(_Section("Calibration of presence", note, svg=calibration_svg(found)))
    return sections
