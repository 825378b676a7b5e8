"""`medsam3 eval`: measure a model on data that has masks, or compare two such measurements."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsam3.errors import InputError

if TYPE_CHECKING:
    from medsam3.data.index import IndexRow, Split
    from medsam3.eval.cases import EvalConfig, EvalMode
    from medsam3.eval.results import Results
    from medsam3.eval.run import Progress
    from medsam3.eval.tables import Table

_EXAMPLES = """modes: T text alone; TB text, then its own boxes as prompts; I and TI boxes drawn from the truth (oracle)

examples:
  medsam3 eval DATA_DIR
  medsam3 eval DATA_DIR --modes T,TB,I,TI --jitter 0,5,10,20 --synonyms --absent 3 --out runs/mini
  medsam3 eval --coco annotations.json --images pictures/
  medsam3 eval --folder images/ masks/ --concept polyp --split all
  medsam3 eval DATA_DIR --out runs/mini --resume --beside runs/other/results.json
  medsam3 eval DATA_DIR --datasets busi --fold 2/5 --weights runs/fold2/mini.safetensors
  medsam3 eval DATA_DIR --duplicates
  medsam3 eval --pool runs/fold*/results.json --out runs/folds
  medsam3 eval --compare runs/a/results.json runs/b/results.json"""
_WIDTH_OF_A_FILE = 200  # columns, where stdout is not a terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medsam3 eval`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("data", nargs="?", type=Path, metavar="DATA_DIR", help="folder with an index.csv")
    parser.add_argument("--coco", type=Path, metavar="FILE", help="COCO JSON in place of DATA_DIR")
    parser.add_argument("--images", type=Path, metavar="DIR", help="of --coco: folder of its images, default: its own")
    parser.add_argument("--folder", nargs=2, type=Path, metavar=("IMAGES", "MASKS"), help="two folders, in its place")
    parser.add_argument("--concept", default="", metavar="PHRASE", help="of --folder: what is not 0 in the masks")
    parser.add_argument("--labels", default="", metavar="V=PHRASE,..", help="of --folder: concepts of a label map")
    parser.add_argument("--group-pattern", default="", metavar="REGEX", help="of --folder: what stays in one split")
    parser.add_argument("--model", default="mini", help="name of the model (default: mini)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights in place of the model's own")
    parser.add_argument("--flips", action="store_true", help="ask phrases of the mirrored picture too (mini)")
    parser.add_argument("--datasets", default="", metavar="A,B", help="only these data sets")
    parser.add_argument("--split", default="test", choices=("train", "val", "test", "all"), help="default: test")
    parser.add_argument("--fold", metavar="K/N", help="split each data set anew by group, and take fold K of N as test")
    parser.add_argument("--modes", default="T", metavar="T,TB,I,TI", help="how to ask, default: T")
    parser.add_argument("--synonyms", action="store_true", help="ask a panel of other phrasings of each concept too")
    parser.add_argument(
        "--absent", type=int, default=0, metavar="N", help="ask N concepts of other kinds of image in each picture"
    )
    parser.add_argument("--jitter", default="0", metavar="P,P", help="shift oracle boxes by up to P %% of their side")
    parser.add_argument("--boxes", default="parts", choices=("parts", "whole"), help="oracle boxes, default: parts")
    parser.add_argument(
        "--volumes",
        default="slices",
        choices=("slices", "follow", "vote"),
        help="each slice for itself (default), objects followed, or a vote of three planes",
    )
    parser.add_argument("--tolerance", type=float, default=2.0, metavar="T", help="of NSD, px or mm, default: 2")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N images of each data set")
    parser.add_argument("--seed", type=int, default=0, help="of the jitter and the intervals, default: 0")
    parser.add_argument("--out", type=Path, default=Path("eval-results"), metavar="DIR", help="default: eval-results")
    parser.add_argument("--resume", action="store_true", help="go on with the run that is in --out")
    parser.add_argument(
        "--beside", nargs="+", type=Path, default=[], metavar="FILE", help="results.json to set this run against"
    )
    parser.add_argument("--duplicates", action="store_true", help="list pictures that stand in two splits, and stop")
    parser.add_argument("--json", action="store_true", help="print JSON to stdout in place of tables")
    parser.add_argument(
        "--agent", metavar="POLICY", help="measure the agent beside the plain phrase: offline, oracle, or an LLM's name"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="R", help="of the agent, default: 3")
    parser.add_argument("--send-images", metavar="PROVIDER", help="of the agent: let pictures go to this provider")
    parser.add_argument(
        "--pool",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="results.json of folds, or of data sets evaluated apart, as one; with DATA_DIR its pictures are drawn",
    )
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A.json", "B.json"), help="two results.json")


def run(args: argparse.Namespace) -> int:
    """Run `medsam3 eval`."""
    if args.compare is not None:
        if args.data is not None:
            raise InputError("--compare takes two results.json and no data folder: leave one of them out")
        return _compare(args)
    if args.pool is not None:
        return _pool(args)
    _check_source(args)
    if args.duplicates:
        return _duplicates(args)
    config = config_from(args)
    if args.agent is not None:
        if args.data is None:
            raise InputError("--agent takes a DATA_DIR with an index.csv, not --coco or --folder")
        return _agent(args, config)
    results, written = evaluate(args, config)
    return report_run(args, results, written)


def _check_source(args: argparse.Namespace) -> None:
    given = [one for one in (args.data, args.coco, args.folder) if one is not None]
    if len(given) != 1:
        what = "no data folder was given" if not given else "data was given in more than one way"
        raise InputError(f"{what}: name a folder with an index.csv, or --coco, or --folder (see: medsam3 eval --help)")
    if args.images is not None and args.coco is None:
        raise InputError("--images is the folder of a COCO file's images: give --coco too")
    if args.folder is None and (args.concept or args.labels or args.group_pattern):
        raise InputError(
            "--concept, --labels and --group-pattern say what the masks of --folder mean: give --folder too"
        )


def _source(args: argparse.Namespace) -> tuple[Path, tuple[IndexRow, ...]]:
    """Read all rows of the data, and say which folder its images are named below."""
    from medsam3.data.folders import FolderSource, parse_labels, samples_from_folder  # noqa: PLC0415
    from medsam3.data.index import read_index  # noqa: PLC0415
    from medsam3.data.samples import samples_from_coco  # noqa: PLC0415
    from medsam3.eval.cases import rows_of_samples  # noqa: PLC0415

    if args.coco is not None:
        images = args.images or args.coco.parent
        split: Split = "test" if args.split == "all" else args.split
        return images, rows_of_samples(samples_from_coco(args.coco, images, split), args.coco, are_instances=True)
    if args.folder is not None:
        images, masks = args.folder
        labels = parse_labels(args.labels) if args.labels else ()
        source = FolderSource(images, masks, args.concept, labels, args.group_pattern)
        return images, rows_of_samples(samples_from_folder(source), masks, are_instances=False)
    return args.data, read_index(args.data)


def _pool(args: argparse.Namespace) -> int:
    from medsam3.data.index import read_index  # noqa: PLC0415
    from medsam3.eval.pool import make_place, pool  # noqa: PLC0415
    from medsam3.eval.report import CaseFiles, write_report  # noqa: PLC0415
    from medsam3.eval.results import read_results  # noqa: PLC0415

    runs = [read_results(path) for path in args.pool]
    results = pool(runs, command=_command(), beside=[read_results(path) for path in args.beside])
    make_place(args.out)
    masks = tuple(path.parent / "masks" for path in args.pool)
    files = None if args.data is None else CaseFiles(args.data, read_index(args.data), masks)
    return report_run(args, results, write_report(results, args.out, files))


def _command() -> str:
    program = Path(sys.argv[0])
    is_ours = program.stem == "medsam3" or program.parts[-2:] == ("medsam3", "__main__.py")  # python -m medsam3
    return shlex.join(["medsam3", *sys.argv[1:]]) if is_ours else "from Python"


def _agent(args: argparse.Namespace, config: EvalConfig) -> int:
    from medsam3.eval.agent_mode import evaluate_agent  # noqa: PLC0415

    with _progress_bar() as progress:
        tables, code = evaluate_agent(args, config, progress)
    for table in tables:
        _print_table(table)
    return code


def report_run(args: argparse.Namespace, results: Results, written: Sequence[Path]) -> int:
    """Print what was found and written; the exit code is 2 where something could not be evaluated."""
    from medsam3.eval.tables import printable, result_tables  # noqa: PLC0415

    if args.json:
        print(json.dumps(results.to_json(with_cases=False), indent=2))
    else:
        for table in result_tables(results):
            _print_table(table)
        for note in results.extras.notes:
            print(printable(note))
        if results.skipped_volumes:
            print(f"left out: {results.skipped_volumes} rows of volumes, which are asked by text and of a model alone")
        print("written: " + ", ".join(str(path) for path in written))
    for failure in results.failures:
        told = printable(f"{failure.image} {failure.concept}: {failure.error}")
        print(f"medsam3: error: {told}", file=sys.stderr)
    return 2 if results.failures else 0


def evaluate(args: argparse.Namespace, config: EvalConfig) -> tuple[Results, list[Path]]:
    """Load the model, answer what the journal lacks, and write the report.

    Returns:
        The results and the files that were written.
    """
    from medsam3.data.index import in_fold  # noqa: PLC0415
    from medsam3.eval.cases import select  # noqa: PLC0415  scipy and the readers, not for --help
    from medsam3.eval.report import CaseFiles, write_report  # noqa: PLC0415
    from medsam3.eval.results import read_results  # noqa: PLC0415
    from medsam3.eval.run import EvalJob, run_job  # noqa: PLC0415

    folder, rows = _source(args)
    rows = rows if config.fold is None else in_fold(rows, config.fold)
    job = EvalJob(
        folder=folder,
        rows=rows,
        chosen=select(rows, config, with_volumes=True),
        config=config,
        model=args.model,
        weights=args.weights,
        flips=args.flips,
        out=args.out,
        is_resumed=args.resume,
        beside=tuple(read_results(path) for path in args.beside),
        command=_command(),
    )
    with _progress_bar() as progress:
        results = run_job(job, progress)
    return results, write_report(results, args.out, CaseFiles(folder, job.chosen.rows, (args.out / "masks",)))


def config_from(args: argparse.Namespace) -> EvalConfig:
    """The settings that the arguments say.

    Raises:
        InputError: An unknown mode, or a number that cannot be read or is out of range.
    """
    from medsam3.data.index import Fold  # noqa: PLC0415
    from medsam3.eval.cases import MODES, EvalConfig  # noqa: PLC0415

    asked = _names(args.modes)
    unknown = [mode for mode in asked if mode not in MODES]
    if unknown:
        raise InputError(f"mode {', '.join(unknown)} is not known, allowed are {', '.join(MODES)}")
    modes: tuple[EvalMode, ...] = tuple(mode for mode in MODES if mode in asked)
    try:
        jitters = tuple(dict.fromkeys(float(part) for part in _names(args.jitter)))
    except ValueError as error:
        raise InputError(
            f"--jitter is {args.jitter!r}, allowed are numbers joined by commas, such as 0,5,10"
        ) from error
    return EvalConfig(
        split=args.split,
        datasets=_names(args.datasets),
        modes=modes,
        with_synonyms=args.synonyms,
        jitters_percent=jitters,
        limit=args.limit,
        tolerance=args.tolerance,
        box_rule=args.boxes,
        seed=args.seed,
        absent=args.absent,
        fold=None if args.fold is None else Fold.from_text(args.fold),
        volumes=args.volumes,
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _compare(args: argparse.Namespace) -> int:
    from medsam3.eval.compare import compare  # noqa: PLC0415
    from medsam3.eval.results import read_results  # noqa: PLC0415
    from medsam3.eval.tables import comparison_table  # noqa: PLC0415
    from medsam3.store import without_nan  # noqa: PLC0415

    first, second = (read_results(path) for path in args.compare)
    found = compare(first, second, seed=args.seed)
    if args.json:
        rows = [{**asdict(row), "holds": row.holds} for row in found.rows]
        entry: dict[str, Any] = {"unpaired": found.unpaired, "is_same_data": found.is_same_data, "rows": rows}
        print(json.dumps(without_nan(entry), indent=2))
        return 0
    _print_table(comparison_table(found, *(str(path) for path in args.compare)))
    return 0


def _duplicates(args: argparse.Namespace) -> int:
    from medsam3.data.duplicates import near_duplicates, thumbnails  # noqa: PLC0415
    from medsam3.eval.tables import duplicates_table  # noqa: PLC0415

    folder, rows = _source(args)
    rows = tuple(row for row in rows if not args.datasets or row.dataset in _names(args.datasets))
    with _progress_bar() as progress:
        pictures = thumbnails(rows, folder, on_image=lambda done, count: progress(done, count, "pictures"))
    found = near_duplicates(pictures)
    if args.json:
        print(json.dumps([asdict(pair) for pair in found], indent=2))
    else:
        _print_table(duplicates_table(found, len(pictures)))
    return 0


def _print_table(table: Table) -> None:
    from rich import box  # noqa: PLC0415  rich takes a tenth of a second to import
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table as RichTable  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from medsam3.eval.tables import printable  # noqa: PLC0415

    shown = RichTable(
        title=Text(printable(table.title)),
        caption=Text(printable(table.note)),
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    shown.caption_justify = "left"
    for heading in table.headings:
        shown.add_column(Text(heading))
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else _WIDTH_OF_A_FILE).print(shown)


@contextmanager
def _progress_bar() -> Iterator[Progress]:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns: Sequence[Any] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task("images", total=None)
        yield lambda done, count, name: shown.update(task, completed=done, total=count, description=name or "images")
