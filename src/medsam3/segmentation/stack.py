"""A run over neighbouring frames: objects are linked from frame to frame, followed both ways, and votes counted.

Masks here are in pixels of the views, and frames are counted from the first of the run.

Source of the scheme: memory-free propagation by boxes as LiteMedSAM's users do it in 3D, here in both directions and
with the detector's own mask as one of three voters.
"""

from __future__ import annotations

import hashlib
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, Self, TypedDict, TypeVar

import numpy as np
from cachetools import LRUCache

from medsam3.geometry import BoolArray
from medsam3.image import Masks, ObjectMask
from medsam3.models.segmenter import Segmenter
from medsam3.models.tracker import Past, Tracker, slice_tracker_of, tracker_of
from medsam3.prompts import Prompt
from medsam3.segmentation.fusion import Trail, fuse
from medsam3.segmentation.options import TrackingRules
from medsam3.segmentation.packed import PackedFields, PackedMask, overlap
from medsam3.segmentation.presence import held
from medsam3.segmentation.recognise import clearest, is_named, recognised
from medsam3.segmentation.run import Work, is_followed
from medsam3.segmentation.sweep import FoundMask, PastMask, Step, is_still, remembering, sweep
from medsam3.store import Journal

Value = TypeVar("Value")

CLEAR_IOU = 0.5
"""In a video, an object that is found where it was, by this overlap, needs no following."""
SAME_IOU = 0.95
"""From this overlap with what was there before, the rest of the way has nothing new."""


def in_video(rules: TrackingRules) -> TrackingRules:
    """Let objects move as far as they like between frames, and come back after they were lost; follow where need be."""
    return replace(rules, stop_iou=0.0, may_return=True, clear_iou=CLEAR_IOU)


class ObjectFields(TypedDict):
    """An object of an answer in a journal."""

    mask: PackedFields
    score: float


class AnswerFields(TypedDict):
    """An answer in a journal."""

    objects: list[ObjectFields]
    presence: float | None
    is_present: bool | None
    is_sure: bool


@dataclass(frozen=True)
class FrameAnswer:
    """The answer to a prompt on one slice by itself.

    Attributes:
        objects: All down to a low score.
        presence: Probability; None where no phrase was asked.
        is_present: The model's own verdict; None likewise.
        is_sure: False if it affirms without being sure.
        is_asked: Something was asked on this slice at all.
    """

    objects: tuple[FoundMask, ...] = ()
    presence: float | None = None
    is_present: bool | None = None
    is_asked: bool = False
    is_sure: bool = True

    def to_fields(self) -> AnswerFields:
        """For a journal."""
        return {
            "objects": [{"mask": one.mask.to_fields(), "score": one.score} for one in self.objects],
            "presence": self.presence,
            "is_present": self.is_present,
            "is_sure": self.is_sure,
        }

    @classmethod
    def from_fields(cls, fields: AnswerFields, frame: tuple[int, int]) -> Self:
        """Read what `to_fields` gave of a frame of this size.

        Raises:
            KeyError, ValueError, TypeError: It is of another form or frame.
        """
        objects = tuple(
            FoundMask(PackedMask.from_fields(one["mask"], frame), _share(one["score"])) for one in fields["objects"]
        )
        presence = None if fields["presence"] is None else _share(fields["presence"])
        if not isinstance(fields["is_present"], bool | None) or not isinstance(fields["is_sure"], bool):
            raise TypeError(f"no answer: {fields['is_present']!r}, {fields['is_sure']!r}")
        return cls(objects, presence, fields["is_present"], True, fields["is_sure"])


