"""`medsam3 segment`: prompts from the command line, over many files, with results that a second run does not redo."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from cyclopts import Parameter

from medsam3.cli.archive import STORED_FORMATS, ArchiveChoice, ArchiveInput, inputs_of_archives
from medsam3.cli.inputs import Input, files_at, find_inputs, find_stacks, frame_ranges
from medsam3.cli.job import (
    COUNT,
    FLAT,
    SHARE,
    Help,
    Job,
    ModelChoice,
    SlideChoice,
    StackChoice,
    formats_from,
    prompts_from,
)
from medsam3.cli.remote import ServerChoice, chosen_model
from medsam3.cli.report import InputFacts, Stopwatch, check_report, facts_of, write_report
from medsam3.cli.terminal import ProgressBar, print_table, progress_bar, say, say_json
from medsam3.errors import InputError
from medsam3.pacs.series import UnreachableError, is_address

if TYPE_CHECKING:  # numpy, not for --help
    from medsam3.cli.making import Failure, ItemAsked, Made
    from medsam3.cli.outputs import OutputFolder, ResultRow, Task
    from medsam3.cli.remote import Answering
    from medsam3.prompts import Prompt

_log = logging.getLogger(__name__)
MOST_WORKERS = 8
"""Processes that are started unless more are asked for: each takes up to 0.1 GB beside the model that they share."""


@dataclass(frozen=True)
class SegmentFiles:
    """Arguments of `medsam3 segment`."""

    EXAMPLES: ClassVar[str] = """examples:
  medsam3 segment colonoscopy.png --text polyp
  medsam3 segment scans/ "more/**/*.dcm" --text "optic disc" --text "optic cup" --out results
  medsam3 segment breast.png --text "breast tumor" --box 80,40,210,160 --format png,coco --json
  medsam3 segment ct.nii.gz --text "liver and kidney" --text "kidney without tumor" --frame 40-59
  medsam3 segment study/ --series 3 --text liver --format seg,rtstruct,csv
  medsam3 segment slide.svs --text nucleus --region 20000,15000,1024,1024 --format geojson
  medsam3 segment clip.mp4 --box 80,40,210,160 --format mp4,coco
  medsam3 segment colonoscopy.png --text polyp --model sam3.pt --lora best_lora_weights.pt
  medsam3 segment ct.nii.gz --text liver --server http://127.0.0.1:8080
  medsam3 segment dicomweb:https://host/dicom-web/studies/1.2.3/series/4.5.6 --text liver --store

