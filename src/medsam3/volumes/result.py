"""What was found of one prompt in a stack, small however long the stack is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medsam3.image import Masks, ObjectMask
from medsam3.volumes.fusion import Trail, without_specks
from medsam3.volumes.planes import Turn


@dataclass(frozen=True)
class StackMasks:
    """Objects through a stack as it was cut, with the turn that led there.

    Attributes:
        turn: From the file's stack to the one that was cut.
        concept: The phrase; "" where only boxes or points were given.
        trails: The objects, the largest first; masks in pixels of the cut slices.
        presence: By slice; None where no phrase was asked there.
        is_held: By slice, whether the concept counts as there.
        recognised: What a drawn object was taken for; "" where it was not recognised, or need not be.
        least_share: Specks of a volume's objects below this share are left out of `masks`; 0 keeps all.
    """

    turn: Turn
    concept: str
    trails: tuple[Trail, ...]
    presence: tuple[float | None, ...]
    is_held: tuple[bool, ...]
    recognised: str = ""
    least_share: float = 0.0

    def masks(self) -> Masks:
        """The objects over the file's own stack, best score first, each through all its slices."""
        objects = [item for item in (self._object(trail) for trail in self.trails) if item is not None]
        asked = [value for value in self.presence if value is not None]
        cut = Masks(
            self.turn.new_shape,
            tuple(sorted(objects, key=lambda item: -item.score)),
            concept=self.concept,
            presence=max(asked, default=None),
            is_present=any(self.is_held) if asked else None,
        )
        return self.turn.masks_back(cut)

    def on_slice(self, n: int) -> Masks:
        """The objects on slice n of the cut stack, over (1, H, W), in the order of `trails`."""
        shape = (1, *self.turn.new_shape[1:])
        objects = [
            ObjectMask((0, *mask.start), mask.block()[None], trail.score)
            for mask, trail in ((trail.masks.get(n), trail) for trail in self.trails)
            if mask is not None and not mask.is_empty
        ]
        return Masks(shape, tuple(objects), self.concept, self.presence[n], self.is_held[n])

    def _object(self, trail: Trail) -> ObjectMask | None:
        frames = sorted(n for n, mask in trail.masks.items() if not mask.is_empty)
        if not frames:
            return None
        first = [min(trail.masks[n].start[k] for n in frames) for k in (0, 1)]
        last = [max(trail.masks[n].start[k] + trail.masks[n].crop[k] for n in frames) for k in (0, 1)]
        crop = np.zeros((frames[-1] - frames[0] + 1, last[0] - first[0], last[1] - first[1]), dtype=np.bool_)
        for n in frames:
            mask = trail.masks[n]
            row, column = mask.start[0] - first[0], mask.start[1] - first[1]
            crop[n - frames[0], row : row + mask.crop[0], column : column + mask.crop[1]] = mask.block()
        whole = ObjectMask((frames[0], first[0], first[1]), crop, trail.score)
        if self.least_share == 0:
            return whole
        cleaned = ObjectMask.from_dense(without_specks(crop, self.least_share), trail.score)
        if cleaned is None:
            return None
        n, row, column = (a + b for a, b in zip(whole.start, cleaned.start, strict=True))
        return ObjectMask((n, row, column), cleaned.crop, trail.score)


def found_frames(results: Sequence[StackMasks]) -> list[int]:
    """Slices on which anything was found."""
    return sorted({n for result in results for trail in result.trails for n in trail.masks})
