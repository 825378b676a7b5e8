"""Following by the likeness of features, with features whose right answer is known, and with the real ones."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import medsam3
from medsam3.errors import InputError
from medsam3.models.mini.clicker import ClickFrame
from medsam3.models.mini.letterbox import Letterbox
from medsam3.models.mini.segmenter import MiniFeatures, MiniSegmenter
from medsam3.models.mini.tracker import FollowRules, KeptFrame, KeptSlice, MiniTracker, SliceTracker
from medsam3.models.tracker import Past, slice_tracker_of
from medsam3.prompts import Box

PLACE = Letterbox(96, 128)  # fills 192 x 256 of the square: 48 x 64 cells of the neck, each 2 x 2 pixels


def noise(seed: int) -> torch.Tensor:
    return torch.randn(1, 256, 64, 64, generator=torch.Generator().manual_seed(seed))


def object_frame(row: int, column: int) -> KeptFrame:
    """Noise with the object's own 10 x 12 cells of features at a place."""
    neck = noise(row * 100 + column)
    neck[:, :, row : row + 10, column : column + 12] = noise(7)[:, :, :10, :12]
    return KeptFrame(PLACE, neck.half())


def object_mask(row: int, column: int) -> NDArray[np.bool_]:
    mask = np.zeros((96, 128), dtype=np.bool_)
    mask[2 * row : 2 * row + 20, 2 * column : 2 * column + 24] = True
    return mask


def tracker(rules: FollowRules | None = None) -> MiniTracker:
    return MiniTracker(cast(Any, None), rules)


@pytest.mark.parametrize("move", [(0, 0), (3, -5), (-7, 8)])
def test_cells_take_over_what_the_cells_most_like_them_are(move: tuple[int, int]) -> None:
    row, column = 15 + move[0], 20 + move[1]
    # Noise has one cell like each cell; more would only bring in chance.
    share = tracker(FollowRules(alike=1))._share(
        object_frame(row, column), [(object_frame(15, 20), object_mask(15, 20))]
    )
    expected = np.zeros((48, 64), dtype=np.bool_)
    expected[row : row + 10, column : column + 12] = True
    found = share.numpy() > 0.5
    assert (found & expected).sum() >= 0.95 * expected.sum()


def test_the_box_is_that_of_the_largest_part_with_its_margin() -> None:
    share = torch.zeros(48, 64)
    share[10:20, 12:32] = 0.9
    share[40:42, 50:52] = 0.9
    box = tracker(FollowRules(margin=0.05))._box(share)
    # Cells 12 to 31 span pixels 47.5 to 127.5, rows 39.5 to 79.5; 5 % of 80 by 40 are 4 and 2.
    assert box is not None
    np.testing.assert_allclose(box, [43.5, 37.5, 131.5, 81.5])


def test_nothing_like_the_object_is_no_box() -> None:
    assert tracker()._box(torch.zeros(48, 64)) is None


def test_kept_frames_are_two_mebibytes() -> None:
    assert tracker().kept_bytes(object_frame(15, 20)) == 2 << 20


class CountedNecks:
    """Stands for LiteMedSAM's encoder: its features are ones, and each square is counted."""

    def __init__(self) -> None:
        self.squares: list[tuple[int, ...]] = []

    def neck(self, square: NDArray[np.uint8]) -> torch.Tensor:
        self.squares.append(square.shape)
        return torch.ones(1, 256, 64, 64)


def test_the_neck_of_a_frame_is_made_once_and_only_if_it_is_needed() -> None:
    model = SimpleNamespace(lite_medsam=CountedNecks(), detectors=[])
    following = MiniTracker(cast(Any, model))
    rgb = np.zeros((96, 128, 3), dtype=np.uint8)
    features = MiniFeatures(PLACE, (), lambda: torch.zeros(1), lambda: (), frame=ClickFrame(rgb, ()))
    kept = following.keep(features)
    assert model.lite_medsam.squares == []
    assert following.kept_bytes(kept) == (2 << 20) + 256 * 256 * 3
    assert (following._neck(kept) == 1).all() and (following._neck(kept) == 1).all()
    assert model.lite_medsam.squares == [(256, 256, 3)]
    assert (following._neck(pickle.loads(pickle.dumps(kept))) == 1).all()  # as from a file on disk
    assert len(model.lite_medsam.squares) == 1


