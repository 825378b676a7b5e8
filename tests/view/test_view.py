"""Square pixels, turns, neighbours, and the way into the view and back."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from numpy.typing import NDArray

from medsam3.geometry import affine_from_directions
from medsam3.image import Image, LazyFrames, Masks, Window
from medsam3.prompts import Box, Point, Prompt
from medsam3.view.planes import PLANES, Plane
from medsam3.view.view import view_of

OBLIQUE = affine_from_directions([10, 20, 30], [0.3, -0.2, 2.5], [0.1, -1.2, -0.1], [-0.7, -0.05, 0.08])


def stack(values: NDArray[np.int16], modality: str | None = None, row_mm: float = 1.0) -> Image:
    affine = affine_from_directions([0, 0, 0], [0, 0, 3], [0, row_mm, 0], [1, 0, 0])
    about = {} if modality is None else {"modality": modality}
    return Image(values[..., None], "volume", affine, metadata=about)


def test_tall_pixels_are_stretched_and_prompts_with_them() -> None:
    view = view_of(stack(np.zeros((2, 10, 12), dtype=np.int16), row_mm=2.0))
    assert view.size == (20, 12) and view.rgb(0).shape == (20, 12, 3)
    # Row edges 1.5 and 4.5 are pixel edges 2 and 5 from the top, 4 and 10 when stretched: 3.5 and 9.5.
    moved = view.prompt(Prompt(boxes=(Box(1.5, 1.5, 3.5, 4.5),), points=(Point(2, 3),)))
    assert moved.boxes[0].xyxy == (1.5, 3.5, 3.5, 9.5)
    assert (moved.points[0].x, moved.points[0].y) == (2.0, 6.5)


@pytest.mark.parametrize("row_mm", [0.4, 0.9, 1.0, 1.1, 1.5, 2.0, 2.6])
def test_a_mask_goes_into_the_view_and_comes_back(row_mm: float) -> None:
    view = view_of(stack(np.zeros((2, 10, 12), dtype=np.int16), row_mm=row_mm))
    mask = np.random.default_rng(0).random((10, 12)) > 0.5
    np.testing.assert_array_equal(view.mask_to_slice(view.mask_to_view(mask)), mask)


def test_a_pixel_that_is_covered_by_less_than_half_is_left_out() -> None:
    view = view_of(
        stack(np.zeros((2, 4, 5), dtype=np.int16), row_mm=1.5)
    )  # (6, 5): a row is one and a half of the view
    mask = np.zeros((6, 5), dtype=np.bool_)
    mask[1] = True  # half of it in row 0, half in row 1: a third of each
    assert not view.mask_to_slice(mask).any()
    mask[2] = True  # row 1 is covered whole
    np.testing.assert_array_equal(view.mask_to_slice(mask).any(axis=1), [False, True, False, False])


def test_neighbouring_slices_are_the_other_colours() -> None:
    values = np.array([0, 100, 200], dtype=np.int16)[:, None, None] * np.ones((1, 2, 2), dtype=np.int16)
    view = view_of(stack(values), window=Window(0, 255), has_neighbours=True)
    assert view.rgb(1)[0, 0].tolist() == [0, 100, 200]
    assert view.rgb(0)[0, 0].tolist() == [0, 0, 100]


def oblique() -> Image:
    """A volume upside down and left to right, with pixels 1.7 times as high as wide."""
    values = np.random.default_rng(1).integers(0, 3000, (5, 11, 17, 1), dtype=np.int16)
    return Image(values, "volume", OBLIQUE)


@pytest.mark.parametrize("plane", PLANES)
def test_masks_go_into_the_view_and_come_back_voxel_by_voxel(plane: Plane) -> None:
    dense = np.random.default_rng(2).random((3, 5, 11, 17)) > 0.6
    masks = Masks.from_dense(dense, [0.9, 0.8, 0.7], concept="liver", presence=0.9)
    view = view_of(oblique(), plane)
    there = view.masks_forth(masks)
    assert there.shape == view.shape != masks.shape
    back = view.masks_back(there)
    assert back == masks
    for k in range(3):
        np.testing.assert_array_equal(back.dense(k), masks.dense(k))


def test_a_point_goes_to_the_pixel_that_shows_it() -> None:
    values = np.zeros((3, 11, 17, 1), dtype=np.uint8)
    values[1, 2, 5] = 255
    view = view_of(Image(values, "volume", OBLIQUE), keeps_slices=True)
    (point,) = view.prompt(Prompt(points=(Point(5, 2),))).points
    row, column = np.unravel_index(int(view.rgb(view.number(1))[..., 0].argmax()), view.size)
    assert abs(point.x - column) <= 0.5 and abs(point.y - row) <= 1.0


def test_a_single_slice_is_turned_as_its_volume_is() -> None:
    volume = Image(oblique().array().astype(np.uint8), "volume", OBLIQUE)
    view = view_of(volume, keeps_slices=True)
    for n in range(5):
        np.testing.assert_array_equal(view_of(volume.frame(n)).rgb(0), view.rgb(view.number(n)))


def test_a_picture_with_a_pixel_size_alone_is_shown_with_square_pixels() -> None:
    picture = Image(np.zeros((1, 10, 12, 1), dtype=np.uint8), metadata={"pixel_spacing_mm": "2 1"})
    assert view_of(picture).size == (20, 12)


def test_images_can_be_sent_to_other_processes_copied_and_compared() -> None:
    lazy = Image(LazyFrames((5, 11, 17, 1), oblique().frames.__getitem__), "volume", OBLIQUE, metadata={"a": "b"})
    for other in (pickle.loads(pickle.dumps(lazy)), copy.deepcopy(lazy), oblique()):
        assert (other == lazy) == (other.metadata == lazy.metadata)
        assert len({other, lazy}) >= 1
    assert lazy != oblique() and oblique() == oblique()
    changed = oblique().array()
    changed[2, 3, 4] += 1
    assert Image(changed, "volume", OBLIQUE) != oblique()
