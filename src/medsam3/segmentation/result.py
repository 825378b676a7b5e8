"""What was found of one prompt in a stack, small however long the stack is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medsam3.image import Masks, ObjectMask
from medsam3.segmentation.fusion import Trail, without_specks
from medsam3.view.view import View


@dataclass(frozen=True)
class StackMasks:
    """Objects through a run of slices, in pixels of the views of these.

    Attributes:
        view: What the model was shown.
        first: The view that is slice 0 here.
        concept: The phrase; "" where only boxes or points were given.
        trails: The objects, the largest first.
        presence: By slice; None where no phrase was asked there.
        is_held: By slice, whether the concept counts as there.
        recognised: What a drawn object was taken for; "" where it was not recognised, or need not be.
        least_share: Specks of a volume's objects below this share are left out of `masks`; 0 keeps all.
    """

    view: View
    first: int
    concept: str
    trails: tuple[Trail, ...]
    presence: tuple[float | None, ...]
    is_held: tuple[bool, ...]
    recognised: str = ""
    least_share: float = 0.0

    def masks(self) -> Masks:
        """The objects over the file's own frames, best score first, each through all its slices."""
        objects = [object_of(trail, self.least_share) for trail in self.trails]
        moved = [
            replace(item, start=(item.start[0] + self.first, *item.start[1:])) for item in objects if item is not None
        ]
        asked = [value for value in self.presence if value is not None]
        shown = Masks(
            self.view.shape,
            tuple(sorted(moved, key=lambda item: -item.score)),
            concept=self.concept,
            presence=max(asked, default=None),
            is_present=any(self.is_held) if asked else None,
            found_as=self.recognised,
        )
        return self.view.masks_back(shown)


def object_of(trail: Trail, least_share: float = 0.0) -> ObjectMask | None:
    """One object through its frames; None where it has none.

    Args:
        trail: The object.
        least_share: Parts that do not touch and are smaller than this share of the largest are left out.
    """
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
    if least_share == 0:
        return whole
    cleaned = ObjectMask.from_dense(without_specks(crop, least_share), trail.score)
    if cleaned is None:
        return None
    n, row, column = (a + b for a, b in zip(whole.start, cleaned.start, strict=True))
    return ObjectMask((n, row, column), cleaned.crop, trail.score)


def joined(shape: tuple[int, int, int], masks: Sequence[Masks]) -> Masks:
    """Put masks of one prompt over the same image, found on different frames of it, together."""
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
        found_as=next((one.found_as for one in masks if one.found_as), ""),
    )
