"""One answer, measured against the truth, pictures and volumes alike. It knows values, no files and no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Self, TypedDict

import numpy as np

from medsam3.data.index import IndexRow
from medsam3.errors import InputError
from medsam3.eval.cases import EvalMode, EvalQuestion, Phrasing, Truth
from medsam3.eval.phrasings import PhraseKind
from medsam3.geometry import BoolArray
from medsam3.image import Image, Masks
from medsam3.measure.objects import ObjectMatch, match_objects
from medsam3.measure.outline import boundary_distances, dice, iou
from medsam3.store import JsonObject, without_nan

_TUPLES = ("overlaps", "rivals", "rival_dices", "by_click", "followed")
CaseKey = tuple[str, str, str, str, str, float]


@dataclass(frozen=True)
class CaseResult:
    """How one question about one image and concept was answered.

    Attributes:
        dataset: Name of the data set.
        image: Path of the image, relative to the data folder.
        concept: The concept asked about.
        group: What the bootstrap draws together.
        mode: How it was asked.
        phrase: The phrase that was used.
        phrasing: The concept's name, a synonym, or one kept out of training.
        kind: Clinical, lay, plural or misspelt, of a phrasing kept out of training; else "".
        jitter_percent: Of the oracle boxes.
        is_present: The truth.
        is_foreign: The concept belongs to another kind of image and is absent for that reason alone.
        says_present: The model's verdict; in modes without a phrase, whether it returned anything.
        is_sure: False if it affirmed without being sure.
        presence: Its probability in 0..1; None in modes without a phrase.
        dice: In [0, 1]; this and the distances are None where the concept is absent.
        iou: In [0, 1].
        nsd: In [0, 1], at the configuration's tolerance.
        hd95: In `unit`; the image's diagonal where nothing was found.
        assd: In `unit`; likewise.
        unit: `mm` where the image has a spacing, else `px`.
        reference_px: Pixels of the truth.
        predicted_px: Pixels of the union of what was returned.
        references: Objects in the truth.
        predictions: Objects returned.
        overlaps: IoU of matched objects, best first.
        rivals: Confusable concepts that are in the image too.
        rival_dices: Dice of this answer with each of theirs.
        seconds: An equal share of the time that the image took, encoding included.
        by_click: Dice before the first click and after each one, in modes with clicks; the other measures are of the
            mask in the end, and of the one object that was meant where there are many.
        followed: Of a volume in mode C: Dice after the clicks on one slice were followed, and after more on another.
    """

    dataset: str
    image: str
    concept: str
    group: str
    mode: EvalMode
    phrase: str
    phrasing: Phrasing
    kind: PhraseKind
    jitter_percent: float
    is_present: bool
    is_foreign: bool
    says_present: bool
    presence: float | None
    dice: float | None
    iou: float | None
    nsd: float | None
    hd95: float | None
    assd: float | None
    unit: str
    reference_px: int
    predicted_px: int
    references: int
    predictions: int
    overlaps: tuple[float, ...]
    rivals: tuple[str, ...]
    rival_dices: tuple[float, ...]
    seconds: float
    is_sure: bool = True
    by_click: tuple[float, ...] = ()
    followed: tuple[float, ...] = ()

    @property
    def key(self) -> CaseKey:
        """The parts that tell this case from all others."""
        return self.dataset, self.image, self.concept, self.mode, self.phrase, self.jitter_percent

    @property
    def draw_group(self) -> str:
        """The group's name among all data sets."""
        return f"{self.dataset}/{self.group}"

    @property
    def match(self) -> ObjectMatch:
        """The matched objects."""
        return ObjectMatch(self.references, self.predictions, self.overlaps)

    @property
    def is_missed(self) -> bool:
        """The concept is there and nothing was returned."""
        return self.is_present and self.predicted_px == 0

    def to_json(self) -> JsonObject:
        """Give the fields as JSON takes them, reals to six digits."""
        entry: JsonObject = without_nan(asdict(self))
        return entry

    @classmethod
    def from_json(cls, entry: JsonObject) -> Self:
        """Read what `to_json` gave.

        Raises:
            InputError: Of another form.
        """
        names = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not needed <= set(entry) <= names:
            odd = ", ".join(sorted((set(entry) - names) | (needed - set(entry))))
            raise InputError(f"a case has other fields than this version writes ({odd}): run the evaluation again")
        tuples = {name: tuple(entry[name]) for name in _TUPLES if name in entry}
        return cls(**{**entry, **tuples})


