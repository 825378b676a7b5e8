"""`medsam3 segment`: prompts from the command line, over many files, with results that a second run does not redo."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from cyclopts import Parameter

from medsam3.cli.archive import STORED_FORMATS, ArchiveChoice, ArchiveInput, inputs_of_archives
from medsam3.cli.inputs import Input, files_at, find_inputs, find_stacks, frame_ranges, read_chosen
from medsam3.cli.job import FLAT, SHARE, Help, Job, ModelChoice, SlideChoice, StackChoice, formats_from, prompts_from
from medsam3.cli.remote import OpenedImage, ServerChoice, chosen_model
from medsam3.cli.report import InputFacts, Stopwatch, check_report, facts_of, write_report
from medsam3.cli.terminal import ProgressBar, in_options, print_table, progress_bar, say, say_json, unexpected
from medsam3.errors import InputError
from medsam3.pacs.series import UnreachableError, is_address

if TYPE_CHECKING:  # numpy, not for --help
    from medsam3.cli.inputs import Chosen
    from medsam3.cli.outputs import OutputFolder, ResultRow, Task
    from medsam3.cli.remote import Answering
    from medsam3.image import Image, Masks
    from medsam3.prompts import Prompt

_log = logging.getLogger(__name__)


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
                with OutputFolder(self.out, replaces_foreign=self.overwrite, has_one_coco=has_one_coco) as folder:
                    has_report = self.report is not None
                    outcome = segment_all(inputs, job, folder, bar, redo=self.overwrite, has_report=has_report)
            if self.report is not None:
                write_report(self.report, job, outcome, self.out, stopwatch)
        _show(outcome, job, folder, as_json=self.json)
        return outcome.exit_code

    def _local_inputs(self) -> list[Input]:
        files = [one for one in self.files if not is_address(one)]
        find = find_stacks if self.stacks.propagate else find_inputs
        found, chosen = find(files, leave_out=self.out, series=self.series), self.slide.part()
        return found if chosen is None else [replace(item, part=chosen) for item in found]


@dataclass(frozen=True)
class Failure:
    """A file that could not be segmented, and why; `is_ours` if the fault is the program's."""

    file: str
    error: str
    is_ours: bool = False


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


def segment_all(
    inputs: Sequence[Input | ArchiveInput],
    job: Job,
    folder: OutputFolder,
    bar: ProgressBar,
    *,
    redo: bool = False,
    has_report: bool = False,
) -> RunOutcome:
    """Segment every input and write its results; those that are done already are taken from the folder's list.

    Raises:
        InputError: The model cannot be loaded, or another run is at work in the folder. What is wrong with one input is
            in the outcome.
    """
    outcome = RunOutcome()
    answering: Answering | None = None
    for number, item in enumerate(inputs):
        bar.show(number, len(inputs), item.path.name)
        work = _Work(item, job, folder, bar)
        with _reported(item, outcome, bar):
            work.prepare(redo=redo)
        if work.chosen is not None:
            if answering is None:
                bar.start("loading the model")
                answering = job.model.answering()
                folder.open()
                bar.start(item.path.name)
            with _reported(item, outcome, bar):
                work.finish(answering)
        elif work.rows:
            outcome.skipped += 1
        outcome.held += work.held
        outcome.rows.extend(work.rows)
        if has_report:
            outcome.inputs.append(work.facts())
        work.forget()
        bar.end()
    return outcome


