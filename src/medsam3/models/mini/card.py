"""The card of the small model's weights: sizes, thresholds, how they were made. Knows the file's form, no tensor."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from medsam3.errors import InputError
from medsam3.models.mini.detector import MiniDetectorConfig
from medsam3.store import JsonObject, check_format, sha256_of

CARD_FORMAT = 1
"""Raised when older readers would misread a card; cards without a number are of the first format."""


@dataclass(frozen=True)
class PresenceLimits:
    """Presence probabilities from which on a concept is affirmed, and from which on that is sure."""

    affirmed: float
    sure: float


@dataclass(frozen=True)
class MiniThresholds:
    """Fitted on the validation split and stored beside the weights.

    Attributes:
        presence: Least presence probability at which a concept is affirmed, and masks are given.
        presence_sure: Least one at which that is sure; between the two the answer is "not sure". None: as `presence`.
        kind_presence: Like `presence`, of a kind of lesion, such as a melanoma, which is outlined as the lesion that it
            is a kind of. None: kinds are asked and outlined like any other concept.
        kind_sure: Like `presence_sure`, of a kind; None: as `kind_presence`.
        mask: Probability above which a pixel belongs to the concept.
        box_share: Weight in 0..1 of the box decoder's logits where a phrase and a box are given.
        refine_share: Weight in 0..1 of the box decoder's logits where a phrase alone is given and both agree.
        refine_iou: Least intersection over union at which they agree.
        closer_share: Weight in 0..1 of the logits from a closer look at the found parts; 0 takes no such look.
        closer_presence: Weight in 0..1 of that look's logit in the presence of a phrase.
    """

    presence: float = 0.5
    mask: float = 0.5
    box_share: float = 0.5
    refine_share: float = 0.0
    refine_iou: float = 0.8
    closer_share: float = 0.0
    closer_presence: float = 0.0
    presence_sure: float | None = None
    kind_presence: float | None = None
    kind_sure: float | None = None

    @property
    def of_concepts(self) -> PresenceLimits:
        """The limits of a concept that is no kind of another."""
        return PresenceLimits(self.presence, self.presence if self.presence_sure is None else self.presence_sure)

    @property
    def of_kinds(self) -> PresenceLimits | None:
        """The limits of a kind of lesion; None if kinds are asked like any other concept."""
        if self.kind_presence is None:
            return None
        return PresenceLimits(self.kind_presence, self.kind_presence if self.kind_sure is None else self.kind_sure)

    @property
    def looks_closer(self) -> bool:
        """Whether a closer look counts for anything."""
        return self.closer_share > 0 or self.closer_presence > 0


@dataclass(frozen=True)
class MiniCard:
    """The card beside the weights: sizes of each detector, thresholds, and how they were made."""

    detectors: tuple[MiniDetectorConfig, ...]
    thresholds: MiniThresholds
    about: JsonObject = field(default_factory=dict)

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of what the weights were taught; () where the card is of an older version, which did not say."""
        return tuple(self.about.get("concepts", ()))


def _listed(content: JsonObject | list[JsonObject]) -> list[JsonObject]:
    """One detector is written alone, several as a list."""
    return content if isinstance(content, list) else [content]


def read_card(weights: Path) -> MiniCard:
    """The JSON card beside a weights file, after checking that it belongs to that file.

    Raises:
        InputError: Missing, not of the form that `medsam3 train` writes, or made for another file (SHA-256).
    """
    path = weights.with_suffix(".json")
    if not weights.is_file() or not path.is_file():
        raise InputError(f"{weights} and {path.name} are not both there: keep the two files of a training run together")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"] if "format" in content else None  # noqa: SIM401  it may be no dict
        check_format(found, CARD_FORMAT, str(path))
        card = MiniCard(
            detectors=tuple(MiniDetectorConfig(**config) for config in _listed(content["detector"])),
            thresholds=MiniThresholds(**content["thresholds"]),
            about=content,
        )
        expected = str(content["sha256"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a card that medsam3 train writes ({error!r}): take it from the run") from error
    got = sha256_of(weights)
    if got != expected:
        raise InputError(f"{weights} has SHA-256 {got}, its card says {expected}: copy both files of the run again")
    return card