def disc(n: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A bright disc that moves six pixels a frame over a textured ground."""
    rows, columns = np.mgrid[:192, :256]
    mask = (rows - 90) ** 2 + (columns - 60 - 6 * n) ** 2 < 28**2
    ground = 80 + 20 * np.sin(rows / 9) * np.cos(columns / 13)
    grey = np.where(mask, 190, ground)
    return np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8), mask.astype(np.bool_)


@pytest.mark.weights
@pytest.mark.slow
def test_a_moving_disc_is_followed_with_the_real_features() -> None:
    try:
        model = medsam3.load("mini")
    except InputError as error:
        pytest.skip(f"needs the small model and its encoders: {error}")
    assert isinstance(model, MiniSegmenter)
    following = MiniTracker(model)
    frames = [disc(n) for n in range(4)]
    kept = [following.keep(model.encode(rgb)) for rgb, _ in frames]
    past = [Past(0, frames[0][1])]
    for n in (1, 2, 3):
        mask = following.follow(n, past, kept.__getitem__)
        overlap = 2 * (mask & frames[n][1]).sum() / (mask.sum() + frames[n][1].sum())
        assert overlap > 0.9
        past = [Past(n, mask), *past]


class TwoBlocks:
    """Finds a block of 20 x 24 pixels where it lies now, and another far off, whatever the example."""

    def __init__(self, row: int, column: int) -> None:
        self.shown = object_mask(row, column) | object_mask(36, 50)
        self.asked: list[Box] = []

    def like(self, features: object, text: str | None, window: object, box: Box) -> NDArray[np.float32]:
        self.asked.append(box)
        return np.where(self.shown, np.float32(0.9), np.float32(0.1))

    def slice_tracker(self) -> SliceTracker:
        return SliceTracker(cast(Any, self))


KEPT = KeptSlice(PLACE, (), torch.zeros(1))


def test_through_slices_the_part_that_touches_the_one_before_is_followed() -> None:
    model = TwoBlocks(12, 11)
    past = [Past(4, object_mask(10, 10))]
    found = slice_tracker_of(cast(Any, model)).follow(5, past, lambda n: KEPT)
    assert (found == object_mask(12, 11)).all()
    assert model.asked == [Box(19.5, 19.5, 43.5, 39.5)]  # around the mask before: rows 20 to 39, columns 20 to 43


def test_through_slices_what_touches_nothing_is_lost_and_what_runs_far_is_cut() -> None:
    past = [Past(4, object_mask(10, 10))]
    assert not SliceTracker(cast(Any, TwoBlocks(24, 30))).follow(5, past, lambda n: KEPT).any()
    wide = TwoBlocks(10, 10)
    wide.shown[20:40, :] = True
    found = SliceTracker(cast(Any, wide)).follow(5, past, lambda n: KEPT)
    columns = np.flatnonzero(found.any(axis=0))
    assert (columns[0], columns[-1]) == (10, 52)  # 24 pixels wide before, .3 of that and 2 more on each side


def test_levels_of_a_slice_are_kept_at_half_precision() -> None:
    kept = KeptSlice(PLACE, ((torch.ones(1, 2, 8, 8).half(), torch.ones(1, 2, 4, 4).half()),), torch.zeros(1))
    assert SliceTracker(cast(Any, None)).kept_bytes(kept) == 2 * (2 * 64 + 2 * 16)
    (levels,) = kept.features().levels
    assert [one.dtype for one in levels.maps] == [torch.float32, torch.float32]
