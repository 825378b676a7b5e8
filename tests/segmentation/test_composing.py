"""Concepts that a phrase composes, on an image whose bright columns are worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from medsam3.errors import InputError
from medsam3.image import Image, Masks
from medsam3.models.phrase_reader import PhraseReader
from medsam3.prompts import Prompt
from medsam3.segmentation.run import segment
from threshold_segmenter import ThresholdSegmenter

COLUMNS = {"kidney": [(0, 3), (5, 8)], "kidney tumor": [(2, 3)], "liver": [(3, 6)]}
"""Where each concept lies in rows 1 and 2 of a frame of 4 x 8."""


class OrganSegmenter(ThresholdSegmenter):
    """Finds each taught concept, also by its plural, in its own columns, two kidneys among them."""

    @property
    def reader(self) -> PhraseReader:
        return PhraseReader(tuple(COLUMNS))

    def decode(self, features: np.ndarray, prompt: Prompt, *, threshold: float | None = None) -> Masks:
        spans = COLUMNS.get((prompt.text or "").removesuffix("s"), [])
        masks = np.zeros((len(spans), 1, *features.shape), dtype=np.bool_)
        for mask, (start, stop) in zip(masks, spans, strict=True):
            mask[0, 1:3, start:stop] = True
        scores = [0.9 - 0.1 * k for k in range(len(spans))]
        return Masks.from_dense(masks, scores, concept=prompt.text or "", presence=0.9, is_present=bool(spans))


def _picture() -> Image:
    return Image(np.zeros((1, 4, 8, 1), dtype=np.uint8))


def _volume(width_mm: float) -> Image:
    """Three axial slices with square pixels, whose columns run from the patient's right to the left (LPS +x)."""
    step = width_mm / 8
    affine = np.array([[0, 0, step, 0], [0, step, 0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1.0]])
    return Image(np.zeros((3, 4, 8, 1), dtype=np.uint8), kind="volume", affine=affine)


def _columns(masks: Masks) -> list[list[int]]:
    return [sorted(set(np.flatnonzero(masks.dense(k).any(axis=(0, 1))).tolist())) for k in range(len(masks))]


def _ask(image: Image, phrase: str | Sequence[str]) -> list[tuple[str, list[list[int]], bool | None]]:
    return [(one.concept, _columns(one), one.is_present) for one in segment(image, phrase, OrganSegmenter())]


def test_joined_concepts_give_masks_each() -> None:
    assert _ask(_picture(), "liver and kidneys") == [
        ("liver", [[3, 4, 5]], True),
        ("kidneys", [[0, 1, 2], [5, 6, 7]], True),
    ]


def test_a_difference_takes_voxels_away_and_keeps_the_name_that_was_asked() -> None:
    [(concept, columns, is_present)] = _ask(_picture(), "kidney without tumor")
    assert (concept, columns, is_present) == ("kidney without tumor", [[0, 1], [5, 6, 7]], True)
    assert _ask(_picture(), "kidney tumor without kidney") == [("kidney tumor without kidney", [], False)]


def test_a_side_of_the_image_keeps_what_lies_there_and_cuts_what_lies_on_both() -> None:
    assert _ask(_picture(), "kidney on the right of the image") == [
        ("kidney on the right of the image", [[5, 6, 7]], True)
    ]
    assert _ask(_picture(), "liver on the left of the image")[0][1] == [[3]]  # of columns 3 to 5, middle at 4
    assert _ask(_picture(), "kidney tumor on the right of the image")[0][1:] == ([], False)


def test_a_side_of_the_patient_needs_a_known_orientation_and_a_wide_image() -> None:
    assert _ask(_volume(240), "left kidney")[0][1] == [[5, 6, 7]]
    assert _ask(_volume(240), "right kidney")[0][1] == [[0, 1, 2]]
    assert _ask(_volume(100), "left kidney") == [
        ("left kidney", [], False)
    ]  # asked as it stands, which it was not taught
    assert _ask(_picture(), "left kidney") == [("left kidney", [], False)]


def test_prompts_keep_their_order_and_are_asked_once() -> None:
    found = segment(_picture(), ["kidney", "kidney without tumor", "liver or kidney"], OrganSegmenter())
    assert [one.concept for one in found] == ["kidney", "kidney without tumor", "liver", "kidney"]


@pytest.mark.parametrize("phrase", ["no liver", "liver without spleen", "🙂"])
def test_what_is_not_understood_gives_no_mask(phrase: str) -> None:
    model = OrganSegmenter()
    with pytest.raises(InputError, match=r"not understood|not taught"):
        segment(_picture(), phrase, model)
    assert model.encoded == 0
