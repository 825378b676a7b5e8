"""`medsam3 segment`: prompts from the command line, over many files, with results that a second run does not redo."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from medsam3.cli.inputs import Input, find_inputs
from medsam3.cli.job import Job, job_from
from medsam3.cli.model_choice import add_sam3_arguments
from medsam3.cli.outputs import OutputFolder, Task, check_formats
from medsam3.cli.reading import Chosen, read_chosen
from medsam3.cli.results import HEADINGS, ResultRow
from medsam3.cli.stacks import add_stack_arguments, find_stacks
from medsam3.cli.terminal import ProgressBar, in_options, print_table, progress_bar, unexpected
from medsam3.errors import InputError
from medsam3.image import Image, Kind, Masks
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Prompt

_log = logging.getLogger(__name__)

DEFAULT_FORMATS: dict[Kind, tuple[str, ...]] = {
    "picture": ("png", "overlay"),
    "volume": ("nifti",),
    "video": ("coco",),
}
_EXAMPLES = """examples:
  medsam3 segment colonoscopy.png --text polyp
  medsam3 segment scans/ "more/**/*.dcm" --text "optic disc" --text "optic cup" --out results
  medsam3 segment breast.png --text "breast tumor" --box 80,40,210,160 --format png,coco --json
  medsam3 segment ct.nii.gz --text "liver and kidney" --text "kidney without tumor" --frame 40-59
  medsam3 segment study/ --series 3 --text liver --format seg,rtstruct,csv
  medsam3 segment clip.mp4 --box 80,40,210,160 --format mp4,coco
  medsam3 segment colonoscopy.png --text polyp --model sam3.pt --lora best_lora_weights.pt

