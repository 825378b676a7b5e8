"""Copies are found across splits, mirrored ones too; other pictures of the same kind are not."""

import csv
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from medsam3.cli.main import main
from medsam3.data.duplicates import near_duplicates, perceptual_hash, thumbnail, turned


def scene(seed: int, side: int = 64) -> NDArray[np.float64]:
    """A picture with structure at every size."""
    rng = np.random.default_rng(seed)
    fields = [size * ndimage.gaussian_filter(rng.normal(size=(side, side)), size) for size in (1, 3, 9)]
    total = np.sum(fields, axis=0)
    picture: NDArray[np.float64] = (total - total.min()) / np.ptp(total) * 255
    return picture


def test_a_brighter_copy_in_another_split_is_found_and_a_copy_in_the_same_split_is_none() -> None:
    copy = scene(1) * 0.8 + 30
    pictures = [
        thumbnail("a", "one", "train", scene(1)),
        thumbnail("b", "one", "test", copy),
        thumbnail("c", "one", "train", copy),
        thumbnail("d", "one", "test", scene(2)),
    ]
    found = near_duplicates(pictures)
    assert [(pair.first, pair.second, pair.splits) for pair in found] == [
        ("a", "b", ("train", "test")),
        ("b", "c", ("test", "train")),
    ]
    assert found[0].bits == 0
    assert found[0].correlation == pytest.approx(1.0)


@pytest.mark.parametrize("turn", range(8))
def test_a_mirrored_or_turned_copy_is_found_and_its_turn_is_said(turn: int) -> None:
    pictures = [thumbnail("a", "one", "train", scene(1)), thumbnail("b", "two", "val", turned(scene(1), turn))]
    [pair] = near_duplicates(pictures)
    assert pair.turn == turn
    assert pair.correlation == pytest.approx(1.0)


def test_pictures_of_one_tone_match_nothing() -> None:
    blank = np.full((64, 64), 7.0)
    assert near_duplicates([thumbnail("a", "one", "train", blank), thumbnail("b", "one", "test", blank)]) == []


def test_a_hash_has_63_bits_half_of_them_set() -> None:
    bits = perceptual_hash(scene(3, 32))
    assert bits.shape == (63,)
    assert bits.sum() == 31  # the median itself is not above the median


def test_the_command_lists_what_it_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (tmp_path / "index.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("dataset", "image", "mask", "concept", "label_value", "split", "group", "present"))
        for number, (seed, split) in enumerate(((1, "train"), (1, "test"), (2, "test"))):
            name = f"{number}.png"
            PIL.Image.fromarray(scene(seed, 90).astype(np.uint8)).save(tmp_path / name)
            PIL.Image.fromarray(np.ones((90, 90), np.uint8)).save(tmp_path / f"{number}_mask.png")
            table.writerow(("one", name, f"{number}_mask.png", "polyp", "1", split, f"g{number}", 1))
    assert main(["eval", str(tmp_path), "--duplicates", "--json"]) == 0
    [pair] = json.loads(capsys.readouterr().out)
    assert (pair["first"], pair["second"], pair["splits"]) == ("0.png", "1.png", ["train", "test"])
    assert main(["eval", str(tmp_path), "--duplicates"]) == 0
    assert "1 pairs among 3 pictures" in capsys.readouterr().out
