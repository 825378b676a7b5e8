"""`medsam3 segment`: prompts from the command line, over many files, with results that a second run does not redo."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from cyclopts import Parameter

from medsam3.cli.inputs import Input, find_inputs, find_stacks, frame_ranges, read_chosen
from medsam3.cli.job import FLAT, SHARE, Help, Job, ModelChoice, SlideChoice, StackChoice, formats_from, prompts_from
from medsam3.cli.remote import Opened, ServerChoice, chosen_model
from medsam3.cli.terminal import ProgressBar, in_options, print_table, progress_bar, say, say_json, unexpected
from medsam3.errors import InputError

if TYPE_CHECKING:  # numpy, not for --help
    from medsam3.cli.inputs import Chosen
    from medsam3.cli.outputs import OutputFolder, ResultRow, Task
    from medsam3.cli.remote import Answering
    from medsam3.image import Image, Kind, Masks
    from medsam3.prompts import Prompt

_log = logging.getLogger(__name__)

DEFAULT_FORMATS: dict[Kind, tuple[str, ...]] = {
    "picture": ("png", "overlay"),
    "volume": ("nifti",),
    "video": ("coco",),
}


@dataclass(frozen=True)
class Segment:
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

A phrase that joins concepts gives a row and files for each; "without" takes one from another; "on the left of the
image" is a side of the image as it is shown, "left kidney" one of the patient. What denies ("no liver") is refused.
positions are pixels from the upper left, x to the right, y down; the first frame or slice is 0.
Boxes, points and exemplars hold for every --text and every file; without --text they are asked alone.
A folder with a DICOM series is one volume; a pattern such as "ct/*.dcm" takes each of its files by itself.
With --format coco, several files give one annotations.coco.json for all of them, one file gives its own.
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
    overwrite: Annotated[bool, Help("segment again what is done, replace files of that name")] = False
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
        return Job(prompts, formats, self.threshold, frames, model, self.stacks)

    def run(self) -> int:
        """Segment the files, write and show the results."""
        from medsam3.cli.outputs import OutputFolder  # noqa: PLC0415

        with progress_bar() as bar:
            bar.start("looking for images")
            job = self.job()
            find = find_stacks if self.stacks.propagate else find_inputs
            chosen = self.slide.part()
            found = find(self.files, leave_out=self.out, series=self.series)
            inputs = found if chosen is None else [replace(item, part=chosen) for item in found]
            _log.info("weights: %s", job.model.sha256)  # hashed here: weights that are not there end the run at once
            has_one_coco = len(inputs) > 1 and "coco" in (job.formats or ())
            with OutputFolder(self.out, replaces_foreign=self.overwrite, has_one_coco=has_one_coco) as folder:
                outcome = segment_all(inputs, job, folder, bar, redo=self.overwrite)
        _show(outcome, job, folder, as_json=self.json)
        return outcome.exit_code


@dataclass(frozen=True)
class Failure:
    """A file that could not be segmented, and why; `is_ours` if the fault is the program's."""

    file: str
    error: str
    is_ours: bool = False


@dataclass
class Outcome:
    """What a run has come to so far."""

    rows: list[ResultRow] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    skipped: int = 0

    @property
    def exit_code(self) -> int:
        """0 all well; 1 an error of ours; 2 bad input."""
        if any(failure.is_ours for failure in self.failures):
            return 1
        return 2 if self.failures else 0


def segment_all(
    inputs: Sequence[Input], job: Job, folder: OutputFolder, bar: ProgressBar, *, redo: bool = False
) -> Outcome:
    """Segment every input and write its results; those that are done already are taken from the folder's list.

    Raises:
        InputError: The model cannot be loaded, or another run is at work in the folder. What is wrong with one input is
            in the outcome.
    """
    outcome = Outcome()
    answering: Answering | None = None
    for number, item in enumerate(inputs):
        bar.show(number, len(inputs), item.path.name)
        work = _Work(item, job, folder)
        with _reported(item, outcome, bar):
            work.prepare(redo=redo)
        if work.chosen is not None:
            if answering is None:
                bar.start("loading the model")
                answering = job.model.answering()
                folder.open()
                bar.start(item.path.name)
            with _reported(item, outcome, bar):
                work.finish(answering, bar)
        elif work.rows:
            outcome.skipped += 1
        outcome.rows.extend(work.rows)
        bar.end()
    return outcome


class _Work:
    """One input on its way: looked up, read, segmented, written."""

    def __init__(self, item: Input, job: Job, folder: OutputFolder) -> None:
        self.item, self.job, self.folder = item, job, folder
        self.rows: list[ResultRow] = []
        self.chosen: Chosen | None = None  # stays None if nothing is left to do
        self._open: list[tuple[Prompt, Task]] = []

    def prepare(self, *, redo: bool) -> None:
        """Find what is done already, and open the image if anything is not."""
        from medsam3.cli.outputs import Task, check_formats  # noqa: PLC0415

        source, fingerprint = self.item.source, self.item.fingerprint()
        for prompt in self.job.prompts:
            task = Task(source, fingerprint, self.job.key(prompt), prompt.text or "")
            done = None if redo else self.folder.finished(task)
            if done is None:
                self._open.append((prompt, task))
            else:
                self.rows.append(done)
        if self._open:
            chosen = read_chosen(self.item, self.job.frames)
            for prompt, _ in self._open:
                prompt.check_inside(*chosen.image.shape[1:])
            check_formats([name for name in self.job.formats or () if name != "rtstruct"], chosen.image)
            self.chosen = chosen

    def finish(self, answering: Answering, bar: ProgressBar) -> None:
        """Segment and write what is open."""
        assert self.chosen is not None, "prepare has opened it"
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
        found = answering.segment(Opened(self.item, image, frame), prompts, options, bar.show_slices)
        for name in dict.fromkeys(masks.found_as for masks in found if masks.found_as):
            bar.tell(f"medsam3: what was drawn is taken for: {name}; by this name it is found again if it is lost")
        shown = image if options.window is None else replace(image, window=options.window)
        self._write(found, shown, self.job.formats or DEFAULT_FORMATS[image.kind], answering)
        self.folder.forget(journal)

    def _write(self, found: Sequence[Masks], image: Image, formats: Sequence[str], answering: Answering) -> None:
        from medsam3.cli.outputs import ResultRow  # noqa: PLC0415

        for (prompt, task), masks in zip(self._open, found, strict=True):
            stem = self.folder.stem(task, self.item.stem)
            names = self.folder.write(stem, masks, image, formats)
            reading = None if prompt.text is None else answering.reading(image, prompt.text)
            row = ResultRow.from_masks(self.item.label, prompt, masks, image, names, reading)
            self.folder.record(stem, task, row)
            self.rows.append(row)


@contextmanager
def _reported(item: Input, outcome: Outcome, bar: ProgressBar) -> Iterator[None]:
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


def _show(outcome: Outcome, job: Job, folder: OutputFolder, *, as_json: bool) -> None:
    if as_json:
        answer = {
            "model": job.model.model,
            "weights_sha256": job.model.sha256,
            "out": str(folder.path),
            "results": [row.to_json() for row in outcome.rows],
            "skipped": outcome.skipped,
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
    if outcome.failures:
        say(f"failed: {_files(len(outcome.failures))}, see the errors above")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
