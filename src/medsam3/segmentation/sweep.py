"""One way through a stack: objects found on frames are followed to the next one and matched with what was found there.

It knows no model: a function gives the mask that an object has on the next frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from medsam3.segmentation.options import TrackingRules
from medsam3.segmentation.packed import PackedMask, inside, overlap

Value = TypeVar("Value")

CLEAR_SCORE = 0.5
"""Least score of an object that was surely found."""


@dataclass(frozen=True)
class FoundMask:
    """An object that a prompt found on one frame by itself."""

    mask: PackedMask
    score: float


@dataclass(frozen=True)
class PastMask:
    """The object on an earlier frame of the way."""

    n: int
    mask: PackedMask


@dataclass(frozen=True)
class Step:
    """A track on one frame.

    Attributes:
        track: Its number, from 0 in the order of beginning.
        followed: Its mask by following; None on its first frame.
        found: The index of the object that was found on this frame and is it; None where it was not found.
        age: Frames since it was found last, 0 where it was found here.
        has_run_over: What was found is this object, and much more: what was followed lies inside it.
    """

    track: int
    followed: PackedMask | None
    found: int | None
    age: int
    has_run_over: bool = False


Follow = Callable[[int, int, Sequence[PastMask]], PackedMask]
"""From (frame, track, past with the nearest first) to the mask on that frame."""


@dataclass
class _Track:
    number: int
    past: list[PastMask]
    hits: int = 1
    age: int = 0


class Sweep:
    """The tracks on their way; frames are handed to it one after the other."""

    def __init__(self, follow: Follow, rules: TrackingRules) -> None:
        self._follow, self._rules = follow, rules
        self._active: list[_Track] = []
        self._count = 0

    def advance(self, n: int, found: Sequence[FoundMask]) -> list[Step]:
        """Follow all tracks to frame n, match them with what was found there, and begin new ones."""
        followed = [(track, self._followed(n, track, found)) for track in self._active]
        alive = [(track, mask) for track, mask in followed if mask is not None]
        lost = [track for track, mask in followed if mask is None]
        seen = [one.mask for one in found]
        owner = _matched([mask for _, mask in alive], seen, self._rules.match_iou)
        rough = self._roughly_matched(alive, seen, owner)
        index_of = {place: index for index, place in (owner | rough).items()}
        missed = [track for place, (track, _) in enumerate(alive) if place not in index_of] + lost
        taken = self._taken_up(missed, found, {*owner, *rough})
        self._active = [
            track
            for track in lost
            if track.number not in taken and self._rules.may_return and self._goes_on(track, found)
        ]
        steps = [self._moved(track, n, seen, taken[track.number]) for track in missed if track.number in taken]
        going_on = [mask for place, (_, mask) in enumerate(alive) if place in index_of] + seen
        for place, (track, mask) in enumerate(alive):
            if track.number in taken:
                continue
            index = index_of.get(place)
            if index is None:
                if not self._goes_on(track, found) or self._is_double(mask, going_on):
                    continue
                going_on.append(mask)
            else:
                track.age, track.hits = 0, track.hits + 1
            has_run_over = index in rough and mask.area < seen[index].area
            self._remember(track, n, mask if index is None or has_run_over else seen[index])
            steps.append(Step(track.number, mask, index, track.age, has_run_over))
        return [*steps, *self._begun(n, found, {*owner, *rough, *taken.values()})]

    def _taken_up(self, missed: Sequence[_Track], found: Sequence[FoundMask], owned: set[int]) -> dict[int, int]:
        """For tracks that were not found, by number, the objects that no track has, the clearest first."""
        if not self._rules.takes_up:
            return {}
        free = [index for index, one in enumerate(found) if index not in owned and not one.mask.is_empty]
        free.sort(key=lambda index: -found[index].score)
        by_hits = sorted(missed, key=lambda track: -track.hits)
        return {track.number: index for track, index in zip(by_hits, free, strict=False)}

    def _moved(self, track: _Track, n: int, seen: Sequence[PackedMask], index: int) -> Step:
        """The track goes on from an object that was found away from it."""
        track.age, track.hits = 0, track.hits + 1
        self._remember(track, n, seen[index])
        return Step(track.number, None, index, 0)

    def _begun(self, n: int, found: Sequence[FoundMask], taken: set[int]) -> list[Step]:
        """New tracks for what no track has taken."""
        steps: list[Step] = []
        for index, one in enumerate(found):
            if index not in taken and not one.mask.is_empty:
                track = _Track(self._count, [])
                self._count += 1
                self._remember(track, n, one.mask)
                steps.append(Step(track.number, None, index, 0))
        return steps

    def _roughly_matched(
        self, alive: Sequence[tuple[_Track, PackedMask]], seen: Sequence[PackedMask], owner: Mapping[int, int]
    ) -> dict[int, int]:
        """Match sure tracks and objects that `_matched` left: one lies inside the other."""
        rough: dict[int, int] = {}
        for index, mask in enumerate(seen):
            if index in owner:
                continue
            places = [
                place
                for place, (track, other) in enumerate(alive)
                if place not in owner.values()
                and place not in rough.values()
                and track.hits >= self._rules.sure_after
                and inside(mask, other) >= self._rules.inside_share
            ]
            if places:
                rough[index] = max(places, key=lambda place: alive[place][0].hits)
        return rough

    def _goes_on(self, track: _Track, found: Sequence[FoundMask]) -> bool:
        """Count a frame on which the track was not found, and say whether it goes on."""
        track.age += 1
        if self._rules.patience is None:
            return True
        is_sure = track.hits >= self._rules.sure_after or not found
        return track.age <= self._rules.patience and is_sure

    def _is_double(self, mask: PackedMask, others: Sequence[PackedMask]) -> bool:
        return self._rules.patience is not None and any(overlap(mask, one) >= self._rules.same_iou for one in others)

    @property
    def remembered(self) -> set[int]:
        """Frames that some track on its way remembers."""
        return {past.n for track in self._active for past in track.past}

    def _followed(self, n: int, track: _Track, found: Sequence[FoundMask]) -> PackedMask | None:
        before = track.past[0].mask
        mask = self._found_clearly(before, found)
        if mask is None:
            mask = self._follow(n, track.number, track.past)
        return mask if is_still(mask, before, self._rules) else None

    def _found_clearly(self, before: PackedMask, found: Sequence[FoundMask]) -> PackedMask | None:
        least = self._rules.clear_iou
        if least is None:
            return None
        near = [one for one in found if overlap(before, one.mask) >= least]
        return near[0].mask if len(near) == 1 and near[0].score >= CLEAR_SCORE else None

    def _remember(self, track: _Track, n: int, mask: PackedMask) -> None:
        track.past = remembering(PastMask(n, mask), track.past, self._rules.memory)
        self._active.append(track)


def is_still(mask: PackedMask, before: PackedMask, rules: TrackingRules) -> bool:
    """Say whether a followed mask is the object yet: it overlaps with the one before, and is about as large."""
    if mask.is_empty or overlap(mask, before) < rules.stop_iou:
        return False
    return 1 / rules.largest_growth <= mask.area / before.area <= rules.largest_growth


def remembering(latest: Value, past: Sequence[Value], memory: int) -> list[Value]:
    """Put the latest before the past, and keep the nearest and, as the last, the one that the way began on."""
    every = [latest, *past]
    return every if len(every) <= memory else [*every[: memory - 1], every[-1]]


def sweep(
    frames: Sequence[int],
    found: Mapping[int, Sequence[FoundMask]],
    follow: Follow,
    rules: TrackingRules,
    *,
    report: Callable[[int], None] = lambda n: None,
) -> dict[int, list[Step]]:
    """All frames in their order, upwards or downwards; those without tracks are left out."""
    way = Sweep(follow, rules)
    steps: dict[int, list[Step]] = {}
    for n in frames:
        here = way.advance(n, found.get(n, ()))
        if here:
            steps[n] = here
        report(n)
    return steps


def _matched(followed: Sequence[PackedMask], found: Sequence[PackedMask], least: float) -> dict[int, int]:
    """For objects found, by index, the followed one that each is: the best overlaps first, each used once."""
    pairs = [(overlap(a, b), i, j) for i, a in enumerate(followed) for j, b in enumerate(found)]
    owner: dict[int, int] = {}
    for iou, i, j in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if iou >= least and iou > 0 and j not in owner and i not in owner.values():
            owner[j] = i
    return owner
