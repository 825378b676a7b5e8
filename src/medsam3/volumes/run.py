"""A whole stack: each slice encoded once, each prompt asked on it, objects followed both ways, votes counted.

Source of the scheme: memory-free propagation by boxes as LiteMedSAM's users do it in 3D, here in both directions and
with the detector's own mask as one of three voters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from medsam3.errors import InputError
from medsam3.geometry import BoolArray
from medsam3.io.stack import Stack
from medsam3.models.segmenter import Segmenter
from medsam3.models.tracker import BoxPromptTracker, Past, Tracker
from medsam3.prompts import Prompt
from medsam3.volumes.asking import Answer, ask, asked_elsewhere, has_geometry
from medsam3.volumes.fusion import Trail, fuse
from medsam3.volumes.journal import Journal
from medsam3.volumes.kept import KeptFrames
from medsam3.volumes.options import StackOptions
from medsam3.volumes.packed import PackedMask
from medsam3.volumes.planes import Turn, prompt_turned, turn_for, turned
from medsam3.volumes.presence import held
from medsam3.volumes.presentation import Presenter, automatic_window
from medsam3.volumes.recognise import clearest, is_named, recognised
from medsam3.volumes.result import StackMasks
from medsam3.volumes.sweep import Found, PastMask, Step, TrackingRules, sweep

Report = Callable[[int, int], None]


def segment_stack(
    stack: Stack,
    prompts: Sequence[Prompt],
    segmenter: Segmenter,
    options: StackOptions | None = None,
    *,
    progress: Report | None = None,
) -> list[StackMasks]:
    """Objects of each prompt through the whole stack.

    Args:
        stack: What to segment.
        prompts: Phrases are asked on every slice, or on key slices; boxes, points and exemplars hold for slice `at`.
        segmenter: A model, as `medsam3.load` gives.
        options: Settings; None takes the defaults.
        progress: Called with the number of steps that are done and that there are.

    Returns:
        One result for each prompt, in their order.

    Raises:
        InputError: No prompt, one outside the slice, boxes without a slice in a volume, a plane that does not fit.
    """
    return StackRun(stack, prompts, segmenter, options or StackOptions(), progress or (lambda done, count: None)).run()


def tracker_for(segmenter: Segmenter) -> Tracker:
    """The tracker that goes with a model; the box around the last mask where it has none of its own."""
    if segmenter.name == "mini":
        from medsam3.models.mini import MiniSegmenter  # noqa: PLC0415  torch, which the model has loaded by now
        from medsam3.models.mini_tracker import MiniTracker  # noqa: PLC0415

        if isinstance(segmenter, MiniSegmenter):
            return MiniTracker(segmenter)
    if segmenter.name.startswith("sam3"):
        from medsam3.models.sam3 import Sam3Segmenter  # noqa: PLC0415
        from medsam3.models.sam3_memory import Sam3Tracker  # noqa: PLC0415

        if isinstance(segmenter, Sam3Segmenter) and segmenter.has_tracker:
            return Sam3Tracker(segmenter)
    return BoxPromptTracker(segmenter)


class StackRun:
    """One run over a stack. Masks are in view pixels until `run` gives them out."""

    def __init__(
        self, stack: Stack, prompts: Sequence[Prompt], segmenter: Segmenter, options: StackOptions, progress: Report
    ) -> None:
        if not prompts:
            raise InputError("no prompt was given: name at least one concept such as 'polyp'")
        for prompt in prompts:
            prompt.check_inside(*stack.shape[1:])
        self.turn = turn_for(stack, options.plane)
        self.at = _drawn_on(stack, prompts, options, self.turn)
        self.cut = turned(stack, self.turn)
        window = options.window or automatic_window(self.cut)
        self.presenter = Presenter(self.cut, window, has_neighbours=options.has_neighbours)
        self.prompts = [self.presenter.prompt_in_view(prompt_turned(prompt, self.turn)) for prompt in prompts]
        self.segmenter, self.options, self._progress = segmenter, options, progress
        self.tracker = tracker_for(segmenter)
        self.count = self.cut.shape[0]
        self._journal = Journal(options.journal, _work_of(stack, prompts, segmenter, options))
        self.kept = KeptFrames(
            lambda n: self.tracker.keep(self.segmenter.encode(self.presenter.rgb(n))),
            self.tracker.kept_bytes,
            memory_bytes=options.memory_bytes,
            disk_bytes=options.disk_bytes,
        )
        self.recognised = [""] * len(prompts)
        self._done = 0.0
        self._steps = self.count * (3 if options.is_propagated else 1)

    def run(self) -> list[StackMasks]:
        """All of it."""
        try:
            self._progress(0, self._steps)
            answers = self._ask_all()
            return [self._finished(k, answers[k]) for k in range(len(self.prompts))]
        finally:
            self._journal.close()
            self.kept.close()

    def _ask_all(self) -> list[list[Answer]]:
        """Answers by prompt and slice; each slice is encoded once for all prompts, or not at all."""
        answers: list[list[Answer]] = [[] for _ in self.prompts]
        drawn_on = _Once(lambda: self._encoded(self.at or 0))
        self.recognised = [self._recognised(k, prompt, drawn_on) for k, prompt in enumerate(self.prompts)]
        for n in range(self.count):
            slice_features = drawn_on if n == self.at else _Once(lambda n=n: self._encoded(n))  # type: ignore[misc]
            for k in range(len(self.prompts)):
                asked = self._asked(k, n)
                answers[k].append(Answer() if asked is None else self._answer(k, n, asked, slice_features))
            self._tick()
        return answers

    def _encoded(self, n: int) -> Any:
        features = self.segmenter.encode(self.presenter.rgb(n))
        if self.options.is_propagated:
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
        is_followed = self.cut.kind == "video" and self.options.is_propagated and self.options.is_recognised
        if not is_followed or not is_named(self.segmenter, prompt):
            return ""
        assert self.at is not None, "something is drawn"
        drawn = self._answer(k, self.at, prompt, features).objects
        return self._journal.get_or_make(
            ("name", k),
            lambda: recognised(self.segmenter, features.get(), drawn, prompt.text),
            to_fields=lambda name: {"name": name},
            from_fields=lambda fields: str(fields["name"]),
        )

    def _asked(self, k: int, n: int) -> Prompt | None:
        """What is asked on slice n; None where nothing is."""
        prompt = self.prompts[k]
        if has_geometry(prompt) and n == self.at:
            return prompt
        if n % self.options.key_every and n != self.count - 1:
            return None
        return Prompt(text=self.recognised[k]) if self.recognised[k] else asked_elsewhere(prompt)

    def _finished(self, k: int, answers: Sequence[Answer]) -> StackMasks:
        """Everything after the asking, for one prompt."""
        prompt, options, name = self.prompts[k], self.options, self.recognised[k]
        is_held = _held(prompt, answers, options.weak_share)
        found = {n: list(answer.objects) for n, answer in enumerate(answers) if answer.objects and is_held[n]}
        is_phrase = asked_elsewhere(prompt) is not None
        rules = _rules(options, is_phrase=is_phrase, is_video=self.cut.kind == "video")
        if name:
            assert self.at is not None, "something is drawn"
            count = len(found.get(self.at, ()))
            found = {n: clearest(here, count) for n, here in found.items()}
            rules = replace(rules, takes_up=True)
        ways = {way: self._way(k, way, found, rules) for way in ("up", "down")}
        may_extend = is_held if is_phrase else np.ones(self.count, dtype=np.bool_)
        fusion = options.fusion
        if not options.is_propagated or self.cut.kind != "video":
            fusion = replace(fusion, least_found=1, may_fill_beside=True, followed_weight=fusion.volume_weight)
        trails = fuse(found, ways["up"], ways["down"], fusion, may_extend=may_extend)
        least = options.threshold or 0.0
        return StackMasks(
            turn=self.turn,
            concept=prompt.text or "",
            trails=tuple(self._in_slices(trail) for trail in trails if trail.score >= least),
            presence=tuple(None if name else answer.presence for answer in answers),
            is_held=tuple(bool(value) for value in is_held),
            recognised=name,
            least_share=options.fusion.least_share if self.cut.kind == "volume" else 0.0,
        )

    def _way(self, k: int, way: str, found: dict[int, list[Found]], rules: TrackingRules) -> dict[int, list[Step]]:
        """One way through the slices; without propagation it only says which objects are one."""
        frames = range(self.count) if way == "up" else range(self.count - 1, -1, -1)
        if not self.options.is_propagated:
            links = sweep(frames, found, lambda n, track, past: past[0].mask, rules)
            return {n: [replace(step, followed=None) for step in steps] for n, steps in links.items()}

        def follow(n: int, track: int, past: Sequence[PastMask]) -> PackedMask:
            return self._journal.get_or_make(
                ("follow", k, way, n, track),
                lambda: self.follow(n, past),
                to_fields=PackedMask.to_fields,
                from_fields=PackedMask.from_fields,
            )

        return sweep(frames, found, follow, rules, report=lambda n: self._tick(1 / len(self.prompts)))

    def follow(self, n: int, past: Sequence[PastMask]) -> PackedMask:
        """An object's mask on slice n, in view pixels."""
        given = [Past(one.n, one.mask.dense()) for one in past]
        return PackedMask.of(self.tracker.follow(n, given, self.kept.get))

    def _in_slices(self, trail: Trail) -> Trail:
        """A trail in view pixels as one in slice pixels."""
        if self.presenter.size == self.cut.shape[1:]:
            return trail
        masks = {n: PackedMask.of(self.presenter.mask_in_slice(mask.dense())) for n, mask in trail.masks.items()}
        return Trail({n: mask for n, mask in masks.items() if not mask.is_empty}, trail.scores)

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


