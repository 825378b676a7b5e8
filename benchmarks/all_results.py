"""Measure every figure of the documentation again, one step after the other: `make results DATA=folder`.

    python benchmarks/all_results.py DATA --out runs/results          # goes on where it was broken off
    python benchmarks/all_results.py DATA --only agent sam3-speed     # some steps alone
    python benchmarks/all_results.py DATA --plan                      # what would be run, and for which page

A step is a command that the pages name. What it prints goes to `OUT/STEP.txt`, its folder to `OUT/STEP`, and a line to
`OUT/results.jsonl`: date, commit, SHA-256 of the weights, seconds, exit code. A step that was done on this commit with
these weights is not done again; one that failed is. `OUT/report.md` lists them all by page. The pages themselves are
changed by `readme_results.py` and `goals.py` alone; every other figure is copied by whoever
releases, who reads it first.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medsam3.eval.provenance import commit, weights_hash
from medsam3.store import Journal, write_text

ROOT = Path(__file__).resolve().parents[1]
HEADING = {"list": "results of every page", "version": 1}


@dataclass(frozen=True)
class ResultStep:
    """One measurement.

    Attributes:
        name: Of its folder and its text.
        pages: That hold its figures, relative to the repository.
        command: Words; `{data}`, `{out}` (this step's folder) and `{all}` (that of all steps) are filled in.
    """

    name: str
    pages: tuple[str, ...]
    command: str


STEPS = (
    ResultStep(
        "mini",
        ("README.md", "docs/results.md", "docs/results/mini.md", "docs/mini.md"),
        "medsam3 eval {data} --modes T,I,TI --absent 3 --out {out} --resume",
    ),
    ResultStep("unet", ("docs/results.md",), "benchmarks/comparators.py unet {data} --minutes 5 --out {out}"),
    ResultStep("litemedsam", ("docs/results.md",), "benchmarks/comparators.py litemedsam {data} --out {out}"),
    ResultStep(
        "readme",
        ("README.md", "docs/results/mini.md"),
        "benchmarks/readme_results.py take {all}/mini/results.json --again",
    ),
    ResultStep(
        "goals",
        ("docs/results.md",),
        "benchmarks/goals.py --mini {all}/mini/results.json --unet {all}/unet/results.json "
        "--litemedsam {all}/litemedsam/results.json",
    ),
    ResultStep(
        "mini-open",
        ("docs/results/mini-open.md", "docs/results.md"),
        "medsam3 eval {data} --model mini-open --modes T --absent 3 --out {out} --resume",
    ),
    ResultStep(
        "mini-frozen",
        ("docs/results/mini-frozen.md", "docs/results.md"),
        "medsam3 eval {data} --weights src/medsam3/weights/mini-frozen.safetensors --modes T --absent 3 --out {out} "
        "--resume",
    ),
    ResultStep(
        "clicks",
        ("docs/results/clicks.md", "docs/results.md"),
        "medsam3 eval {data} --modes clicks --limit 3 --out {out} --resume",
    ),
    ResultStep(
        "phrasings",
        ("docs/results/phrasings.md", "docs/results.md"),
        "medsam3 eval {data} --modes T --synonyms --limit 8 --out {out} --resume",
    ),
    ResultStep("phrases", ("docs/mini.md", "docs/design.md"), "benchmarks/phrases.py --held-out"),
    ResultStep("phrase-panel", ("docs/mini.md",), "benchmarks/phrases.py --panel"),
    ResultStep("mini-cost", ("docs/mini.md",), "benchmarks/mini.py --runs 5"),
    ResultStep(
        "volumes",
        ("docs/volumes.md", "README.md", "docs/results.md"),
        "benchmarks/stack_quality.py volumes --data {data} --split test --vote --nearest 5",
    ),
    ResultStep("clips", ("docs/volumes.md",), "benchmarks/stack_quality.py clips --data {data} --split test"),
    ResultStep("one-way", ("docs/volumes.md",), "benchmarks/one_way.py volumes --data {data}"),
    ResultStep("volume-speed", ("docs/volumes.md",), "benchmarks/volume.py speed --slices 6"),
    ResultStep("volume-memory", ("docs/volumes.md",), "benchmarks/volume.py memory --slices 50 200 400"),
    ResultStep("video", ("docs/volumes.md",), "benchmarks/volume.py video --frames 1000"),
    ResultStep("volume-sam3", ("docs/volumes.md",), "benchmarks/volume.py sam3 --side 1008"),
    ResultStep("sam3-speed", ("docs/sam3.md",), "benchmarks/sam3.py speed"),
    ResultStep("sam3-memory", ("docs/sam3.md",), "benchmarks/sam3.py memory"),
    ResultStep("sam3-train", ("docs/sam3.md",), "benchmarks/sam3.py train"),
    ResultStep("agent", ("docs/agent.md",), "medsam3 eval {data} --agent offline --out {out} --resume"),
    ResultStep(
        "agent-oracle",
        ("docs/agent.md",),
        "medsam3 eval {data} --agent oracle --rounds 3 --limit 2 --out {out} --resume",
    ),
    ResultStep("batch", ("docs/batch.md",), "benchmarks/batch.py scale --most 10000"),
    ResultStep("batch-workers", ("docs/batch.md",), "benchmarks/batch.py workers {data} --count 40"),
    ResultStep("server", ("docs/server.md",), "benchmarks/server_load.py --clients 100 --seconds 600"),
    ResultStep("kills", ("docs/reliability.md",), "benchmarks/kills.py --kills 50 --json {out}/kills.json"),
)


def words_of(step: ResultStep, data: str, out: Path) -> list[str]:
    """Give the command of a step as it is run: by this Python."""
    filled = step.command.format(
        data=shlex.quote(data), out=shlex.quote(str(out / step.name)), all=shlex.quote(str(out))
    )
    program, *rest = shlex.split(filled)
    return [sys.executable, *(("-m", "medsam3") if program == "medsam3" else (str(ROOT / program),)), *rest]


def run_all(steps: Sequence[ResultStep], data: str, out: Path) -> int:
    """Run what is not done, and write the report after each step.

    Returns:
        How many steps failed.
    """
    state = {"commit": commit(), "weights": weights_hash("mini", None)}
    failed = 0
    with Journal(out / "results.jsonl", HEADING, other="refuse") as journal:
        for step in steps:
            if any(is_done(record, step, state) for record in journal.records):
                print(f"{step.name}: done before", file=sys.stderr)
                continue
            print(f"{step.name}: {step.command}", file=sys.stderr, flush=True)
            (out / step.name).mkdir(exist_ok=True)
            begun = time.monotonic()
            with (out / f"{step.name}.txt").open("wb") as stream:
                code = subprocess.run(
                    words_of(step, data, out), stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, check=False
                ).returncode
            seconds, date = round(time.monotonic() - begun, 1), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
            journal.append({**asdict(step), **state, "date": date, "seconds": seconds, "code": code})
            print(f"{step.name}: {seconds:.0f} s, exit code {code}", file=sys.stderr, flush=True)
            failed += code != 0
            write_text(out / "report.md", report(journal.records))
    return failed


def is_done(record: dict[str, Any], step: ResultStep, state: dict[str, Any]) -> bool:
    """Tell whether a step was done well, in this form, on this commit with these weights."""
    wanted = {"name": step.name, "command": step.command, "code": 0, **state}
    return all(record[key] == value for key, value in wanted.items())


def report(records: Sequence[dict[str, Any]]) -> str:
    """List the last measurement of each step, by page."""
    last = {record["name"]: record for record in records}
    lines = ["# Measured again", ""]
    for page in sorted({page for record in last.values() for page in record["pages"]}):
        lines += [f"## {page}", "", "| step | date | commit | weights | seconds | exit code |", "|" + " --- |" * 6]
        for record in last.values():
            if page in record["pages"]:
                cells = (record["date"], str(record["commit"])[:10], str(record["weights"])[:12])
                lines.append(f"| {record['name']} | {' | '.join(cells)} | {record['seconds']} | {record['code']} |")
        lines.append("")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with an index.csv (docs/metrics.md)")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="these steps alone")
    parser.add_argument("--plan", action="store_true", help="list the steps and run none")
    arguments = parser.parse_args(argv)
    steps = [step for step in STEPS if arguments.only is None or step.name in arguments.only]
    if arguments.plan:
        for step in steps:
            print(f"{step.name}: {step.command}  -> {', '.join(step.pages)}")
        return 0
    return int(run_all(steps, str(Path(arguments.data).resolve()), arguments.out.resolve()) > 0)


if __name__ == "__main__":
    sys.exit(main())