A phrase that joins concepts gives a row and files for each; "without" takes one from another; "on the left of the
image" is a side of the image as it is shown, "left kidney" one of the patient. What denies ("no liver") is refused.
positions are pixels from the upper left, x to the right, y down; the first frame or slice is 0.
Boxes, points and exemplars hold for every --text and every file; without --text they are asked alone.
A folder with a DICOM series is one volume; a pattern such as "ct/*.dcm" takes each of its files by itself.
With --format coco, several files give one annotations.coco.json for all of them, one file gives its own.
A dicomweb: address names a series, a study, or a search such as .../studies?PatientID=ID. --store puts a DICOM SEG
back (and an RT structure set with --format seg,rtstruct), unless the archive has it already; docs/pacs.md tells more.
A second run skips what results.jsonl in the output folder says is done, and takes up a run that was broken off; a
change of the file, the prompt or the weights makes the result anew. One run at a time may write into a folder.
In the table, present is the probability that the concept is there at all, and the model's calibrated yes or no; its
limit need not be 0.50. Areas of a stack are those of all its slices together.
A bad file is reported and the others go on. Exit codes: 0 all done; 2 bad input, also if it was one file of many;
1 an error of ours; 130 interrupted."""

    files: Annotated[
        tuple[str, ...], Parameter(name="FILES"), Help("images, folders, DICOM series folders, or patterns")
    ]
    _: KW_ONLY
    text: Annotated[tuple[str, ...], Help("a concept, such as polyp; may be repeated, as the next three")] = ()
    box: Annotated[tuple[str, ...], Help("X0,Y0,X1,Y1: one object to segment")] = ()
    point: Annotated[tuple[str, ...], Help("X,Y or X,Y,0|1: on the object (1) or off it (0)")] = ()
    exemplar: Annotated[
        tuple[str, ...],
        Help("X0,Y0,X1,Y1 or X0,Y0,X1,Y1,0|1: an example of what is wanted (1) or not (0); all like it are found"),
    ] = ()
    frame: Annotated[
        tuple[str, ...],
        Parameter(name=("--frame", "--slice")),
        Help("N or A-B: only these frames or slices of a stack, from 0; of a 4-D NIfTI, the time point"),
    ] = ()
    series: Annotated[
        tuple[str, ...],
        Help("NUMBER or UID: of a folder with several DICOM series, this one, by its number or the end of its UID"),
    ] = ()
    slide: Annotated[SlideChoice, FLAT] = field(default_factory=SlideChoice)
    threshold: Annotated[float | None, SHARE, Help("least score, 0 to 1, of an object that is kept")] = None
    stacks: Annotated[StackChoice, FLAT] = field(default_factory=StackChoice)
    out: Annotated[Path, Help("folder of the results, default: medsam3_out")] = Path("medsam3_out")
    format: Annotated[
        str | None,
        Help(
            "png, overlay, coco, nifti, nrrd, mha, seg, rtstruct, geojson, mp4, montage, planes, csv, json, joined by "
            "commas; default: png,overlay for pictures, nifti for volumes, coco for videos"
        ),
    ] = None
    json: Annotated[bool, Help("print the results as JSON to stdout, in place of the table")] = False
    report: Annotated[
        Path | None,
        Help("JSON file for pipelines: inputs and outputs by hash, weights, versions, options, results, timings"),
    ] = None
    store: Annotated[bool, Help("store results in the archive that their series came from; format seg by default")] = (
        False
    )
    overwrite: Annotated[bool, Help("segment again what is done, replace files of that name")] = False
    workers: Annotated[
        int | None,
        COUNT,
        Help(
            "files at a time, by processes that share the model; default: one a core, at most 8, for pictures, else 1"
        ),
    ] = None
    archive: Annotated[ArchiveChoice, FLAT] = field(default_factory=ArchiveChoice)
    model: Annotated[ModelChoice, FLAT] = field(default_factory=ModelChoice)
    server: Annotated[ServerChoice, FLAT] = field(default_factory=ServerChoice)

    def job(self) -> Job:
        """Read the job that the arguments ask for.

        Raises:
            InputError: A prompt, format or setting that is not allowed.
        """
        self.model.sam3.check()
        self.stacks.check()
        model = chosen_model(self.model, self.server)
        prompts = prompts_from(self.text, self.box, self.point, self.exemplar, model.taught if self.text else ())
        formats, frames = formats_from(self.format), frame_ranges(self.frame)
        if self.store and (self.series or not all(is_address(one) for one in self.files)):
            raise InputError("--store puts results back where a series came from: name dicomweb: addresses, no files")
        if self.store and "seg" not in (formats or ()):
            formats = ("seg", *(formats or ()))
        return Job(prompts, formats, self.threshold, frames, model, self.stacks)

    def run(self) -> int:
        """Segment the files, write and show the results."""
        from medsam3.cli.outputs import OutputFolder  # noqa: PLC0415

        with progress_bar() as bar:
            bar.start("looking for images")
            job = self.job()
            stopwatch, addresses = Stopwatch(), [one for one in self.files if is_address(one)]
            if self.report is not None:
                check_report(self.report)
            _log.info("weights: %s", job.model.sha256)  # hashed here: weights that are not there end the run at once
            with inputs_of_archives(addresses, self.archive, self.out, is_stored=self.store) as series:
                inputs: list[Input | ArchiveInput] = [*self._local_inputs(), *series]
                has_one_coco = len(inputs) > 1 and "coco" in (job.formats or ())
                options = FolderRun(self.overwrite, self.report is not None, self._workers(inputs, job))
                with OutputFolder(self.out, replaces_foreign=self.overwrite, has_one_coco=has_one_coco) as folder:
                    outcome = segment_all(inputs, job, folder, bar, options)
            if self.report is not None:
                write_report(self.report, job, outcome, self.out, stopwatch)
        _show(outcome, job, folder, as_json=self.json)
        return outcome.exit_code

    def _workers(self, inputs: Sequence[Input | ArchiveInput], job: Job) -> int:
        """Choose how many inputs are worked on at a time, and let PyTorch start no threads if it is more than one.

        Raises:
            InputError: Several were asked for where there can be but one.
        """
        from medsam3.cli.side_by_side import can_fork, cores  # noqa: PLC0415  multiprocessing
        from medsam3.io.files import RASTER_SUFFIXES  # noqa: PLC0415  numpy
        from medsam3.models.registry import is_sam3  # noqa: PLC0415

        is_here = isinstance(job.model, ModelChoice) and job.model.device == "cpu" and can_fork()
        if self.workers is None:
            is_light = is_here and not is_sam3(job.model.model)
            names = [item.path.name.lower() for item in inputs if isinstance(item, Input)]
            is_light &= len(names) == len(inputs) and all(name.endswith(RASTER_SUFFIXES) for name in names)
            count = min(cores(), MOST_WORKERS) if is_light else 1
        else:
            count = self.workers
        count = max(1, min(count, len(inputs)))
        if count > 1 and not is_here:
            raise InputError(
                f"--workers is {count}, but several share a model only on Linux, on the processor (--device cpu), and "
                "if no server answers: leave --workers out"
            )
        if count > 1:
            os.environ["OMP_NUM_THREADS"] = "1"  # threads that were started here would be lost in the others
        return count

    def _local_inputs(self) -> list[Input]:
        files = [one for one in self.files if not is_address(one)]
        find = find_stacks if self.stacks.propagate else find_inputs
        found, chosen = find(files, leave_out=self.out, series=self.series), self.slide.part()
        return found if chosen is None else [replace(item, part=chosen) for item in found]


@dataclass
class RunOutcome:
    """The results of a run so far; `held` are results that an archive had already, `inputs` those of a report."""

    rows: list[ResultRow] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    skipped: int = 0
    held: int = 0
    inputs: list[InputFacts] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 all well; 1 an error of ours; 2 bad input."""
        if any(failure.is_ours for failure in self.failures):
            return 1
        return 2 if self.failures else 0


