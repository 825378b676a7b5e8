"""`medsam3 segment`: prompts from the command line, over many files, with results that a second run does not redo."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from medsam3.app.inputs import Input, find_inputs
from medsam3.app.job import Job, job_from
from medsam3.app.outputs import OutputFolder, Task
from medsam3.app.results import HEADINGS, ResultRow
from medsam3.app.terminal import ProgressBar, print_table, progress_bar, unexpected
from medsam3.errors import InputError
from medsam3.image import Image, Kind
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
  medsam3 segment ct.nii.gz --text liver --slice 40 --format nifti

positions are pixels from the upper left, x to the right, y down; the first slice is 0.
Write a negative first number with an equals sign: --box=-5,0,30,40
Boxes, points and exemplars hold for every --text and every file; without --text they are asked alone.
A folder with a DICOM series is one volume; a pattern such as "ct/*.dcm" takes each of its files by itself.
A second run skips what results.jsonl in the output folder says is done, and takes up a run that was broken off.
A bad file is reported and the others go on; the exit code is then 2."""


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
    ask.add_argument("--slice", action="append", type=int, metavar="N", help="only this slice or frame of a stack")
    ask.add_argument("--threshold", type=float, metavar="F", help="least score, 0 to 1, of an object that is kept")
    give = parser.add_argument_group("what to write")
    give.add_argument("--out", type=Path, default=Path("medsam3_out"), metavar="DIR", help="default: %(default)s")
    give.add_argument(
        "--format",
        metavar="LIST",
        help="png, overlay, coco, nifti, seg, joined by commas; default: png,overlay for pictures, nifti for volumes",
    )
    give.add_argument("--json", action="store_true", help="print the results as JSON to stdout, in place of the table")
    give.add_argument("--overwrite", action="store_true", help="segment again what is done, replace files of that name")
    model = parser.add_argument_group("what with")
    model.add_argument("--model", default="mini", metavar="NAME", help="mini (default), facebook/sam3, or a folder")
    model.add_argument("--weights", type=Path, metavar="FILE", help="weights of your own, made by medsam3 train")


def run(args: argparse.Namespace) -> int:
    """Run `medsam3 segment`."""
    job = job_from(args)
    inputs = find_inputs(args.files, leave_out=args.out)
    folder = OutputFolder(args.out, replaces_foreign_files=args.overwrite)
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
            if work.image is not None:
                if segmenter is None:
                    from medsam3.models import registry  # noqa: PLC0415  may bring torch, which most errors do not need

                    segmenter = registry.load(job.model, weights=job.weights)
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
        self.image: Image | None = None  # stays None where nothing is left to do
        self._open: list[tuple[Prompt, Task]] = []

    def prepare(self, *, redo: bool) -> None:
        """Find what is done already, and read the image if anything is not."""
        source, fingerprint = str(self.item.path.resolve()), self.item.fingerprint()
        for prompt in self.job.prompts:
            task = Task(source, fingerprint, self.job.key(prompt), prompt.text or "")
            done = None if redo else self.folder.finished(task)
            if done is None:
                self._open.append((prompt, task))
            else:
                self.rows.append(done)
        if self._open:
            from medsam3.io import read  # noqa: PLC0415  no reader is needed for what is done

            image = read(self.item.path)
            for prompt, _ in self._open:
                prompt.check_inside(*image.shape[1:])
            for n in self.job.slices or ():
                image.frame(n)
            self.image = image

    def finish(self, segmenter: Segmenter, bar: ProgressBar) -> None:
        """Segment and write what is open."""
        from medsam3.infer import segment  # noqa: PLC0415

        assert self.image is not None, "prepare has read it"
        found = segment(
            self.image,
            [prompt for prompt, _ in self._open],
            segmenter,
            threshold=self.job.threshold,
            frames=self.job.slices,
            progress=bar.show_slices,
        )
        formats = self.job.formats or DEFAULT_FORMATS[self.image.kind]
        for (prompt, task), masks in zip(self._open, found, strict=True):
            stem = self.folder.stem(task, self.item.stem)
            names = self.folder.write(stem, masks, self.image, formats)
            row = ResultRow.from_masks(str(self.item.path), prompt, masks, self.image, names)
            self.folder.record(stem, task, row)
            self.rows.append(row)


@contextmanager
def _reported(item: Input, outcome: Outcome, bar: ProgressBar) -> Iterator[None]:
    """Report what goes wrong with one input, so that the others go on."""
    try:
        yield
    except InputError as error:
        _log.debug("bad input", exc_info=True)
        failure = Failure(str(item.path), str(error))
    except Exception as error:
        _log.debug("unexpected error", exc_info=True)
        failure = Failure(str(item.path), unexpected(error), is_ours=True)
    else:
        return
    outcome.failures.append(failure)
    bar.complain(failure.error if item.path.name in failure.error else f"{item.path}: {failure.error}")


def _show(outcome: Outcome, job: Job, folder: OutputFolder, *, as_json: bool) -> None:
    if as_json:
        print(
            json.dumps(
                {
                    "model": job.model,
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
    if outcome.skipped:
        print(f"skipped {outcome.skipped} that were done before (--overwrite does them again)")
    if outcome.failures:
        print(f"failed: {len(outcome.failures)}, see the errors above")
