"""Read the test split once for shipped weights, keep what was found, and put it into the README.

Run: python benchmarks/readme_results.py measure DATA --out runs/mini     # asks all; goes on if it was broken off
     python benchmarks/readme_results.py take runs/pooled/results.json    # measured already, in parts by --pool
     python benchmarks/readme_results.py moved runs/mini/results.json     # which rows are not what was kept?
     python benchmarks/readme_results.py check                            # is the README that of the kept file?

Kept is the JSON of `medsam3 eval` without its single cases, docs/results/MODEL.json, with the date and the hash of the
weights of every reading, and the report beside it. Weights that have read the test split are refused, so that nothing
is chosen by it: --again reads it once more, and --to FILE keeps the outcome in another file. Rows of the README come
from docs/results/mini.json alone.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import medsam3
from medsam3.cli.main import main as command
from medsam3.store import sha256_of, write_json, write_text

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
README = ROOT / "README.md"
WEIGHTS = Path(medsam3.__file__).parent / "weights"
SHOWN = "mini"
"""The model whose rows the README shows."""
LEAST_MOVE = 0.001
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
ROWS = (
    ("polyp, colonoscopy", "kvasir_seg", "polyp"),
    ("polyp, set never trained on", "cvc_colondb", "polyp"),
    ("skin lesion, dermoscopy", "isic2017", "skin lesion"),
    ("optic disc, fundus", "drishti_gs", "optic disc"),
    ("optic cup, fundus", "drishti_gs", "optic cup"),
    ("breast tumor, ultrasound", "busi", "breast tumor"),
    ("liver, CT", "lits_liver", "liver"),
    ("lung, X-ray", "covid_cxr", "lung"),
    ("cell nucleus, microscopy", "dsb2018", "cell nucleus"),
    ("cell nucleus, set never trained on", "monuseg", "cell nucleus"),
)


def table(results: dict[str, Any]) -> str:
    """The README's table in markdown, from a results JSON."""
    about, summary, pooled = results["about"], results["summary"], results["extras"]["pooled"]
    found = {(row["scope"]["dataset"], row["scope"]["concept"], row["mode"]): row for row in summary["overlap"]}
    has_boxes = any(mode == "I" for _, _, mode in found)
    lines = [
        "| concept | test set | n | phrase alone: Dice (95 % interval) |"
        + (" box from the truth (oracle): Dice |" if has_boxes else ""),
        "| --- | --- | --- | --- |" + (" --- |" if has_boxes else ""),
    ]
    for label, dataset, concept in ROWS:
        text = found[dataset, concept, "T"]["dice"]
        row = f"| {label} | {dataset} | {text['cases']} | {text['value']:.3f} ({text['low']:.3f}-{text['high']:.3f}) |"
        lines.append(row + (f" {found[dataset, concept, 'I']['dice']['value']:.3f} |" if has_boxes else ""))
    commits = dict.fromkeys([about["commit"]] if about["commit"] else [run["about"]["commit"] for run in pooled])
    everything = next(row for row in summary["presence"] if row["scope"] == {"dataset": "all", "concept": "all"})
    auroc = everything["auroc"]
    lines += [
        "",
        f"Is the concept there at all? Over all {everything['positives']} present and {everything['negatives']} absent "
        f"pairs of image and concept: AUROC {auroc['value']:.3f} ({auroc['low']:.3f}-{auroc['high']:.3f}), sensitivity "
        f"{everything['sensitivity']:.3f}, specificity {everything['specificity']:.3f}, where "
        f'"not sure" counts as a yes ({everything["unsure"]:.0%} of the answers).',
        "",
        f"Measured {about['date'][:10]} at commit {' and '.join(commit[:10] for commit in commits)}, weights "
        f"`{about['weights_sha256'][:12]}`, intervals by "
        "bootstrap over patients or groups; a missed object counts 0. All sets, metrics and settings: "
        "[docs/results](docs/results/mini.md).",
    ]
    return "\n".join(lines) + "\n"


def readings_of(kept: Path) -> list[dict[str, Any]]:
    """List when and by which weights the test split was read, as the kept file says; [] if there is none."""
    if not kept.is_file():
        return []
    entry = json.loads(kept.read_text(encoding="utf-8"))
    about = entry["about"]
    first = {name: about[name] for name in ("date", "weights_sha256", "commit")}
    readings: list[dict[str, Any]] = entry.get("readings", [first])
    return readings


def refuse_second_reading(kept: Path, model: str, *, is_again: bool) -> None:
    """Stop if the shipped weights have read the test split before, unless that is wanted."""
    digest = sha256_of(WEIGHTS / f"{model}.safetensors")
    earlier = [one for one in readings_of(kept) if one["weights_sha256"] == digest]
    if earlier and not is_again:
        raise SystemExit(
            f"error: these weights of {model} ({digest[:12]}) read the test split on {earlier[-1]['date']}, kept in "
            f"{kept}: --again reads it once more, --to FILE keeps it elsewhere"
        )


