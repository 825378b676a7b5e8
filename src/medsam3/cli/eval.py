"""`medsam3 eval`: measure a model or a comparator on a data folder, or compare two such measurements."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from cyclopts import Parameter

from medsam3.cli.job import SEVERAL, Help, names_in
from medsam3.cli.terminal import complain, print_table, progress_bar, say, say_json
from medsam3.errors import InputError

if TYPE_CHECKING:
    from medsam3.data.index import IndexRow, Split
    from medsam3.eval.cases import EvalConfig
    from medsam3.eval.results import Results
    from medsam3.eval.run import EvalJob
    from medsam3.eval.tables import Table


@dataclass(frozen=True)
class Eval:
    """Arguments of `medsam3 eval`."""

    EXAMPLES: ClassVar[
        str
    ] = """modes: T text alone; TB text, then its own boxes as prompts; I and TI boxes drawn from the truth (oracle);
C clicks of a simulated person from nothing, TC clicks that correct the phrase's mask; clicks is both of these

examples:
  medsam3 eval DATA_DIR
  medsam3 eval DATA_DIR --modes T,TB,I,TI --jitter 0,5,10,20 --synonyms --absent 3 --out runs/mini
  medsam3 eval DATA_DIR --out runs/mini --resume --beside runs/unet/results.json runs/litemedsam/results.json
  medsam3 eval DATA_DIR --datasets busi --fold 2/5 --weights runs/fold2/mini.safetensors
  medsam3 eval DATA_DIR --modes clicks --limit 10 --out runs/clicks
  medsam3 eval DATA_DIR --duplicates
  medsam3 eval --pool runs/fold*/results.json --out runs/folds
  medsam3 eval --compare runs/a/results.json runs/b/results.json"""

    data: Annotated[Path | None, Parameter(name="DATA_DIR"), Help("folder with an index.csv")] = None
    _: KW_ONLY
    coco: Annotated[Path | None, Help("COCO JSON in place of DATA_DIR")] = None
    images: Annotated[Path | None, Help("with --coco: folder of its images, default: its own")] = None
    folder: Annotated[tuple[Path, Path] | None, Help("folders of IMAGES and MASKS in place of DATA_DIR")] = None
    concept: Annotated[str, Help("with --folder: PHRASE for what is not 0 in the masks")] = ""
    labels: Annotated[str, Help("with --folder: concepts of a label map, such as 1=liver,2=kidney")] = ""
    group_pattern: Annotated[str, Help("with --folder: regular expression for what stays in one split")] = ""
    model: Annotated[str, Help("name of the model (default: mini)")] = "mini"
    weights: Annotated[Path | None, Help("weights in place of the model's own")] = None
    flips: Annotated[bool, Help("ask phrases of the mirrored picture too (mini)")] = False
    datasets: Annotated[str, Help("only these data sets, joined by commas")] = ""
    split: Annotated[Literal["train", "val", "test", "all"], Help("which split, default: test")] = "test"
    fold: Annotated[str | None, Help("K/N: split each data set anew by group, and take fold K of N as test")] = None
    modes: Annotated[str, Help("how to ask: T, TB, I, TI, C, TC, clicks, joined by commas, default: T")] = "T"
    synonyms: Annotated[bool, Help("ask a panel of other phrasings of each concept too")] = False
    absent: Annotated[int, Help("ask N concepts of other kinds of image in each picture")] = 0
    jitter: Annotated[str, Help("shift oracle boxes by up to P % of their side; several are joined by commas")] = "0"
    boxes: Annotated[Literal["parts", "whole"], Help("oracle boxes, default: parts")] = "parts"
    volumes: Annotated[
        Literal["slices", "follow", "vote"],
        Help("each slice for itself (default), objects followed, or a vote of three planes"),
    ] = "slices"
    tolerance: Annotated[float, Help("tolerance of NSD, px or mm, default: 2")] = 2.0
    limit: Annotated[int | None, Help("at most N images of each data set")] = None
    seed: Annotated[int, Help("seed of the jitter and the intervals, default: 0")] = 0
    out: Annotated[Path, Help("folder of the report, default: eval-results")] = Path("eval-results")
    resume: Annotated[bool, Help("go on with the run that is in --out")] = False
    beside: Annotated[tuple[Path, ...], SEVERAL, Help("files results.json to set this run against")] = ()
    duplicates: Annotated[bool, Help("list pictures that stand in two splits, and stop")] = False
    json: Annotated[bool, Help("print JSON to stdout in place of tables")] = False
    agent: Annotated[
        str | None, Help("POLICY: measure the agent beside the plain phrase: offline, oracle, or an LLM's name")
    ] = None
    rounds: Annotated[int, Help("rounds of the agent, default: 3")] = 3
    send_images: Annotated[str | None, Help("let pictures of the agent go to this provider")] = None
    pool: Annotated[
        tuple[Path, ...],
        SEVERAL,
        Help(
            "files results.json of folds, or of data sets evaluated apart, as one; with DATA_DIR its pictures are drawn"
        ),
    ] = ()
    compare: Annotated[tuple[Path, Path] | None, Help("two files results.json")] = None

    def run(self) -> int:
        """Measure, pool or compare, and print the tables."""
        if self.compare is not None:
            if self.data is not None:
                raise InputError("--compare takes two results.json and no data folder: leave one of them out")
            return self._compare(*self.compare)
        if self.pool:
            return self._pool()
        self._check_source()
        if self.duplicates:
            return self._duplicates()
        if self.agent is None:
            return self._report(*self.evaluate())
        if self.data is None:
            raise InputError("--agent takes a DATA_DIR with an index.csv, not --coco or --folder")
        from medsam3.eval.agent_mode import AgentChoice, evaluate_agent  # noqa: PLC0415

        with progress_bar() as bar:
            chosen = AgentChoice(self.agent, self.rounds, self.send_images)
            tables, failures = evaluate_agent(self._job(with_volumes=False), chosen, bar.show)
        for failure in failures:
            complain(failure)
        self._print(tables, [asdict(table) for table in tables])
        return 2 if failures else 0

    def _check_source(self) -> None:
        """Refuse data that is not given, given twice, or options of a source that is not given."""
        given = [one for one in (self.data, self.coco, self.folder) if one is not None]
        if len(given) != 1:
            what = "no data folder was given" if not given else "data was given in more than one way"
            raise InputError(
                f"{what}: name a folder with an index.csv, or --coco, or --folder (see: medsam3 eval --help)"
            )
        if self.images is not None and self.coco is None:
            raise InputError("--images is the folder of a COCO file's images: give --coco too")
        if self.folder is None and (self.concept or self.labels or self.group_pattern):
            raise InputError(
                "--concept, --labels and --group-pattern say what the masks of --folder mean: give --folder too"
            )

    def _source(self) -> tuple[Path, tuple[IndexRow, ...]]:
        """Read all rows of the data, and say which folder its images are named below."""
        from medsam3.data.coco import samples_from_coco  # noqa: PLC0415
        from medsam3.data.folders import FolderSource, parse_labels, samples_from_folder  # noqa: PLC0415
        from medsam3.data.index import read_index  # noqa: PLC0415
        from medsam3.eval.cases import rows_of_samples  # noqa: PLC0415

        if self.coco is not None:
            images = self.images or self.coco.parent
            split: Split = "test" if self.split == "all" else self.split
            return images, rows_of_samples(samples_from_coco(self.coco, images, split), self.coco, are_instances=True)
        if self.folder is not None:
            images, masks = self.folder
            labels = parse_labels(self.labels) if self.labels else ()
            source = FolderSource(images, masks, self.concept, labels, self.group_pattern)
            return images, rows_of_samples(samples_from_folder(source), masks, are_instances=False)
        assert self.data is not None, "checked before"
        return self.data, read_index(self.data)

    def config(self) -> EvalConfig:
        """Read the settings.

        Raises:
            InputError: An unknown mode, or a number that cannot be read or is out of range.
        """
        from medsam3.data.index import Fold  # noqa: PLC0415
        from medsam3.eval.cases import CLICK_MODES, MODES, EvalConfig  # noqa: PLC0415  scipy and the readers

        named = names_in(self.modes)
        asked = [one for mode in named for one in (CLICK_MODES if mode == "clicks" else (mode,))]
        unknown = [mode for mode in asked if mode not in MODES]
        if unknown:
            raise InputError(f"mode {', '.join(unknown)} is not known, allowed are {', '.join((*MODES, 'clicks'))}")
        try:
            jitters = tuple(dict.fromkeys(float(part) for part in names_in(self.jitter)))
        except ValueError as error:
            raise InputError(
                f"--jitter is {self.jitter!r}, allowed are numbers joined by commas, such as 0,5,10"
            ) from error
        return EvalConfig(
            split=self.split,
            datasets=names_in(self.datasets),
            modes=tuple(mode for mode in MODES if mode in asked),
            with_synonyms=self.synonyms,
            jitters_percent=jitters,
            limit=self.limit,
            tolerance=self.tolerance,
            box_rule=self.boxes,
            seed=self.seed,
            absent=self.absent,
            fold=None if self.fold is None else Fold.from_text(self.fold),
            volumes=self.volumes,
        )

    def evaluate(self) -> tuple[Results, list[Path]]:
        """Load the model, answer what the journal lacks, and write the report.

        Returns:
            The results and the files that were written.
        """
        from medsam3.eval.report import CaseFiles, write_report  # noqa: PLC0415
        from medsam3.eval.run import run_job  # noqa: PLC0415

        with progress_bar() as bar:
            job = self._job(with_volumes=True)
            results = run_job(job, bar.show)
        return results, write_report(results, self.out, CaseFiles(job.folder, job.chosen.rows, (self.out / "masks",)))

    def _job(self, *, with_volumes: bool) -> EvalJob:
        from medsam3.data.index import in_fold  # noqa: PLC0415
        from medsam3.eval.cases import select  # noqa: PLC0415
        from medsam3.eval.results import read_results  # noqa: PLC0415
        from medsam3.eval.run import EvalJob  # noqa: PLC0415

        config = self.config()
        folder, rows = self._source()
        rows = rows if config.fold is None else in_fold(rows, config.fold)
        return EvalJob(
            folder=folder,
            rows=rows,
            chosen=select(rows, config, with_volumes=with_volumes),
            config=config,
            model=self.model,
            weights=self.weights,
            flips=self.flips,
            out=self.out,
            is_resumed=self.resume,
            beside=tuple(read_results(path) for path in self.beside),
            command=_command(),
        )

    def _pool(self) -> int:
        from medsam3.data.index import read_index  # noqa: PLC0415
        from medsam3.eval.pool import make_place, pool  # noqa: PLC0415
        from medsam3.eval.report import CaseFiles, write_report  # noqa: PLC0415
        from medsam3.eval.results import read_results  # noqa: PLC0415

        runs = [read_results(path) for path in self.pool]
        results = pool(runs, command=_command(), beside=[read_results(path) for path in self.beside])
        make_place(self.out)
        masks = tuple(path.parent / "masks" for path in self.pool)
        files = None if self.data is None else CaseFiles(self.data, read_index(self.data), masks)
        return self._report(results, write_report(results, self.out, files))

    def _report(self, results: Results, written: Sequence[Path]) -> int:
        """Print what was found and written; the exit code is 2 if something could not be evaluated."""
        from medsam3.eval.tables import result_tables  # noqa: PLC0415

        if self.json:
            say_json(results.to_json(with_cases=False))
        else:
            self._print(result_tables(results), None)
            for note in results.extras.notes:
                say(note)
            if results.skipped_volumes:
                say(
                    f"left out: {results.skipped_volumes} rows of volumes, which are asked by text and of a model alone"
                )
            say("written: " + ", ".join(str(path) for path in written))
        for failure in results.failures:
            complain(f"{failure.image} {failure.concept}: {failure.error}")
        return 2 if results.failures else 0

    def _compare(self, first: Path, second: Path) -> int:
        from medsam3.eval.compare import compare  # noqa: PLC0415
        from medsam3.eval.results import read_results  # noqa: PLC0415
        from medsam3.eval.tables import comparison_table  # noqa: PLC0415
        from medsam3.store import without_nan  # noqa: PLC0415

        found = compare(read_results(first), read_results(second), seed=self.seed)
        rows = [{**asdict(row), "holds": row.holds} for row in found.rows]
        entry = {"unpaired": found.unpaired, "is_same_data": found.is_same_data, "rows": rows}
        self._print([comparison_table(found, str(first), str(second))], without_nan(entry))
        return 0

    def _duplicates(self) -> int:
        from medsam3.data.duplicates import near_duplicates, thumbnails  # noqa: PLC0415
        from medsam3.eval.tables import duplicates_table  # noqa: PLC0415

        with progress_bar() as bar:
            folder, rows = self._source()
            rows = tuple(row for row in rows if not self.datasets or row.dataset in names_in(self.datasets))
            pictures = thumbnails(rows, folder, on_image=lambda done, count: bar.show(done, count, "pictures"))
        found = near_duplicates(pictures)
        self._print([duplicates_table(found, len(pictures))], [asdict(pair) for pair in found])
        return 0

    def _print(self, tables: Sequence[Table], as_json: object) -> None:
        if self.json:
            say_json(as_json)
            return
        for table in tables:
            print_table(table.headings, table.rows, title=table.title, note=table.note)


def _command() -> str:
    program = Path(sys.argv[0])
    is_ours = program.stem == "medsam3" or program.parts[-2:] == ("medsam3", "__main__.py")  # python -m medsam3
    return shlex.join(["medsam3", *sys.argv[1:]]) if is_ours else "from Python"
