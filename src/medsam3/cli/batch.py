"""`medsam3 batch`: many files, from and to anywhere, on all cores or a cluster, with a manifest in Parquet."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from cyclopts import Parameter

from medsam3.cli.byte_sizes import bytes_from
from medsam3.cli.inputs import Input, find_inputs
from medsam3.cli.job import COUNT, FLAT, FROM_0, SHARE, Help, Job, ModelChoice, StackChoice, formats_from, prompts_from
from medsam3.cli.terminal import progress_bar, say, say_json
from medsam3.errors import InputError, require

if TYPE_CHECKING:  # numpy, torch, pyarrow, not for --help
    from medsam3.batch.pieces import Piece
    from medsam3.batch.target import Known, OutputTarget
    from medsam3.batch.worker import BatchWork, FoundInput, Report
    from medsam3.image import Image


@dataclass(frozen=True)
class BatchWorkers:
    """Who does the work."""

    cluster: Annotated[
        str, Help("auto (a running Ray cluster, else all cores here), none (this process), or ray://HOST:10001")
    ] = "auto"
    workers: Annotated[int | None, COUNT, Help("worker processes, one model each; default: one a core")] = None
    gpus: Annotated[float, FROM_0, Help("share of a GPU for each worker, with --device cuda")] = 0.0
    memory: Annotated[str | None, Help("limit for each worker, such as 4GiB; default: none")] = None
    timeout: Annotated[float, FROM_0, Help("seconds after which a file's worker is ended")] = 3600.0
    shard: Annotated[str | None, Help("I/N: this run's share of N, I from 1; all write into one target")] = None


@dataclass(frozen=True)
class BatchFiles:
    """Arguments of `medsam3 batch`."""

    EXAMPLES: ClassVar[str] = """examples:
  medsam3 batch scans/ --text polyp --out results
  medsam3 batch s3://bucket/ct s3://bucket/mr --text liver --out s3://bucket/masks --format nifti
  medsam3 batch tasks.csv --out results --cluster ray://head:10001 --workers 32
  srun medsam3 batch scans/ --text liver --out results --cluster none --shard $((SLURM_PROCID + 1))/$SLURM_NTASKS