A phrase that joins concepts gives a row and files for each; "without" takes one from another; "on the left of the
image" is a side of the image as it is shown, "left kidney" one of the patient. What denies ("no liver") is refused.
positions are pixels from the upper left, x to the right, y down; the first frame or slice is 0.
Write a negative first number with an equals sign: --box=-5,0,30,40
Boxes, points and exemplars hold for every --text and every file; without --text they are asked alone.
A folder with a DICOM series is one volume; a pattern such as "ct/*.dcm" takes each of its files by itself.
A second run skips what results.jsonl in the output folder says is done, and takes up a run that was broken off; a
change of the file, the prompt or the weights makes the result anew.
In the table, present is the probability that the concept is there at all, and the model's calibrated yes or no; its
limit need not be 0.50. Areas of a stack are those of all its slices together.
A bad file is reported and the others go on. Exit codes: 0 all done; 2 bad input, also if it was one file of many;
1 an error of ours; 130 interrupted."""


@dataclass(frozen=True)
class Failure:
    """A file that could not be segmented, and why; `is_ours` where the fault is the program's."""

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `medsam3 segment`."""
    parser.epilog = _EXAMPLES
    parser.add_argument("files", nargs="+", metavar="FILES", help="images, folders, DICOM series folders, or patterns")
    ask = parser.add_argument_group("what to look for (each may be repeated)")
    ask.add_argument("--text", action="append", default=[], metavar="PHRASE", help="a concept, such as polyp")
    ask.add_argument("--box", action="append", default=[], metavar="X0,Y0,X1,Y1", help="one object to segment")
    ask.add_argument(
        "--point", action="append", default=[], metavar="X,Y[,0|1]", help="on the object (1) or off it (0)"
    )
    ask.add_argument(
        "--exemplar",
        action="append",
        default=[],
        metavar="X0,Y0,X1,Y1[,0|1]",
        help="an example of what is wanted (1) or not (0); all objects like it are found",
    )
    ask.add_argument(
        "--frame",
        "--slice",
        dest="frame",
        action="append",
        metavar="N|A-B",
        help="only these frames or slices of a stack, from 0; of a 4-D NIfTI, the time point",
    )
    ask.add_argument(
        "--series",
        action="append",
        default=[],
        metavar="NUMBER|UID",
        help="of a folder with several DICOM series: this one, by its number or the end of its UID",
    )
    ask.add_argument("--threshold", type=float, metavar="F", help="least score, 0 to 1, of an object that is kept")
    add_stack_arguments(parser.add_argument_group("volumes and videos"))
    give = parser.add_argument_group("what to write")
    give.add_argument("--out", type=Path, default=Path("medsam3_out"), metavar="DIR", help="default: %(default)s")
    give.add_argument(
        "--format",
        metavar="LIST",
        help="png, overlay, coco, nifti, nrrd, mha, seg, rtstruct, mp4, montage, planes, csv, json, joined by commas; "
        "default: png,overlay for pictures, nifti for volumes, coco for videos",
    )
    give.add_argument("--json", action="store_true", help="print the results as JSON to stdout, in place of the table")
    give.add_argument("--overwrite", action="store_true", help="segment again what is done, replace files of that name")
    model = parser.add_argument_group("what with")
    model.add_argument(
        "--model", default="mini", metavar="NAME", help="mini (default), facebook/sam3, its folder, or sam3.pt"
    )
    model.add_argument("--weights", type=Path, metavar="FILE", help="weights of your own, made by medsam3 train")
    model.add_argument("--flips", action="store_true", help="ask phrases of the mirrored picture too (mini)")
    add_sam3_arguments(model)
    model.add_argument("--device", default="cpu", metavar="NAME", help="cpu (default); for SAM 3 also cuda or mps")


def run(args: argparse.Namespace) -> int:
    """Run `medsam3 segment`."""
    job = job_from(args)
    find = find_stacks if job.stacks.way == "follow" else find_inputs
    inputs = find(args.files, leave_out=args.out, series=args.series)
    folder = OutputFolder(args.out, replaces_foreign_files=args.overwrite)
    _log.info("weights: %s", job.model.sha256)  # hashed here, so that weights that are not there end the run at once
    outcome = segment_all(inputs, job, folder, redo=args.overwrite)
    _show(outcome, job, folder, as_json=args.json)
    return outcome.exit_code


def segment_all(inputs: Sequence[Input], job: Job, folder: OutputFolder, *, redo: bool = False) -> Outcome:
    """Segment every input and write its results; those that are done already are taken from the folder's list.

    Raises:
        InputError: The model cannot be loaded. What is wrong with one input is in the outcome.
    """
    outcome = Outcome()
    segmenter: Segmenter | None = None
    with progress_bar(len(inputs)) as bar:
        for item in inputs:
            bar.start_file(item.path.name)
            work = _Work(item, job, folder)
            with _reported(item, outcome, bar):
                work.prepare(redo=redo)
            if work.chosen is not None:
                if segmenter is None:
                    segmenter = job.model.load()
                with _reported(item, outcome, bar):
                    work.finish(segmenter, bar)
            elif work.rows:
                outcome.skipped += 1
            outcome.rows.extend(work.rows)
            bar.end_file()
    return outcome


class _Work:
    """One input on its way: looked up, read, segmented, written."""

    def __init__(self, item: Input, job: Job, folder: OutputFolder) -> None:
        self.item, self.job, self.folder = item, job, folder
        self.rows: list[ResultRow] = []
        self.chosen: Chosen | None = None  # stays None where nothing is left to do
        self._open: list[tuple[Prompt, Task]] = []

    def prepare(self, *, redo: bool) -> None:
        """Find what is done already, and open the image if anything is not."""
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

    def finish(self, segmenter: Segmenter, bar: ProgressBar) -> None:
        """Segment and write what is open."""
        from medsam3.segmentation.run import segment  # noqa: PLC0415

        assert self.chosen is not None, "prepare has opened it"
        image, options = self.chosen.image, self.job.stacks.options()
        keys = "".join(task.job for _, task in self._open)
        journal = self.folder.journal(self.item.stem, f"{self._open[0][1].source}{self._open[0][1].fingerprint}{keys}")
        found = segment(
            image,
            [prompt for prompt, _ in self._open],
            segmenter,
            replace(
                options,
                threshold=self.job.threshold,
                frames=self.chosen.frames,
                journal=journal if image.shape[0] > 1 else None,
            ),
            progress=bar.show_slices,
        )
        for name in dict.fromkeys(masks.found_as for masks in found if masks.found_as):
            bar.tell(f"what was drawn is taken for: {name}; by this name it is found again where it is lost")
        shown = image if options.window is None else replace(image, window=options.window)
        self._write(found, shown, self.job.formats or DEFAULT_FORMATS[image.kind], segmenter)
        self.folder.forget(journal)

    def _write(self, found: Sequence[Masks], image: Image, formats: Sequence[str], segmenter: Segmenter) -> None:
        from medsam3.segmentation.composing import readings_of  # noqa: PLC0415

        for (prompt, task), masks in zip(self._open, found, strict=True):
            stem = self.folder.stem(task, self.item.stem)
            names = self.folder.write(stem, masks, image, formats)
            reading = None if prompt.text is None else readings_of(image, prompt.text, segmenter)[0]
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
        print(
            json.dumps(
                {
                    "model": job.model.name,
                    "weights_sha256": job.model.sha256,
                    "out": str(folder.path),
                    "results": [row.to_json() for row in outcome.rows],
                    "skipped": outcome.skipped,
                    "failures": [{"file": failure.file, "error": failure.error} for failure in outcome.failures],
                },
                indent=2,
            )
        )
        return
    if outcome.rows:
        print_table(HEADINGS, [row.cells() for row in outcome.rows])
        print(f"written to {folder.path}")
    guessed = sorted({row.concept for row in outcome.rows if row.is_taught is False})
    if guessed:
        print(f"not taught to these weights, so the answer is a guess: {', '.join(guessed)} (see: medsam3 concepts)")
    if outcome.skipped:
        print(f"skipped {_files(outcome.skipped)} done before (--overwrite does them again)")
    if outcome.failures:
        print(f"failed: {_files(len(outcome.failures))}, see the errors above")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