@dataclass(frozen=True)
class FolderRun:
    """How a run goes about its inputs.

    Attributes:
        redo: Segment again what is done.
        has_report: Hash the inputs for a report.
        workers: Processes that each take an input.
    """

    redo: bool = False
    has_report: bool = False
    workers: int = 1


def segment_all(
    inputs: Sequence[Input | ArchiveInput], job: Job, folder: OutputFolder, bar: ProgressBar, run: FolderRun
) -> RunOutcome:
    """Segment every input and write its results; those that are done already are taken from the folder's list.

    Raises:
        InputError: The model cannot be loaded, or another run is at work in the folder. What is wrong with one input is
            in the outcome.
    """
    outcome = RunOutcome()

    def looked_up() -> Iterator[tuple[_Work, ItemAsked | None]]:
        for item in inputs:
            work = _Work(item, job, folder, bar)
            yield work, work.look_up(outcome, redo=run.redo)

    begun = _Begun(job, folder, bar)
    bar.show(0, len(inputs), "images")
    answered = begun.one_by_one(looked_up()) if run.workers == 1 else begun.side_by_side(looked_up(), run.workers)
    for work, made in answered:
        if made is not None:
            work.take(made, outcome)
        elif work.rows:
            outcome.skipped += 1
        outcome.held += work.held
        outcome.rows.extend(work.rows)
        if run.has_report:
            outcome.inputs.append(work.facts())
        work.forget()
        bar.end()
    return outcome