A source is a folder, a file, a pattern or a list, here or at s3://, gs://, az://, http(s):// or where else fsspec goes.
A list is a CSV or JSON lines with the columns file, text and box (the last two may be left out).
DICOM files of one folder belong together. The target gets masks/ and manifest/, a Parquet table with one row an object
(read it with pandas.read_parquet). A second run does only what is missing; what changed is done anew; content that is
known under another name is not done twice. A file that fails has a row with the reason, and the others go on.
Exit codes: 0 all done; 2 bad input, also if it was one file of many; 1 an error of ours; 130 interrupted."""

    sources: Annotated[tuple[str, ...], Parameter(name="SOURCE"), Help("folders, files, patterns, lists, URLs")]
    _: KW_ONLY
    out: Annotated[str, Help("folder or URL of the results")]
    text: Annotated[tuple[str, ...], Help("a concept, such as polyp; may be repeated")] = ()
    box: Annotated[tuple[str, ...], Help("X0,Y0,X1,Y1: one object to segment, in every picture")] = ()
    format: Annotated[str | None, Help("as of medsam3 segment, joined by commas")] = None
    threshold: Annotated[float | None, SHARE, Help("least score, 0 to 1, of an object that is kept")] = None
    retry_failed: Annotated[bool, Help("try files again that failed before")] = False
    json: Annotated[bool, Help("print the summary as JSON to stdout")] = False
    stacks: Annotated[StackChoice, FLAT] = field(default_factory=StackChoice)
    team: Annotated[BatchWorkers, FLAT] = field(default_factory=BatchWorkers)
    model: Annotated[ModelChoice, FLAT] = field(default_factory=ModelChoice)

    def run(self) -> int:
        """Segment the pieces, and say what came of them."""
        for module in ("fsspec", "pyarrow"):
            require(module, extra="cluster")
        from medsam3.batch.pieces import find_pieces  # noqa: PLC0415
        from medsam3.batch.target import OutputTarget  # noqa: PLC0415
        from medsam3.batch.worker import Report  # noqa: PLC0415

        share = _share(self.team.shard)
        work, target = self._work(), OutputTarget(self.out)
        target.prepare()
        with progress_bar() as bar:
            bar.start("looking at what is done")
            known = target.known(without_failures=self.retry_failed)
            pieces = _own(find_pieces(self.sources, leave_out=target.url), share, work)
            total, begun = Report(), time.monotonic()
            for report in self._reports(pieces, work, target, known):
                total.add(report)
                for error in report.errors:
                    bar.complain(error)
                rate = total.pieces / max(time.monotonic() - begun, 1e-3)
                bar.show(total.pieces, None, f"{rate:.1f} files/s, {total.failed} failed")
            if total.changed:
                target.known()  # drops what the changed files held before
            target.tidy()  # of workers that died
        self._say(total, time.monotonic() - begun)
        return 1 if total.ours else 2 if total.failed else 0

    def _work(self) -> BatchWork:
        from medsam3.batch.pieces import LIST_SUFFIXES  # noqa: PLC0415
        from medsam3.batch.worker import BatchWork  # noqa: PLC0415
        from medsam3.io import DEFAULT_FORMATS  # noqa: PLC0415

        self.model.sam3.check()
        self.stacks.check()
        is_listed = any(source.lower().endswith(LIST_SUFFIXES) for source in self.sources)
        prompts = (
            ()
            if is_listed and not (self.text or self.box)
            else prompts_from(self.text, self.box, (), (), self.model.taught if self.text else ())
        )
        job = Job(prompts, formats_from(self.format), self.threshold, (), self.model, self.stacks)
        weights = next((digest for name, digest in self.model.sha256.items() if not name.endswith(".json")), "")
        return BatchWork(
            prompts,
            job.formats,
            replace(self.stacks.options(), threshold=self.threshold),
            self.model.load,
            found_at,
            job.key,
            DEFAULT_FORMATS,
            weights,
        )

    def _reports(
        self, pieces: Iterator[Piece], work: BatchWork, target: OutputTarget, known: Known
    ) -> Iterator[Report]:
        from medsam3.batch.crew import Cluster, Crew, work_here  # noqa: PLC0415

        if self.team.cluster == "none":
            yield from work_here(pieces, work, target.url, known)
            return
        team = self.team
        memory = None if team.memory is None else bytes_from(team.memory, "--memory")
        crew = Crew(work, target.url, known, Cluster(team.cluster, team.workers, team.gpus, memory, team.timeout))
        try:
            yield from crew.run(pieces)
        finally:
            crew.close()

    def _say(self, total: Report, seconds: float) -> None:
        if self.json:
            say_json(asdict(total) | {"out": self.out, "elapsed_s": round(seconds, 3)})
            return
        parts = [f"{total.done} done", f"{total.skipped} done before", f"{total.failed} failed"]
        parts += [f"{total.copied} known under another name"] if total.copied else []
        say(f"{total.pieces} files: {', '.join(parts)}; {total.objects} objects in {seconds:.1f} s")
        say(f"written to {self.out}: masks/ and manifest/ (Parquet)")


def found_at(path: Path) -> Iterator[FoundInput]:
    """Find the images in a file or folder of this machine."""
    from medsam3.batch.worker import FoundInput  # noqa: PLC0415

    items = find_inputs([str(path)])
    for item in items:
        series = "" if len(items) == 1 else item.series or item.path.name
        yield FoundInput(series, partial(_open, item))


def _open(item: Input) -> Image:
    from medsam3.io import read  # noqa: PLC0415

    return read(item.path, series=item.series)


def _share(text: str | None) -> tuple[int, int]:
    """Read I/N.

    Raises:
        InputError: Not of that form.
    """
    if text is None:
        return 1, 1
    part, slash, count = text.partition("/")
    if not (slash and part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count)):
        raise InputError(f"--shard is {text!r}, allowed is I/N with I from 1 to N, such as 2/8")
    return int(part), int(count)


def _own(pieces: Iterator[Piece], share: tuple[int, int], work: BatchWork) -> Iterator[Piece]:
    """Keep this run's share of the pieces.

    Raises:
        InputError: A piece of a list has no prompt, and the command line has none.
    """
    part, count = share
    for piece in pieces:
        if not piece.prompts and not work.prompts:
            raise InputError(f"{piece.url} has no prompt in the list: give one there, or --text for all")
        if piece.number % count == part - 1:
            yield piece
