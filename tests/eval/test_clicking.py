"""Masks corrected by a simulated person: what is meant, how Dice rises, what the tables and files say of it."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from colour_data import ColourSegmenter, polyp_folder

from medsam3.cli.main import run
from medsam3.eval.cases import EvalConfig, EvalQuestion, Truth
from medsam3.eval.clicking import COUNTED_CLICKS, MOST_CLICKS, clicked, meant
from medsam3.eval.results import read_results
from medsam3.eval.summary import clicks_to
from medsam3.geometry import BoolArray
from medsam3.image import Image, Masks, ObjectMask
from medsam3.models import registry
from medsam3.models.refiner import Hints
from medsam3.segmentation.session import Session


def truth(*blocks: tuple[slice, slice], shape: tuple[int, int] = (20, 30)) -> Truth:
    objects = np.zeros(shape, dtype=np.int32)
    for number, block in enumerate(blocks, start=1):
        objects[block] = number
    return Truth(objects > 0, objects, are_instances=True)


LEFT = (slice(4, 12), slice(3, 9))
OTHERS = tuple((slice(14, 17), slice(5 * k, 5 * k + 3)) for k in range(4))


class WholeOnSecondClick(ColourSegmenter):
    """Answers the first click by half of the goal, and any further one by all of it."""

    def __init__(self, goal: BoolArray) -> None:
        super().__init__()
        self.goal = goal

    def refine(self, features: np.ndarray, hints: Hints) -> Masks:
        mask = self.goal.copy()
        if len(hints.clicks) == 1:
            mask[:, 6:] = False
        item = ObjectMask.from_dense(mask[None], 0.9)
        return Masks((1, *mask.shape), () if item is None else (item,))


def session(model: ColourSegmenter, n: int = 1) -> Session:
    pixels = np.zeros((n, 20, 30, 3), dtype=np.uint8)
    return Session(Image(pixels, kind="volume") if n > 1 else Image(pixels), model)


def test_one_of_many_objects_is_meant_and_all_of_a_few() -> None:
    few, many = truth(LEFT, *OTHERS[:2]), truth(LEFT, *OTHERS)
    assert meant(few) is few
    one = meant(many)
    assert one.mask.sum() == 8 * 6 and one.mask[LEFT].all()
    assert set(np.unique(one.objects)) == {0, 1}


def test_dice_is_told_before_the_first_click_and_after_each() -> None:
    goal = truth(LEFT)
    found = clicked(session(WholeOnSecondClick(goal.mask)), EvalQuestion("C", ""), goal)
    assert found.dices[0] == 0
    assert found.dices[1] == pytest.approx(2 * 24 / (24 + 48))  # columns 3 to 5 of 3 to 8
    assert found.dices[2:] == (1.0,) * (COUNTED_CLICKS - 1)  # then it is right, and no click is left
    assert found.followed == ()


def test_a_person_gives_up_at_last() -> None:
    goal = truth(LEFT)
    wrong = WholeOnSecondClick(goal.mask)
    wrong.goal = np.zeros_like(goal.mask)
    found = clicked(session(wrong), EvalQuestion("C", ""), goal)
    assert len(found.dices) == MOST_CLICKS + 1
    assert max(found.dices) < 0.9  # twenty single pixels of 48


def test_clicks_are_counted_until_a_goal_and_twenty_where_it_is_missed() -> None:
    assert clicks_to((0.0, 0.84, 0.85, 0.8), 0.85) == 2
    assert clicks_to((0.9, 0.84), 0.85) == 0
    assert clicks_to((0.0, 0.2), 0.85) == MOST_CLICKS


def test_the_command_writes_clicks_from_nothing_and_on_the_phrases_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry.LOADERS, "colour", lambda weights, device: ColourSegmenter())
    data, out = polyp_folder(tmp_path / "data").path, tmp_path / "out"
    assert run(["eval", str(data), "--model", "colour", "--modes", "T,clicks", "--out", str(out)]) == 0
    assert "Clicks" in capsys.readouterr().out
    entry = json.loads((out / "results.json").read_text())
    cases = {(case["image"], case["mode"]): case for case in entry["cases"] if case["concept"] == "polyp"}
    modes = {mode for _, mode in cases}
    assert modes == {"T", "C", "TC"}
    for (image, mode), case in cases.items():
        assert bool(case["by_click"]) == (mode in ("C", "TC"))
        if mode == "TC":  # it begins with what the phrase gave
            assert case["by_click"][0] == pytest.approx(cases[image, "T"]["dice"])
        if mode == "C":
            assert case["by_click"][0] == 0
    with (out / "clicks.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["mode"] for row in rows} == {"C", "TC"}
    assert float(rows[0]["one_value"]) == pytest.approx(entry["summary"]["clicks"][0]["curve"][1], abs=1e-5)
    again = read_results(out / "results.json")
    assert [row.curve for row in again.summary.clicks] == [
        pytest.approx(tuple(row["curve"]), abs=1e-5) for row in entry["summary"]["clicks"]
    ]
    assert replace(again.config, modes=("T",)) == EvalConfig()


def test_clicks_on_one_slice_are_followed_through_a_volume() -> None:
    mask = np.zeros((3, 20, 30), dtype=np.bool_)
    mask[:, LEFT[0], LEFT[1]] = True
    volume = Truth(mask, mask.astype(np.int32), are_instances=False)
    found = clicked(session(WholeOnSecondClick(mask[0]), n=3), EvalQuestion("C", ""), volume)
    assert found.dices == () and len(found.followed) == 2
    assert found.followed[0] == pytest.approx(1.0)
    assert found.followed[1] == pytest.approx(1.0)
