"""`segment`: the one way from an image and prompts to masks, for pictures, volumes and videos, with any model.

Every frame is shown through the image's view, encoded once, and asked each prompt. A single frame's answer is what the
model says; runs of frames are put together by `segmentation.stack`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from numpy.typing import ArrayLike

from medsam3.errors import InputError, check_frame
from medsam3.image import Image, Masks, Window
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Prompt
from medsam3.segmentation.composing import questions
from medsam3.segmentation.options import Options
from medsam3.view.planes import PLANES
from medsam3.view.view import View, view_of

Report = Callable[[int, int], None]
_LOG = logging.getLogger(__name__)


class Given(TypedDict, total=False):
    """Arguments of `segment` by name: two settings that are often changed, and the place of an array."""

    threshold: float | None
    frames: Sequence[int] | None
    spacing_mm: Sequence[float] | None
    affine: ArrayLike | None


@dataclass(frozen=True)
class Outcome:
    """Result for one item of `segment_many`: masks by prompt, or the error that stopped it."""

    item: Any
    masks: tuple[Masks, ...] = ()
    error: Exception | None = None


def segment(
    image: Any,
    prompts: str | Prompt | Sequence[str | Prompt],
    segmenter: Segmenter,
    options: Options | None = None,
    *,
    progress: Report | None = None,
    **given: Unpack[Given],
) -> list[Masks]:
    """Find the objects of each prompt, at the image's own size and position.

    Args:
        image: An `Image`, a path, a NumPy array, a PIL picture, a torch tensor, or an image of pydicom, nibabel or
            SimpleITK; see `medsam3.as_image`.
        prompts: A phrase, a prompt, or several. A phrase may join concepts ("liver and kidney"), take one from another
            ("kidney without tumor") or name a side ("lung on the left of the image"). Phrases are asked on every frame;
            boxes, points and exemplars are on the frame that `options.at` says.
        segmenter: A model, as `medsam3.load` gives.
        options: Settings; None takes what is best for the kind of image.
        progress: Called with the number of steps that are done and that there are, first with 0.
        **given: `threshold`, the least score in 0..1 of an object that is kept, and `frames`, the indices along N to
            segment, each in place of that of the options; `spacing_mm` (n, row, col) or `affine` of an array.

    Returns:
        One `Masks` over (N, H, W) for each concept that is asked, in the order of the prompts: one for a prompt, and
        several for a phrase that joins several, each with its own `concept`. Objects best score first. The presence of
        a stack is that of its best frame, that of a difference or a side that of the concept it is taken from.

    Raises:
        InputError: No prompt, a phrase that is not understood, something that lies outside the image, a frame that does
            not exist, a threshold outside 0..1, something drawn in a volume without the slice it is on, a
            plane that does not fit.
    """
    unknown = sorted(set(given) - set(Given.__annotations__))
    if unknown:
        raise TypeError(f"segment() got {', '.join(unknown)}, allowed are {', '.join(Given.__annotations__)}")
    shown = _opened(image, given.get("spacing_mm"), given.get("affine"))
    plan = [question for prompt in as_prompts(prompts) for question in questions(shown, prompt, segmenter)]
    asked = list(dict.fromkeys(prompt for question in plan for prompt in question.prompts))
    threshold, frames, settings = given.get("threshold"), given.get("frames"), options or Options()
    if threshold is not None:
        settings = replace(settings, threshold=threshold)
    if frames is not None:
        settings = replace(settings, frames=tuple(frames))
    for prompt in asked:
        prompt.check_inside(*shown.shape[1:])
    report = progress or (lambda done, count: None)
    found = dict(zip(asked, _segment_each(shown, asked, segmenter, settings, report), strict=True))

    def view() -> View:  # only to know the sides, so in any window
        is_drawn = any(prompt.is_drawn for prompt in asked)
        return _view(shown, replace(settings, window=Window(0, 1)), is_drawn=is_drawn)

    return [replace(question.answer(found, view), image=shown) for question in plan]


def _segment_each(
    image: Image, prompts: Sequence[Prompt], segmenter: Segmenter, options: Options, report: Report
) -> list[Masks]:
    """Segment each prompt as the model is asked it."""
    if options.plane == "vote":
        return _segment_by_vote(image, prompts, segmenter, options, report)
    by_run = segment_runs(image, prompts, segmenter, options, report)
    return [_joined(image.shape, [run[k] for run in by_run]) for k in range(len(prompts))]


def _view(image: Image, options: Options, *, is_drawn: bool) -> View:
    """Show an image as the options say; of a vote, as if they left the plane open."""
    return view_of(
        image,
        "auto" if options.plane == "vote" else options.plane,
        window=options.window,
        has_neighbours=options.has_neighbours,
        keeps_slices=is_drawn or options.frames is not None,
    )


def segment_many(
    images: Iterable[Any],
    prompts: str | Prompt | Sequence[str | Prompt],
    segmenter: Segmenter,
    options: Options | None = None,
    *,
    has_bar: bool = True,
) -> list[Outcome]:
    """Segment many images with one model, in their order; an image that fails does not stop the others.

    Args:
        images: What `segment` takes, each.
        prompts: The same for all images.
        segmenter: A model.
        options: Settings.
        has_bar: Show a progress bar, on a terminal or in a notebook.
    """
    from rich.progress import track  # noqa: PLC0415  only for the bar

    outcomes = []
    for item in track(list(images), "segmenting", disable=not has_bar):
        try:
            outcomes.append(Outcome(item, tuple(segment(item, prompts, segmenter, options))))
        except Exception as error:  # the edge of a batch: it is the item's, with its traceback
            _LOG.debug("an image failed", exc_info=True)
            outcomes.append(Outcome(item, error=error))
    return outcomes


def _opened(image: Any, spacing_mm: Sequence[float] | None, affine: ArrayLike | None) -> Image:
    if isinstance(image, Image) and spacing_mm is None and affine is None:
        return image
    if isinstance(image, (str, Path)) and spacing_mm is None and affine is None:
        from medsam3.io import read  # noqa: PLC0415  readers are heavy and not needed for an image at hand

        return read(image)
    from medsam3.io.in_memory import as_image  # noqa: PLC0415

    return as_image(image, spacing_mm=spacing_mm, affine=affine)


def as_prompts(prompts: str | Prompt | Sequence[str | Prompt]) -> list[Prompt]:
    """Make a list of prompts from one or many, each phrase as a text prompt.

    Raises:
        InputError: There is none.
    """
    many = [prompts] if isinstance(prompts, (str, Prompt)) else list(prompts)
    if not many:
        raise InputError("no prompt was given: name at least one concept such as 'polyp'")
    return [Prompt(text=prompt) if isinstance(prompt, str) else prompt for prompt in many]


def segment_runs(
    image: Image, prompts: Sequence[Prompt], segmenter: Segmenter, options: Options, report: Report
) -> list[list[Masks]]:
    """Segment each run of neighbouring frames that was chosen: its masks over the whole image, by prompt."""
    is_drawn = any(prompt.is_drawn for prompt in prompts)
    assert options.plane != "vote", "each plane is asked by itself"
    view = _view(image, options, is_drawn=is_drawn)
    runs = _runs(options.frames, view)
    at = _drawn_on(image, runs, options, view) if is_drawn else None
    is_any_followed = any(is_followed(options, image, prompt) for prompt in prompts)
    steps = [len(run) * (3 if is_any_followed and len(run) > 1 else 1) for run in runs]
    found: list[list[Masks]] = []
    report(0, sum(steps))
    shown = [view.prompt(prompt) for prompt in prompts]
    for number, run in enumerate(runs):
        before = sum(steps[:number])
        told = _shifted(report, before, sum(steps))
        work = Work(view, run, at, segmenter, _journaled(options, number), told)
        found.append(_answered(work, shown) if len(run) == 1 else _followed(work, shown))
    return found


@dataclass(frozen=True)
class Work:
    """A run of neighbouring frames to be segmented.

    Attributes:
        view: What the model is shown.
        run: Numbers of the views, each one more than that before.
        at: Number of the view that something is drawn on; None if nothing is, or if it holds on every view.
        segmenter: The model.
        options: Settings.
        report: Told the steps that are done and that there are.
    """

    view: View
    run: range
    at: int | None
    segmenter: Segmenter
    options: Options
    report: Report

    def encode(self, n: int) -> Any:
        """Give the features of view n."""
        return (self.options.encode or self.segmenter.encode)(self.view.rgb(n))

    def part(self, prompt: Prompt, n: int) -> Prompt | None:
        """Choose what of a prompt is asked on view n; None if nothing is."""
        if prompt.is_drawn and self.at in (None, n):
            return prompt
        return prompt.undrawn()


def is_followed(options: Options, image: Image, prompt: Prompt) -> bool:
    """Tell whether a prompt's objects are followed from frame to frame; see `Options`."""
    if options.is_followed is not None:
        return options.is_followed
    return image.kind == "video" or prompt.is_drawn or options.key_every > 1


