"""Measure what a user would take instead of `mini`, on the very cases that `medsam3 eval` asks.

Run: python benchmarks/comparators.py unet DATA --minutes 20 --out runs/unet
     python benchmarks/comparators.py litemedsam DATA --out runs/litemedsam
     medsam3 eval DATA --out runs/mini --beside runs/unet/results.json runs/litemedsam/results.json

U-Nets are trained here, one for each data set, and asked by name (mode T); they need `pip install 'medsam3[baseline]'`.
LiteMedSAM comes as published and is asked by boxes from the truth (mode I). Reports are those of `medsam3 eval`; a run
that was broken off goes on with --resume.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path

from baselines.fit import UnetConfig
from baselines.run import BASELINE_MODES, answer_by_litemedsam, answer_by_unets

from medsam3.data.index import Fold, in_fold, read_index
from medsam3.errors import InputError
from medsam3.eval.cases import EvalConfig, select
from medsam3.eval.report import CaseFiles, write_report
from medsam3.eval.run import Answerer, EvalJob, run_job
from medsam3.eval.tables import markdown, result_tables


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparator", choices=tuple(BASELINE_MODES))
    parser.add_argument("data", type=Path, help="folder with an index.csv")
    parser.add_argument("--minutes", type=float, default=20.0, help="to train each U-Net, default: 20")
    parser.add_argument("--datasets", default="", metavar="A,B", help="only these data sets")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--fold", metavar="K/N", help="split anew by group, as medsam3 eval --fold does")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N images of each data set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("eval-results"))
    parser.add_argument("--resume", action="store_true")
    return parser.parse_args(given)


def run(args: argparse.Namespace) -> int:
    """Measure, and write the report; 2 if something could not be evaluated."""
    config = EvalConfig(
        split=args.split,
        datasets=tuple(name for name in args.datasets.split(",") if name),
        modes=(BASELINE_MODES[args.comparator],),
        limit=args.limit,
        seed=args.seed,
        fold=None if args.fold is None else Fold.from_text(args.fold),
    )
    rows = read_index(args.data) if config.fold is None else in_fold(read_index(args.data), config.fold)
    chosen = select(rows, config)
    command = shlex.join(["python", *sys.argv])
    job = EvalJob(
        args.data, rows, chosen, config, args.comparator, None, False, args.out, args.resume, beside=(), command=command
    )
    answerer: Answerer = answer_by_litemedsam
    if args.comparator == "unet":
        answerer = partial(answer_by_unets, config=UnetConfig(minutes=args.minutes, seed=args.seed))
    results = run_job(job, lambda done, count, name: print(f"{name}: {done} of {count}", file=sys.stderr), answerer)
    written = write_report(results, args.out, CaseFiles(args.data, chosen.rows, (args.out / "masks",)))
    print(markdown(result_tables(results)))
    print("written: " + ", ".join(str(path) for path in written))
    for failure in results.failures:
        print(f"error: {failure.image} {failure.concept}: {failure.error}", file=sys.stderr)
    return 2 if results.failures else 0


if __name__ == "__main__":
    try:
        sys.exit(run(arguments()))
    except InputError as error:
        sys.exit(f"error: {error}")
