"""Thresholds and shares chosen on answers whose best choice is known."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from medsam3.train.calibrate import Answer, Logits, auroc, calibrate, correlation, dice_by_concept

SHAPE = (8, 10)


def truth(columns: int = 4) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, np.bool_)
    mask[2:6, 1 : 1 + columns] = True
    return mask


def logits(mask: NDArray[np.bool_], inside: float = 3.0, outside: float = -3.0) -> Logits:
    return np.where(mask, inside, outside).astype(np.float32)


def answer(**changes: object) -> Answer:
    right = logits(truth())
    parts: dict[str, object] = {
        "dataset": "one",
        "concept": "polyp",
        "is_present": True,
        "presence": 0.9,
        "truth": truth(),
        "text": right,
        "refined": right,
        "boxed_text": right,
        "box": right,
    }
    return Answer(**(parts | changes))  # type: ignore[arg-type]


def test_dice_is_a_mean_over_the_present_cases_of_each_concept() -> None:
    half = answer(text=logits(truth(2)))  # 8 of 16 pixels: 2 * 8 / (8 + 16)
    absent = answer(is_present=False, truth=np.zeros(SHAPE, np.bool_))
    found = dice_by_concept([answer(), half, absent], lambda one: one.text, 0.5)
    assert found == {"one/polyp": pytest.approx((1 + 2 / 3) / 2)}


def test_the_mask_threshold_is_lowered_where_the_logits_are_too_timid() -> None:
    timid = math.log(0.38 / 0.62)  # right pixels at probability .38
    maps = logits(truth(), inside=timid)
    chosen = calibrate([answer(text=maps, refined=maps, boxed_text=maps, box=maps)])
    assert chosen.thresholds.mask in (0.3, 0.35)
    assert chosen.dice_text == {"one/polyp": 1.0}


def test_a_better_box_decoder_gets_a_share_and_a_worse_one_gets_none() -> None:
    over = logits(truth(5), inside=1.0)  # 20 pixels for 16, overlap .8
    better = answer(text=over, refined=logits(truth(), inside=3.0))
    assert calibrate([better]).thresholds.refine_share > 0.25  # 1 - share falls below 3 share in the fifth column
    elsewhere = ~truth()
    worse = calibrate([answer(refined=logits(elsewhere, inside=9.0, outside=-9.0))])
    assert worse.dice_text == {"one/polyp": 1.0}


def test_the_presence_threshold_parts_present_from_absent() -> None:
    cases = [answer(presence=p) for p in (0.7, 0.8, 0.95)]
    cases += [answer(presence=p, is_present=False, truth=np.zeros(SHAPE, np.bool_)) for p in (0.1, 0.6)]
    chosen = calibrate(cases)
    assert chosen.thresholds.presence == 0.7
    assert chosen.presence_auroc == 1.0


def test_auroc_counts_ties_as_half() -> None:
    scores = np.array([0.9, 0.5, 0.5, 0.1])
    present = np.array([True, True, False, False])
    assert auroc(scores, present) == (1 + 1 + 0.5 + 1) / 4
    assert math.isnan(auroc(scores, np.ones(4, np.bool_)))


def test_correlation_is_that_of_matthews() -> None:
    said = np.array([True, True, True, False, False, False])
    present = np.array([True, True, False, True, False, False])
    # TP 2, FP 1, FN 1, TN 2: (4 - 1) / sqrt(3 * 3 * 3 * 3)
    assert correlation(said, present) == pytest.approx(3 / 9)
    assert correlation(np.ones(6, np.bool_), present) == 0.0