def _drawn_on(stack: Stack, prompts: Sequence[Prompt], options: StackOptions, turn: Turn) -> int | None:
    """The cut slice that boxes, points and exemplars are on; None where there are none."""
    if not any(has_geometry(prompt) for prompt in prompts):
        return None
    at = options.at
    if at is None and (stack.kind == "video" or stack.shape[0] == 1):
        at = 0
    if at is None:
        raise InputError(
            f"boxes, points and exemplars are on one slice of a volume: say which, 0 to {stack.shape[0] - 1} (at)"
        )
    if not 0 <= at < stack.shape[0]:
        raise InputError(f"slice {at} was named for the boxes, allowed is 0 to {stack.shape[0] - 1}")
    if turn.axes[0] != 0:
        raise InputError("boxes and points are drawn on the file's own slices: take plane 'native' with them")
    return stack.shape[0] - 1 - at if turn.is_flipped[0] else at


def in_video(rules: TrackingRules) -> TrackingRules:
    """Objects of a video move as far as they like between frames, and come back after they were lost."""
    return replace(rules, stop_iou=0.0, may_return=True)


def _rules(options: StackOptions, *, is_phrase: bool, is_video: bool) -> TrackingRules:
    """Drawn objects are followed until they are lost; between key slices, objects are followed all the way."""
    rules = options.tracking
    if is_video:
        rules = in_video(rules)
    if not options.is_propagated:
        return replace(rules, stop_iou=0.0, patience=0)
    if not is_phrase:
        return replace(rules, patience=None)
    if rules.patience is None:
        return rules
    return replace(rules, patience=max(rules.patience, options.key_every))


def _held(prompt: Prompt, answers: Sequence[Answer], weak_share: float) -> BoolArray:
    """Slices on which what was found counts; of what is drawn, the slice that it is drawn on."""
    if asked_elsewhere(prompt) is None:
        return np.array([answer.is_asked and answer.is_present is not False for answer in answers], dtype=np.bool_)
    return held(
        [answer.presence for answer in answers], [answer.is_present for answer in answers], weak_share=weak_share
    )


def _work_of(stack: Stack, prompts: Sequence[Prompt], segmenter: Segmenter, options: StackOptions) -> str:
    """Hash of all that changes the result."""
    settings = replace(options, journal=None, memory_bytes=0, disk_bytes=0)
    first = hashlib.sha256(stack.pixels(0).tobytes()).hexdigest()
    asked = [prompt.to_json() for prompt in prompts]
    text = repr((segmenter.name, stack.shape, str(stack.source), first, asked, settings))
    return hashlib.sha256(text.encode()).hexdigest()
