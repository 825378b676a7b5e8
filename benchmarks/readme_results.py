"""Put measured results into the README: the table between its result marks, from the JSON of `medsam3 eval`.

Run: medsam3 eval DATA --modes T,I --out eval-mini
     python benchmarks/readme_results.py eval-mini/results.json

It keeps the JSON without its single cases as docs/results/mini.json; a test holds the README to that file.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KEPT = ROOT / "docs" / "results" / "mini.json"
MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
ROWS = (
    ("polyp, colonoscopy", "kvasir_seg", "polyp"),
    ("polyp, colonoscopy video", "cvc_clinicdb", "polyp"),
    ("polyp, set never trained on", "cvc_colondb", "polyp"),
    ("skin lesion, dermoscopy", "ph2", "skin lesion"),
    ("skin lesion, dermoscopy", "isic2017", "skin lesion"),
    ("optic disc, fundus", "drishti_gs", "optic disc"),
    ("optic cup, fundus", "drishti_gs", "optic cup"),
    ("breast tumor, ultrasound", "busi", "breast tumor"),
    ("fetal head, ultrasound", "hc18", "fetal head"),
    ("liver, CT", "lits_liver", "liver"),
    ("lung, X-ray", "covid_cxr", "lung"),
    ("cell nucleus, microscopy", "dsb2018", "cell nucleus"),
    ("cell nucleus, set never trained on", "monuseg", "cell nucleus"),
)


def table(results: dict[str, Any]) -> str:
    """The README's table in markdown, from a results JSON."""
    about, summary, pooled = results["about"], results["summary"], results["extras"]["pooled"]
    found = {(row["scope"]["dataset"], row["scope"]["concept"], row["mode"]): row for row in summary["overlap"]}
    lines = [
        "| concept | test set | n | phrase alone: Dice (95 % interval) | box from the truth (oracle): Dice |",
        "| --- | --- | --- | --- | --- |",
    ]
    for label, dataset, concept in ROWS:
        text, box = found[dataset, concept, "T"]["dice"], found[dataset, concept, "I"]["dice"]
        lines.append(
            f"| {label} | {dataset} | {text['cases']} | {text['value']:.3f} ({text['low']:.3f}-{text['high']:.3f}) "
            f"| {box['value']:.3f} |"
        )
    commits = dict.fromkeys([about["commit"]] if about["commit"] else [run["about"]["commit"] for run in pooled])
    everything = next(row for row in summary["presence"] if row["scope"] == {"dataset": "all", "concept": "all"})
    auroc = everything["auroc"]
    lines += [
        "",
        f"Is the concept there at all? Over all {everything['positives']} present and {everything['negatives']} absent "
        f"pairs of image and concept: AUROC {auroc['value']:.3f} ({auroc['low']:.3f}-{auroc['high']:.3f}), sensitivity "
        f"{everything['sensitivity']:.3f}, specificity {everything['specificity']:.3f}.",
        "",
        f"Measured {about['date'][:10]} at commit {' and '.join(commit[:10] for commit in commits)}, weights "
        f"`{about['weights_sha256'][:12]}`, intervals by "
        "bootstrap over patients or groups; a missed object counts 0. All sets, metrics and settings: "
        "[docs/results](docs/results/mini.md).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of medsam3 eval")
    source = parser.parse_args().results
    results = json.loads(source.read_text(encoding="utf-8"))
    results.pop("cases", None)
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    KEPT.write_text(json.dumps(results) + "\n", encoding="utf-8")
    KEPT.with_suffix(".md").write_text(source.with_name("report.md").read_text(encoding="utf-8"), encoding="utf-8")
    readme = ROOT / "README.md"
    text, count = MARKS.subn(lambda found: found[1] + table(results) + found[2], readme.read_text(encoding="utf-8"))
    if count != 1:
        raise SystemExit("README.md has no result marks")
    readme.write_text(text, encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
