"""Set measured results against the goals of docs/results.md, beside a U-Net and LiteMedSAM on the same cases.

Run: medsam3 eval DATA --modes T,I,TI --absent 3 --out mini
     python benchmarks/comparators.py unet DATA --out unet; python benchmarks/comparators.py litemedsam DATA --out lite
     python benchmarks/goals.py --mini mini/results.json --unet unet/results.json --litemedsam litemedsam/results.json
     python benchmarks/goals.py --run FOLDER --only-print     # FOLDER/mini, unet and litemedsam; no page is changed

It replaces what stands between the marks of docs/results.md, and keeps each image's Dice in docs/results/dice.csv: a
row of the table that is not given anew is taken from there, and so is a way of asking that is not.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medsam3.eval.case_result import CaseResult
from medsam3.eval.results import read_results
from medsam3.eval.tables import PAPER_ROWS
from medsam3.measure.intervals import Estimate, mean_interval, paired_interval

KEPT = Path(__file__).parents[1] / "docs" / "results" / "dice.csv"
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
MARKS = re.compile(r"(<!-- goals -->\n).*?(<!-- /goals -->)", re.DOTALL)
LEAST_POSITIVES = 5
UNET_MARGIN = 0.02


@dataclass(frozen=True)
class Goal:
    """What text alone has to pass on some data sets of one concept, in mean Dice."""

    label: str
    datasets: tuple[str, ...]
    concept: str
    must: float
    aim: float | None = None


PAPER = {row.concept: row for row in PAPER_ROWS}
GOALS = (
    Goal("polyp", ("kvasir_seg",), "polyp", PAPER["polyp"].medsam3_both, 0.92),
    Goal("skin lesion", ("ph2", "isic2017"), "skin lesion", 0.93, 0.945),
    Goal("optic cup", ("drishti_gs",), "optic cup", PAPER["optic cup"].medsam3_both, 0.92),
    Goal("breast tumor", ("busi",), "breast tumor", PAPER["breast tumor"].medsam3_both, PAPER["breast tumor"].agent),
    Goal("optic disc", ("drishti_gs",), "optic disc", 0.95),
    Goal("fetal head", ("hc18",), "fetal head", 0.96),
    Goal("liver", ("lits_liver",), "liver", 0.92),
    Goal("cell nucleus", ("dsb2018",), "cell nucleus", 0.85),
    Goal("lung", ("covid_cxr",), "lung", 0.95),
    Goal("polyp, unseen source", ("cvc_colondb",), "polyp", 0.72, 0.80),
)
ORACLE = tuple(Goal(row.concept, row.datasets, row.concept, row.medsam3_both) for row in reversed(PAPER_ROWS))

Model = Literal["mini", "unet", "litemedsam"]


@dataclass(frozen=True)
class Kept:
    """Dice of one answer about a concept that is there: asked by its name, oracle boxes without jitter."""

    model: Model
    mode: str
    dataset: str
    image: str
    concept: str
    group: str
    dice: float


COLUMNS = tuple(Kept.__dataclass_fields__)
Cases = Sequence[Kept]


def kept(model: Model, cases: Iterable[CaseResult]) -> list[Kept]:
    """What is kept of a run's cases."""
    return [
        Kept(model, case.mode, case.dataset, case.image, case.concept, case.draw_group, round(case.dice, 4))
        for case in cases
        if case.is_present and case.phrasing == "name" and not case.jitter_percent and case.dice is not None
    ]


def read_kept() -> list[Kept]:
    """What earlier runs left; nothing where there were none."""
    if not KEPT.exists():
        return []
    with KEPT.open(encoding="utf-8", newline="") as stream:
        return [Kept(**{**row, "dice": float(row["dice"])}) for row in csv.DictReader(stream)]  # type: ignore[arg-type]


def write_kept(cases: Cases) -> None:
    """In a fixed order, so that a version that changes little differs little."""
    rows = sorted(astuple(case) for case in cases)
    with KEPT.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def dice_of(cases: Cases, datasets: Sequence[str], concept: str, mode: str) -> dict[str, tuple[float, str]]:
    """Dice and group by image, of a concept in a mode."""
    return {
        case.image: (case.dice, case.group)
        for case in cases
        if case.dataset in datasets and case.concept == concept and case.mode == mode
    }


def estimate(found: dict[str, tuple[float, str]]) -> Estimate:
    """Their mean with its interval."""
    return mean_interval([dice for dice, _ in found.values()], [group for _, group in found.values()])