def _share(value: float) -> float:
    """Give a number of 0 to 1 back.

    Raises:
        TypeError, ValueError: It is none.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{value} is not of 0 to 1")
    return float(value)


def ask(
    segmenter: Segmenter, features: Any, prompt: Prompt, *, threshold: float | None, weak_score: float
) -> FrameAnswer:
    """Ask a prompt; a phrase alone also gives what is below the model's own threshold, down to `weak_score`.

    Where the model says yes and yet has nothing above `weak_score`, its own threshold decides.
    """
    if prompt.text is None or prompt.is_drawn:
        return answer_of(segmenter.decode(features, prompt, threshold=threshold))
    least = weak_score if threshold is None else min(weak_score, threshold)
    answer = answer_of(segmenter.decode(features, prompt, threshold=least))
    if answer.is_present and not answer.objects:
        return answer_of(segmenter.decode(features, prompt))
    return answer


def answer_of(masks: Masks) -> FrameAnswer:
    """The masks of one frame as an answer."""
    objects = tuple(FoundMask(PackedMask.of(masks.dense(k)[0]), masks.scores[k]) for k in range(len(masks)))
    return FrameAnswer(objects, masks.presence, masks.is_present, True, masks.is_sure)


class FrameCache:
    """Values by frame: the latest in memory, older ones in a temporary file, each up to a bound, the rest made anew."""

    def __init__(
        self, make: Callable[[int], Any], size_of: Callable[[Any], int], *, memory_bytes: int, disk_bytes: int
    ) -> None:
        self._make, self._size_of, self._disk_bytes = make, size_of, disk_bytes
        self._memory: LRUCache[int, Any] = LRUCache(memory_bytes, getsizeof=size_of)
        self._file: IO[bytes] | None = None
        self._spans: dict[int, tuple[int, int]] = {}  # start and length in the file

    def put(self, n: int, value: Any) -> None:
        """Keep what was made of frame n anyway."""
        if self._size_of(value) <= self._memory.maxsize:
            self._memory[n] = value
        if n in self._spans or self._disk_bytes == 0:
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed in `close`, and nameless at once
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        start = self._file.seek(0, 2)
        if start + len(data) <= self._disk_bytes:
            self._file.write(data)
            self._spans[n] = (start, len(data))

    def get(self, n: int) -> Any:
        """Give the value of frame n."""
        value = self._memory.get(n)
        if value is None and n in self._spans and self._file is not None:
            start, length = self._spans[n]
            self._file.seek(start)
            value = pickle.loads(self._file.read(length))
        if value is None:
            value = self._make(n)
        self.put(n, value)
        return value

    def close(self) -> None:
        """Let memory and file go."""
        self._memory.clear()
        self._spans.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


def frame_cache(work: Work, tracker: Tracker) -> FrameCache:
    """Keep what a tracker needs of a run's frames, counted from the first of the run."""
    return FrameCache(
        lambda n: tracker.keep(work.encode(work.run.start + n)),
        tracker.kept_bytes,
        memory_bytes=work.options.memory_bytes,
        disk_bytes=work.options.disk_bytes,
    )


class _Resumed:
    """Answers by key, on disk as they are found, so that a killed run goes on where it was."""

    def __init__(self, path: Path | None, work: str) -> None:
        self._journal = None if path is None else Journal(path, {"work": work, "version": 1}, other="replace")
        self._values: dict[tuple[str | int, ...], Any] = {}
        for record in [] if self._journal is None else self._journal.records:
            with suppress(KeyError, TypeError):  # a damaged line is an answer that is not there
                self._values[tuple(record["key"])] = record["value"]

    def get_or_make(
        self,
        key: tuple[str | int, ...],
        make: Callable[[], Value],
        *,
        to_fields: Callable[[Value], Mapping[str, object]],
        from_fields: Callable[[Any], Value],
    ) -> Value:
        """Give the value of a key from an earlier run, else make it and write it down."""
        with suppress(LookupError, TypeError, ValueError, AttributeError):
            return from_fields(self._values[key])
        value = make()
        if self._journal is not None:
            self._journal.append({"key": list(key), "value": to_fields(value)})
        return value

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


