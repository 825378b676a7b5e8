"""Measure every figure of the documentation again, one step after the other: `make results DATA=folder`.

    python benchmarks/all_results.py DATA --plan                      # what would be run, for which page, for how long
    python benchmarks/all_results.py DATA --out runs/results          # all; goes on where it was broken off
    python benchmarks/all_results.py DATA --kinds quality --jobs 2    # quality alone, two steps at a time
    python benchmarks/all_results.py DATA --only mini agent --take    # some steps; then put them into the pages

A step is a command that the pages name. Steps lie in `OUT/CODE`, a folder for each state of the source, so that no
figure of one state is taken for another's, and no report is replaced by another's. There what a step prints goes to
`STEP.txt`, its folder to `STEP`, and a line to `results.jsonl`: date, commit, SHA-256 of the source and of the
weights, seconds, exit code. A step that was done is not done again; one that failed or was broken off is, and an
evaluation then goes on at its next image. `report.md` lists them all by page, and `moved.txt` the rows of the README's
report that are not what they were.

No page is changed, unless `--take` asks for it: then `readme_results.py` and `goals.py` put the figures of `mini` into
the README, docs/results.md and docs/results, and note the reading. Every other figure is copied by whoever releases,
who reads it first. Steps of quality may run beside each other and on a busy machine; those of cost run alone,
and want one that has nothing else to do.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from medsam3.eval.provenance import commit, weights_hash
from medsam3.store import Journal, write_text

ROOT = Path(__file__).resolve().parents[1]
HEADING = {"list": "results of every page", "version": 2}
MEASURED = ("src/medsam3/**/*.py", "src/medsam3/**/*.json", "src/medsam3/**/*.safetensors", "benchmarks/**/*.py")
"""Files that figures come from; a change of a page or of a test makes no figure old."""

StepKind = Literal["quality", "cost", "table"]
"""What is found in images; seconds, bytes and kills; tables that are made of other steps' results."""


@dataclass(frozen=True)
class ResultStep:
    """One measurement.

    Attributes:
        name: Of its folder and its text.
        kind: Whether it may run beside others.
        minutes: CPU minutes that it took at its last measurement, on one core of a server; for the plan.
        pages: That hold its figures, relative to the repository.
        command: Words; `{data}`, `{out}` (this step's folder) and `{all}` (that of all steps) are filled in.
    """

    name: str
    kind: StepKind
    minutes: float
    pages: tuple[str, ...]
    command: str