def _followed(work: Work, prompts: Sequence[Prompt]) -> list[Masks]:
    from medsam3.segmentation.stack import StackRun  # noqa: PLC0415  a picture needs none of it

    return StackRun(work, prompts).run()


def _answered(work: Work, prompts: Sequence[Prompt]) -> list[Masks]:
    """Ask about a single frame, which has no neighbours to be linked with."""
    (n,) = work.run
    parts = [work.part(prompt, n) for prompt in prompts]
    features = None if not any(parts) else work.encode(n)
    found = []
    for prompt, part in zip(prompts, parts, strict=True):
        masks = Masks((1, *work.view.size), concept=prompt.text or "")
        if part is not None:
            masks = work.segmenter.decode(features, part, threshold=work.options.threshold)
        found.append(work.view.masks_back(stack_frames(work.view.shape, [n], [masks])))
    work.report(1, 1)
    return found


def stack_frames(shape: tuple[int, int, int], frames: Sequence[int], masks: Sequence[Masks]) -> Masks:
    """Put the masks over (1, H, W) of single frames, at least one, together as masks over `shape` (N, H, W).

    The concept is that of the first; presence is the highest of the frames, and present is what is so in any.
    """
    moved = [
        replace(one, shape=shape, objects=tuple(replace(item, start=(n, *item.start[1:])) for item in one.objects))
        for n, one in zip(frames, masks, strict=True)
    ]
    return _joined(shape, moved)


