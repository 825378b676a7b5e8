"""The one rule of grey values: what is shown black, what white, whatever the container."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medsam3.errors import InputError
from medsam3.geometry import affine_from_directions
from medsam3.image import Image, Window
from medsam3.view.grey import SOFT_TISSUE_HU, automatic_window, is_hounsfield, window_named
from medsam3.view.view import view_of


def column(*values: float, dtype: type = np.int16) -> np.ndarray:
    """A picture of one column, (1, H, 1, 1)."""
    return np.array(values, dtype=dtype).reshape(1, -1, 1, 1)


def stack(values: NDArray[np.int16], modality: str | None = None, row_mm: float = 1.0) -> Image:
    affine = affine_from_directions([0, 0, 0], [0, 0, 3], [0, row_mm, 0], [1, 0, 0])
    about = {} if modality is None else {"modality": modality}
    return Image(values[..., None], "volume", affine, metadata=about)


def test_eight_bit_pictures_pass_unchanged() -> None:
    rgb = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(1, 2, 3, 3)
    assert np.array_equal(view_of(Image(rgb)).rgb(0), rgb[0])
    grey = view_of(Image(rgb[..., :1])).rgb(0)
    assert grey.shape == (2, 3, 3) and grey.dtype == np.uint8 and grey.flags.c_contiguous
    assert all(np.array_equal(grey[..., channel], rgb[0, ..., 0]) for channel in range(3))


def test_the_images_own_window_comes_first() -> None:
    image = Image(column(-200, -160, 40, 240, 900), window=Window(-160, 240), metadata={"modality": "MR"})
    assert view_of(image).rgb(0)[:, 0, 0].tolist() == [0, 0, 128, 255, 255]
    eight_bit = Image(column(0, 100, 200, dtype=np.uint8), window=Window(100, 200))
    assert view_of(eight_bit).rgb(0)[:, 0, 0].tolist() == [0, 0, 255]


def test_ct_without_window_is_shown_as_soft_tissue() -> None:
    image = Image(column(-1000, -160, 40, 240, 3000), metadata={"modality": "CT"})
    assert automatic_window(image) == SOFT_TISSUE_HU
    assert view_of(image).rgb(0)[:, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_other_values_are_spread_over_robust_percentiles_of_the_whole_stack() -> None:
    stack = np.arange(2001, dtype=np.float32).reshape(1, 2001, 1, 1)
    window = automatic_window(Image(stack))
    assert window is not None
    assert (window.low, window.high) == (10.0, 1990.0)  # 0.5 % and 99.5 % of 2000
    two = Image(np.concatenate([stack, stack + 5000]), kind="volume")
    assert view_of(two).rgb(0).max() < view_of(two).rgb(1).min()


def test_an_image_of_one_value_or_with_one_bright_pixel_is_shown() -> None:
    assert not view_of(Image(column(7, 7, 7))).rgb(0).any()
    lone = np.zeros((1, 100, 100, 1), dtype=np.uint16)
    lone[0, 5, 5] = 9
    assert view_of(Image(lone)).rgb(0)[5, 5].tolist() == [255, 255, 255]


def test_booleans_are_black_and_white() -> None:
    assert view_of(Image(column(0, 1, dtype=np.bool_))).rgb(0)[:, 0, 0].tolist() == [0, 255]


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


def test_values_of_8_bits_in_a_wider_type_are_shown_as_they_are() -> None:
    values = np.array([0, 40, 100, 255], dtype=np.int16).reshape(1, 2, 2)
    for modality in (None, "CT", "MR"):
        assert view_of(stack(values, modality)).rgb(0)[..., 0].tolist() == [[0, 40], [100, 255]]
    # One value above tells that these are no 8-bit values, as does a volume that does not reach both ends.
    assert automatic_window(stack(values + 1, "MR")) != Window(0.0, 255.0)
    assert automatic_window(stack(values.clip(1, 240))) == Window(0.0, 255.0)
    assert automatic_window(stack(np.repeat(values.clip(1, 240), 2, axis=0))) != Window(0.0, 255.0)


def test_ct_padded_far_below_air_is_still_ct() -> None:
    values = np.full((4, 20, 20), 40, dtype=np.int16)
    values[:, :5], values[:, 8:10, 8:12] = -3024, 100
    assert automatic_window(stack(values)) == SOFT_TISSUE_HU
    assert view_of(stack(values)).rgb(0)[0, 0, 0] == 0
    # 40 and 100 HU in the window -160..240: 200/400 and 260/400 of 255.
    assert view_of(stack(values)).rgb(0)[[15, 8], [15, 8], 0].tolist() == [128, 166]


def test_padding_with_noise_is_padding() -> None:
    rng = np.random.default_rng(0)
    values = np.full((4, 20, 20), 40, dtype=np.int16)
    values[:, :6] = -2000 + rng.integers(-20, 20, (4, 6, 20))
    values[:, 8:10, 8:12] = 100
    assert automatic_window(stack(values)) == SOFT_TISSUE_HU


def test_hounsfield_units_between_whole_numbers_are_recognised() -> None:
    rng = np.random.default_rng(0)
    ct = np.concatenate([rng.normal(-1000, 12, 4000), rng.normal(40, 20, 4000), [1200.5]])
    assert is_hounsfield(ct)


def test_a_phase_image_is_no_ct() -> None:
    assert not is_hounsfield(np.random.default_rng(0).uniform(-4096, 4095, 10_000).round())
    assert not is_hounsfield(np.random.default_rng(0).normal(300, 100, 10_000))


def test_padding_has_no_say_in_the_window_and_is_black() -> None:
    values = np.full((1, 20, 20), 63_536, dtype=np.uint16)
    values[0, 5:15, 5:15] = np.arange(100, dtype=np.uint16).reshape(10, 10) + 100
    told = Image(values[..., None], "volume", padding=(63_536.0, 63_536.0), metadata={"modality": "MR"})
    shown = view_of(told).rgb(0)[..., 0]
    assert shown[0, 0] == 0 and shown[14, 14] == 255 and 120 <= shown[10, 5] <= 135
    # A file that does not tell of its padding: one far value that many voxels share is left out of the window too.
    untold = view_of(Image(values[..., None], "volume", metadata={"modality": "MR"})).rgb(0)[..., 0]
    assert shown[5:15, 5:15].tolist() == untold[5:15, 5:15].tolist()


def test_an_image_of_padding_alone_is_shown() -> None:
    assert not view_of(Image(np.full((1, 2, 2, 1), 9, dtype=np.int16), padding=(9.0, 9.0))).rgb(0).any()


def test_colours_from_0_to_1_are_shown_as_such() -> None:
    assert view_of(Image(np.full((1, 2, 2, 3), 0.5))).rgb(0)[0, 0].tolist() == [128, 128, 128]
