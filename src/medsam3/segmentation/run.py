"""`segment`: the one way from an image and prompts to masks, for pictures, volumes and videos, with any model.

Every frame is shown through the image's view, encoded once, and asked each prompt. A picture's answer is what the model
says; in a stack, objects are linked from frame to frame, followed both ways, and votes counted.

Source of the scheme: memory-free propagation by boxes as LiteMedSAM's users do it in 3D, here in both directions and
with the detector's own mask as one of three voters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medsam3.errors import InputError
from medsam3.geometry import BoolArray
from medsam3.image import Image, Masks, Window
from medsam3.models.segmenter import Segmenter
from medsam3.models.tracker import BoxPromptTracker, Past, Tracker
from medsam3.prompts import Prompt
from medsam3.segmentation.asking import Answer, ask, asked_elsewhere, has_geometry
from medsam3.segmentation.composing import questions
from medsam3.segmentation.fusion import fuse
from medsam3.segmentation.journal import Journal
from medsam3.segmentation.kept import KeptFrames
from medsam3.segmentation.options import Options
from medsam3.segmentation.packed import PackedMask
from medsam3.segmentation.presence import held
from medsam3.segmentation.recognise import clearest, is_named, recognised
from medsam3.segmentation.result import StackMasks, joined
from medsam3.segmentation.sweep import Found, PastMask, Step, TrackingRules, sweep
from medsam3.segmentation.voting import voted
from medsam3.view.planes import PLANES
from medsam3.view.view import View, view_of

Report = Callable[[int, int], None]


def segment(
    image: Image | str | Path,
    prompts: str | Prompt | Sequence[str | Prompt],
    segmenter: Segmenter,
    options: Options | None = None,
    *,
    threshold: float | None = None,
    frames: Sequence[int] | None = None,
    progress: Report | None = None,
) -> list[Masks]:
    """Find the objects of each prompt, at the image's own size and position.

    Args:
        image: What to segment, or a path that `medsam3.read` takes.
        prompts: A phrase, a prompt, or several. A phrase may join concepts ("liver and kidney"), take one from another
            ("kidney without tumor") or name a side ("lung on the left of the image"). Phrases are asked on every frame;
            boxes, points and exemplars are on the frame that `options.at` says.
        segmenter: A model, as `medsam3.load` gives.
        options: Settings; None takes what is best for the kind of image.
        threshold: Least score in 0..1 of an object that is kept; None takes that of the options.
        frames: Indices along N of the frames to segment; None takes those of the options, which are all by default.
        progress: Called with the number of steps that are done and that there are, first with 0.

    Returns:
        One `Masks` over (N, H, W) for each concept that is asked, in the order of the prompts: one for a prompt, and
        several for a phrase that joins several, each with its own `concept`. Objects best score first. The presence of
        a stack is that of its best frame, that of a difference or a side that of the concept it is taken from.

    Raises:
        InputError: No prompt, a phrase that is not understood, something that lies outside the image, a frame that does
            not exist, a threshold outside 0..1, something drawn in a volume without the slice it is on, a
            plane that does not fit.
    """
    if not isinstance(image, Image):
        from medsam3.io import read  # noqa: PLC0415  readers are heavy and not needed for an image at hand

        image = read(image)
    plan = [question for prompt in as_prompts(prompts) for question in questions(image, prompt, segmenter)]
    asked = list(dict.fromkeys(prompt for question in plan for prompt in question.prompts))
    settings = options or Options()
    if threshold is not None:
        settings = replace(settings, threshold=threshold)
    if frames is not None:
        settings = replace(settings, frames=tuple(frames))
    for prompt in asked:
        prompt.check_inside(*image.shape[1:])
    report = progress or (lambda done, count: None)
    found = dict(zip(asked, _segment_each(image, asked, segmenter, settings, report), strict=True))

    def view() -> View:  # only to know the sides, so in any window
        is_drawn = any(has_geometry(prompt) for prompt in asked)
        return _shown(image, replace(settings, window=Window(0, 1)), is_drawn=is_drawn)

    return [question.answer(found, view) for question in plan]


def _segment_each(
    image: Image, prompts: Sequence[Prompt], segmenter: Segmenter, options: Options, report: Report
) -> list[Masks]:
    """Segment each prompt as the model is asked it."""
    if options.plane == "vote":
        return _segment_by_vote(image, prompts, segmenter, options, report)
    by_run = segment_runs(image, prompts, segmenter, options, report)
    return [joined(image.shape, [run[k] for run in by_run]) for k in range(len(prompts))]


def _shown(image: Image, options: Options, *, is_drawn: bool) -> View:
    """Show an image as the options say; of a vote, as if they left the plane open."""
    return view_of(
        image,
        "auto" if options.plane == "vote" else options.plane,
        window=options.window,
        has_neighbours=options.has_neighbours,
        keeps_slices=is_drawn or options.frames is not None,
    )


def as_prompts(prompts: str | Prompt | Sequence[str | Prompt]) -> list[Prompt]:
    """Make a list of prompts from one or many, each phrase as a text prompt.

    Raises:
        InputError: There is none.
    """
    many = [prompts] if isinstance(prompts, (str, Prompt)) else list(prompts)
    if not many:
        raise InputError("no prompt was given: name at least one concept such as 'polyp'")
    return [Prompt(text=prompt) if isinstance(prompt, str) else prompt for prompt in many]


def is_followed(options: Options, image: Image, prompt: Prompt) -> bool:
    """Whether a prompt's objects are followed from frame to frame; see `Options`."""
    if options.is_followed is not None:
        return options.is_followed
    return image.kind == "video" or has_geometry(prompt) or options.key_every > 1