def check_results(results: dict[str, Any], model: str) -> None:
    """Stop if results are not those of the shipped weights on the whole test split."""
    about, config = results["about"], results["config"]
    wanted: dict[str, tuple[Any, Any]] = {
        "model": (about["model"], model),
        "weights": (about["weights_sha256"], sha256_of(WEIGHTS / f"{model}.safetensors")),
        "split": (config["split"], "test"),
        "limit": (config["limit"], None),
        "fold": (config["fold"], None),
        "data sets": (config["datasets"] if not results["extras"]["pooled"] else [], []),
    }
    wrong = [f"{name} is {found}, wanted is {right}" for name, (found, right) in wanted.items() if found != right]
    if wrong:
        raise SystemExit(f"error: not the shipped weights on the whole test split: {'; '.join(wrong)}")


def keep(source: Path, kept: Path, model: str) -> dict[str, Any]:
    """Keep results and their report, with this reading after the earlier ones."""
    results: dict[str, Any] = json.loads(source.read_text(encoding="utf-8"))
    check_results(results, model)
    results.pop("cases", None)
    about = results["about"]
    reading = {name: about[name] for name in ("date", "weights_sha256", "commit")}
    earlier = [one for one in readings_of(kept) if one != reading]
    results["readings"] = [*earlier, reading]
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_json(kept, results, indent=None)
    report = source.with_name("report.md").read_text(encoding="utf-8")
    write_text(kept.with_suffix(".md"), report)
    return results


def with_table(readme: str, results: dict[str, Any]) -> str:
    """Put the table between the README's result marks."""
    text, count = MARKS.subn(lambda found: found[1] + table(results) + found[2], readme)
    if count != 1:
        raise SystemExit("error: README.md has no result marks")
    return text


def moved(results: dict[str, Any], kept: dict[str, Any]) -> list[str]:
    """List the figures by which results differ from kept ones by a thousandth or more, the largest difference first."""
    found, before = _figures(results), _figures(kept)
    both = sorted(found.keys() & before.keys(), key=lambda name: -abs(found[name] - before[name]))
    lines = [
        f"| {' | '.join(name)} | {before[name]:.3f} | {found[name]:.3f} | {found[name] - before[name]:+.3f} |"
        for name in both
        if abs(found[name] - before[name]) >= LEAST_MOVE
    ]
    return [
        f"{len(lines)} of {len(both)} figures moved by {LEAST_MOVE:g} or more; {len(found.keys() - before.keys())} are "
        f"new, {len(before.keys() - found.keys())} were not measured again",
        "",
        "| data set | concept | figure | kept | now | difference |",
        "|" + " --- |" * 6,
        *lines,
    ]


def _figures(results: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    """Name the mean Dice of every row, and sensitivity and specificity of presence, by data set and concept."""
    summary = results["summary"]
    figures = {
        (row["scope"]["dataset"], row["scope"]["concept"], f"Dice, {row['mode']}"): row["dice"]["value"]
        for row in summary["overlap"]
    }
    figures |= {
        (row["scope"]["dataset"], row["scope"]["concept"], name): row[name]
        for row in summary["presence"]
        for name in ("sensitivity", "specificity")
    }
    return {name: value for name, value in figures.items() if value is not None}


def check() -> None:
    """Stop if the README shows other rows than the kept file, or the file is of other weights than the shipped ones."""
    results = json.loads((RESULTS / f"{SHOWN}.json").read_text(encoding="utf-8"))
    check_results(results, SHOWN)
    readme = README.read_text(encoding="utf-8")
    if with_table(readme, results) != readme:
        raise SystemExit(f"error: README.md shows other rows than {RESULTS / f'{SHOWN}.json'}: take them from there")


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    tasks.add_parser("check")
    look = tasks.add_parser("moved")
    measure, take = tasks.add_parser("measure"), tasks.add_parser("take")
    measure.add_argument("data", type=Path, help="folder with an index.csv")
    measure.add_argument("--out", type=Path, required=True, help="folder of the run")
    measure.add_argument("--modes", default="T,I,TI", help="how to ask, default: T,I,TI, which the pages show")
    for one in (look, take):
        one.add_argument("results", type=Path, help="results.json of medsam3 eval")
    look.add_argument("--model", default=SHOWN, help="shipped weights, default: mini")
    for one in (measure, take):
        one.add_argument("--model", default=SHOWN, help="shipped weights, default: mini")
        one.add_argument("--again", action="store_true", help="read it once more")
        one.add_argument("--to", type=Path, metavar="FILE", help="in place of docs/results/MODEL.json")
    args = parser.parse_args(given)
    if args.task == "check":
        check()
        return
    if args.task == "moved":
        pair = (args.results, RESULTS / f"{args.model}.json")
        print("\n".join(moved(*(json.loads(path.read_text(encoding="utf-8")) for path in pair))))
        return
    kept: Path = args.to or RESULTS / f"{args.model}.json"
    refuse_second_reading(kept, args.model, is_again=args.again)
    if args.task == "measure":
        asked = ["--model", args.model, "--modes", args.modes, "--absent", "3"]
        code = command(["eval", str(args.data), *asked, "--out", str(args.out), "--resume"])
        if code != 0:
            sys.exit(code)
    results = keep(args.out / "results.json" if args.task == "measure" else args.results, kept, args.model)
    if kept == RESULTS / f"{SHOWN}.json":
        shown = with_table(README.read_text(encoding="utf-8"), results)
        write_text(README, shown)
        print(table(results))


if __name__ == "__main__":
    main()
