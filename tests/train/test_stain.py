"""Made-up stains: nuclei absorb, bars stay black, the brown leaves nuclei out, the same seed gives the same picture."""

import numpy as np
import pytest
from numpy.typing import NDArray

from medsam3.train.augment import nuclear_density, restain

SHAPE = (40, 64)


def nuclei() -> NDArray[np.bool_]:
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]]
    found = np.zeros(SHAPE, np.bool_)
    for row, column in ((10, 12), (20, 40), (28, 20), (8, 52)):
        found |= (rows - row) ** 2 + (columns - column) ** 2 <= 16
    return found


def picture(inside: int, outside: int) -> NDArray[np.uint8]:
    grey = np.where(nuclei(), inside, outside).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize(("inside", "outside"), [(200, 10), (60, 230)], ids=["fluorescence", "bright field"])
def test_density_is_high_in_nuclei_whether_they_are_bright_or_dark(inside: int, outside: int) -> None:
    density = nuclear_density(picture(inside, outside), nuclei())
    assert density[nuclei()].min() == 1.0
    assert density[~nuclei()].max() == 0.0


def test_density_of_a_picture_without_nuclei_is_that_of_its_bright_parts() -> None:
    grey = np.zeros((*SHAPE, 3), np.uint8)
    grey[5:9, 5:9] = 90
    density = nuclear_density(grey, np.zeros(SHAPE, np.bool_))
    assert density[5:9, 5:9].min() == 1.0
    assert density[20:, 30:].max() == 0.0


def test_nuclei_are_bluer_than_their_surroundings_under_every_stain() -> None:
    inside = nuclei()
    for seed in range(20):
        stained = restain(picture(200, 10), inside, np.random.default_rng(seed)).astype(float)
        blue_over_red = stained[..., 2] - stained[..., 0]
        assert blue_over_red[inside].mean() > blue_over_red[~inside].mean() + 5


def test_brown_is_drawn_for_some_pictures_and_not_for_others() -> None:
    browns = []
    for seed in range(20):
        stained = restain(picture(200, 10), nuclei(), np.random.default_rng(seed)).astype(float)
        browns.append(float((stained[..., 0] - stained[..., 2])[~nuclei()].max()))
    assert max(browns) > 60
    assert min(browns) < 30


def test_bars_of_a_letterbox_stay_black() -> None:
    framed = picture(200, 10)
    framed[:6], framed[:, -9:] = 0, 0
    stained = restain(framed, nuclei(), np.random.default_rng(3))
    assert not stained[:6].any()
    assert not stained[:, -9:].any()
    assert stained[6:, :-9].min() > 0


def test_the_same_generator_gives_the_same_picture() -> None:
    first, second, other = (restain(picture(200, 10), nuclei(), np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