def segment_runs(
    image: Image, prompts: Sequence[Prompt], segmenter: Segmenter, options: Options, report: Report
) -> list[list[Masks]]:
    """Segment each run of neighbouring frames that was chosen: its masks over the whole image, by prompt."""
    is_drawn = any(has_geometry(prompt) for prompt in prompts)
    assert options.plane != "vote", "each plane is asked by itself"
    view = _shown(image, options, is_drawn=is_drawn)
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
        found.append(_answered(work, shown) if len(run) == 1 else [one.masks() for one in StackRun(work, shown).run()])
    return found


def tracker_for(segmenter: Segmenter) -> Tracker:
    """The tracker that goes with a model; the box around the last mask where it has none of its own."""
    if segmenter.name == "mini":
        from medsam3.models.mini.segmenter import MiniSegmenter  # noqa: PLC0415  torch, which the model has loaded by now
        from medsam3.models.mini.tracker import MiniTracker  # noqa: PLC0415

        if isinstance(segmenter, MiniSegmenter):
            return MiniTracker(segmenter)
    if segmenter.name.startswith("sam3"):
        from medsam3.models.sam3.memory import Sam3Tracker  # noqa: PLC0415
        from medsam3.models.sam3.segmenter import Sam3Segmenter  # noqa: PLC0415

        if isinstance(segmenter, Sam3Segmenter) and segmenter.has_tracker:
            return Sam3Tracker(segmenter)
    return BoxPromptTracker(segmenter)


