"""Where the simulated person clicks next."""

from __future__ import annotations

import numpy as np

from medsam3.eval.clicking import next_click
from medsam3.models.refiner import depth_in
from medsam3.prompts import Point


def rectangle(shape: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.bool_)
    mask[rows, columns] = True
    return mask


def test_depth_counts_from_the_rim_and_from_the_edge_of_the_frame() -> None:
    mask = rectangle((5, 9), slice(0, 3), slice(2, 7))  # rows 0 to 2, touching the upper edge
    assert depth_in(mask)[1].tolist() == [0, 0, 1, 2, 2, 2, 1, 0, 0]
    assert depth_in(mask)[0, 4] == 1  # what is outside the frame is not in the mask


def test_the_first_click_lies_in_the_middle_of_what_is_missed() -> None:
    truth = rectangle((11, 20), slice(3, 8), slice(5, 10))  # centre (row 5, column 7)
    assert next_click(truth, np.zeros_like(truth)) == Point(7, 5)


def test_the_deeper_error_is_clicked_and_its_kind_told() -> None:
    truth = rectangle((30, 40), slice(5, 10), slice(5, 10))
    predicted = truth | rectangle((30, 40), slice(12, 27), slice(20, 35))  # 15 x 15 too much, 0 missed
    assert next_click(truth, predicted) == Point(27, 19, is_positive=False)
    thin = rectangle((30, 40), slice(0, 2), slice(0, 40))  # more pixels missed, but no deeper than 1
    assert next_click(truth | thin, predicted) == Point(27, 19, is_positive=False)


def test_there_is_no_click_where_the_masks_agree() -> None:
    truth = rectangle((9, 9), slice(2, 5), slice(2, 5))
    assert next_click(truth, truth) is None
    empty = np.zeros_like(truth)
    assert next_click(empty, empty) is None