_OPEN = "bhsd_hemorrhage,carotid_us,dsb2018,hc18,hvsmr_heart,isic2017,lits_liver,spider_spine,ukrin_kidney_mri"
_FROZEN = "kvasir_seg,cvc_clinicdb,cvc_colondb,ph2,isic2017,drishti_gs,busi,hc18,lits_liver,covid_cxr,dsb2018,monuseg"
STEPS = (
    ResultStep(
        "mini",
        "quality",
        85,
        ("README.md", "docs/results.md", "docs/results/mini.md", "docs/mini.md"),
        "medsam3 eval {data} --modes T,I,TI --absent 3 --out {out} --resume",
    ),
    ResultStep("agent", "quality", 40, ("docs/agent.md",), "medsam3 eval {data} --agent offline --out {out} --resume"),
    ResultStep(
        "agent-oracle",
        "quality",
        15,
        ("docs/agent.md",),
        "medsam3 eval {data} --agent oracle --rounds 3 --limit 2 --out {out} --resume",
    ),
    ResultStep(
        "clicks",
        "quality",
        15,
        ("docs/results/clicks.md", "docs/results.md"),
        "medsam3 eval {data} --modes clicks --limit 3 --out {out} --resume",
    ),
    ResultStep(
        "jitter",
        "quality",
        15,
        ("docs/results.md",),
        "medsam3 eval {data} --datasets kvasir_seg,ph2,isic2017,drishti_gs,busi --modes I,TI --jitter 0,5,10,20 "
        "--out {out} --resume",
    ),
    ResultStep(
        "phrasings",
        "quality",
        15,
        ("docs/results/phrasings.md", "docs/results.md"),
        "medsam3 eval {data} --modes T --synonyms --limit 8 --out {out} --resume",
    ),
    ResultStep(
        "mini-open",
        "quality",
        8,
        ("docs/results/mini-open.md", "docs/results.md"),
        f"medsam3 eval {{data}} --datasets {_OPEN} --model mini-open --modes T --absent 3 --out {{out}} --resume",
    ),
    ResultStep(
        "mini-frozen",
        "quality",
        25,
        ("docs/results/mini-frozen.md", "docs/results.md"),
        f"medsam3 eval {{data}} --datasets {_FROZEN} --weights src/medsam3/weights/mini-frozen.safetensors --modes T,I "
        "--out {out} --resume",
    ),
    ResultStep("phrases", "quality", 1, ("docs/mini.md", "docs/design.md"), "benchmarks/phrases.py --held-out"),
    ResultStep("phrase-panel", "quality", 0.1, ("docs/mini.md",), "benchmarks/phrases.py --panel"),
    ResultStep(
        "volumes",
        "quality",
        25,
        ("docs/volumes.md", "README.md", "docs/results.md"),
        "benchmarks/stack_quality.py volumes --data {data} --split test --nearest 5",
    ),
    ResultStep(
        "vote",
        "quality",
        5,
        ("docs/volumes.md",),
        "benchmarks/stack_quality.py volumes --data {data} --split test --vote --limit 1",
    ),
    ResultStep(
        "clips", "quality", 8, ("docs/volumes.md",), "benchmarks/stack_quality.py clips --data {data} --split test"
    ),
    ResultStep("one-way", "quality", 5, ("docs/volumes.md",), "benchmarks/one_way.py volumes --data {data}"),
    ResultStep(
        "litemedsam", "quality", 40, ("docs/results.md",), "benchmarks/comparators.py litemedsam {data} --out {out}"
    ),
    ResultStep(
        "unet", "quality", 110, ("docs/results.md",), "benchmarks/comparators.py unet {data} --minutes 5 --out {out}"
    ),
    ResultStep("mini-cost", "cost", 5, ("docs/mini.md",), "benchmarks/mini.py --runs 5"),
    ResultStep("volume-speed", "cost", 2, ("docs/volumes.md",), "benchmarks/volume.py speed --slices 6"),
    ResultStep("volume-memory", "cost", 10, ("docs/volumes.md",), "benchmarks/volume.py memory --slices 50 200 400"),
    ResultStep("video", "cost", 10, ("docs/volumes.md",), "benchmarks/volume.py video --frames 1000"),
    ResultStep("volume-sam3", "cost", 10, ("docs/volumes.md",), "benchmarks/volume.py sam3 --side 1008"),
    ResultStep("sam3-speed", "cost", 30, ("docs/sam3.md",), "benchmarks/sam3.py speed"),
    ResultStep("sam3-memory", "cost", 10, ("docs/sam3.md",), "benchmarks/sam3.py memory"),
    ResultStep("sam3-train", "cost", 10, ("docs/sam3.md",), "benchmarks/sam3.py train"),
    ResultStep("batch", "cost", 5, ("docs/batch.md",), "benchmarks/batch.py scale --most 10000"),
    ResultStep("batch-workers", "cost", 5, ("docs/batch.md",), "benchmarks/batch.py workers {data} --count 40"),
    ResultStep("server", "cost", 20, ("docs/server.md",), "benchmarks/server_load.py --clients 100 --seconds 600"),
    ResultStep("kills", "cost", 15, ("docs/reliability.md",), "benchmarks/kills.py --kills 50 --json {out}/kills.json"),
    ResultStep(
        "moved",
        "table",
        0,
        ("README.md", "docs/results/mini.md"),
        "benchmarks/readme_results.py moved {all}/mini/results.json",
    ),
    ResultStep("goals", "table", 0, ("docs/results.md",), "benchmarks/goals.py --run {all} --only-print"),
)
TAKEN = (
    ResultStep(
        "take-readme",
        "table",
        0,
        ("README.md", "docs/results/mini.md"),
        "benchmarks/readme_results.py take {all}/mini/results.json --again",
    ),
    ResultStep("take-goals", "table", 0, ("docs/results.md",), "benchmarks/goals.py --run {all}"),
)
"""What changes pages."""


@dataclass(frozen=True)
class MeasuredState:
    """What figures are of: the source's hash, the commit that it was nearest to, the hash of the default weights."""

    code: str
    commit: str | None
    weights: str | None


def state_of_source() -> MeasuredState:
    """Hash all that figures come from, weights and uncommitted changes included."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in MEASURED for path in ROOT.glob(pattern)}):
        total.update(f"{path.relative_to(ROOT).as_posix()}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\0".encode())
    return MeasuredState(total.hexdigest(), commit(), weights_hash("mini", None))


def words_of(step: ResultStep, data: str, place: Path) -> list[str]:
    """Give the command of a step as it is run: by this Python."""
    filled = step.command.format(
        data=shlex.quote(data), out=shlex.quote(str(place / step.name)), all=shlex.quote(str(place))
    )
    program, *rest = shlex.split(filled)
    return [sys.executable, *(("-m", "medsam3") if program == "medsam3" else (str(ROOT / program),)), *rest]


def run_all(steps: Sequence[ResultStep], data: str, out: Path, jobs: int = 1) -> int:
    """Run what is not done, and write the report after each step.

    Args:
        steps: What is to be measured.
        data: The folder of the data.
        out: The folder of the figures of all states of the source.
        jobs: How many steps of quality run at a time, each on one thread if they are several.

    Returns:
        How many steps failed.
    """
    state = state_of_source()
    place, failed = place_of(out, state), 0
    with Journal(place / "results.jsonl", HEADING, other="refuse") as journal:
        for step in steps:
            if is_done(journal.records, step):
                _tell(f"{step.name}: done before")
        wanted = [step for step in steps if step.kind == "table" or not is_done(journal.records, step)]
        for kind in get_args(StepKind):
            alike = [step for step in wanted if step.kind == kind]
            for record in _measured(alike, data, place, jobs if kind == "quality" else 1):
                journal.append({**record, **asdict(state)})
                write_text(place / "report.md", report(journal.records))
                failed += record["exit_code"] != 0
    _tell(f"figures and report: {place}")
    return failed


def place_of(out: Path, state: MeasuredState) -> Path:
    """Give the folder of a state's figures."""
    place = out / state.code[:12]
    place.mkdir(parents=True, exist_ok=True)
    return place


