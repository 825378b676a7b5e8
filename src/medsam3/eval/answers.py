"""From one answer to one measured case, pictures and volumes alike. Knows values and files, no model at work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from medsam3.data.index import IndexRow, is_volume_file
from medsam3.eval.cases import EvalConfig, Question, Truth, shown_mode
from medsam3.eval.records import CaseResult
from medsam3.geometry import BoolArray
from medsam3.image import Image, Masks
from medsam3.io.nifti import write_nifti
from medsam3.measure.instances import match_objects
from medsam3.measure.outline import boundary_distances, dice, iou
from medsam3.models.segmenter import Segmenter
from medsam3.store import replacing

Progress = Callable[[int, int, str], None]
"""Called with images done, images in all, and the data set at hand."""


@dataclass(frozen=True)
class Failure:
    """An image, or one concept of it, that could not be evaluated, and why."""

    image: str
    concept: str
    error: str


@dataclass(frozen=True)
class Bench:
    """What a run needs.

    Attributes:
        folder: The data folder.
        segmenter: The model.
        config: What to measure.
        masks_folder: Where the answers are kept for the report, pictures as 1-bit PNG, volumes as NIfTI; None keeps
            none.
        journals: Where volumes that are not finished are noted slice by slice; None notes nothing.
        work: Names the weights, so that such notes are not taken for those of others.
    """

    folder: Path
    segmenter: Segmenter
    config: EvalConfig
    masks_folder: Path | None = None
    journals: Path | None = None
    work: str = ""

    def relative(self, path: Path) -> str:
        """A path as cases name it."""
        return path.relative_to(self.folder).as_posix()


@dataclass(frozen=True)
class Asked:
    """A concept of one image with all that its answers are measured by.

    Attributes:
        row: Of the index.
        image: The picture, or the volume's outline without its pixels.
        truth: Over (H, W) of a picture, (N, H, W) of a volume.
        rivals: Truth of confusable concepts that are in the image too.
    """

    row: IndexRow
    image: Image
    truth: Truth
    rivals: Mapping[str, BoolArray]

    @property
    def spacing(self) -> tuple[float, ...] | None:
        """Along each axis of the truth, in mm; None where the image has no place."""
        spacing = self.image.spacing_mm
        return None if spacing is None else spacing[-self.truth.mask.ndim :]


def case_result(bench: Bench, asked: Asked, question: Question, found: Masks, seconds: float) -> CaseResult:
    """Measure an answer, and keep it where the report may show it."""
    has_phrase = question.mode in ("T", "TI")
    presence = found.stated_presence if has_phrase else None
    if not found.says_present:
        found = Masks(found.shape, (), found.concept, found.presence, found.is_present)
    predicted = _over_truth(found, asked.truth)
    numbers = measure(asked.truth, found, asked.spacing, bench.config.tolerance, predicted=predicted)
    is_shown = (
        question.phrasing == "name" and question.mode == shown_mode(bench.config.modes) and not question.jitter_percent
    )
    image = bench.relative(asked.row.image)
    if bench.masks_folder is not None and is_shown and not (question.is_foreign and not numbers["predicted_px"]):
        _keep(mask_file(bench.masks_folder, asked.row.dataset, image, asked.row.concept), found, predicted, asked.image)
    return CaseResult(
        dataset=asked.row.dataset,
        image=image,
        concept=asked.row.concept,
        group=asked.row.group,
        mode=question.mode,
        phrase=question.phrase,
        phrasing=question.phrasing,
        kind=question.kind,
        jitter_percent=question.jitter_percent,
        is_present=asked.row.is_present,
        is_foreign=question.is_foreign,
        presence=presence,
        rivals=tuple(asked.rivals),
        rival_dices=tuple(dice(mask, predicted) for mask in asked.rivals.values()),
        seconds=seconds,
        **numbers,
    )


def measure(
    truth: Truth,
    found: Masks,
    spacing: tuple[float, ...] | None,
    tolerance: float,
    *,
    predicted: BoolArray | None = None,
) -> dict[str, Any]:
    """The numbers of one answer, under the names of `CaseResult`.

    A model that says absent is taken at its word: its union is empty and it has no objects.

    Args:
        truth: Over (H, W) of a picture, (N, H, W) of a volume.
        found: Over (1, H, W) or (N, H, W).
        spacing: Along each axis of the truth, in mm; None counts in pixels.
        tolerance: Of NSD.
        predicted: The union of what was found, over the truth's axes, where it is there already.
    """
    is_said = found.says_present
    if not is_said:
        predicted = np.zeros_like(truth.mask)
    elif predicted is None:
        predicted = _over_truth(found, truth)
    objects = truth.objects if truth.objects.ndim == 3 else truth.objects[None]
    match = match_objects(objects, found.objects if is_said else ())
    numbers: dict[str, Any] = dict.fromkeys(("dice", "iou", "nsd", "hd95", "assd"))
    if truth.mask.any():
        distances = boundary_distances(truth.mask, predicted, spacing)
        numbers = {
            "dice": dice(truth.mask, predicted),
            "iou": iou(truth.mask, predicted),
            "nsd": distances.nsd(tolerance),
            "hd95": distances.hausdorff(95),
            "assd": distances.assd(),
        }
    return {
        **numbers,
        "says_present": is_said,
        "unit": "px" if spacing is None else "mm",
        "reference_px": int(truth.mask.sum()),
        "predicted_px": int(predicted.sum()),
        "references": match.references,
        "predictions": match.predictions,
        "overlaps": match.overlaps,
    }


def mask_file(masks_folder: Path, dataset: str, image: str, concept: str) -> Path:
    """Where the answer about a concept of an image is kept."""
    slug = "".join(letter if letter.isalnum() else "-" for letter in concept.lower())
    name = Path(image).name
    if is_volume_file(name):
        return masks_folder / dataset / f"{name[: name.lower().rindex('.nii')]}__{slug}.nii.gz"
    return masks_folder / dataset / f"{Path(name).stem}__{slug}.png"


def _over_truth(found: Masks, truth: Truth) -> BoolArray:
    union = found.union()
    return union if truth.mask.ndim == 3 else union[0]


def _keep(path: Path, found: Masks, union: BoolArray, image: Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if union.ndim == 3:
        write_nifti([found], image, path)
        return
    with replacing(path, ".png") as temporary:
        PIL.Image.fromarray(union).save(temporary, optimize=True)
