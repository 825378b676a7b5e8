"""Windows, square pixels, neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.geometry import affine_from_directions
from medsam3.image import Window
from medsam3.io.stack import Stack
from medsam3.prompts import Box, Point, Prompt
from medsam3.render import SOFT_TISSUE_HU
from medsam3.volumes.presentation import Presenter, automatic_window, window_named


def stack(values: NDArray[np.int16], modality: str | None = None, row_mm: float = 1.0) -> Stack:
    affine = affine_from_directions([0, 0, 0], [0, 0, 3], [0, row_mm, 0], [1, 0, 0])
    about = {} if modality is None else {"modality": modality}
    shape = (values.shape[0], values.shape[1], values.shape[2])
    return Stack(shape, 1, lambda n: values[n][..., None], "volume", affine, metadata=about)


def test_presets_and_numbers_are_windows() -> None:
    assert window_named("lung") == Window(-1350.0, 150.0)
    assert window_named("Soft-Tissue") == Window(-160.0, 240.0)
    assert window_named("40,80") == Window(0.0, 80.0)


@pytest.mark.parametrize("text", ["purple", "40", "40,0", "40,inf", "1,2,3"])
def test_other_windows_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="window is"):
        window_named(text)


def test_ct_is_shown_as_soft_tissue_whether_the_file_says_ct_or_only_looks_it() -> None:
    values = np.array([-1000, 0, 40, 100], dtype=np.int16).reshape(1, 2, 2)
    assert automatic_window(stack(values, "CT")) == SOFT_TISSUE_HU
    assert automatic_window(stack(values)) == SOFT_TISSUE_HU


def test_mr_is_shown_by_percentiles_of_the_whole_stack() -> None:
    values = np.arange(0, 1000, dtype=np.int16).reshape(10, 10, 10)
    window = automatic_window(stack(values, "MR"))
    assert window is not None
    assert (window.low, window.high) == pytest.approx((0.005 * 999, 0.995 * 999))


def test_a_stack_of_one_value_has_a_window() -> None:
    window = automatic_window(stack(np.full((2, 3, 4), 7, dtype=np.int16), "MR"))
    assert window == Window(7.0, 8.0)


def test_tall_pixels_are_stretched_and_prompts_with_them() -> None:
    presenter = Presenter(stack(np.zeros((2, 10, 12), dtype=np.int16), row_mm=2.0), Window(0, 1))
    assert presenter.size == (20, 12) and presenter.rgb(0).shape == (20, 12, 3)
    # Row edges 1.5 and 4.5 are pixel edges 2 and 5 from the top, 4 and 10 when stretched: 3.5 and 9.5.
    moved = presenter.prompt_in_view(Prompt(boxes=(Box(1.5, 1.5, 3.5, 4.5),), points=(Point(2, 3),)))
    assert moved.boxes[0].xyxy == (1.5, 3.5, 3.5, 9.5)
    assert (moved.points[0].x, moved.points[0].y) == (2.0, 6.5)


def test_a_mask_goes_into_the_view_and_comes_back() -> None:
    presenter = Presenter(stack(np.zeros((2, 10, 12), dtype=np.int16), row_mm=2.0), Window(0, 1))
    mask = np.random.default_rng(0).random((10, 12)) > 0.5
    np.testing.assert_array_equal(presenter.mask_in_slice(presenter.mask_in_view(mask)), mask)


def test_neighbouring_slices_are_the_other_colours() -> None:
    values = np.array([0, 100, 200], dtype=np.int16)[:, None, None] * np.ones((1, 2, 2), dtype=np.int16)
    presenter = Presenter(stack(values), Window(0, 255), has_neighbours=True)
    assert presenter.rgb(1)[0, 0].tolist() == [0, 100, 200]
    assert presenter.rgb(0)[0, 0].tolist() == [0, 0, 100]