class _Begun:
    """Makes results with a model that is loaded once it is needed."""

    def __init__(self, job: Job, folder: OutputFolder, bar: ProgressBar) -> None:
        self._job, self._folder, self._bar = job, folder, bar

    @cached_property
    def _model(self) -> Answering:
        self._bar.start("loading the model")
        model = self._job.model.answering()
        self._folder.open()
        return model

    def one_by_one(self, works: Iterable[tuple[_Work, ItemAsked | None]]) -> Iterator[tuple[_Work, Made | None]]:
        """Make the results of each input in this process."""
        from medsam3.cli.making import make  # noqa: PLC0415

        for work, asked in works:

            def model(name: str = work.item.path.name) -> Answering:
                found = self._model
                self._bar.start(name)
                return found

            yield work, None if asked is None else make(asked, self._job, model, self._bar.show_slices)

    def side_by_side(
        self, works: Iterable[tuple[_Work, ItemAsked | None]], workers: int
    ) -> Iterator[tuple[_Work, Made | None]]:
        """Make the results of several inputs at a time, in processes that share the model."""
        from medsam3.cli.making import Failure, ItemAsked, Made, make  # noqa: PLC0415
        from medsam3.cli.side_by_side import Died, SideBySide  # noqa: PLC0415

        def begin() -> Callable[[ItemAsked], Made]:
            model = self._model
            self._bar.start(f"{workers} at a time")
            return lambda asked: make(asked, self._job, lambda: model, lambda done, count: None)

        with SideBySide[_Work, ItemAsked, Made](begin, workers) as crew:
            for work, made in crew.run(works):
                if isinstance(made, Died):
                    said = f"{made.how}, twice: it is damaged, or needs more memory than there is; try --workers 1"
                    yield work, Made(failure=Failure(work.item.label, said, is_ours=True))
                else:
                    yield work, made


