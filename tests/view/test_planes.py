"""Cutting a volume in other planes, and back, with positions from the standard's formula."""

from __future__ import annotations

import numpy as np
import pytest

from box_segmenter import BoxSegmenter
from made_stacks import stack_from
from medsam3.errors import InputError
from medsam3.geometry import affine_from_directions, world_from_index
from medsam3.image import Image, Masks
from medsam3.prompts import Box, Prompt
from medsam3.segmentation.options import Options
from medsam3.segmentation.run import segment
from medsam3.view.planes import PLANES, Plane, chosen_plane, prompt_turned, turn_to, turned

SHAPE = (4, 5, 6)


def oblique_stack(sizes: tuple[float, float, float] = (2.5, 0.75, 0.5)) -> Image:
    """A nearly axial stack upside down (rows run to the front), tilted by atan(0.2) about the left-right axis."""
    up, back = np.array([0.0, -0.2, 1.0]), np.array([0.0, 1.0, 0.2])
    scale = np.sqrt(1.04)
    affine = affine_from_directions(
        [10.0, 20.0, 30.0], up * sizes[0] / scale, -back * sizes[1] / scale, [-sizes[2], 0.0, 0.0]
    )
    values = np.arange(120, dtype=np.uint8).reshape(SHAPE)
    return stack_from(values, affine=affine)


@pytest.mark.parametrize("plane", PLANES)
def test_a_marked_voxel_keeps_its_world_position_in_every_plane(plane: Plane) -> None:
    stack = oblique_stack()
    turn = turn_to(stack, plane)
    cut = turned(stack, turn)
    whole = np.stack([cut.pixels(n)[..., 0] for n in range(cut.shape[0])])
    assert stack.affine is not None and cut.affine is not None
    for index in ((0, 0, 0), (2, 3, 1), (3, 4, 5)):
        value = 30 * index[0] + 6 * index[1] + index[2]
        found = np.argwhere(whole == value)[0]
        expected = world_from_index(stack.affine, index)
        np.testing.assert_allclose(world_from_index(cut.affine, found), expected, atol=1e-9)


def test_axial_slices_show_the_left_at_the_right_and_the_back_below() -> None:
    cut = turned(oblique_stack(), turn_to(oblique_stack(), "axial"))
    assert cut.affine is not None
    assert cut.affine[0, 2] > 0 and cut.affine[1, 1] > 0 and cut.affine[2, 0] > 0


@pytest.mark.parametrize("plane", PLANES)
def test_masks_come_back_to_the_voxels_they_were_found_on(plane: Plane) -> None:
    stack = oblique_stack()
    turn = turn_to(stack, plane)
    cut = turned(stack, turn)
    whole = np.stack([cut.pixels(n)[..., 0] for n in range(cut.shape[0])])
    masks = Masks.from_dense((whole > 90)[None], [0.5])
    original = np.arange(120).reshape(SHAPE)
    np.testing.assert_array_equal(turn.masks_back(masks).union(), original > 90)


def test_the_automatic_plane_cuts_across_the_longest_voxel_side() -> None:
    assert chosen_plane(oblique_stack((2.5, 0.75, 0.5)), "auto") == "axial"
    assert chosen_plane(oblique_stack((0.5, 2.5, 0.5)), "auto") == "coronal"
    assert chosen_plane(oblique_stack((0.5, 0.5, 2.5)), "auto") == "sagittal"
    assert chosen_plane(oblique_stack((1.0, 1.0, 1.0)), "auto") == "axial"
    assert chosen_plane(stack_from(np.zeros(SHAPE, dtype=np.uint8)), "auto") is None


def test_a_box_is_turned_with_its_slice() -> None:
    stack = oblique_stack()
    turn = turn_to(stack, "axial")  # rows and columns both run the other way
    box = prompt_turned(Prompt(boxes=(Box(0.5, 1.5, 2.5, 3.5),)), turn).boxes[0]
    assert box.xyxy == (2.5, 0.5, 4.5, 2.5)


def test_boxes_with_a_plane_across_the_slices_are_refused() -> None:
    with pytest.raises(InputError, match="take plane 'axial'"):
        options = Options(at=1, plane="coronal")
        segment(oblique_stack(), [Prompt(boxes=(Box(1, 1, 3, 3),))], BoxSegmenter(), options)


def cuboid() -> Image:
    """A bright cuboid of 8 x 6 x 10 voxels of 1 mm in 20 x 24 x 32."""
    pixels = np.zeros((20, 24, 32), dtype=np.uint8)
    pixels[6:14, 9:15, 11:21] = 200
    affine = affine_from_directions([0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0])
    return stack_from(pixels, affine=affine)


@pytest.mark.parametrize("plane", PLANES)
def test_every_plane_finds_the_same_cuboid(plane: Plane) -> None:
    (result,) = segment(cuboid(), [Prompt(text="bright")], BoxSegmenter(), Options(plane=plane))
    (item,) = result.objects
    assert (item.start, item.crop.shape, item.voxels) == ((6, 9, 11), (8, 6, 10), 480)


def test_two_of_three_planes_decide() -> None:
    (voted,) = segment(cuboid(), [Prompt(text="bright")], BoxSegmenter(), Options(plane="vote"))
    (item,) = voted.objects
    assert (item.start, item.voxels, voted.is_present) == ((6, 9, 11), 480, True)