def told(value: Estimate) -> str:
    """A mean with its interval as tables show it."""
    if not value.cases:
        return ""
    interval = "" if np.isnan(value.low) else f" ({value.low:.3f}-{value.high:.3f})"
    return f"{value.value:.3f}{interval}"


def verdict(value: float, goal: Goal) -> str:
    """Whether a goal is reached."""
    if goal.aim is not None and value >= goal.aim:
        return "aim reached"
    return "reached" if value >= goal.must else f"missed by {goal.must - value:.3f}"


def text_table(cases: Cases, unet: Cases) -> list[str]:
    """Text alone against the goals."""
    lines = [
        "| text alone | test set | n | mean Dice (95 %) | must pass | aim | | our U-Net |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for goal in GOALS:
        mine = estimate(dice_of(cases, goal.datasets, goal.concept, "T"))
        other = estimate(dice_of(unet, goal.datasets, goal.concept, "T"))
        aim = "" if goal.aim is None else f"{goal.aim:g}"
        lines.append(
            f"| {goal.label} | {', '.join(goal.datasets)} | {mine.cases} | {told(mine)} | {goal.must:g} | {aim} "
            f"| {verdict(mine.value, goal)} | {told(other)} |"
        )
    return lines


def oracle_table(cases: Cases, litemedsam: Cases) -> list[str]:
    """With the box from the truth, which tells where the object is and that it is there."""
    lines = [
        "| box from the truth (oracle) | test set | n | box | phrase and box | must pass | | LiteMedSAM, same boxes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for goal in ORACLE:
        box, both = (estimate(dice_of(cases, goal.datasets, goal.concept, mode)) for mode in ("I", "TI"))
        other = estimate(dice_of(litemedsam, goal.datasets, goal.concept, "I"))
        lines.append(
            f"| {goal.label} | {', '.join(goal.datasets)} | {box.cases} | {told(box)} | {told(both)} | {goal.must:g} "
            f"| {verdict(max(box.value, both.value), goal)} | {told(other)} |"
        )
    return lines


def unet_table(cases: Cases, unet: Cases) -> list[str]:
    """All concepts that a U-Net was trained for, on the same images, the difference paired."""
    pairs = sorted({(case.dataset, case.concept) for case in unet})
    lines = [
        "| data set | concept | n | text alone | our U-Net | difference (95 %, paired) | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for dataset, concept in pairs:
        mine, other = dice_of(cases, [dataset], concept, "T"), dice_of(unet, [dataset], concept, "T")
        images = sorted(mine.keys() & other.keys())
        if len(images) < LEAST_POSITIVES:
            continue
        a, b = np.array([mine[name][0] for name in images]), np.array([other[name][0] for name in images])
        gain = paired_interval(b, a, [mine[name][1] for name in images])
        is_held = gain.value >= -UNET_MARGIN
        lines.append(
            f"| {dataset} | {concept} | {len(images)} | {a.mean():.3f} | {b.mean():.3f} "
            f"| {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f}) | {'held' if is_held else 'below'} |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mini", type=Path, nargs="+", metavar="FILE", help="results.json of medsam3 eval")
    parser.add_argument("--unet", type=Path, nargs="+", metavar="FILE", help="those of comparators.py unet")
    parser.add_argument("--litemedsam", type=Path, nargs="+", metavar="FILE", help="those of comparators.py litemedsam")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="take what is not named from FOLDER/mini and so on")
    parser.add_argument("--only-print", action="store_true", help="change no page")
    args = parser.parse_args(argv)
    given: dict[Model, list[Path] | None] = {"mini": args.mini, "unet": args.unet, "litemedsam": args.litemedsam}
    if args.run is not None:
        of_run = {model: args.run / model / "results.json" for model in given}
        given = {model: paths or [of_run[model]] * of_run[model].is_file() for model, paths in given.items()}
    new = [
        case for model, paths in given.items() for path in paths or () for case in kept(model, read_results(path).cases)
    ]
    answered = {(case.model, case.mode) for case in new}
    cases = [*(case for case in read_kept() if (case.model, case.mode) not in answered), *new]
    own, unet, lite = ([case for case in cases if case.model == model] for model in given)
    tables = [text_table(own, unet), oracle_table(own, lite), *([unet_table(own, unet)] if unet else [])]
    block = "\n\n".join("\n".join(lines) for lines in tables) + "\n"
    print(block)
    if args.only_print:
        return
    text, count = MARKS.subn(lambda found: found[1] + block + found[2], PAGE.read_text(encoding="utf-8"))
    if count != 1:
        raise SystemExit("docs/results.md has no marks for goals")
    write_kept(cases)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
