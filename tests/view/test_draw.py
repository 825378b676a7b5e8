import numpy as np
import pytest

from medsam3.errors import InputError
from medsam3.image import Masks
from medsam3.view.draw import COLOURS, number_marks, overlay


def masks(shape: tuple[int, int, int], *boxes: tuple[int, int, int, int], concept: str = "polyp") -> Masks:
    """Filled rectangles row0:row1, col0:col1 in all frames, scores .9, .8, ..."""
    dense = np.zeros((len(boxes), *shape), dtype=bool)
    for k, (row0, row1, col0, col1) in enumerate(boxes):
        dense[k, :, row0:row1, col0:col1] = True
    return Masks.from_dense(dense, [0.9 - 0.1 * k for k in range(len(boxes))], concept=concept)


def test_masks_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match="masks are over"):
        overlay(np.zeros((4, 5, 3), dtype=np.uint8), [masks((1, 5, 4), (0, 1, 0, 1))])


def test_an_overlay_fills_translucently_and_outlines_in_full_colour() -> None:
    rgb = np.full((100, 120, 3), 100, dtype=np.uint8)
    shown = overlay(rgb, [masks((1, 100, 120), (40, 60, 40, 80))])
    assert shown.shape == rgb.shape and (rgb == 100).all()  # the input is left as it was
    # 100 + .35 (colour - 100) with colour (230, 159, 0): 145.5, 120.65, 65
    assert np.abs(shown[50, 60].astype(int) - [146, 121, 65]).max() <= 1
    assert tuple(shown[40, 60]) == tuple(shown[50, 40]) == tuple(shown[59, 79]) == COLOURS[0]
    assert (shown[70:, 90:] == 100).all()


def test_objects_of_one_concept_differ_in_colour_and_so_do_concepts() -> None:
    rgb = np.zeros((200, 200, 3), dtype=np.uint8)
    boxes = (50, 70, 50, 70), (100, 120, 100, 120)
    one = overlay(rgb, [masks((1, 200, 200), *boxes)])
    assert tuple(one[50, 60]) == COLOURS[0] and tuple(one[100, 110]) == COLOURS[1]
    two = overlay(rgb, [masks((1, 200, 200), *boxes), masks((1, 200, 200), (150, 170, 50, 70), concept="ulcer")])
    assert tuple(two[50, 60]) == tuple(two[100, 110]) == COLOURS[0] and tuple(two[150, 60]) == COLOURS[1]


def test_the_legend_keeps_off_the_masks_and_tiny_pictures_have_none() -> None:
    rgb = np.full((300, 400, 3), 90, dtype=np.uint8)
    top_left = overlay(rgb, [masks((1, 300, 400), (0, 60, 0, 200))])
    assert (top_left[:60, 210:] != 90).any() or (top_left[200:] != 90).any()
    assert (top_left[5:55, 5:195] != 22).any(axis=-1).all()  # 90 // 4 is the legend's ground
    tiny = overlay(np.full((20, 20, 3), 90, dtype=np.uint8), [masks((1, 20, 20), (5, 9, 5, 9))])
    assert (tiny[12:] == 90).all()


@pytest.mark.parametrize("count", [0, 1, 6, 7, 300])
def test_any_number_of_objects_is_drawn(count: int) -> None:
    rgb = np.full((256, 320, 3), 90, dtype=np.uint8)
    boxes = [(8 * (k // 30) + 20, 8 * (k // 30) + 25, 8 * (k % 30) + 40, 8 * (k % 30) + 45) for k in range(count)]
    found = masks((1, 256, 320), *boxes, concept="nucleus " * 20)
    assert overlay(rgb, [found]).shape == number_marks(rgb, [found]).shape == rgb.shape
    assert np.array_equal(number_marks(rgb, [found]), rgb) == (count == 0)


def test_numbers_stand_in_the_objects_at_readable_size() -> None:
    rgb = np.full((512, 512, 3), 90, dtype=np.uint8)
    shown = number_marks(rgb, [masks((1, 512, 512), (100, 200, 100, 200), (300, 400, 300, 400))])
    changed = (shown != rgb).any(axis=-1)
    for low in (100, 300):
        rows, columns = np.nonzero(changed[low : low + 100, low : low + 100])
        assert 18 <= np.ptp(rows) + 1 <= 40 and 18 <= np.ptp(columns) + 1 <= 40
        assert abs(rows.mean() - 49.5) < 4 and abs(columns.mean() - 49.5) < 4
    assert not changed[:100].any() and not changed[400:].any()


def test_numbers_stay_the_same_through_a_stack() -> None:
    dense = np.zeros((2, 2, 64, 64), dtype=bool)
    dense[0, 0, 10:30, 10:30] = dense[1, 1, 40:60, 40:60] = True
    found = Masks.from_dense(dense, [0.9, 0.8])
    rgb = np.full((64, 64, 3), 90, dtype=np.uint8)
    second = number_marks(rgb, [found], 1)  # holds only the object number 2
    alone = number_marks(rgb, [Masks.from_dense(dense[1:, 1:], [0.8])])
    assert (second[:35, :35] == 90).all() and (second != alone).any()