@dataclass(frozen=True)
class Work:
    """A run of neighbouring frames to be segmented.

    Attributes:
        view: What the model is shown.
        run: Numbers of the views, each one more than that before.
        at: Number of the view that something is drawn on; None where nothing is, or it holds on every view.
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

    def part(self, prompt: Prompt, n: int) -> Prompt | None:
        """What of a prompt is asked on view n; None where nothing is."""
        if has_geometry(prompt) and self.at in (None, n):
            return prompt
        return asked_elsewhere(prompt)


def _answered(work: Work, prompts: Sequence[Prompt]) -> list[Masks]:
    """What the model says of a single frame, which has no neighbours to be linked with."""
    (n,) = work.run
    parts = [work.part(prompt, n) for prompt in prompts]
    features = None if not any(parts) else work.segmenter.encode(work.view.rgb(n))
    found = []
    for prompt, part in zip(prompts, parts, strict=True):
        masks = Masks((1, *work.view.size), concept=prompt.text or "")
        if part is not None:
            masks = work.segmenter.decode(features, part, threshold=work.options.threshold)
        found.append(work.view.masks_back(stack_frames(work.view.shape, [n], [masks])))
    work.report(1, 1)
    return found


class StackRun:
    """One run over neighbouring frames. Masks are in view pixels, frames counted from the first of the run."""

    def __init__(self, work: Work, prompts: Sequence[Prompt]) -> None:
        self.view, self.segmenter, self.options, self._progress = work.view, work.segmenter, work.options, work.report
        self.prompts, self._work = prompts, work
        self.first, self.count = work.run.start, len(work.run)
        self.is_video = work.view.image.kind == "video"
        self.is_followed = [is_followed(self.options, self.view.image, prompt) for prompt in prompts]
        self.tracker = tracker_for(self.segmenter)
        self._journal = Journal(self.options.journal, _hash_of(work, prompts))
        self.kept = KeptFrames(
            lambda n: self.tracker.keep(self.segmenter.encode(self.view.rgb(self.first + n))),
            self.tracker.kept_bytes,
            memory_bytes=self.options.memory_bytes,
            disk_bytes=self.options.disk_bytes,
        )
        self.recognised = [""] * len(prompts)
        self._done = 0.0
        self._steps = self.count * (3 if any(self.is_followed) else 1)

    @property
    def at(self) -> int | None:
        """The frame of the run that something is drawn on."""
        at = self._work.at
        return None if at is None or at not in self._work.run else at - self.first

    def run(self) -> list[StackMasks]:
        """All of it."""
        try:
            answers = self._ask_all()
            return [self._finished(k, answers[k]) for k in range(len(self.prompts))]
        finally:
            self._journal.close()
            self.kept.close()

    def _ask_all(self) -> list[list[Answer]]:
        """Answers by prompt and frame; each frame is encoded once for all prompts, or not at all."""
        answers: list[list[Answer]] = [[] for _ in self.prompts]
        drawn_on = _Once(lambda: self._encoded(self.at or 0))
        self.recognised = [self._recognised(k, prompt, drawn_on) for k, prompt in enumerate(self.prompts)]
        for n in range(self.count):
            features = drawn_on if n == self.at else _Once(lambda n=n: self._encoded(n))  # type: ignore[misc]
            for k in range(len(self.prompts)):
                asked = self._asked(k, n)
                answers[k].append(Answer() if asked is None else self._answer(k, n, asked, features))
            self._tick()
        return answers

    def _encoded(self, n: int) -> Any:
        features = self.segmenter.encode(self.view.rgb(self.first + n))
        if any(self.is_followed):
            self.kept.put(n, self.tracker.keep(features))
        return features

    def _answer(self, k: int, n: int, asked: Prompt, features: _Once) -> Answer:
        return self._journal.get_or_make(
            ("ask", k, n),
            lambda: ask(
                self.segmenter,
                features.get(),
                asked,
                threshold=self.options.threshold,
                weak_score=self.options.weak_score,
            ),
            to_fields=Answer.to_fields,
            from_fields=Answer.from_fields,
        )

    def _recognised(self, k: int, prompt: Prompt, features: _Once) -> str:
        """The name of a video's drawn object; "" where it has none, or is not looked for by name."""
        is_sought = self.is_video and self.is_followed[k] and self.options.is_recognised
        if not is_sought or self.at is None or not is_named(self.segmenter, prompt):
            return ""
        drawn = self._answer(k, self.at, prompt, features).objects
        return self._journal.get_or_make(
            ("name", k),
            lambda: recognised(self.segmenter, features.get(), drawn, prompt.text),
            to_fields=lambda name: {"name": name},
            from_fields=lambda fields: str(fields["name"]),
        )

    def _asked(self, k: int, n: int) -> Prompt | None:
        """What is asked on frame n; None where nothing is."""
        part = self._work.part(self.prompts[k], self.first + n)
        if part is not None and has_geometry(part):
            return part
        if n % self.options.key_every and n != self.count - 1:
            return None
        return Prompt(text=self.recognised[k]) if self.recognised[k] else part

    def _finished(self, k: int, answers: Sequence[Answer]) -> StackMasks:
        """Everything after the asking, for one prompt."""
        prompt, options, name = self.prompts[k], self.options, self.recognised[k]
        is_held = _held(prompt, answers, options.weak_share)
        found = {n: list(answer.objects) for n, answer in enumerate(answers) if answer.objects and is_held[n]}
        is_phrase = asked_elsewhere(prompt) is not None
        rules = self._rules(k, is_phrase=is_phrase)
        if name:
            assert self.at is not None, "something is drawn"
            count = len(found.get(self.at, ()))
            found = {n: clearest(here, count) for n, here in found.items()}
            rules = replace(rules, takes_up=True)
        ways = {way: self._way(k, way, found, rules) for way in ("up", "down")}
        may_extend = is_held if is_phrase else np.ones(self.count, dtype=np.bool_)
        fusion = options.fusion
        if not self.is_followed[k] or not self.is_video:
            fusion = replace(fusion, least_found=1, may_fill_beside=True, followed_weight=fusion.volume_weight)
        trails = fuse(found, ways["up"], ways["down"], fusion, may_extend=may_extend)
        least = options.threshold or 0.0
        return StackMasks(
            view=self.view,
            first=self.first,
            concept=prompt.text or "",
            trails=tuple(trail for trail in trails if trail.score >= least),
            presence=tuple(None if name else answer.presence for answer in answers),
            is_held=tuple(bool(value) for value in is_held),
            recognised=name,
            least_share=0.0 if self.is_video else options.fusion.least_share,
        )

    def _way(self, k: int, way: str, found: dict[int, list[Found]], rules: TrackingRules) -> dict[int, list[Step]]:
        """One way through the frames; where nothing is followed it only says which objects are one."""
        frames = range(self.count) if way == "up" else range(self.count - 1, -1, -1)
        if not self.is_followed[k]:
            links = sweep(frames, found, lambda n, track, past: past[0].mask, rules)
            return {n: [replace(step, followed=None) for step in steps] for n, steps in links.items()}

        def follow(n: int, track: int, past: Sequence[PastMask]) -> PackedMask:
            return self._journal.get_or_make(
                ("follow", k, way, n, track),
                lambda: self.follow(n, past),
                to_fields=PackedMask.to_fields,
                from_fields=PackedMask.from_fields,
            )

        return sweep(frames, found, follow, rules, report=lambda n: self._tick(1 / sum(self.is_followed)))

    def _rules(self, k: int, *, is_phrase: bool) -> TrackingRules:
        """Drawn objects are followed until they are lost; between key slices, objects are followed all the way."""
        rules = in_video(self.options.tracking) if self.is_video else self.options.tracking
        if not self.is_followed[k]:
            return replace(rules, stop_iou=0.0, patience=0)
        if not is_phrase:
            return replace(rules, patience=None)
        if rules.patience is None:
            return rules
        return replace(rules, patience=max(rules.patience, self.options.key_every))

    def follow(self, n: int, past: Sequence[PastMask]) -> PackedMask:
        """An object's mask on frame n."""
        given = [Past(one.n, one.mask.dense()) for one in past]
        return PackedMask.of(self.tracker.follow(n, given, self.kept.get))

    def _tick(self, share: float = 1.0) -> None:
        before = int(self._done + 1e-6)
        self._done += share
        if int(self._done + 1e-6) > before:
            self._progress(int(self._done + 1e-6), self._steps)


