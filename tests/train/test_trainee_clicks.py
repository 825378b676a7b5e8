"""The interactive decoder as it trains: batches, its losses, and a run that learns and goes on where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from medsam3.data.samples import Sample, Target
from medsam3.models.mini.click_decoder import ClickDecoderConfig
from medsam3.train.click_cache import balanced, click_features
from medsam3.train.clicks_run import click_curve, val_objects
from medsam3.train.config import ClickFitConfig
from medsam3.train.person import Meant
from medsam3.train.trainee_clicks import ClickBatchMaker, ClickTrainee, click_losses, drawn_of, fit_loss

WIDTH = 16
TINY = ClickDecoderConfig(level_width=WIDTH, detail=8, middle=8, coarse=16, deep=16, deep_blocks=1, key=8)
CONFIG = ClickFitConfig(steps=2, images=2, decoder=TINY)
SHAPE = (90, 120)


def a_sample(number: int, dataset: str = "made") -> Sample:
    rows, columns = np.ogrid[: SHAPE[0], : SHAPE[1]]
    truth = (rows - 40) ** 2 + (columns - 40 - 5 * number) ** 2 <= 20**2
    rgb = np.where(truth[..., None], np.uint8(200), np.uint8(40)).repeat(3, axis=2)
    target = Target("polyp", True, lambda: truth.astype(np.int32))
    return Sample(f"{dataset}/{number}.png", Path(), dataset, str(number), "train", (target,), lambda: rgb)


class MadeFeatures:
    """Features of noise, and answers that are a square over the middle."""

    def views(self, name: str) -> tuple[int, ...]:
        return (0,)

    def get(self, name: str, view: int) -> NDArray[Any]:
        rng = np.random.default_rng([*name.encode()])
        values = np.zeros((1,), dtype=click_features(WIDTH))
        for part in ("middle", "coarse"):
            values[part] = rng.normal(size=values[part].shape)
        values["answers"] = -2
        values["answers"][0, :, 10:30, 10:40] = 2
        return values


def maker() -> ClickBatchMaker:
    return ClickBatchMaker([a_sample(n) for n in range(3)], MadeFeatures(), CONFIG)


def test_a_batch_depends_on_its_number_alone() -> None:
    first, again, other = maker().batch(3), maker().batch(3), maker().batch(4)
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.windows, again.windows)
    assert [one.clicks for one in first.meant] == [one.clicks for one in again.meant]
    assert not torch.equal(first.windows, other.windows)
    assert len(first.meant) == len(first.image) == 4 and first.levels[0].shape == (2, WIDTH, 64, 64)


def test_an_object_lies_whole_in_its_window_and_is_clicked_rightly() -> None:
    for number in range(6):
        batch = maker().batch(number)
        for one, (left, top, side) in zip(batch.meant, batch.windows.tolist(), strict=True):
            assert 0 <= left <= left + side <= 1.0001 and 0 <= top <= top + side <= 1.0001
            assert one.truth.any()
            for x, y, kind in one.clicks:
                assert one.truth[int(y), int(x)] == bool(kind)


def test_losses_are_least_for_the_truth() -> None:
    truths = torch.zeros(1, 8, 8)
    truths[0, 2:6, 2:6] = 1
    right, wrong = click_losses((truths - 0.5) * 20, truths), click_losses((0.5 - truths) * 20, truths)
    assert max(float(one) for one in right) < 0.01
    assert float(wrong[1]) == pytest.approx(1 - 1 / (48 + 16 + 1), abs=1e-3)  # no overlap


def test_the_fit_of_a_mask_is_learnt_as_its_dice() -> None:
    truth = np.zeros((256, 256), dtype=np.bool_)
    truth[:, :128] = True
    half = truth.copy()
    half[:128] = False  # Dice 2/3
    meant = [Meant(truth, half), Meant(truth)]
    logit = float(np.log(2))  # of 2/3
    assert float(fit_loss(torch.tensor([logit, 9.0]), meant)) == pytest.approx(0.6365, abs=1e-3)  # its entropy
    assert float(fit_loss(torch.tensor([logit + 1, 9.0]), meant)) > 0.7
    assert float(fit_loss(torch.tensor([9.0]), [Meant(truth)])) == 0


def test_the_newest_click_is_told_where_the_mask_is_wrong_alone() -> None:
    truth = np.zeros((256, 256), dtype=np.bool_)
    truth[64:192, 64:192] = True
    wrong = Meant(truth, np.zeros_like(truth) | (np.arange(256) < 100), ((160.0, 128.0, 1),))
    right = Meant(truth, truth, ((160.0, 128.0, 1),))
    drawn = drawn_of([wrong, right])
    assert drawn.last[0].tolist() == pytest.approx([160, 128, 1, 60.5])  # columns 100 to 160
    assert not drawn.last[1].any()


def test_a_few_updates_on_one_batch_lower_its_loss() -> None:
    trainee, batch = ClickTrainee(CONFIG), maker().batch(0)
    optimizer = trainee.optimizer()
    losses = []
    for step in range(12):
        loss, terms = trainee(lambda: batch)
        assert {"mask_focal", "mask_dice", "score"} == set(terms)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trainee.after_update(step)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert not torch.equal(trainee.average.prior, trainee.decoder.prior)


def test_val_is_measured_on_the_same_objects_each_time() -> None:
    samples = [replace(a_sample(n), split="val") for n in range(3)]
    objects = val_objects(samples, MadeFeatures(), CONFIG)
    again = val_objects(samples, MadeFeatures(), CONFIG)
    decoder = ClickTrainee(CONFIG).average
    assert len(objects) == 3
    assert click_curve(decoder, objects, 2) == click_curve(decoder, again, 2)


def test_no_data_set_has_more_pictures_than_the_most() -> None:
    samples = [a_sample(n, "large") for n in range(9)] + [a_sample(n, "small") for n in range(2)]
    chosen = balanced(samples, 3, seed=0)
    assert [one.dataset for one in chosen] == ["large"] * 3 + ["small"] * 2
    assert chosen == balanced(samples, 3, seed=0)
    assert chosen[:3] == [one for one in balanced(samples, 5, seed=0) if one in chosen[:3]]  # more holds the fewer