class StackRun:
    """One run over neighbouring frames, for all prompts."""

    def __init__(self, work: Work, prompts: Sequence[Prompt]) -> None:
        self.view, self.segmenter, self.options = work.view, work.segmenter, work.options
        self.prompts, self._work = prompts, work
        self.first, self.count = work.run.start, len(work.run)
        self.is_video = work.view.image.kind == "video"
        self.is_followed = [is_followed(work.options, work.view.image, prompt) for prompt in prompts]
        self.tracker = tracker_of(self.segmenter)
        self._resumed = _Resumed(self.options.journal, _hash_of(work, prompts))
        self.cache = frame_cache(work, self.tracker)
        self.recognised = [""] * len(prompts)
        self._done = 0.0
        self._steps = self.count * (3 if any(self.is_followed) else 1)

    @property
    def at(self) -> int | None:
        """The frame of the run that something is drawn on."""
        at = self._work.at
        return None if at is None or at not in self._work.run else at - self.first

    def run(self) -> list[Masks]:
        """Segment, and give the masks over all of the file's frames, by prompt."""
        try:
            answers = self._ask_all()
            return [self._finished(k, answers[k]) for k in range(len(self.prompts))]
        finally:
            self._resumed.close()
            self.cache.close()

    def _ask_all(self) -> list[list[FrameAnswer]]:
        """Ask by prompt and frame; each frame is encoded once for all prompts, or not at all."""
        answers: list[list[FrameAnswer]] = [[] for _ in self.prompts]
        drawn_on = cache(partial(self._encoded, self.at or 0))
        self.recognised = [self._recognised(k, prompt, drawn_on) for k, prompt in enumerate(self.prompts)]
        for n in range(self.count):
            features = drawn_on if n == self.at else cache(partial(self._encoded, n))
            for k in range(len(self.prompts)):
                asked = self._asked(k, n)
                answers[k].append(FrameAnswer() if asked is None else self._answer(k, n, asked, features))
            self._tick()
        return answers

    def _encoded(self, n: int) -> Any:
        features = self._work.encode(self.first + n)
        if any(self.is_followed):
            self.cache.put(n, self.tracker.keep(features))
        return features

    def _answer(self, k: int, n: int, asked: Prompt, features: Callable[[], Any]) -> FrameAnswer:
        threshold, weak_score = self.options.threshold, self.options.weak_score
        return self._resumed.get_or_make(
            ("ask", k, n),
            lambda: ask(self.segmenter, features(), asked, threshold=threshold, weak_score=weak_score),
            to_fields=FrameAnswer.to_fields,
            from_fields=lambda fields: FrameAnswer.from_fields(fields, self.view.size),
        )

    def _recognised(self, k: int, prompt: Prompt, features: Callable[[], Any]) -> str:
        """Name a video's drawn object; "" if it has no name, or is not looked for by name."""
        is_sought = self.is_video and self.is_followed[k] and self.options.is_recognised
        if not is_sought or self.at is None or not is_named(self.segmenter, prompt):
            return ""
        drawn = self._answer(k, self.at, prompt, features).objects
        return self._resumed.get_or_make(
            ("name", k),
            lambda: recognised(self.segmenter, features(), drawn, prompt.text),
            to_fields=lambda name: {"name": name},
            from_fields=lambda fields: str(fields["name"]),
        )

    def _asked(self, k: int, n: int) -> Prompt | None:
        """Choose what is asked on frame n; None if nothing is."""
        part = self._work.part(self.prompts[k], self.first + n)
        if part is not None and part.is_drawn:
            return part
        if n % self.options.key_every and n != self.count - 1:
            return None
        return Prompt(text=self.recognised[k]) if self.recognised[k] else part

    def _finished(self, k: int, answers: Sequence[FrameAnswer]) -> Masks:
        """Do everything after the asking, for one prompt."""
        prompt, options, name = self.prompts[k], self.options, self.recognised[k]
        is_held = _held(prompt, answers, options.weak_share)
        found = {n: list(answer.objects) for n, answer in enumerate(answers) if answer.objects and is_held[n]}
        is_phrase = prompt.undrawn() is not None
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
        least, least_share = options.threshold or 0.0, 0.0 if self.is_video else fusion.least_share
        trails = fuse(found, ways["up"], ways["down"], fusion, may_extend=may_extend)
        objects = [trail.to_object(least_share) for trail in trails if trail.score >= least]
        return self._over_file(prompt, [one for one in objects if one is not None], answers, is_held, name)

    def _over_file(
        self,
        prompt: Prompt,
        objects: Sequence[ObjectMask],
        answers: Sequence[FrameAnswer],
        is_held: BoolArray,
        name: str,
    ) -> Masks:
        """Put the objects on the file's own frames, best score first, with what is known of the concept."""
        moved = [replace(item, start=(item.start[0] + self.first, *item.start[1:])) for item in objects]
        asked = [answer.presence for answer in answers if answer.presence is not None and not name]
        shown = Masks(
            self.view.shape,
            tuple(sorted(moved, key=lambda item: -item.score)),
            concept=prompt.text or "",
            presence=max(asked, default=None),
            is_present=bool(is_held.any()) if asked else None,
            is_sure=not is_held.any() or any(answer.is_present and answer.is_sure for answer in answers),
            found_as=name,
        )
        return self.view.masks_back(shown)

    def _way(self, k: int, way: str, found: dict[int, list[FoundMask]], rules: TrackingRules) -> dict[int, list[Step]]:
        """Go one way through the frames; if nothing is followed, this only says which objects are one."""
        frames = range(self.count) if way == "up" else range(self.count - 1, -1, -1)
        if not self.is_followed[k]:
            links = sweep(frames, found, lambda n, track, past: past[0].mask, rules)
            return {n: [replace(step, followed=None) for step in steps] for n, steps in links.items()}

        def follow(n: int, track: int, past: Sequence[PastMask]) -> PackedMask:
            return self._resumed.get_or_make(
                ("follow", k, way, n, track),
                lambda: self.follow(n, past),
                to_fields=PackedMask.to_fields,
                from_fields=lambda fields: PackedMask.from_fields(fields, self.view.size),
            )

        return sweep(frames, found, follow, rules, report=lambda n: self._tick(1 / sum(self.is_followed)))

    def _rules(self, k: int, *, is_phrase: bool) -> TrackingRules:
        """Follow drawn objects until they are lost; between key slices, follow objects all the way."""
        rules = in_video(self.options.tracking) if self.is_video else self.options.tracking
        if not self.is_followed[k]:
            return replace(rules, stop_iou=0.0, patience=0)
        if not is_phrase:
            return replace(rules, patience=None)
        if rules.patience is None:
            return rules
        return replace(rules, patience=max(rules.patience, self.options.key_every))

    def follow(self, n: int, past: Sequence[PastMask]) -> PackedMask:
        """Find an object's mask on frame n."""
        given = [Past(one.n, one.mask.dense()) for one in past]
        return PackedMask.of(self.tracker.follow(n, given, self.cache.get))

    def _tick(self, share: float = 1.0) -> None:
        before = int(self._done + 1e-6)
        self._done += share
        if int(self._done + 1e-6) > before:
            self._work.report(int(self._done + 1e-6), self._steps)


