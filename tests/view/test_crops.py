from __future__ import annotations

import numpy as np

from medsam3.agent.frames import objects_of, pasted
from medsam3.view.crops import Crop, closer_window, quarters


def test_a_window_holds_the_box_with_half_its_side_around_it() -> None:
    # side 20 -> 40, a multiple of the step of 160 / 16 = 10; centre (50, 40) -> 30..70 and 20..60
    assert closer_window((39.5, 29.5, 59.5, 49.5), (120, 160)) == Crop(20, 60, 30, 70)


def test_a_window_at_the_edge_is_moved_inside() -> None:
    assert closer_window((-0.5, -0.5, 19.5, 19.5), (120, 160)) == Crop(0, 40, 0, 40)


def test_a_large_object_has_no_closer_window() -> None:
    assert closer_window((10, 10, 100, 100), (120, 160)) is None


def test_quarters_cover_the_frame_and_overlap() -> None:
    seen = np.zeros((30, 50), dtype=np.int64)
    for window in quarters((30, 50)):
        window.cut(seen)[...] += 1
    assert seen.min() == 1 and seen.max() == 4


def test_what_windows_saw_is_mixed_in_at_its_share() -> None:
    base = np.full((4, 4), 0.2, dtype=np.float32)
    mixed = pasted(base, [Crop(0, 2, 0, 2)], [np.ones((2, 2), dtype=np.float32)], 0.5)
    assert np.allclose(mixed[:2, :2], 0.6) and np.allclose(mixed[2:], 0.2)  # (0.2 + 1) / 2
    assert np.allclose(base, 0.2)


def test_parts_above_the_level_are_objects_best_first() -> None:
    soft = np.zeros((20, 20), dtype=np.float32)
    soft[2:6, 2:6], soft[10:14, 10:14], soft[18, 18] = 0.6, 0.8, 0.9  # the last is a speck of one pixel
    found = objects_of(soft, 0.5, 0.5, "polyp", 3)
    assert [(part.start, part.voxels) for part in found] == [((3, 10, 10), 16), ((3, 2, 2), 16)]
    assert np.allclose([part.score for part in found], [0.4, 0.3])  # 0.5 x 0.8, 0.5 x 0.6
    assert objects_of(soft * 0, 0.5, 1.0, "polyp") == ()
