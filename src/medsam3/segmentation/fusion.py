"""Both ways through a stack put together: which objects are one, and which pixels of a frame belong to it.

Agreement decides. What was found on a frame, what came by following upwards and what came downwards each have a vote; a
followed mask that does not overlap with what was found has none. It knows no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.geometry import BoolArray, FloatArray
from medsam3.image import Masks, ObjectMask
from medsam3.segmentation.options import FusionRules
from medsam3.segmentation.packed import PackedMask, overlap
from medsam3.segmentation.sweep import Found, Step

Steps = Mapping[int, Sequence[Step]]

VOTES_NEEDED = 2
"""Planes, of three, that must agree on a voxel."""


@dataclass
class Trail:
    """One object through a stack.

    Attributes:
        masks: By frame; frames where it is not are left out.
        scores: Of the frames where it was found.
    """

    masks: dict[int, PackedMask] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """Mean of the frames where it was found, in 0..1."""
        return float(np.mean(list(self.scores.values()))) if self.scores else 0.0

    @classmethod
    def of_object(cls, item: ObjectMask, size: tuple[int, int]) -> Self:
        """Split an object over frames of (H, W) frame by frame."""
        masks = {
            n: PackedMask.of(item.plane(n, size)) for n, crop in enumerate(item.crop, start=item.start[0]) if crop.any()
        }
        return cls(masks, dict.fromkeys(masks, item.score))

    def to_object(self, least_share: float = 0.0) -> ObjectMask | None:
        """Join the frames to one object; None if nothing is left.

        Args:
            least_share: Parts that do not touch and are smaller than this share of the largest are left out.
        """
        frames = sorted(n for n, mask in self.masks.items() if not mask.is_empty)
        if not frames:
            return None
        first = [min(self.masks[n].start[k] for n in frames) for k in (0, 1)]
        last = [max(self.masks[n].start[k] + self.masks[n].crop[k] for n in frames) for k in (0, 1)]
        crop = np.zeros((frames[-1] - frames[0] + 1, last[0] - first[0], last[1] - first[1]), dtype=np.bool_)
        for n in frames:
            mask = self.masks[n]
            row, column = mask.start[0] - first[0], mask.start[1] - first[1]
            crop[n - frames[0], row : row + mask.crop[0], column : column + mask.crop[1]] = mask.block()
        kept = ObjectMask.from_dense(without_specks(crop, least_share), self.score)
        if kept is None:
            return None
        n, row, column = kept.start
        return replace(kept, start=(n + frames[0], row + first[0], column + first[1]))


@dataclass(frozen=True)
class _Votes:
    found: PackedMask | None
    score: float
    up: Step | None
    down: Step | None


def fuse(
    found: Mapping[int, Sequence[Found]],
    up: Steps,
    down: Steps,
    rules: FusionRules,
    *,
    may_extend: BoolArray,
) -> list[Trail]:
    """The objects, largest first.

    Args:
        found: What was found on each frame.
        up: The way upwards through the frames.
        down: The way downwards.
        rules: How votes count.
        may_extend: (N,) frames on which one followed mask alone is enough, if nothing at all was found there and
            nothing came from the other side.
    """
    owner = _identities(found, up, down)
    votes: dict[int, dict[int, _Votes]] = {}
    for n in sorted({*found, *up, *down}):
        for identity, vote in _votes_on(n, owner, found, up, down).items():
            votes.setdefault(identity, {})[n] = vote
    trails: list[Trail] = []
    for by_frame in votes.values():
        trail = Trail()
        for n, vote in by_frame.items():
            is_bare = not found.get(n)
            may_fill = is_bare or rules.may_fill_beside
            mask = _decided(vote, rules, may_extend=bool(may_extend[n]) and is_bare, may_fill=may_fill)
            if mask is not None and not mask.is_empty:
                trail.masks[n] = mask
                if vote.found is not None:
                    trail.scores[n] = vote.score
        if trail.masks and trail.scores:
            trails.append(trail)
    held = _without_passing(trails, rules.least_found)
    return sorted(held, key=lambda trail: -sum(mask.area for mask in trail.masks.values()))


def _without_passing(trails: Sequence[Trail], least_found: int) -> list[Trail]:
    """Trails found on fewer frames, without those frames where one that was found on enough was found more clearly."""
    lasting = [trail for trail in trails if len(trail.scores) >= least_found]
    kept = list(lasting)
    for trail in trails:
        if len(trail.scores) >= least_found:
            continue
        frames = [n for n in trail.masks if all(one.scores.get(n, -1.0) < trail.scores.get(n, 0.0) for one in lasting)]
        if frames:
            kept.append(Trail({n: trail.masks[n] for n in frames}, trail.scores))
    return kept


def _labelled(mask: BoolArray) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Number the 26-connected parts of (N, H, W) from 1, and count the voxels of each; 0 for the background."""
    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    # Slice by slice: counting all at once takes eight bytes for each voxel.
    sizes = np.zeros(count + 1, dtype=np.int64)
    for plane in labels:
        sizes += np.bincount(plane.reshape(-1), minlength=count + 1)
    sizes[0] = 0
    return labels, sizes


