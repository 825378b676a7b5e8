"""A study for an archive: an oblique series in which a block is bright."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from made_dicom import placed, save

BRIGHT = (slice(2, 4), slice(3, 9), slice(5, 8))
"""Slices, rows and columns of the bright block, 2 x 6 x 3 voxels."""


@dataclass(frozen=True)
class Study:
    """A study of one series on disk."""

    folder: Path
    study: str
    series: str
    instances: tuple[str, ...]  # in the order of the slices
    bright: NDArray[np.bool_]


def made_study(folder: Path, *, slices: int = 6, size: tuple[int, int] = (12, 10), **about: Any) -> Study:
    """Write slices whose file names run against their order; `about` are attributes such as Modality."""
    values = np.zeros((slices, *size), dtype=np.int16)
    values[BRIGHT] = 1000
    study, series = about.pop("StudyInstanceUID", None) or generate_uid(), generate_uid()
    named = {"PatientID": "secret-id", "PatientName": "Made^Up", **about}
    instances = []
    for n, plane in enumerate(values):
        made = placed(plane, n, StudyInstanceUID=study, SeriesInstanceUID=series, **named)
        made.StudyDate, made.StudyTime, made.StudyID, made.InstanceNumber = "20260102", "101500", "7", n + 1
        instances.append(str(made.SOPInstanceUID))
        save(made, folder / f"{slices - n:05d}.dcm")
    return Study(folder, study, series, tuple(instances), values > 500)
