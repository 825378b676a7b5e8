"""Windows around a mask and clicks, and the decoder's answers put back onto the frame."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from medsam3.errors import InputError
from medsam3.geometry import box_iou
from medsam3.measure.outline import dice
from medsam3.models.detector import VisionLevels
from medsam3.models.mini.card import read_card
from medsam3.models.mini.click_decoder import ClickDecoder, ClickDecoderConfig
from medsam3.models.mini.click_extent import ExtentHead
from medsam3.models.mini.click_window import ClickWindow, window_around
from medsam3.models.mini.clicker import Clicker, ClickFrame, Said, clicker_weights, levels_sha256, load_clicker
from medsam3.models.mini.detector import MiniDetector
from medsam3.models.mini.letterbox import letterbox, square_tensor
from medsam3.models.mini.segmenter import SHIPPED_WEIGHTS
from medsam3.models.refiner import follow_click
from medsam3.prompts import Box, Point
from medsam3.store import sha256_of

TINY = ClickDecoderConfig(level_width=16, detail=8, middle=8, coarse=16, deep=16, deep_blocks=1, key=8)
SHAPE = (300, 400)


def disc(x: float, y: float, radius: float) -> np.ndarray:
    rows, columns = np.ogrid[: SHAPE[0], : SHAPE[1]]
    mask: np.ndarray = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return mask


def test_a_window_lies_around_what_is_given_and_inside_the_square() -> None:
    window = window_around((100, 80, 159, 119), SHAPE)  # 60 x 40 pixels, which fill .6
    assert (window.left, window.top, window.side) == pytest.approx((80, 50, 100))
    corner = window_around((0, 0, 3, 3), SHAPE)
    assert (corner.left, corner.top, corner.side) == pytest.approx((0, 0, 32))  # .08 of 400
    whole = window_around((0, 0, 399, 299), SHAPE)
    assert (whole.left, whole.top, whole.side) == (0, 0, 400)


def test_labels_and_points_of_a_window_agree_with_each_other() -> None:
    window = ClickWindow(80, 50, 64, 400)  # each of its pixels is a quarter of the frame's
    marked = np.zeros(SHAPE, dtype=np.uint8)
    marked[70, 100] = 1
    rows, columns = window.labels(marked).nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (80, 83, 80, 83)
    assert window.points([Point(100, 70)])[0].tolist() == [81.5, 81.5]
    assert window.box(Box(80, 50, 100, 70)) == (1.5, 1.5, 81.5, 81.5)


def test_beyond_the_frame_a_window_is_empty() -> None:
    window = ClickWindow(0, 0, 400, 400)
    assert not window.labels(np.ones(SHAPE, dtype=np.bool_))[193:].any()  # 300 rows of 400 are 192 of 256
    rgb = np.full((*SHAPE, 3), 50, dtype=np.uint8)
    rgb[0, 0] = 250
    shown = window.pixels(rgb)
    assert shown.shape == (3, 256, 256) and shown.min() == 0 and not shown[:, 193:].any()


def test_logits_come_back_where_they_were_and_nowhere_else() -> None:
    window = ClickWindow(80, 50, 128, 400)
    logits = torch.where(torch.from_numpy(window.labels(disc(140, 110, 30), 128)), 5.0, -5.0)
    frame = window.onto(logits, torch.full(SHAPE, -9.0))
    assert np.array_equal((frame > 0).numpy(), disc(140, 110, 30))
    outside = np.ones(SHAPE, dtype=np.bool_)
    outside[50:178, 80:208] = False
    assert (frame.numpy()[outside] == -9).all()


def frame_of(rgb: np.ndarray) -> ClickFrame:
    torch.manual_seed(1)
    maps = tuple(torch.randn(1, 16, side, side) for side in (128, 64, 32))
    return ClickFrame(rgb, (VisionLevels(maps, torch.zeros(1, 16, 32, 32)),))


def test_every_click_holds_and_what_is_beyond_the_window_stays() -> None:
    torch.manual_seed(0)
    clicker = Clicker(ClickDecoder(TINY), ExtentHead(TINY.level_width))
    frame = frame_of(np.random.default_rng(0).integers(0, 255, (*SHAPE, 3), dtype=np.uint8))
    mask = disc(140, 110, 30)
    clicks = (Point(140, 110, is_positive=False), Point(190, 110))
    found = clicker.corrected(frame, Said(mask, clicks), clicks[1])
    assert not found[110, 140] and found[110, 190]
    window = Said(mask, clicks).window
    beyond = np.ones(SHAPE, dtype=np.bool_)
    beyond[
        int(window.top) : int(window.top + window.side) + 1, int(window.left) : int(window.left + window.side) + 1
    ] = 0
    assert not found[beyond].any()
    assert np.array_equal(found, clicker.corrected(frame, Said(mask, clicks), clicks[1]))  # nothing is remembered


def test_a_shallow_click_changes_nothing_far_from_it() -> None:
    torch.manual_seed(0)
    frame = frame_of(np.random.default_rng(0).integers(0, 255, (*SHAPE, 3), dtype=np.uint8))
    mask, newest = disc(140, 110, 60), Point(198, 110, is_positive=False)  # about 2 pixels inside the rim
    found = Clicker(ClickDecoder(TINY), ExtentHead(TINY.level_width)).corrected(frame, Said(mask, (newest,)), newest)
    changed = np.argwhere(found != mask)
    assert len(changed) and np.hypot(changed[:, 0] - 110, changed[:, 1] - 198).max() <= 9  # three times three pixels


def test_the_depth_of_the_newest_wrong_click_is_told_in_pixels_of_the_window() -> None:
    said = Said(disc(140, 110, 30), (Point(140, 110, is_positive=False), Point(141, 110)))  # the second is right
    drawn = said.drawn_in(ClickWindow(80, 50, 128, 400))
    x, y, kind, depth = drawn.last[0].tolist()
    assert (x, y, kind) == (120.5, 120.5, -1)
    assert depth == pytest.approx(2 * 30.5, abs=2)  # to the rim, twice enlarged


def written(folder: Path, levels: nn.Module) -> Path:
    torch.manual_seed(0)
    networks = clicker_weights(ClickDecoder(TINY), ExtentHead(TINY.level_width))
    path = folder / "clicks.safetensors"
    save_file({name: value.half().contiguous() for name, value in networks.state_dict().items()}, path)
    sizes = {name: getattr(TINY, name) for name in TINY.__dataclass_fields__}
    card = {"decoder": sizes, "stands_on": {"levels_sha256": levels_sha256(levels)}, "sha256": sha256_of(path)}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


def test_the_decoder_is_used_with_the_levels_that_it_was_trained_on_alone(tmp_path: Path) -> None:
    own, other = nn.Linear(3, 3), nn.Linear(3, 3)
    path = written(tmp_path, own)
    assert load_clicker(own, path) is not None
    assert load_clicker(other, path) is None


def test_damaged_weights_and_cards_are_one_line(tmp_path: Path) -> None:
    path = written(tmp_path, nn.Linear(3, 3))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="is missing or not the file that its card names"):
        load_clicker(nn.Linear(3, 3), path)
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(InputError, match="is not a card of the interactive decoder"):
        load_clicker(nn.Linear(3, 3), path)


def shipped() -> tuple[Clicker, MiniDetector]:
    detector = MiniDetector(read_card(SHIPPED_WEIGHTS).detectors[0])
    detector.load_state_dict({name: value.float() for name, value in load_file(SHIPPED_WEIGHTS).items()})
    clicker = load_clicker(detector.eval().requires_grad_(False).levels)
    assert clicker is not None, "it was trained on the shipped detector"
    return clicker, detector


def noisy_disc(x: float, y: float, radius: float, detector: MiniDetector) -> ClickFrame:
    """A bright disc in noise, with the shipped detector's levels."""
    rng = np.random.default_rng(0)
    grey = np.where(disc(x, y, radius), 150, 70)[..., None] + rng.normal(0, 12, (*SHAPE, 3))
    rgb = grey.clip(0, 255).astype(np.uint8)
    with torch.inference_mode():
        return ClickFrame(rgb, (detector.levels(square_tensor(letterbox(rgb)[0]), None),))