def without_specks(mask: BoolArray, least_share: float) -> BoolArray:
    """A mask (N, H, W) without its 26-connected parts that are smaller than a share of the largest."""
    if least_share == 0:
        return mask
    labels, sizes = _labelled(mask)
    if len(sizes) <= 2:
        return mask
    is_kept = sizes >= least_share * sizes.max()
    is_kept[0] = False
    kept = np.empty_like(mask)
    for n, plane in enumerate(labels):
        kept[n] = is_kept[plane]
    return kept


Node = tuple[str, int, int]


class _Groups:
    """Union of nodes; two objects of one frame never come into one group."""

    def __init__(self) -> None:
        self._group: dict[Node, int] = {}
        self._members: dict[int, list[Node]] = {}

    def of(self, node: Node) -> int:
        if node not in self._group:
            self._group[node] = len(self._group)
            self._members[self._group[node]] = [node]
        return self._group[node]

    def join(self, first: Node, second: Node) -> None:
        a, b = self.of(first), self.of(second)
        if a == b:
            return
        frames = [{node[1] for node in self._members[group] if node[0] == "found"} for group in (a, b)]
        if frames[0] & frames[1]:
            return
        for node in self._members.pop(b):
            self._group[node] = a
            self._members[a].append(node)


def _identities(found: Mapping[int, Sequence[Found]], up: Steps, down: Steps) -> _Groups:
    groups = _Groups()
    for n in sorted(found):
        for k in range(len(found[n])):
            groups.of(("found", n, k))
    for name, steps in (("up", up), ("down", down)):
        for n in sorted(steps, reverse=name == "down"):
            for step in steps[n]:
                groups.of((name, step.track, 0))
                if step.found is not None:
                    groups.join(("found", n, step.found), (name, step.track, 0))
    return groups


def _votes_on(
    n: int, groups: _Groups, found: Mapping[int, Sequence[Found]], up: Steps, down: Steps
) -> dict[int, _Votes]:
    """Votes on a frame by group; of several tracks of one group and way, the one that was found last."""
    votes: dict[int, _Votes] = {}
    for k, one in enumerate(found.get(n, ())):
        votes[groups.of(("found", n, k))] = _Votes(one.mask, one.score, None, None)
    for name, steps in (("up", up), ("down", down)):
        for step in sorted(steps.get(n, ()), key=lambda step: -step.age):
            if step.followed is None:
                continue
            group = groups.of((name, step.track, 0))
            before = votes.get(group, _Votes(None, 0.0, None, None))
            votes[group] = _Votes(
                before.found,
                before.score,
                step if name == "up" else before.up,
                step if name == "down" else before.down,
            )
    return votes


def _decided(vote: _Votes, rules: FusionRules, *, may_extend: bool, may_fill: bool) -> PackedMask | None:
    followed = [step for step in (vote.up, vote.down) if step is not None and step.followed is not None]
    masks = [step.followed for step in followed if step.followed is not None]
    if vote.found is not None:
        return _settled(vote.found, followed, rules)
    if len(masks) == 2:
        return _bridged(followed, masks, rules) if may_fill else None
    return masks[0] if masks and may_extend else None