class _Work:
    """One input on its way: looked up, read, segmented, written, stored."""

    def __init__(self, item: Input | ArchiveInput, job: Job, folder: OutputFolder, bar: ProgressBar) -> None:
        self.item, self.job, self.folder, self._bar = item, job, folder, bar
        self.rows: list[ResultRow] = []
        self.chosen: Chosen | None = None  # stays None if nothing is left to do
        self.held = 0
        self.is_resumable = False  # what was fetched is kept for the next run
        self._stopwatch = Stopwatch()
        self._open: list[tuple[Prompt, Task]] = []

    def prepare(self, *, redo: bool) -> None:
        """Find what is done already, and open the image if anything is not."""
        from medsam3.cli.outputs import Task, check_formats  # noqa: PLC0415

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
                self._open.append((prompt, task))
        if self._open:
            self._fetch()
            chosen = read_chosen(self.item, self.job.frames)
            for prompt, _ in self._open:
                prompt.check_inside(*chosen.image.shape[1:])
            check_formats([name for name in self.job.formats or () if name != "rtstruct"], chosen.image)
            self.chosen = chosen
        self._stopwatch.lap("open")

    def finish(self, answering: Answering) -> None:
        """Segment and write what is open."""
        from medsam3.io import DEFAULT_FORMATS  # noqa: PLC0415  numpy, not for --help

        assert self.chosen is not None, "prepare has opened it"
        self._stopwatch.lap("load model")
        image, options = self.chosen.image, self.job.stacks.options()
        keys = "".join(task.job for _, task in self._open)
        journal = self.folder.journal(self.item.stem, f"{self._open[0][1].source}{self._open[0][1].fingerprint}{keys}")
        options = replace(
            options,
            threshold=self.job.threshold,
            frames=self.chosen.frames,
            journal=journal if image.shape[0] > 1 else None,
        )
        prompts = [prompt for prompt, _ in self._open]
        frame = self.job.frames[0].first if self.job.frames and self.chosen.frames is None else None
        found = answering.segment(OpenedImage(self.item, image, frame), prompts, options, self._bar.show_slices)
        self._stopwatch.lap("segment")
        for name in dict.fromkeys(masks.found_as for masks in found if masks.found_as):
            self._bar.tell(
                f"medsam3: what was drawn is taken for: {name}; by this name it is found again if it is lost"
            )
        shown = image if options.window is None else replace(image, window=options.window)
        self._write(found, shown, self.job.formats or DEFAULT_FORMATS[image.kind], answering)
        self.folder.forget(journal)

    def facts(self) -> InputFacts:
        """Tell what was read and how long each part took."""
        return facts_of(self.item.label, files_at(self.item.path), self.item.path, self._stopwatch.laps)

    def forget(self) -> None:
        """Remove what was fetched from an archive, unless the next run goes on with it."""
        if isinstance(self.item, ArchiveInput) and not self.is_resumable:
            self.item.forget()

    def _write(self, found: Sequence[Masks], image: Image, formats: Sequence[str], answering: Answering) -> None:
        from medsam3.cli.outputs import ResultRow  # noqa: PLC0415

        for (prompt, task), masks in zip(self._open, found, strict=True):
            stem = self.folder.stem(task, self.item.stem)
            names = self.folder.write(stem, masks, image, self._possible(formats, masks), self.job.identity(prompt))
            reading = None if prompt.text is None else answering.reading(image, prompt.text)
            row = ResultRow.from_masks(self.item.label, prompt, masks, image, names, reading)
            self.folder.record(stem, task, row)
            self.rows.append(row)
            self._stopwatch.lap("write")
            self._store(names)

    def _possible(self, formats: Sequence[str], masks: Masks) -> Sequence[str]:
        """Leave the RT structure set out if there is nothing to put into it and the segmentation tells so."""
        if masks.objects or "rtstruct" not in formats or "seg" not in formats:
            return formats
        self._bar.tell(f"medsam3: no {masks.concept or 'object'} was found: there is no RT structure set")
        return [name for name in formats if name != "rtstruct"]

    def _fetch(self) -> None:
        if isinstance(self.item, ArchiveInput):
            try:
                self.item.fetch(self._bar.show_slices)
            except UnreachableError:
                self.is_resumable = True
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


@contextmanager
def _reported(item: Input | ArchiveInput, outcome: RunOutcome, bar: ProgressBar) -> Iterator[None]:
    """Report what goes wrong with one input, so that the others go on."""
    try:
        yield
    except InputError as error:
        _log.debug("bad input", exc_info=True)
        failure = Failure(item.label, in_options(str(error)))
    except Exception as error:
        _log.debug("unexpected error", exc_info=True)
        failure = Failure(item.label, unexpected(error), is_ours=True)
    else:
        return
    outcome.failures.append(failure)
    bar.complain(failure.error if item.path.name in failure.error else f"{item.label}: {failure.error}")


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
