"""What was found of one concept in one image, in numbers: for the table, for `--json`, and for the list of results."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from medsam3.image import Image, Masks
from medsam3.models.phrase_reader import Reading
from medsam3.prompts import Mode, Prompt

HEADINGS = ("file", "concept", "present", "objects", "area px", "area mm2", "score")


@dataclass(frozen=True)
class ObjectRow:
    """One object.

    Attributes:
        score: Confidence in 0..1.
        box: xyxy in float pixels, outer pixel edges included.
        area_px: Pixels, in a stack of all slices together.
        area_mm2: The same in square millimetres; None where the spacing is not known.
    """

    score: float
    box: tuple[float, float, float, float]
    area_px: int
    area_mm2: float | None


@dataclass(frozen=True)
class ResultRow:
    """One concept in one image.

    Attributes:
        file: The input as it was named.
        concept: The phrase; "" where only boxes or points were given.
        mode: T, I or T+I.
        presence: Probability in 0..1; None where no phrase was asked.
        is_present: The calibrated yes or no; None likewise.
        shape: (N, H, W).
        objects: Best score first.
        area_px: Pixels of all objects together, overlaps counted once.
        area_mm2: The same in square millimetres; None where the spacing is not known.
        outputs: Names of the files that were written.
        read_as: What the phrase was taken for, with what is taken away, a side, and what is not heeded; None if it was
            asked as it stands.
        is_taught: Whether the weights were taught what the phrase means; None where that is not known.
    """

    file: str
    concept: str
    mode: Mode
    presence: float | None
    is_present: bool | None
    shape: tuple[int, int, int]
    objects: tuple[ObjectRow, ...]
    area_px: int
    area_mm2: float | None
    outputs: tuple[str, ...]
    read_as: str | None = None
    is_taught: bool | None = None

    @classmethod
    def from_masks(
        cls,
        file: str,
        prompt: Prompt,
        masks: Masks,
        image: Image,
        outputs: tuple[str, ...],
        reading: Reading | None = None,
    ) -> Self:
        """Measure what was found."""
        pixel_mm2 = pixel_area_mm2(image)
        area_px = int(masks.union().sum()) if len(masks) else 0
        return cls(
            file=file,
            concept=prompt.text or "",
            mode=prompt.mode,
            presence=masks.presence,
            is_present=masks.is_present,
            shape=masks.shape,
            objects=tuple(
                ObjectRow(found.score, found.box, found.voxels, _scaled(found.voxels, pixel_mm2))
                for found in masks.objects
            ),
            area_px=area_px,
            area_mm2=_scaled(area_px, pixel_mm2),
            outputs=outputs,
            read_as=None if reading is None else reading.told,
            is_taught=None if reading is None else reading.is_taught,
        )

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """Read what `to_json` gave.

        Raises:
            TypeError, KeyError: It is of another form.
        """
        objects = tuple(ObjectRow(**{**found, "box": tuple(found["box"])}) for found in fields["objects"])
        rest = {"shape": tuple(fields["shape"]), "outputs": tuple(fields["outputs"]), "objects": objects}
        return cls(**{**fields, **rest})

    def to_json(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        """One row of the table under `HEADINGS`."""
        verdict = {True: " yes", False: " no", None: ""}[self.is_present]
        return (
            self.file,
            self._concept_cell(),
            "-" if self.presence is None else f"{self.presence:.2f}{verdict}",
            str(len(self.objects)),
            str(self.area_px),
            "-" if self.area_mm2 is None else f"{self.area_mm2:.1f}",
            f"{self.objects[0].score:.2f}" if self.objects else "-",
        )

    def _concept_cell(self) -> str:
        if self.read_as is not None:
            return f"{self.concept} (as {self.read_as})"
        return f"{self.concept} (not taught)" if self.is_taught is False else self.concept or "-"


def pixel_area_mm2(image: Image) -> float | None:
    """Area of one pixel of a frame in square millimetres; None where the spacing is not known."""
    return None if image.pixel_size_mm is None else image.pixel_size_mm[0] * image.pixel_size_mm[1]


def _scaled(pixels: int, pixel_mm2: float | None) -> float | None:
    return None if pixel_mm2 is None else pixels * pixel_mm2