class _Work:
    """One input on its way: looked up, made, taken over, stored."""

    def __init__(self, item: Input | ArchiveInput, job: Job, folder: OutputFolder, bar: ProgressBar) -> None:
        self.item, self.job, self.folder, self._bar = item, job, folder, bar
        self.rows: list[ResultRow] = []
        self.held = 0
        self._is_resumable = False  # what was fetched is kept for the next run
        self._stopwatch = Stopwatch()
        self._open: list[tuple[Prompt, str, Task]] = []
        self._journal = folder.path

    def look_up(self, outcome: RunOutcome, *, redo: bool) -> ItemAsked | None:
        """Find what is done already, and fetch the input if anything is not; None if nothing is left to do."""
        with self._reported(outcome):
            return self._asked(redo=redo)
        return None

    def _asked(self, *, redo: bool) -> ItemAsked | None:
        from medsam3.cli.making import ItemAsked  # noqa: PLC0415
        from medsam3.cli.outputs import Task  # noqa: PLC0415

        source, fingerprint = self.item.source, self.item.fingerprint()
        for prompt in self.job.prompts:
            task = Task(source, fingerprint, self.job.key(prompt), prompt.text or "")
            done = None if redo else self.folder.finished(task)
            if done is not None:
                self.rows.append(done)
                self._store(done.outputs)
            elif not redo and self._is_held(prompt):
                self.held += 1
            else:
                self._open.append((prompt, self.folder.stem(task, self.item.stem), task))
        if not self._open:
            return None
        self._fetch()
        keys = "".join(task.job for _, _, task in self._open)
        self._journal = self.folder.journal(self.item.stem, f"{source}{fingerprint}{keys}")
        prompts = tuple((prompt, stem) for prompt, stem, _ in self._open)
        item = self.item if isinstance(self.item, Input) else Input(self.item.path)  # another process has no archive
        return ItemAsked(item, self.item.label, prompts, self.folder.path, self._journal)

    def take(self, made: Made, outcome: RunOutcome) -> None:
        """Give the files that were made their places, record and store them, and tell what went wrong."""
        for line in made.told:
            self._bar.tell(line)
        self._stopwatch.add(made.laps)
        with self._reported(outcome):
            for (_, stem, task), (row, files) in zip(self._open, made.results, strict=False):
                names = self.folder.take(stem, files)
                self.rows.append(replace(row, outputs=names))
                self.folder.record(stem, task, self.rows[-1])
                self._stopwatch.lap("write")
                self._store(names)
            if made.failure is None:
                self.folder.forget(self._journal)
        if made.failure is not None:
            self._report(made.failure, outcome)

    def facts(self) -> InputFacts:
        """Tell what was read and how long each part took."""
        return facts_of(self.item.label, files_at(self.item.path), self.item.path, self._stopwatch.laps)

    def forget(self) -> None:
        """Remove what was fetched from an archive, unless the next run goes on with it."""
        if isinstance(self.item, ArchiveInput) and not self._is_resumable:
            self.item.forget()

    @contextmanager
    def _reported(self, outcome: RunOutcome) -> Iterator[None]:
        from medsam3.cli.making import failing  # noqa: PLC0415

        with failing(self.item.label, lambda failure: self._report(failure, outcome)):
            yield

    def _report(self, failure: Failure, outcome: RunOutcome) -> None:
        outcome.failures.append(failure)
        said, label = failure.error, self.item.label
        self._bar.complain(said if self.item.path.name in said else f"{label}: {said}")

    def _fetch(self) -> None:
        if isinstance(self.item, ArchiveInput):
            try:
                self.item.fetch(self._bar.show_slices)
            except UnreachableError:
                self._is_resumable = True
                raise
            self._stopwatch.lap("fetch")

    def _is_held(self, prompt: Prompt) -> bool:
        if not isinstance(self.item, ArchiveInput) or not self.item.is_stored:
            return False
        item, identity = self.item, self.job.identity(prompt)
        return all(item.holds(form, identity) for form in self.job.formats or () if form in STORED_FORMATS)

    def _store(self, names: Sequence[str]) -> None:
        """Put what was written for an archive into it; what it has already stays."""
        if isinstance(self.item, ArchiveInput) and self.item.is_stored:
            from medsam3.io import FORMATS  # noqa: PLC0415  numpy, not for --help

            endings = tuple(FORMATS[form].suffix for form in STORED_FORMATS)
            self.item.store([self.folder.path / name for name in names if name.endswith(endings)])
            self._stopwatch.lap("store")


def _show(outcome: RunOutcome, job: Job, folder: OutputFolder, *, as_json: bool) -> None:
    if as_json:
        answer = {
            "model": job.model.model,
            "weights_sha256": job.model.sha256,
            "out": str(folder.path),
            "results": [row.to_json() for row in outcome.rows],
            "skipped": outcome.skipped,
            "in_archive_before": outcome.held,
            "failures": [{"file": failure.file, "error": failure.error} for failure in outcome.failures],
        }
        say_json(answer)
        return
    if outcome.rows:
        from medsam3.cli.outputs import HEADINGS  # noqa: PLC0415

        print_table(HEADINGS, [row.cells() for row in outcome.rows])
        say(f"written to {folder.path}")
    for warning in dict.fromkeys(f"{row.file}: {row.warning}" for row in outcome.rows if row.warning):
        say(f"warning: {warning}")
    guessed = sorted({row.concept for row in outcome.rows if row.is_taught is False})
    if guessed:
        say(f"not taught to these weights, so the answer is a guess: {', '.join(guessed)} (see: medsam3 concepts)")
    if outcome.skipped:
        say(f"skipped {_files(outcome.skipped)} done before (--overwrite does them again)")
    if outcome.held:
        say(f"the archive had {outcome.held} of the results already (--overwrite segments again)")
    if outcome.failures:
        say(f"failed: {_files(len(outcome.failures))}, see the errors above")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
