"""Concepts that surely are not in a picture, because they belong to another kind of image altogether.

Concepts are annotated within one data set only: a liver may be seen but unlabelled in another set of CT. So nothing of
another cross-sectional family counts as absent, nor what another kind of image shows of the same organ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from medsam3.concepts import CONCEPTS, find
from medsam3.io.index import IndexRow

CROSS_SECTIONAL = ("ct", "mri", "x-ray")
SAME_ORGANS = (
    frozenset({"gastrointestinal endoscopy", "abdominal ct and mri"}),
    frozenset({"fetal ultrasound", "brain mri"}),
    frozenset({"fetal ultrasound", "head ct"}),
)
"""Families of other modality that may show the same: a colonoscopy is a view of the large bowel."""


def absent_concepts(shown: Iterable[str]) -> tuple[str, ...]:
    """Names of known concepts that cannot be in an image of a data set that annotates `shown`.

    () where one of those is not known, as it is then not known what such images show.
    """
    families = set()
    for name in shown:
        concept = find(name)
        if concept is None:
            return ()
        families.add(concept.family.lower())
    return tuple(c.name for c in CONCEPTS if all(_is_foreign(c.family.lower(), own) for own in families))


def drawn_absent(row: IndexRow, candidates: Iterable[str], count: int, *, seed: int) -> tuple[str, ...]:
    """At most `count` of the candidates, drawn by a hash of the image and the seed: the same in every run."""
    place = f"{seed}/{row.dataset}/{row.image.name}"
    ordered = sorted(candidates, key=lambda name: hashlib.sha256(f"{place}/{name}".encode()).digest())
    return tuple(ordered[:count])


def _is_foreign(family: str, own: str) -> bool:
    if family == own or frozenset({family, own}) in SAME_ORGANS:
        return False
    return not (_is_cross_sectional(family) and _is_cross_sectional(own))


def _is_cross_sectional(family: str) -> bool:
    return any(word in family for word in CROSS_SECTIONAL)
