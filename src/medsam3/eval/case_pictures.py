"""Answers that are kept, and cases drawn for the report: outlines of truth and answer, worst and best of each set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.data.index import IndexRow, is_volume_file, load_label_map
from medsam3.errors import InputError
from medsam3.eval.case_result import AskedConcept, CaseResult, said_union
from medsam3.eval.cases import EvalMode, load_truth
from medsam3.geometry import BoolArray
from medsam3.image import Masks
from medsam3.io import read
from medsam3.io.labels import label_stack, label_values
from medsam3.io.nifti import write_nifti
from medsam3.page import data_url
from medsam3.store import replacing
from medsam3.view.planes import turned
from medsam3.view.view import view_of

RGB = NDArray[np.uint8]

REFERENCE_COLOUR = (0, 200, 120)
PREDICTED_COLOUR = (240, 130, 0)
LONGEST_SIDE = 260
WORST, BEST = 3, 1


@dataclass(frozen=True)
class CasePicture:
    """A case drawn as a PNG, as the address of an `img`, with its caption."""

    caption: str
    source: str


def mask_file(masks_folder: Path, dataset: str, image: str, concept: str) -> Path:
    """Say where the answer about a concept of an image is kept."""
    slug = "".join(letter if letter.isalnum() else "-" for letter in concept.lower())
    name = Path(image).name
    if image != f"{dataset}/images/{name}":  # another folder may hold a picture of this name
        slug += "-" + hashlib.sha256(f"{image}/{concept}".encode()).hexdigest()[:8]
    if is_volume_file(name):
        return masks_folder / dataset / f"{name[: name.lower().rindex('.nii')]}__{slug}.nii.gz"
    return masks_folder / dataset / f"{Path(name).stem}__{slug}.png"


def keep_answer(masks_folder: Path, asked: AskedConcept, found: Masks) -> None:
    """Write an answer where `draw_case` finds it, a picture's as 1-bit PNG, a volume's as NIfTI."""
    path = mask_file(masks_folder, asked.row.dataset, asked.name, asked.row.concept)
    path.parent.mkdir(parents=True, exist_ok=True)
    union = said_union(found, asked.truth)
    if union.ndim == 3:
        kept = found if found.says_present else Masks(found.shape, (), found.concept)
        write_nifti([kept], asked.image, path)
        return
    with replacing(path, ".png") as temporary:
        PIL.Image.fromarray(union).save(temporary, optimize=True)


def chosen_cases(cases: Sequence[CaseResult], mode: EvalMode = "T") -> dict[str, list[CaseResult]]:
    """Choose for each data set the cases of worst and best Dice, and the false alarm of highest presence."""
    text = [case for case in cases if case.mode == mode and case.phrasing == "name" and not case.jitter_percent]
    chosen = {}
    for dataset in sorted({case.dataset for case in text}):
        own = [case for case in text if case.dataset == dataset]
        ranked = sorted((case for case in own if case.dice is not None), key=lambda case: (case.dice or 0.0, case.key))
        alarms = sorted((case for case in own if not case.is_present and case.predicted_px), key=_alarm)
        chosen[dataset] = [*ranked[:WORST], *ranked[WORST:][-BEST:], *alarms[-1:]]
    return chosen


def draw_case(
    case: CaseResult, rows: dict[tuple[str, str], IndexRow], folder: Path, masks_folders: Sequence[Path]
) -> CasePicture | None:
    """Draw the case's image with both outlines, of a volume a middle slice of the truth (else of the answer).

    None if the image or the kept answer is not there any more.

    Args:
        case: What to draw.
        rows: The index, by image (relative) and concept.
        folder: The data folder.
        masks_folders: Where answers were kept; the first that has this one is taken.
    """
    row = rows.get((case.image, case.concept))
    places = [mask_file(masks, case.dataset, case.image, case.concept) for masks in masks_folders]
    kept = next((place for place in places if place.is_file()), None)
    if (row is None and not case.is_foreign) or kept is None:
        return None
    view_of = _slice_view if is_volume_file(case.image) else _picture_view
    try:
        view = view_of(folder / case.image, row, kept)
    except InputError:
        return None
    drawn = outlined(view.rgb, view.reference, view.predicted)
    score = "absent, false alarm" if case.dice is None else f"Dice {case.dice:.3f}"
    presence = "" if case.presence is None else f", presence {case.presence:.2f}"
    return CasePicture(
        f"{case.concept}, {Path(case.image).name}{view.note}: {score}{presence}",
        data_url(PIL.Image.fromarray(drawn), optimize=True),
    )


@dataclass(frozen=True)
class _View:
    rgb: RGB
    reference: BoolArray
    predicted: BoolArray
    note: str = ""


def _picture_view(image: Path, row: IndexRow | None, kept: Path) -> _View:
    predicted = load_label_map(kept) > 0
    reference = np.zeros_like(predicted)
    if row is not None:
        reference = load_truth(row).mask
    view = view_of(read(image))
    shown = (Masks.from_dense(mask[None, None], [1.0]) for mask in (reference, predicted))
    reference, predicted = (view.masks_forth(masks).union()[0] for masks in shown)
    return _View(view.rgb(0), reference, predicted)


def _slice_view(image: Path, row: IndexRow | None, kept: Path) -> _View:
    """Show a slice as the model was shown it: a middle one of what is outlined, else of the volume."""
    stack = read(image)
    view = view_of(stack)
    answer = turned(label_stack(kept, stack), view.turn)
    truth = None if row is None else turned(label_stack(row.mask, stack), view.turn)
    values = () if row is None else row.label_values

    def true_on(n: int) -> BoolArray:
        return (
            np.zeros(view.cut.shape[1:], dtype=np.bool_) if truth is None else np.isin(label_values(truth, n), values)
        )

    frames = range(view.count)
    shown = [n for n in frames if true_on(n).any()] or [n for n in frames if label_values(answer, n).any()]
    n = shown[len(shown) // 2] if shown else view.count // 2
    reference, predicted = (view.mask_to_view(mask) for mask in (true_on(n), label_values(answer, n) > 0))
    return _View(view.rgb(n), reference, predicted, f", slice {n} of {view.count}")


def outlined(rgb: RGB, reference: BoolArray, predicted: BoolArray) -> RGB:
    """Draw a picture (H, W, 3), shrunk to the report's size, with the outlines of the truth and of the answer."""
    height, width = reference.shape
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.array(PIL.Image.fromarray(rgb).resize(size, PIL.Image.Resampling.BILINEAR))
    for mask, colour in ((reference, REFERENCE_COLOUR), (predicted, PREDICTED_COLOUR)):
        shrunk = np.asarray(PIL.Image.fromarray(mask).resize(size, PIL.Image.Resampling.NEAREST), dtype=np.bool_)
        small[shrunk & ~ndimage.binary_erosion(shrunk)] = colour
    return small


def _alarm(case: CaseResult) -> tuple[float, str]:
    return case.presence or 0.0, case.image
