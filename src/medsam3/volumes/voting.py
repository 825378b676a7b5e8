"""Three planes, one vote each: a volume is segmented in axial, coronal and sagittal slices, and two of three decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from medsam3.errors import InputError
from medsam3.geometry import BoolArray
from medsam3.image import Masks, ObjectMask
from medsam3.io.stack import Stack
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Prompt
from medsam3.volumes.asking import has_geometry
from medsam3.volumes.options import StackOptions
from medsam3.volumes.planes import PLANES
from medsam3.volumes.run import segment_stack

VOTES_NEEDED = 2


def segment_by_vote(
    stack: Stack,
    prompts: Sequence[Prompt],
    segmenter: Segmenter,
    options: StackOptions | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Masks]:
    """Voxels that two of the three planes find, as 26-connected objects, without specks.

    It costs three runs, and pays where voxels are about as long as wide. Scores are the mean of the planes' best;
    presence is the middle one of the three.

    Raises:
        InputError: As `segment_stack`, and prompts with boxes, points or exemplars, which lie in one plane.
    """
    if any(has_geometry(prompt) for prompt in prompts):
        raise InputError("boxes, points and exemplars lie in one plane: leave the vote of three planes out")
    settings = options or StackOptions()
    by_plane: list[list[Masks]] = []
    for number, plane in enumerate(PLANES):
        journal = settings.journal and settings.journal.with_suffix(f".{plane}{settings.journal.suffix}")
        chosen = replace(settings, plane=plane, journal=journal)
        report = _third(progress, number) if progress is not None else None
        by_plane.append([one.masks() for one in segment_stack(stack, prompts, segmenter, chosen, progress=report)])
    return [_voted([masks[k] for masks in by_plane], settings.fusion.least_share) for k in range(len(prompts))]


def _voted(answers: Sequence[Masks], least_share: float) -> Masks:
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


def _third(progress: Callable[[int, int], None], number: int) -> Callable[[int, int], None]:
    return lambda done, count: progress(number * count + done, len(PLANES) * count)