class _Once:
    """A value that is made when it is first asked for."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._value, self._is_made = make, None, False

    def get(self) -> Any:
        if not self._is_made:
            self._value, self._is_made = self._make(), True
        return self._value


def stack_frames(shape: tuple[int, int, int], frames: Sequence[int], masks: Sequence[Masks]) -> Masks:
    """Put the masks over (1, H, W) of single frames, at least one, together as masks over `shape` (N, H, W).

    The concept is that of the first; presence is the highest of the frames, and present is what is so in any.
    """
    moved = [
        replace(one, shape=shape, objects=tuple(replace(item, start=(n, *item.start[1:])) for item in one.objects))
        for n, one in zip(frames, masks, strict=True)
    ]
    return joined(shape, moved)


def in_video(rules: TrackingRules) -> TrackingRules:
    """Objects of a video move as far as they like between frames, and come back after they were lost."""
    return replace(rules, stop_iou=0.0, may_return=True)


def _segment_by_vote(
    image: Image, prompts: Sequence[Prompt], segmenter: Segmenter, options: Options, report: Report
) -> list[Masks]:
    """Segment a volume in each of the three planes, and let two of them decide on each voxel."""
    if any(has_geometry(prompt) for prompt in prompts) or options.frames is not None:
        raise InputError("boxes, points, exemplars and frames lie in one plane: leave the vote of three planes out")
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
    for n in frames:
        if not 0 <= n < view.count:
            raise InputError(f"frame {n} was asked for, allowed is 0 to {view.count - 1}")
    chosen = sorted({view.number(n) for n in frames})
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
            f"boxes, points and exemplars are on one slice of a volume: say which, 0 to {view.count - 1} (at)"
        )
    if not 0 <= options.at < view.count:
        raise InputError(f"slice {options.at} was named for the boxes, allowed is 0 to {view.count - 1}")
    at = view.number(options.at)
    if not any(at in run for run in runs):
        raise InputError(f"slice {options.at} was named for the boxes, but not among the frames: choose it too")
    return at


def _held(prompt: Prompt, answers: Sequence[Answer], weak_share: float) -> BoolArray:
    """Slices on which what was found counts; of what is drawn, the slice that it is drawn on."""
    if asked_elsewhere(prompt) is None:
        return np.array([answer.is_asked and answer.is_present is not False for answer in answers], dtype=np.bool_)
    return held(
        [answer.presence for answer in answers], [answer.is_present for answer in answers], weak_share=weak_share
    )


def _shifted(report: Report, before: int, count: int) -> Report:
    return lambda done, _: report(before + done, count)


def _journaled(options: Options, number: int) -> Options:
    """The options of a run of frames, which has a journal of its own."""
    if options.journal is None or number == 0:
        return options
    return replace(options, journal=options.journal.with_suffix(f".{number}{options.journal.suffix}"))


def _hash_of(work: Work, prompts: Sequence[Prompt]) -> str:
    """Hash of all that changes the result."""
    settings = replace(work.options, journal=None, memory_bytes=0, disk_bytes=0)
    image = work.view.image
    first = hashlib.sha256(image.pixels(0).tobytes()).hexdigest()
    asked = [prompt.to_json() for prompt in prompts]
    text = repr((work.segmenter.name, image.shape, str(image.source), first, work.run, work.at, asked, settings))
    return hashlib.sha256(text.encode()).hexdigest()