def _measured(steps: Sequence[ResultStep], data: str, place: Path, jobs: int) -> Iterator[dict[str, Any]]:
    """Run steps of one kind, so many at a time, and give a record of each as it ends."""
    threads = {"OMP_NUM_THREADS": "1"} if jobs > 1 else {}
    pool = ThreadPoolExecutor(jobs)
    try:
        for future in as_completed([pool.submit(_run, step, data, place, threads) for step in steps]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _run(step: ResultStep, data: str, place: Path, threads: dict[str, str]) -> dict[str, Any]:
    _tell(f"{step.name}: {step.command}")
    (place / step.name).mkdir(exist_ok=True)
    begun = time.monotonic()
    with (place / f"{step.name}.txt").open("wb") as stream:
        process = subprocess.Popen(
            words_of(step, data, place),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **threads},
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = code = os.waitstatus_to_exitcode(status)
    seconds, cpu_s = round(time.monotonic() - begun, 1), round(used.ru_utime + used.ru_stime, 1)
    _tell(f"{step.name}: {seconds:.0f} s, {cpu_s:.0f} CPU s, exit code {code}")
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {**asdict(step), "date": date, "seconds": seconds, "cpu_s": cpu_s, "exit_code": code}


def is_done(records: Sequence[dict[str, Any]], step: ResultStep) -> bool:
    """Tell whether a step was done well, in this form, on this state of the source."""
    wanted = {"name": step.name, "command": step.command, "exit_code": 0}
    return any(all(record[key] == value for key, value in wanted.items()) for record in records)


def report(records: Sequence[dict[str, Any]]) -> str:
    """List the last measurement of each step, by page."""
    last = {record["name"]: record for record in records}
    heads = ("step", "date", "commit", "source", "weights", "seconds", "CPU seconds", "exit code")
    lines = ["# Measured again", ""]
    for page in sorted({page for record in last.values() for page in record["pages"]}):
        lines += [f"## {page}", "", f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
        for record in last.values():
            if page in record["pages"]:
                hashes = (str(record[name])[:12] for name in ("commit", "code", "weights"))
                numbers = (record["seconds"], record["cpu_s"], record["exit_code"])
                lines.append(f"| {' | '.join(map(str, (record['name'], record['date'], *hashes, *numbers)))} |")
        lines.append("")
    return "\n".join(lines)


def plan(steps: Sequence[ResultStep]) -> str:
    """Say what would be run, for which pages, and for how long."""
    lines = [
        f"{step.name} ({step.kind}, {step.minutes:g} min): {step.command}  -> {', '.join(step.pages)}" for step in steps
    ]
    total = {kind: sum(step.minutes for step in steps if step.kind == kind) for kind in get_args(StepKind)}
    return "\n".join(
        [*lines, f"CPU minutes of one core: quality {total['quality']:g} (--jobs), cost {total['cost']:g}"]
    )


def take(data: str, out: Path) -> int:
    """Put the figures of `mini` on this state of the source into the pages.

    Returns:
        The exit code.
    """
    place = place_of(out, state_of_source())
    if not (place / "mini" / "results.json").is_file():
        _tell(f"error: mini was not measured on this state of the source: {place} has no mini/results.json")
        return 2
    return max(subprocess.run(words_of(step, data, place), cwd=ROOT, check=False).returncode for step in TAKEN)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder with an index.csv (docs/metrics.md)")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="these steps alone")
    parser.add_argument("--kinds", nargs="+", choices=get_args(StepKind), help="steps of these kinds alone")
    parser.add_argument("--jobs", type=int, default=1, help="steps of quality at a time, default: 1")
    parser.add_argument("--take", action="store_true", help="then put the figures of mini into the pages")
    parser.add_argument("--plan", action="store_true", help="list the steps and run none")
    arguments = parser.parse_args(argv)
    steps = [
        step
        for step in STEPS
        if (arguments.only is None or step.name in arguments.only)
        and (arguments.kinds is None or step.kind in arguments.kinds)
    ]
    if arguments.plan:
        print(plan(steps))
        return 0
    data, out = str(Path(arguments.data).resolve()), arguments.out.resolve()
    failed = run_all(steps, data, out, arguments.jobs)
    taken = take(data, out) if arguments.take and not failed else 0
    return int(failed > 0 or taken > 0)


if __name__ == "__main__":
    sys.exit(main())
