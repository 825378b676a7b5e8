"""Correcting a result by hand: a new box on one slice changes that slice, and the slices that follow from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from medsam3.errors import InputError
from medsam3.image import Image, Masks, ObjectMask
from medsam3.models.segmenter import Segmenter
from medsam3.models.tracker import Past
from medsam3.prompts import Box, Prompt
from medsam3.segmentation.asking import ask
from medsam3.segmentation.fusion import Trail
from medsam3.segmentation.kept import KeptFrames
from medsam3.segmentation.options import Options
from medsam3.segmentation.packed import PackedMask, overlap
from medsam3.segmentation.result import object_of
from medsam3.segmentation.run import tracker_for
from medsam3.view.view import view_of

SAME_IOU = 0.95
"""From this overlap with what was there before, the rest of the way has nothing new."""


class Correction:
    """Masks that take corrections. Slices that were corrected by hand are never overwritten by following."""

    def __init__(self, image: Image, masks: Masks, segmenter: Segmenter, options: Options | None = None) -> None:
        """Begin with masks over an image, as `segment` gives them.

        Raises:
            InputError: The masks are over another image, or the options cut it across its slices.
        """
        if masks.shape != image.shape:
            raise InputError(f"the masks are over {masks.shape}, the image is {image.shape}: they must be the same")
        self._options = options or Options()
        if self._options.plane == "vote":
            raise InputError("a vote of three planes cannot be corrected on a slice: leave the plane out")
        self._view = view_of(
            image,
            self._options.plane,
            window=self._options.window,
            has_neighbours=self._options.has_neighbours,
            keeps_slices=True,
        )
        self._about = replace(masks, objects=())
        self.trails = [_trail_of(item, self._view.size) for item in self._view.masks_forth(masks).objects]
        self.touched: tuple[int, ...] = ()
        self._segmenter, self._tracker = segmenter, tracker_for(segmenter)
        self._pinned: dict[int, set[int]] = {}
        self._kept = KeptFrames(
            lambda n: self._tracker.keep(self._encoded(n)),
            self._tracker.kept_bytes,
            memory_bytes=self._options.memory_bytes,
            disk_bytes=self._options.disk_bytes,
        )

    @property
    def masks(self) -> Masks:
        """The objects as they stand, over the file's frames, in the order of `trails`."""
        objects = tuple(item for item in (object_of(trail) for trail in self.trails) if item is not None)
        return self._view.masks_back(replace(self._about, shape=self._view.shape, objects=objects))

    def box(self, n: int, box: Box, *, trail: int | None = None) -> Masks:
        """Put what is in a box on the file's slice n in the place of an object there.

        The new mask is followed both ways, until it comes to what was there before, to a slice that was corrected by
        hand, or is lost. `touched` then holds the file's slices that changed.

        Args:
            n: Slice of the file, from 0.
            box: In pixels of that slice.
            trail: Which of the objects; None begins a new one.

        Raises:
            InputError: No such slice or object, a box outside the slice, nothing in the box.
        """
        count, height, width = self._view.image.shape
        if not 0 <= n < count:
            raise InputError(f"slice {n} was named, allowed is 0 to {count - 1}")
        if trail is not None and not 0 <= trail < len(self.trails):
            raise InputError(f"object {trail} was named, allowed is 0 to {len(self.trails) - 1}")
        prompt = Prompt(boxes=(box,))
        prompt.check_inside(height, width)
        at = self._view.number(n)
        mask, score = self._in_box(at, self._view.prompt(prompt))
        number = len(self.trails) if trail is None else trail
        old = Trail() if trail is None else self.trails[trail]
        new = Trail(dict(old.masks), dict(old.scores))
        pinned = self._pinned.setdefault(number, set())
        pinned.add(at)
        new.masks[at], new.scores[at] = mask, score
        changed = {at}
        for step in (1, -1):
            changed |= self._spread(new, at, step, pinned)
        self.trails[number : number + 1] = [new]
        self.touched = tuple(sorted(self._view.number(k) for k in changed))
        return self.masks

    def close(self) -> None:
        """Let what was kept of frames go."""
        self._kept.close()

    def _spread(self, trail: Trail, at: int, step: int, pinned: set[int]) -> set[int]:
        """Follow from slice `at` in one direction; the slices that changed."""
        rules, changed, n = self._options.tracking, set(), at + step
        past = [(at, trail.masks[at])]
        while 0 <= n < self._view.count and n not in pinned:
            mask = self._followed(n, past)
            before = past[0][1]
            is_lost = mask.is_empty or overlap(mask, before) < rules.stop_iou
            if is_lost or not 1 / rules.largest_growth <= mask.area / before.area <= rules.largest_growth:
                break
            was = trail.masks.get(n)
            if was is not None and overlap(was, mask) >= SAME_IOU:
                break
            trail.masks[n] = mask
            changed.add(n)
            past = [(n, mask), *past] if len(past) < rules.memory else [(n, mask), *past[: rules.memory - 2], past[-1]]
            n += step
        return changed

    def _followed(self, n: int, past: list[tuple[int, PackedMask]]) -> PackedMask:
        given = [Past(k, mask.dense()) for k, mask in past]
        return PackedMask.of(self._tracker.follow(n, given, self._kept.get))

    def _in_box(self, at: int, prompt: Prompt) -> tuple[PackedMask, float]:
        features = self._encoded(at)
        self._kept.put(at, self._tracker.keep(features))
        answer = ask(self._segmenter, features, prompt, threshold=None, weak_score=self._options.weak_score)
        if not answer.objects:
            raise InputError("nothing was found in the box: draw it close around the object")
        return answer.objects[0].mask, answer.objects[0].score

    def _encoded(self, n: int) -> Any:
        return self._segmenter.encode(self._view.rgb(n))


def _trail_of(item: ObjectMask, size: tuple[int, int]) -> Trail:
    """An object over views of (H, W), view by view."""
    masks = {}
    for n, crop in enumerate(item.crop, start=item.start[0]):
        if crop.any():
            masks[n] = PackedMask.of(item.plane(n, size))
    return Trail(masks, dict.fromkeys(masks, item.score))