def _joined(shape: tuple[int, int, int], masks: Sequence[Masks]) -> Masks:
    """Masks of one prompt over the same image, found on different frames of it, as one."""
    if len(masks) == 1:
        return masks[0]
    presences = [one.presence for one in masks if one.presence is not None]
    verdicts = [one.is_present for one in masks if one.is_present is not None]
    return Masks(
        shape,
        tuple(sorted((item for one in masks for item in one.objects), key=lambda item: -item.score)),
        concept=masks[0].concept,
        presence=max(presences, default=None),
        is_present=any(verdicts) if verdicts else None,
        is_sure=not any(verdicts) or any(one.is_present and one.is_sure for one in masks),
        found_as=next((one.found_as for one in masks if one.found_as), ""),
    )


def _segment_by_vote(
    image: Image, prompts: Sequence[Prompt], segmenter: Segmenter, options: Options, report: Report
) -> list[Masks]:
    """Segment a volume in each of the three planes, and let two of them decide on each voxel."""
    if any(prompt.is_drawn for prompt in prompts) or options.frames is not None:
        raise InputError("boxes, points, exemplars and frames lie in one plane: leave the vote of three planes out")
    from medsam3.segmentation.fusion import voted  # noqa: PLC0415

    by_plane: list[list[Masks]] = []
    for number, plane in enumerate(PLANES):
        journal = options.journal and options.journal.with_suffix(f".{plane}{options.journal.suffix}")
        chosen = replace(options, plane=plane, journal=journal)

        def told(done: int, count: int, number: int = number) -> None:
            report(number * count + done, len(PLANES) * count)

        (found,) = segment_runs(image, prompts, segmenter, chosen, told)
        by_plane.append(found)
    return [voted([masks[k] for masks in by_plane], options.fusion.least_share) for k in range(len(prompts))]


def _runs(frames: Sequence[int] | None, view: View) -> list[range]:
    """The views of the chosen frames, as runs of neighbours."""
    if frames is None:
        return [range(view.count)]
    if not frames:
        raise InputError(f"no frame was chosen, allowed are 0 to {view.count - 1}")
    chosen = sorted({view.number(check_frame(n, view.count)) for n in frames})
    starts = [n for n in chosen if n - 1 not in chosen]
    stops = [n + 1 for n in chosen if n + 1 not in chosen]
    return [range(start, stop) for start, stop in zip(starts, stops, strict=True)]


def _drawn_on(image: Image, runs: Sequence[range], options: Options, view: View) -> int | None:
    """The view that boxes, points and exemplars are on; None if they hold on every one."""
    if options.at is None and len(runs) == 1 and len(runs[0]) == 1:
        return runs[0].start
    if options.at is None and image.kind == "video" and options.is_followed is not False:
        return runs[0].start
    if options.at is None:
        if options.is_followed is False:
            return None
        raise InputError(
            f"boxes, points and exemplars are on one slice of a volume: say which, 0 to {view.count - 1}, by at="
        )
    if not 0 <= options.at < view.count:
        raise InputError(f"slice {options.at} was named for the boxes, allowed is 0 to {view.count - 1}")
    at = view.number(options.at)
    if not any(at in run for run in runs):
        raise InputError(f"slice {options.at} was named for the boxes, but not among the frames: choose it too")
    return at


def _shifted(report: Report, before: int, count: int) -> Report:
    return lambda done, _: report(before + done, count)


def _journaled(options: Options, number: int) -> Options:
    """The options of a run of frames, which has a journal of its own."""
    if options.journal is None or number == 0:
        return options
    return replace(options, journal=options.journal.with_suffix(f".{number}{options.journal.suffix}"))