def _settled(found: PackedMask, followed: Sequence[Step], rules: FusionRules) -> PackedMask:
    """What was found, with the votes of following."""
    agreeing = [
        step.followed for step in followed if step.followed and overlap(step.followed, found) >= rules.agree_iou
    ]
    if len(agreeing) == 2:
        return _majority(found, agreeing, rules.followed_weight)
    if agreeing:
        return _between(found, agreeing[0], rules.followed_weight)
    rough = [step for step in followed if step.has_run_over]
    masks = [step.followed for step in rough if step.followed]
    if len(masks) == 2:
        return _bridged(rough, masks, rules) or found
    return masks[0] if masks and len(followed) == 1 else found


def _bridged(followed: Sequence[Step], masks: Sequence[PackedMask], rules: FusionRules) -> PackedMask | None:
    """A gap: the mask from the nearer side, or where both are as near what they share."""
    if overlap(masks[0], masks[1]) < rules.agree_iou:
        return None
    if followed[0].age != followed[1].age:
        return masks[0] if followed[0].age < followed[1].age else masks[1]
    return PackedMask.of(masks[0].dense() & masks[1].dense())


def _majority(found: PackedMask, agreeing: Sequence[PackedMask], weight: float) -> PackedMask:
    votes = found.dense().astype(np.float32)
    for mask in agreeing:
        votes += weight * mask.dense()
    majority: BoolArray = votes > (1 + weight * len(agreeing)) / 2
    return PackedMask.of(majority)


def _between(found: PackedMask, followed: PackedMask, weight: float) -> PackedMask:
    """The outline between two: where the weighted mean of the distances to both outlines is inside.

    Source: Rohlfing and Maurer, shape-based averaging, IEEE TIP 16(1), 2007.
    """
    if weight == 0:
        return found
    top, left = (min(a, b) for a, b in zip(found.start, followed.start, strict=True))
    ends = [[one.start[k] + one.crop[k] for one in (found, followed)] for k in (0, 1)]
    part = (slice(top, max(ends[0])), slice(left, max(ends[1])))
    mean = _depth(found.dense()[part]) + weight * _depth(followed.dense()[part])
    mask: BoolArray = np.zeros(found.frame, dtype=np.bool_)
    mask[part] = mean > 0
    return PackedMask.of(mask)


def _depth(mask: BoolArray) -> FloatArray:
    """Distance to the outline (H, W) in pixels, below 0 outside; beyond the edge is outside."""
    padded = np.pad(mask, 1)
    depth: FloatArray = ndimage.distance_transform_edt(padded) - ndimage.distance_transform_edt(~padded)
    return depth[1:-1, 1:-1]


def voted(answers: Sequence[Masks], least_share: float) -> Masks:
    """Voxels that two of three planes find, as 26-connected objects, without specks.

    Scores are the mean of the planes' best; presence is the middle one of the three.

    Args:
        answers: What each plane found of one prompt, over the same (N, H, W).
        least_share: Objects smaller than this share of the largest are left out.
    """
    shape = answers[0].shape
    votes = np.zeros(shape, dtype=np.uint8)
    for masks in answers:
        votes += masks.union()
    won: BoolArray = votes >= VOTES_NEEDED
    scores = [masks.scores[0] for masks in answers if masks.scores]
    presences = sorted(masks.presence for masks in answers if masks.presence is not None)
    affirmed = [masks.is_sure for masks in answers if masks.is_present]
    return Masks(
        shape,
        tuple(_parts(won, float(np.mean(scores)) if scores else 0.0, least_share)),
        concept=answers[0].concept,
        presence=presences[len(presences) // 2] if presences else None,
        is_present=len(affirmed) >= VOTES_NEEDED,
        is_sure=len(affirmed) < VOTES_NEEDED or sum(affirmed) >= VOTES_NEEDED,
    )


def _parts(won: BoolArray, score: float, least_share: float) -> list[ObjectMask]:
    """The largest first."""
    labels, sizes = _labelled(won)
    if len(sizes) == 1:
        return []
    blocks = ndimage.find_objects(labels)
    found = []
    for k in np.argsort(-sizes[1:], kind="stable") + 1:
        if sizes[k] < least_share * sizes.max():
            break
        block = blocks[k - 1]
        start = (block[0].start, block[1].start, block[2].start)
        found.append(ObjectMask(start, np.ascontiguousarray(labels[block] == k), score))
    return found