def test_the_shipped_guess_tells_a_small_object_from_a_large_one_and_stays_in_the_frame() -> None:
    clicker, detector = shipped()
    for radius in (15, 50, 90):
        box = clicker.box_around(noisy_disc(180, 150, radius, detector), Point(180, 150))
        true = (180.0 - radius, 150.0 - radius, 180.0 + radius, 150.0 + radius)
        assert float(box_iou(np.array([box.xyxy]), np.array([true]))[0, 0]) > 0.5, radius
    corner = clicker.box_around(noisy_disc(0, 0, 50, detector), Point(0, 0))
    assert corner.x0 == corner.y0 == -0.5 and corner.x1 <= SHAPE[1] - 0.5 and corner.y1 <= SHAPE[0] - 0.5


def test_the_shipped_decoder_finds_the_missing_half_of_an_object_by_one_click() -> None:
    clicker, detector = shipped()
    truth, frame = disc(180, 150, 50), noisy_disc(180, 150, 50, detector)
    half = truth & (np.arange(SHAPE[1]) < 180)
    newest = Point(203, 150)
    found = clicker.corrected(frame, Said(half, (newest,)), newest)
    by_disc = follow_click(half, newest, lambda so_far, at: ())
    assert dice(truth, half) < 0.7
    assert dice(truth, found) > dice(truth, by_disc) + 0.05
    assert dice(truth, found) > 0.9
