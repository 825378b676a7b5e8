"""One model in threads and in forked and spawned workers gives the same as in one process."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import medsam3
from medsam3.errors import InputError
from medsam3.image import Image, Masks
from medsam3.models.mini.encoder_files import locate
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Box, Point, Prompt
from threshold_segmenter import ThresholdSegmenter

PICTURES = [np.random.default_rng(k).integers(0, 255, (48, 64, 3), dtype=np.uint8) for k in range(3)]


def masks_of(model: Segmenter, picture: np.ndarray) -> Masks:
    return medsam3.segment(picture, "polyp", model)[0]


class Pictures(torch.utils.data.Dataset[np.ndarray]):
    def __init__(self, model: Segmenter) -> None:
        self.model = model

    def __len__(self) -> int:
        return len(PICTURES)

    def __getitem__(self, k: int) -> np.ndarray:
        return masks_of(self.model, PICTURES[k]).union()


def test_many_images_keep_their_order_and_an_error_stays_with_its_own(tmp_path: Path) -> None:
    outcomes = medsam3.segment_many(
        [PICTURES[0], tmp_path / "none.png", PICTURES[1]], ["polyp", "absent"], ThresholdSegmenter(), has_bar=False
    )
    assert [len(one.masks) for one in outcomes] == [2, 0, 2]
    assert isinstance(outcomes[1].error, InputError) and outcomes[1].item == tmp_path / "none.png"
    alone = medsam3.segment(PICTURES[1], ["polyp", "absent"], ThresholdSegmenter())
    assert list(outcomes[2].masks) == alone and outcomes[2].error is None


@pytest.fixture(scope="module")
def mini() -> Segmenter:
    try:
        locate()
    except InputError as error:
        pytest.skip(f"needs the encoders' weights: {error}")
    return medsam3.load("mini")


@pytest.fixture(scope="module")
def alone(mini: Segmenter) -> list[Masks]:
    return [masks_of(mini, picture) for picture in PICTURES]


@pytest.mark.slow
def test_threads_share_a_model(mini: Segmenter, alone: list[Masks]) -> None:
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(partial(masks_of, mini), PICTURES * 2)) == alone * 2


@pytest.mark.slow
@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_workers_take_a_model(way: str, mini: Segmenter, alone: list[Masks]) -> None:
    context = multiprocessing.get_context(way)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert list(pool.map(partial(masks_of, mini), PICTURES, timeout=300)) == alone


@pytest.mark.slow
def test_a_data_loader_takes_a_model(mini: Segmenter, alone: list[Masks]) -> None:
    loader = torch.utils.data.DataLoader(Pictures(mini), batch_size=None, num_workers=1, timeout=300)
    for got, masks in zip(loader, alone, strict=True):
        np.testing.assert_array_equal(np.asarray(got), masks.union())


@pytest.mark.slow
def test_the_small_model_takes_a_box_with_clicks(mini: Segmenter) -> None:
    picture = np.full((48, 64, 3), 40, dtype=np.uint8)
    picture[12:36, 16:48] = 200
    box, off, on = Box(15, 11, 48, 36), Point(30, 20, is_positive=False), Point(55, 40)
    (found,) = medsam3.segment(picture, Prompt(boxes=(box,), points=(off, on)), mini)
    assert not found.union()[0, 20, 30] and found.union()[0, 40, 55] and len(found) == 1
    with pytest.raises(InputError, match="2 boxes and points were given together: give one box"):
        medsam3.segment(picture, Prompt(boxes=(box, box), points=(off,)), mini)


def test_an_image_of_an_array_is_the_array() -> None:
    image = medsam3.as_image(PICTURES[0])
    assert isinstance(image, Image) and image.pixels(0) is not None
    np.testing.assert_array_equal(image.array()[0], PICTURES[0])
