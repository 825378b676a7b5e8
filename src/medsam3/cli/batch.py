"""`medsam3 batch`: many files, from and to anywhere, on all cores or a cluster, with a manifest in Parquet."""

from __future__ import annotations

import importlib.util
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from cyclopts import Parameter

from medsam3.cli.archive import ArchiveChoice, ArchivePieces
from medsam3.cli.byte_sizes import bytes_from
from medsam3.cli.inputs import Input, find_inputs
from medsam3.cli.job import COUNT, FLAT, FROM_0, SHARE, Help, Job, ModelChoice, StackChoice, formats_from, prompts_from
from medsam3.cli.terminal import ProgressBar, progress_bar, say, say_json
from medsam3.errors import InputError, require
from medsam3.pacs.series import is_address

if TYPE_CHECKING:  # numpy, torch, pyarrow, not for --help
    from medsam3.batch.pieces import Piece
    from medsam3.batch.target import Known, OutputTarget
    from medsam3.batch.worker import BatchWork, FoundInput, Report
    from medsam3.image import Image


PACE_S = 120.0
"""Time whose files tell the rate."""
TOLD_EVERY_S = 60.0
"""Pause between lines of progress where there is no terminal."""


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
  medsam3 batch dicomweb:https://host/dicom-web --text liver --format seg --out results
  srun medsam3 batch scans/ --text liver --out results --cluster none --shard $((SLURM_PROCID + 1))/$SLURM_NTASKS

A source is a folder, a file, a pattern or a list, here or at s3://, gs://, az://, http(s):// or where else fsspec goes,
or the dicomweb: address of an archive, a study, a series or a search; who asks it is told as for medsam3 segment, by
MEDSAM3_DICOMWEB_TOKEN, or MEDSAM3_DICOMWEB_USER and MEDSAM3_DICOMWEB_PASSWORD.
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
    ca_file: Annotated[
        Path | None, Help("certificates to trust for a DICOMweb archive, PEM; default: the system's")
    ] = None
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

            def pieces() -> Iterator[Piece]:
                found = find_pieces(self.sources, leave_out=target.url, elsewhere=work.elsewhere)
                return _own(found, share, work)

            total, begun, pace = Report(), time.monotonic(), BatchPace(pieces())
            for report in self._reports(pieces(), work, target, known):
                total.add(report)
                for error in report.errors:
                    bar.complain(error)
                pace.show(total, bar)
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
            self._elsewhere(),
        )

    def _elsewhere(self) -> ArchivePieces | None:
        """Reach archives, if a source or a list may name one."""
        from medsam3.batch.pieces import LIST_SUFFIXES  # noqa: PLC0415

        if not any(is_address(source) or source.lower().endswith(LIST_SUFFIXES) for source in self.sources):
            return None
        is_named = any(is_address(source) for source in self.sources)
        if not is_named and importlib.util.find_spec("httpx2") is None:
            return None  # the list names other files, or says itself what is missing
        return ArchivePieces(ArchiveChoice(ca_file=self.ca_file).access())

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


class BatchPace:
    """How many files there are, which are counted in the background, how fast they are done, and how long it takes."""

    def __init__(self, pieces: Iterator[Piece], clock: Callable[[], float] = time.monotonic) -> None:
        self.count: int | None = None
        self._clock, self._told = clock, clock()
        self._marks: deque[tuple[float, int]] = deque([(self._told, 0)])
        threading.Thread(target=self._count, args=(pieces,), daemon=True).start()

    def _count(self, pieces: Iterator[Piece]) -> None:
        with suppress(Exception):  # the run itself says what is wrong with a source
            self.count = sum(1 for _ in pieces)

    def show(self, total: Report, bar: ProgressBar) -> None:
        """Show how far the run is; where there is no terminal, by a line now and then."""
        now = self._clock()
        self._marks.append((now, total.pieces))
        while len(self._marks) > 2 and now - self._marks[0][0] > PACE_S:
            self._marks.popleft()
        rate = (total.pieces - self._marks[0][1]) / max(now - self._marks[0][0], 1e-3)
        said = f"{rate:.1f} files/s, {total.failed} failed"
        bar.show(total.pieces, self.count, said)
        if not bar.is_shown and now - self._told >= TOLD_EVERY_S:
            self._told = now
            of = "" if self.count is None else f" of {self.count}"
            left = "" if self.count is None or not rate else f", {minutes((self.count - total.pieces) / rate)} left"
            bar.tell(f"medsam3: {total.pieces}{of} files, {said}{left}")


def minutes(seconds: float) -> str:
    """Say a time, in hours where it is long."""
    return f"{int(seconds // 3600)}:{int(seconds % 3600 // 60):02d} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


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
