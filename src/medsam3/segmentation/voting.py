"""Three planes, one vote each: two of three decide which voxels belong to what was found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medsam3.geometry import BoolArray
from medsam3.image import Masks, ObjectMask

VOTES_NEEDED = 2


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
    return Masks(
        shape,
        tuple(_parts(won, float(np.mean(scores)) if scores else 0.0, least_share)),
        concept=answers[0].concept,
        presence=presences[len(presences) // 2] if presences else None,
        is_present=sum(bool(masks.is_present) for masks in answers) >= VOTES_NEEDED,
    )


def _parts(won: BoolArray, score: float, least_share: float) -> list[ObjectMask]:
    """The largest first."""
    labels, count = ndimage.label(won, structure=np.ones((3, 3, 3)))
    if count == 0:
        return []
    sizes = np.bincount(labels.reshape(-1))
    sizes[0] = 0
    blocks = ndimage.find_objects(labels)
    found = []
    for k in np.argsort(-sizes[1:], kind="stable") + 1:
        if sizes[k] < least_share * sizes.max():
            break
        block = blocks[k - 1]
        start = (block[0].start, block[1].start, block[2].start)
        found.append(ObjectMask(start, np.ascontiguousarray(labels[block] == k), score))
    return found
