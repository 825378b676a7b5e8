"""Makes what is asked of one input: reads it, has it segmented, writes files that wait to take their places.

It runs in this process or in one beside it, and touches nothing that several inputs share.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medsam3.cli.inputs import Input, read_chosen
from medsam3.cli.outputs import MadeFiles, ResultRow, check_formats, make_files
from medsam3.cli.remote import OpenedImage
from medsam3.cli.report import Stopwatch
from medsam3.cli.terminal import in_options, unexpected
from medsam3.errors import InputError
from medsam3.io import DEFAULT_FORMATS

if TYPE_CHECKING:
    from medsam3.cli.archive import ArchiveInput
    from medsam3.cli.inputs import Chosen
    from medsam3.cli.job import Job
    from medsam3.cli.remote import Answering
    from medsam3.image import Masks
    from medsam3.prompts import Prompt
    from medsam3.segmentation.run import Report

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """A file that could not be segmented, and why; `is_ours` if the fault is the program's."""

    file: str
    error: str
    is_ours: bool = False


@dataclass(frozen=True)
class ItemAsked:
    """What is asked of one input.

    Attributes:
        item: The input.
        label: Its name for people.
        prompts: Each with the start of the names of its files.
        out: The folder of the results.
        journal: By which a killed run over a stack is resumed.
    """

    item: Input | ArchiveInput
    label: str
    prompts: tuple[tuple[Prompt, str], ...]
    out: Path
    journal: Path


@dataclass
class Made:
    """What was made of one input.

    Attributes:
        results: Rows that do not name their files yet, and these files, in the order of the prompts.
        told: Lines for the one who waits.
        laps: Seconds by part of the work.
        failure: Why there are no more results; None if all are there.
    """

    results: list[tuple[ResultRow, MadeFiles]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    laps: dict[str, float] = field(default_factory=dict)
    failure: Failure | None = None


@contextmanager
def failing(label: str, note: Callable[[Failure], None]) -> Iterator[None]:
    """Note what goes wrong with one input, so that the others go on."""
    try:
        yield
    except InputError as error:
        _log.debug("bad input", exc_info=True)
        note(Failure(label, in_options(str(error))))
    except Exception as error:
        _log.debug("unexpected error", exc_info=True)
        note(Failure(label, unexpected(error), is_ours=True))


def make(asked: ItemAsked, job: Job, answering: Callable[[], Answering], progress: Report) -> Made:
    """Make the results of one input; what is wrong with it is noted.

    Raises:
        InputError: The model cannot be loaded.
    """
    made, stopwatch = Made(), Stopwatch()

    def note(failure: Failure) -> None:
        made.failure = failure

    chosen: Chosen | None = None
    with failing(asked.label, note):
        chosen = read_chosen(asked.item, job.frames)
        for prompt, _ in asked.prompts:
            prompt.check_inside(*chosen.image.shape[1:])
        check_formats([name for name in job.formats or () if name != "rtstruct"], chosen.image)
    stopwatch.lap("open")
    if chosen is not None and made.failure is None:
        model = answering()
        stopwatch.lap("load model")
        with failing(asked.label, note):
            _answer(asked, job, chosen, model, made, stopwatch, progress)
    made.laps = stopwatch.laps
    return made


def _answer(
    asked: ItemAsked,
    job: Job,
    chosen: Chosen,
    model: Answering,
    made: Made,
    stopwatch: Stopwatch,
    progress: Report,
) -> None:
    image, options = chosen.image, job.stacks.options()
    options = replace(
        options,
        threshold=job.threshold,
        frames=chosen.frames,
        journal=asked.journal if image.shape[0] > 1 else None,
    )
    frame = job.frames[0].first if job.frames and chosen.frames is None else None
    prompts = [prompt for prompt, _ in asked.prompts]
    found = model.segment(OpenedImage(asked.item, image, frame), prompts, options, progress)
    stopwatch.lap("segment")
    for name in dict.fromkeys(masks.found_as for masks in found if masks.found_as):
        made.told.append(f"medsam3: what was drawn is taken for: {name}; by this name it is found again if it is lost")
    shown = image if options.window is None else replace(image, window=options.window)
    formats = job.formats or DEFAULT_FORMATS[image.kind]
    for (prompt, stem), masks in zip(asked.prompts, found, strict=True):
        wanted = _possible(formats, masks, made)
        files = make_files(asked.out, stem, masks, shown, wanted, job.identity(prompt))
        reading = None if prompt.text is None else model.reading(image, prompt.text)
        made.results.append((ResultRow.from_masks(asked.label, prompt, masks, shown, (), reading), files))
        stopwatch.lap("write")


def _possible(formats: Sequence[str], masks: Masks, made: Made) -> Sequence[str]:
    """Leave the RT structure set out if there is nothing to put into it and the segmentation tells so."""
    if masks.objects or "rtstruct" not in formats or "seg" not in formats:
        return formats
    made.told.append(f"medsam3: no {masks.concept or 'object'} was found: there is no RT structure set")
    return [name for name in formats if name != "rtstruct"]
