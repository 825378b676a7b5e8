"""Correcting a result by hand: a new box on one slice changes that slice, and the slices that follow from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from medsam3.errors import InputError
from medsam3.io.stack import Stack
from medsam3.models.segmenter import Segmenter
from medsam3.models.tracker import Past
from medsam3.prompts import Box, Prompt
from medsam3.volumes.asking import ask
from medsam3.volumes.fusion import Trail
from medsam3.volumes.kept import KeptFrames
from medsam3.volumes.options import StackOptions
from medsam3.volumes.packed import PackedMask, overlap
from medsam3.volumes.planes import prompt_turned, turned
from medsam3.volumes.presentation import Presenter, automatic_window
from medsam3.volumes.result import StackMasks
from medsam3.volumes.run import tracker_for

SAME_IOU = 0.95
"""From this overlap with what was there before, the rest of the way has nothing new."""


class Correction:
    """A result that takes corrections. Slices that were corrected by hand are never overwritten by following.

    Only results that were cut along the file's own slices can be corrected.
    """

    def __init__(
        self, stack: Stack, result: StackMasks, segmenter: Segmenter, options: StackOptions | None = None
    ) -> None:
        """Begin with a result of `segment_stack` on the same stack with the same options.

        Raises:
            InputError: The result is of another stack, or was cut across its slices.
        """
        if result.turn.shape != stack.shape:
            raise InputError(
                f"the result is over {result.turn.shape}, the stack is {stack.shape}: they must be the same"
            )
        if result.turn.axes[0] != 0:
            raise InputError("a result in another plane cannot be corrected: segment with plane 'native'")
        self.result = result
        self.touched: tuple[int, ...] = ()
        self._options = options or StackOptions()
        self._segmenter, self._tracker = segmenter, tracker_for(segmenter)
        self._cut = turned(stack, result.turn)
        window = self._options.window or automatic_window(self._cut)
        self._presenter = Presenter(self._cut, window, has_neighbours=self._options.has_neighbours)
        self._pinned: dict[int, set[int]] = {}
        self._kept = KeptFrames(
            lambda n: self._tracker.keep(self._encoded(n)),
            self._tracker.kept_bytes,
            memory_bytes=self._options.memory_bytes,
            disk_bytes=self._options.disk_bytes,
        )

    def box(self, n: int, box: Box, *, trail: int | None = None) -> StackMasks:
        """Put what is in a box on the file's slice n in the place of an object there.

        The new mask is followed both ways, until it comes to what was there before, to a slice that was corrected by
        hand, or is lost. `touched` then holds the file's slices that changed.

        Args:
            n: Slice of the file, from 0.
            box: In pixels of that slice.
            trail: Which of the result's trails; None begins a new object.

        Raises:
            InputError: No such slice or trail, a box outside the slice, nothing in the box.
        """
        count = self._cut.shape[0]
        if not 0 <= n < count:
            raise InputError(f"slice {n} was named, allowed is 0 to {count - 1}")
        if trail is not None and not 0 <= trail < len(self.result.trails):
            raise InputError(f"object {trail} was named, allowed is 0 to {len(self.result.trails) - 1}")
        prompt = Prompt(boxes=(box,))
        prompt.check_inside(*self._cut.shape[1:] if self.result.turn.axes[1] == 1 else self._cut.shape[:0:-1])
        at = self._cut_slice(n)
        mask, score = self._in_box(at, prompt)
        number = len(self.result.trails) if trail is None else trail
        old = Trail() if trail is None else self.result.trails[trail]
        new = Trail(dict(old.masks), dict(old.scores))
        pinned = self._pinned.setdefault(number, set())
        pinned.add(at)
        new.masks[at], new.scores[at] = mask, score
        changed = {at}
        for step in (1, -1):
            changed |= self._spread(new, at, step, pinned)
        trails = [*self.result.trails]
        trails[number : number + 1] = [new]
        self.result = replace(self.result, trails=tuple(trails))
        self.touched = tuple(sorted(self._cut_slice(k) for k in changed))
        return self.result

    def close(self) -> None:
        """Let what was kept of frames go."""
        self._kept.close()

    def _spread(self, trail: Trail, at: int, step: int, pinned: set[int]) -> set[int]:
        """Follow from slice `at` in one direction; the slices that changed."""
        rules, changed, n = self._options.tracking, set(), at + step
        past = [(at, trail.masks[at])]
        while 0 <= n < self._cut.shape[0] and n not in pinned:
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
        given = [Past(k, self._presenter.mask_in_view(mask.dense())) for k, mask in past]
        view = self._tracker.follow(n, given, self._kept.get)
        return PackedMask.of(self._presenter.mask_in_slice(view))

    def _in_box(self, at: int, prompt: Prompt) -> tuple[PackedMask, float]:
        features = self._encoded(at)
        self._kept.put(at, self._tracker.keep(features))
        in_view = self._presenter.prompt_in_view(prompt_turned(prompt, self.result.turn))
        answer = ask(self._segmenter, features, in_view, threshold=None, weak_score=self._options.weak_score)
        if not answer.objects:
            raise InputError("nothing was found in the box: draw it close around the object")
        best = answer.objects[0]
        return PackedMask.of(self._presenter.mask_in_slice(best.mask.dense())), best.score

    def _cut_slice(self, n: int) -> int:
        return self._cut.shape[0] - 1 - n if self.result.turn.is_flipped[0] else n

    def _encoded(self, n: int) -> Any:
        return self._segmenter.encode(self._presenter.rgb(n))