def _held(prompt: Prompt, answers: Sequence[FrameAnswer], weak_share: float) -> BoolArray:
    """Tell on which slices what was found counts; of what is drawn, the slice that it is drawn on."""
    if prompt.undrawn() is None:
        return np.array([answer.is_asked and answer.is_present is not False for answer in answers], dtype=np.bool_)
    return held(
        [answer.presence for answer in answers], [answer.is_present for answer in answers], weak_share=weak_share
    )


def _hash_of(work: Work, prompts: Sequence[Prompt]) -> str:
    """Hash all that changes the result."""
    settings = replace(work.options, journal=None, memory_bytes=0, disk_bytes=0)
    image = work.view.image
    first = hashlib.sha256(image.pixels(0).tobytes()).hexdigest()
    asked = [prompt.to_json() for prompt in prompts]
    text = repr((work.segmenter.name, image.shape, str(image.source), first, work.run, work.at, asked, settings))
    return hashlib.sha256(text.encode()).hexdigest()


def spread(work: Work, trail: Trail, sources: Sequence[int], pinned: set[int]) -> set[int]:
    """Follow a corrected object from each of some views on, and change its trail; the views that changed.

    The way ends where it comes to what was there before, halfway to the next pinned view, at it, or where the object is
    lost. No other frame is encoded.
    """
    changed, ways = set(sources), [(at, step) for at in sources for step in (1, -1)]
    is_volume = work.view.image.kind == "volume"
    tracker = (slice_tracker_of if is_volume else tracker_of)(work.segmenter)
    cache = frame_cache(work, tracker)
    try:
        work.report(0, len(ways))
        for done, (at, step) in enumerate(ways, start=1):
            n, past = at + step, [Past(at, trail.masks[at].dense())]
            others = [other for other in pinned if other != at]
            while n in work.run and n not in pinned and all(abs(n - at) <= abs(n - other) for other in others):
                mask = PackedMask.of(tracker.follow(n, past, cache.get))
                if not _is_news(work, mask, PackedMask.of(past[0].mask), trail.masks.get(n)):
                    break
                trail.masks[n] = mask
                changed.add(n)
                past = remembering(Past(n, mask.dense()), past, work.options.tracking.memory)
                n += step
            work.report(done, len(ways))
    finally:
        cache.close()
    return changed


def end_at(trail: Trail, at: int, pinned: set[int]) -> set[int]:
    """Let an object end where a person cleared a view: what was followed beyond it goes; the views that changed.

    Beyond is away from the nearest pinned view that shows the object, up to the next pinned view or a gap.
    """
    shown = [n for n in pinned if n in trail.masks and not trail.masks[n].is_empty]
    if not shown:
        return set()
    step = 1 if at > min(shown, key=lambda n: abs(n - at)) else -1
    gone, n = set[int](), at + step
    while n in trail.masks and n not in pinned:
        del trail.masks[n]
        gone.add(n)
        n += step
    return gone


def _is_news(work: Work, mask: PackedMask, before: PackedMask, was: PackedMask | None) -> bool:
    """Tell whether a followed mask is still the object, and other than what the trail had there."""
    tracking = work.options.tracking
    rules = in_video(tracking) if work.view.image.kind == "video" else tracking
    return is_still(mask, before, rules) and (was is None or overlap(was, mask) < SAME_IOU)
