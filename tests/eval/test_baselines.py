"""The comparators: their data, training that can be broken off, answers by name, and whose they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from baselines import fit
from baselines.run import donor_of, train_and_val
from baselines.squares import SquareBatch, Squares, is_sided, load_squares, square_batch, training_batch
from colour_data import DataFolder, block, polyp_folder

from medsam3.data.index import IndexRow, read_index
from medsam3.errors import InputError
from medsam3.prompts import Box, Prompt


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    folder = polyp_folder(tmp_path / "data")
    folder.lines = [line.replace(",test,", ",train,") for line in folder.lines]
    folder.write()
    return folder


def striped(concepts: tuple[str, ...], count: int = 4) -> Squares:
    """Small grey squares in which the left upper part is bright, and is the first concept."""
    pixels = np.full((count, 64, 64, 3), 60, dtype=np.uint8)
    targets = np.zeros((count, len(concepts), 64, 64), dtype=np.bool_)
    pixels[:, 10:30, 8:38] = 220
    targets[:, 0, 10:30, 8:38] = True
    return Squares(concepts, pixels, targets, np.ones((count, len(concepts)), dtype=np.bool_))


def test_squares_hold_each_picture_once_with_what_is_annotated_in_it(data: DataFolder) -> None:
    squares = load_squares(read_index(data.path), ("optic disc", "polyp"))
    assert len(squares) == 4
    np.testing.assert_array_equal(squares.known, [[True, True], [False, True], [False, True], [False, True]])
    # 4 x 8 of 20 x 30 pixels, at 256 / 30 pixels a pixel
    assert squares.targets[0, 1].sum() == pytest.approx(32 * (256 / 30) ** 2, rel=0.1)
    assert not squares.targets[0, 0].any() and not squares.targets[3, 1].any()


def test_a_variant_moves_picture_and_target_together_and_follows_from_seed_and_step() -> None:
    squares = striped(("polyp",))
    batch = training_batch(squares, 4, seed=3, step=7)
    bright = batch.images.mean(dim=1) > 0.45  # 220 against 60, tones changed by at most a quarter each
    target = batch.targets[:, 0] > 0
    overlap = 2 * (bright & target).sum() / (bright.sum() + target.sum())
    assert overlap > 0.95
    again = training_batch(squares, 4, seed=3, step=7)
    torch.testing.assert_close(again.images, batch.images, rtol=0, atol=0)
    other = training_batch(squares, 4, seed=3, step=8)
    assert not torch.equal(other.images, batch.images)


def test_sided_data_sets_are_not_mirrored() -> None:
    assert is_sided(("lung", "Left lung")) and not is_sided(("polyp", "cleft"))
    centres = [
        training_batch(striped((name,), 32), 32, seed=0, step=0).targets[:, 0].nonzero()[:, 2].float().mean()
        for name in ("left lung", "lung")
    ]
    # the part's centre is at column 22.5; half of the mirrored ones lie at 40.5
    assert centres[0] < 25 and centres[1] > 27.5


@pytest.mark.slow
def test_the_network_learns_and_keeps_the_best_validated_weights(tmp_path: Path) -> None:
    pytest.importorskip("monai", reason="needs the extra `baseline`")
    squares = striped(("polyp",), 2)
    config = fit.UnetConfig(batch=2, least_steps=16, most_steps=16, validate_every=8)
    seen: list[tuple[int, int]] = []
    state = fit.fit_unet(
        squares, squares, config, tmp_path / "c.pt", lambda done, count, dice: seen.append((done, count))
    )
    assert seen[-1] == (16, 16)
    assert state.best_dice == pytest.approx(fit.validation_dice(state.network, squares)) and state.best_dice > 0.5


def entropy(logits: torch.Tensor, batch: SquareBatch) -> torch.Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.targets)


def test_a_broken_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a network of one layer: MONAI takes ten seconds to import, and what is resumed is the same for any network."""
    monkeypatch.setattr(fit, "unet", lambda concepts: torch.nn.Conv2d(3, concepts, 3, padding=1))
    monkeypatch.setattr(fit, "loss_of", entropy)
    squares = striped(("polyp",), 1)
    config = fit.UnetConfig(minutes=1e9, batch=1, least_steps=3, most_steps=3, validate_every=1)
    whole = fit.fit_unet(squares, squares, config, tmp_path / "whole.pt")

    def kill(done: int, count: int, dice: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit.fit_unet(squares, squares, config, tmp_path / "killed.pt", kill)
    again = fit.fit_unet(squares, squares, config, tmp_path / "killed.pt")
    assert fit.stopped_by(again, 3, config) == "all steps done"
    assert fit.stopped_by(again, 9, config) == "stopped by time"
    assert (again.step, again.best_step) == (whole.step, whole.best_step) and again.step == 3
    for name, value in whole.best.items():
        torch.testing.assert_close(again.best[name], value, rtol=1e-4, atol=1e-5)
    (tmp_path / "killed.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="no checkpoint of this U-Net"):
        fit.fit_unet(squares, squares, config, tmp_path / "killed.pt")


@pytest.mark.slow
def test_only_annotated_pairs_count_in_loss_and_validation() -> None:
    pytest.importorskip("monai", reason="needs the extra `baseline`")
    squares = striped(("polyp", "liver"), 2)
    known = squares.known.copy()
    known[:, 1] = False
    batch = square_batch(replace(squares, known=known), np.arange(2))
    right = torch.where(batch.targets > 0, 20.0, -20.0)
    wrong = right.clone()
    wrong[:, 1] = 20.0
    assert fit.loss_of(right, batch) == pytest.approx(0, abs=1e-3)
    assert fit.loss_of(wrong, batch) == fit.loss_of(right, batch)
    assert fit.loss_of(wrong, square_batch(squares, np.arange(2))) > 1


@pytest.mark.slow
def test_a_unet_answers_to_its_concepts_by_name_and_to_nothing_else() -> None:
    pytest.importorskip("monai", reason="needs the extra `baseline`")
    from baselines.unet import UnetSegmenter, unet  # noqa: PLC0415

    class Bright(torch.nn.Module):
        """Logits that follow the brightness, for the first of two concepts."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.cat([images[:, :1] * 20 - 10, torch.full_like(images[:, :1], -10)], dim=1)

    segmenter = UnetSegmenter(Bright(), ("polyp", "liver"))
    rgb = np.zeros((20, 30, 3), dtype=np.uint8)
    rgb[2:8, 4:12], rgb[12:18, 20:28] = 255, 255
    features = segmenter.encode(rgb)
    found = segmenter.decode(features, Prompt(text="polyp"))
    assert len(found) == 2 and found.is_present and found.presence == pytest.approx(1, abs=1e-3)
    expected = block((2, 8), (4, 12)) | block((12, 18), (20, 28))
    assert (found.union()[0] & expected).sum() / (found.union()[0] | expected).sum() > 0.75
    absent = segmenter.decode(features, Prompt(text="liver"))
    assert (len(absent), absent.is_present) == (0, False)
    for prompt in (Prompt(text="polyps"), Prompt(boxes=(Box(1, 1, 5, 5),))):
        with pytest.raises(InputError, match="answers to polyp, liver"):
            segmenter.decode(features, prompt)
    assert unet(3)(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)


def row(dataset: str, concept: str, split: str, n: int) -> IndexRow:
    path = Path(f"{dataset}/{split}{n}.png")
    return IndexRow(dataset, path, path, concept, (1,), split, f"{split}{n}", True)  # type: ignore[arg-type]


def test_a_data_set_without_training_images_is_answered_by_the_one_with_most_of_its_concepts() -> None:
    everything = [row("small", "polyp", "train", n) for n in range(2)]
    everything += [row("large", "polyp", "train", n) for n in range(5)] + [row("skin", "melanoma", "train", 0)]
    assert donor_of([row("new", "polyp", "test", 0)], everything) == "large"
    assert donor_of([row("small", "polyp", "test", 0)], everything) == "small"
    with pytest.raises(InputError, match="no data set has training images of liver"):
        donor_of([row("new", "liver", "test", 0)], everything)


def test_training_groups_validate_where_none_is_set_aside() -> None:
    given = [row("a", "polyp", "train", n) for n in range(10)]
    train, val = train_and_val([*given, row("a", "polyp", "test", 0)])
    assert (len(train), len(val)) == (8, 2) and not {r.group for r in train} & {r.group for r in val}
    train, val = train_and_val([*given, row("a", "polyp", "val", 0)])
    assert (len(train), len(val)) == (10, 1)


@pytest.mark.weights
def test_litemedsam_takes_boxes_and_nothing_else() -> None:
    from baselines.litemedsam import load_litemedsam  # noqa: PLC0415

    segmenter = load_litemedsam()
    rgb = np.full((60, 90, 3), 40, dtype=np.uint8)
    rgb[20:40, 30:60] = 220
    features = segmenter.encode(rgb)
    found = segmenter.decode(features, Prompt(boxes=(Box(28, 18, 62, 42),)))
    truth = np.zeros((60, 90), dtype=np.bool_)
    truth[20:40, 30:60] = True
    assert len(found) == 1 and found.presence is None
    assert 2 * (found.union()[0] & truth).sum() / (found.union().sum() + truth.sum()) > 0.85
    with pytest.raises(InputError, match="takes boxes and nothing else"):
        segmenter.decode(features, Prompt(text="polyp"))