@dataclass(frozen=True)
class AskedConcept:
    """A concept of one image with all that its answers are measured by.

    Attributes:
        row: Its row of the data.
        name: Path of the image relative to the data folder.
        image: The picture, or the volume's outline without its pixels.
        truth: Over (H, W) of a picture, (N, H, W) of a volume.
        rivals: Truth of confusable concepts that are in the image too.
    """

    row: IndexRow
    name: str
    image: Image
    truth: Truth
    rivals: Mapping[str, BoolArray]

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Spacing along each axis of the truth, in mm; None where the image has no place."""
        spacing = self.image.spacing_mm
        return None if spacing is None else spacing[-self.truth.mask.ndim :]


class Measured(TypedDict):
    """The measures of one answer; see `CaseResult`."""

    dice: float | None
    iou: float | None
    nsd: float | None
    hd95: float | None
    assd: float | None
    says_present: bool
    unit: str
    reference_px: int
    predicted_px: int
    references: int
    predictions: int
    overlaps: tuple[float, ...]


def case_result(
    asked: AskedConcept, question: EvalQuestion, found: Masks, *, seconds: float, tolerance: float
) -> CaseResult:
    """Measure an answer."""
    return CaseResult(
        dataset=asked.row.dataset,
        image=asked.name,
        concept=asked.row.concept,
        group=asked.row.group,
        mode=question.mode,
        phrase=question.phrase,
        phrasing=question.phrasing,
        kind=question.kind,
        jitter_percent=question.jitter_percent,
        is_present=asked.row.is_present,
        is_foreign=question.is_foreign,
        presence=found.stated_presence if question.mode in ("T", "TI") else None,
        rivals=tuple(asked.rivals),
        rival_dices=tuple(dice(mask, said_union(found, asked.truth)) for mask in asked.rivals.values()),
        seconds=seconds,
        is_sure=found.is_sure,
        **measure(asked.truth, found, asked.spacing, tolerance),
    )


def said_union(found: Masks, truth: Truth) -> BoolArray:
    """Join the objects over the truth's axes; a model that says absent is taken at its word, and its union is empty."""
    if not found.says_present:
        return np.zeros_like(truth.mask)
    union = found.union()
    return union if truth.mask.ndim == 3 else union[0]


def measure(truth: Truth, found: Masks, spacing: tuple[float, ...] | None, tolerance: float) -> Measured:
    """Measure one answer, under the names of `CaseResult`.

    Args:
        truth: Over (H, W) of a picture, (N, H, W) of a volume.
        found: Over (1, H, W) or (N, H, W).
        spacing: Along each axis of the truth, in mm; None counts in pixels.
        tolerance: Of NSD.
    """
    is_said = found.says_present
    predicted = said_union(found, truth)
    objects = truth.objects if truth.objects.ndim == 3 else truth.objects[None]
    match = match_objects(objects, found.objects if is_said else ())
    distances = boundary_distances(truth.mask, predicted, spacing) if truth.mask.any() else None
    return {
        "dice": None if distances is None else dice(truth.mask, predicted),
        "iou": None if distances is None else iou(truth.mask, predicted),
        "nsd": None if distances is None else distances.nsd(tolerance),
        "hd95": None if distances is None else distances.hausdorff(95),
        "assd": None if distances is None else distances.assd(),
        "says_present": is_said,
        "unit": "px" if spacing is None else "mm",
        "reference_px": int(truth.mask.sum()),
        "predicted_px": int(predicted.sum()),
        "references": match.references,
        "predictions": match.predictions,
        "overlaps": match.overlaps,
    }
