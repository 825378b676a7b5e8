"""Other ways to say a concept, and concepts that are easily taken for one another.

The phrases in `held_out_phrases.json` are never used in training: one clinical, one lay, one plural and one misspelt
for each concept. Training and the model's reading of phrases know `medsam3.concepts` alone; a test holds that none of
these stands among what they take from there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal, cast

from medsam3.concepts import find

PhraseKind = Literal["", "clinical", "lay", "plural", "misspelt"]
KINDS: tuple[PhraseKind, ...] = ("clinical", "lay", "plural", "misspelt")
TRAINED_PHRASES = 4
"""So many training synonyms of a concept are asked beside the held-out phrases."""

CONFUSABLE: tuple[tuple[str, ...], ...] = (
    ("optic cup", "optic disc"),
    ("benign breast tumor", "malignant breast tumor"),
    ("left ventricle", "right ventricle"),
    ("left ventricle", "left ventricular myocardium"),
    ("left atrium", "right atrium"),
    ("superior vena cava", "inferior vena cava"),
    ("aorta", "pulmonary artery"),
    ("left lung", "right lung"),
    ("anterior hippocampus", "posterior hippocampus"),
    ("small bowel", "large bowel"),
    ("common nevus", "atypical nevus", "melanoma"),
    ("benign nevus", "seborrheic keratosis", "melanoma"),
    ("glioma", "meningioma", "pituitary tumor"),
    (
        "epidural hematoma",
        "subdural hematoma",
        "subarachnoid hemorrhage",
        "intraparenchymal hemorrhage",
        "intraventricular hemorrhage",
    ),
    ("prostate central gland", "prostate tumor"),
    ("vertebra", "intervertebral disc", "spinal canal"),
    ("polyp", "gastrointestinal cancer", "high-grade dysplasia", "suspicious lesion", "Barrett's esophagus"),
)


@dataclass(frozen=True)
class Phrase:
    """One phrasing of a concept: `kind` is "" for those that training uses."""

    text: str
    kind: PhraseKind

    @property
    def is_held_out(self) -> bool:
        """Training never sees it."""
        return self.kind != ""


def panel(concept: str) -> tuple[Phrase, ...]:
    """The phrasings asked beside the name: some of training, then the held-out ones; () for an unknown concept."""
    known = find(concept)
    if known is None:
        return ()
    held_out = held_out_phrases().get(known.name, {})
    return (
        *(Phrase(text, "") for text in known.synonyms[:TRAINED_PHRASES]),
        *(Phrase(held_out[kind], kind) for kind in KINDS if kind in held_out),
    )


@cache
def held_out_phrases() -> Mapping[str, Mapping[PhraseKind, str]]:
    """Read the held-out phrases, by the concept's name and kind."""
    text = resources.files("medsam3.eval").joinpath("held_out_phrases.json").read_text(encoding="utf-8")
    return cast("Mapping[str, Mapping[PhraseKind, str]]", json.loads(text))


def rivals(concept: str) -> tuple[str, ...]:
    """Concepts that this one is easily taken for."""
    names = {name for group in CONFUSABLE if concept in group for name in group}
    return tuple(sorted(names - {concept}))
