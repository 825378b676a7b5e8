"""Frames in as they come, masks out at once: one way, from the past only, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.image import Masks, ObjectMask
from medsam3.models.segmenter import Segmenter
from medsam3.models.tracker import Past, tracker_of
from medsam3.prompts import Prompt
from medsam3.segmentation.asking import Answer, ask, asked_elsewhere, has_geometry
from medsam3.segmentation.options import Options
from medsam3.segmentation.packed import PackedMask
from medsam3.segmentation.recognise import clearest, is_named, recognised
from medsam3.segmentation.stack import in_video
from medsam3.segmentation.sweep import PastMask, Sweep

RGB = NDArray[np.uint8]


@dataclass(frozen=True)
class StreamedFrame:
    """What is known of a frame when it has come.

    Attributes:
        n: Its number, from 0.
        masks: One for each prompt, over (1, H, W), objects in the order of `identities`.
        identities: For each prompt the objects' numbers, the same through all frames.
    """

    n: int
    masks: tuple[Masks, ...]
    identities: tuple[tuple[int, ...], ...]


def segment_stream(
    frames: Iterable[RGB], prompts: Sequence[Prompt], segmenter: Segmenter, options: Options | None = None
) -> Iterator[StreamedFrame]:
    """Segment frames (H, W, 3) uint8 one after the other; nothing lags.

    Phrases are asked on every frame (or every `key_every`-th), boxes and points on frame `at` (None: 0). An object that
    is not found is followed for as long as the tracking rules' patience lasts. A phrase counts from the first frame on
    which the model says yes until its presence falls below `weak_share` of the lowest yes of that run.

    Raises:
        InputError: No prompt, one outside the frame, a frame of another size.
    """
    if not prompts:
        raise InputError("no prompt was given: name at least one concept such as 'polyp'")
    settings = options or Options()
    streams = [_PromptStream(prompt, segmenter, settings) for prompt in prompts]
    shape: tuple[int, ...] | None = None
    for n, rgb in enumerate(frames):
        if shape is None:
            shape = rgb.shape
            for prompt in prompts:
                prompt.check_inside(rgb.shape[0], rgb.shape[1])
        if rgb.shape != shape:
            raise InputError(f"frame {n} is {rgb.shape} but frame 0 is {shape} (rows, columns, channels)")
        features = segmenter.encode(rgb)
        found = [stream.advance(n, features, (rgb.shape[0], rgb.shape[1])) for stream in streams]
        yield StreamedFrame(n, tuple(masks for masks, _ in found), tuple(numbers for _, numbers in found))


class _PromptStream:
    """One prompt on its way through the frames; it keeps as many of them as the tracker remembers."""

    def __init__(self, prompt: Prompt, segmenter: Segmenter, options: Options) -> None:
        self._prompt, self._segmenter, self._options = prompt, segmenter, options
        self._tracker = tracker_of(segmenter)
        self._kept: dict[int, Any] = {}
        rules = in_video(options.tracking)
        if asked_elsewhere(prompt) is None:
            rules = replace(rules, patience=None)
        self._is_named = options.is_recognised and is_named(segmenter, prompt)
        self._name, self._drawn = "", 0
        self._sweep = Sweep(self._follow, replace(rules, takes_up=self._is_named))
        self._scores: dict[int, float] = {}
        self._lowest_yes: float | None = None

    def advance(self, n: int, features: Any, size: tuple[int, int]) -> tuple[Masks, tuple[int, ...]]:
        """Masks on frame n, and the objects' numbers."""
        self._kept[n] = self._tracker.keep(features)
        answer = self._answer(n, features)
        found = answer.objects if self._counts(answer) else ()
        if self._name:
            found = tuple(clearest(found, self._drawn))
        objects: list[ObjectMask] = []
        scores: dict[int, float] = {}
        for step in self._sweep.advance(n, found):
            mask = step.followed if step.found is None or step.has_run_over else found[step.found].mask
            scores[step.track] = self._scores.get(step.track, 0.0) if step.found is None else found[step.found].score
            assert mask is not None and not mask.is_empty, "a step has a mask"
            objects.append(ObjectMask((0, *mask.start), mask.block()[None], scores[step.track]))
        self._scores = scores
        self._kept = {k: kept for k, kept in self._kept.items() if k in self._sweep.remembered}
        of = Answer() if self._name else answer  # of the prompt's own phrase
        verdict = (of.presence, of.is_present, of.is_sure)
        return Masks((1, *size), tuple(objects), self._prompt.text or "", *verdict), tuple(scores)

    def _answer(self, n: int, features: Any) -> Answer:
        options = self._options
        is_drawn = has_geometry(self._prompt) and n == (options.at or 0)
        elsewhere = Prompt(text=self._name) if self._name else asked_elsewhere(self._prompt)
        asked = self._prompt if is_drawn else elsewhere
        if asked is None or (not is_drawn and n % options.key_every):
            return Answer()
        answer = ask(self._segmenter, features, asked, threshold=options.threshold, weak_score=options.weak_score)
        if is_drawn and self._is_named:
            self._name = recognised(self._segmenter, features, answer.objects, self._prompt.text)
            self._drawn = len(answer.objects)
        return answer

    def _counts(self, answer: Answer) -> bool:
        """Hysteresis with what has come so far; what is drawn always counts, and of its name what is surely there."""
        if answer.is_present is None or self._name:
            return answer.is_asked and answer.is_present is not False
        presence = answer.presence or 0.0
        if answer.is_present:
            self._lowest_yes = presence if self._lowest_yes is None else min(self._lowest_yes, presence)
            return True
        if self._lowest_yes is not None and presence >= self._options.weak_share * self._lowest_yes:
            return True
        self._lowest_yes = None
        return False

    def _follow(self, n: int, track: int, past: Sequence[PastMask]) -> PackedMask:
        given = [Past(one.n, one.mask.dense()) for one in past]
        return PackedMask.of(self._tracker.follow(n, given, self._kept.__getitem__))
