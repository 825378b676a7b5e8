"""Volumes, diameters and ranges against numbers worked by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from medsam3.geometry import affine_from_directions
from medsam3.image import Image, Masks
from medsam3.io.measures import longest_diameter, measure, write_measures_csv, write_measures_json


def volume() -> Image:
    """8 slices 2.5 mm apart, 10 rows of 0.75 mm, 12 columns of 0.5 mm."""
    affine = affine_from_directions([0, 0, 0], [0, 0, 2.5], [0, 0.75, 0], [0.5, 0, 0])
    return Image(np.zeros((8, 10, 12, 1), dtype=np.uint8), kind="volume", affine=affine)


def block() -> Masks:
    """3 slices x 4 rows x 6 columns in slices 2 to 4, and a single voxel in slice 7."""
    dense = np.zeros((2, 8, 10, 12), dtype=np.bool_)
    dense[0, 2:5, 1:5, 3:9] = True
    dense[1, 7, 0, 0] = True
    return Masks.from_dense(dense, [0.9, 0.4], concept="cyst", presence=0.8, is_present=True)


def test_volume_diameter_and_range_of_each_object_and_of_all() -> None:
    together, first, second = measure([block()], volume())
    # 72 voxels of 2.5 * 0.75 * 0.5 = 0.9375 cubic mm are 67.5 cubic mm; 4 rows and 6 columns are 3 mm by 3 mm.
    assert (first.voxels, first.volume_ml, first.first_slice, first.last_slice) == (72, 0.0675, 2, 4)
    assert first.longest_diameter_mm == pytest.approx(np.sqrt(18), abs=1e-3)
    # One voxel: the diagonal of 0.75 by 0.5.
    assert second.longest_diameter_mm == pytest.approx(np.sqrt(0.8125), abs=1e-3)
    assert (together.object, together.voxels, together.first_slice, together.last_slice) == (0, 73, 2, 7)


def test_nothing_found_measures_nothing() -> None:
    (row,) = measure([Masks((8, 10, 12), concept="cyst", presence=0.1)], volume())
    assert (row.object, row.voxels, row.volume_ml, row.longest_diameter_mm, row.first_slice) == (0, 0, 0.0, 0.0, None)


def test_without_spacing_no_millimetres_are_told() -> None:
    image = Image(np.zeros((8, 10, 12, 1), dtype=np.uint8), kind="video", fps=4.0)
    first = measure([block()], image)[1]
    assert (first.volume_ml, first.longest_diameter_mm, first.voxels, first.seconds) == (None, None, 72, 0.75)


def test_the_longest_line_of_a_diagonal_runs_between_outer_corners() -> None:
    # Three pixels in a diagonal span 3 x 3 pixels of 1 x 2 mm: the square root of 9 + 36.
    assert longest_diameter(np.eye(3, dtype=np.bool_), 1.0, 2.0) == pytest.approx(np.sqrt(45))
    assert longest_diameter(np.zeros((3, 3), dtype=np.bool_), 1.0, 2.0) == 0.0


def test_csv_and_json_hold_the_same_rows(tmp_path: Path) -> None:
    write_measures_csv([block()], volume(), tmp_path / "m.csv")
    write_measures_json([block()], volume(), tmp_path / "m.json")
    from_csv = list(csv.DictReader((tmp_path / "m.csv").open()))
    from_json = json.loads((tmp_path / "m.json").read_text())
    assert [row["volume_ml"] for row in from_csv] == [str(row["volume_ml"]) for row in from_json]
    assert from_csv[1]["volume_ml"] == "0.0675"


def test_a_name_that_a_spreadsheet_would_compute_is_quoted(tmp_path: Path) -> None:
    found = Masks((8, 10, 12), concept="=2+3")
    write_measures_csv([found], volume(), tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as stream:
        assert next(csv.DictReader(stream))["concept"] == "'=2+3"
