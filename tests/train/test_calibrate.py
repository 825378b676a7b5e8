"""Thresholds and shares chosen on answers whose best choice is known."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from medsam3.models.mini.card import MiniThresholds, PresenceLimits
from medsam3.train.calibrate import Answer, Logits, calibrate, dice_by_concept, presence_limits

SHAPE = (8, 10)
NOWHERE = np.full(SHAPE, np.nan, dtype=np.float32)


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
        "closer_presence": None,
        "truth": truth(),
        "text": right,
        "refined": right,
        "closer": NOWHERE,
        "boxed_text": right,
        "boxed_closer": NOWHERE,
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


def test_a_box_decoder_that_gains_next_to_nothing_is_not_heard_on_a_phrase() -> None:
    over = logits(truth(5), inside=1.0)  # 20 pixels where 16 are right: Dice 32 / 36
    helped = answer(text=over, refined=logits(truth(), inside=3.0))  # with a share: 1
    assert calibrate([helped] + [answer()] * 29).thresholds.refine_share == 0  # gains 4 / 36 / 30 = .0037
    assert calibrate([helped] + [answer()] * 9).thresholds.refine_share > 0.25  # gains .0111


def test_a_better_box_decoder_gets_a_share_and_a_worse_one_gets_none() -> None:
    over = logits(truth(5), inside=1.0)  # 20 pixels for 16, overlap .8
    better = answer(text=over, refined=logits(truth(), inside=3.0))
    assert calibrate([better]).thresholds.refine_share > 0.25  # 1 - share falls below 3 share in the fifth column
    elsewhere = ~truth()
    worse = calibrate([answer(refined=logits(elsewhere, inside=9.0, outside=-9.0))])
    assert worse.dice_text == {"one/polyp": 1.0}


def test_a_better_closer_look_gets_a_share_and_a_worse_one_gets_none() -> None:
    over = logits(truth(5), inside=1.0)
    right = logits(truth(), inside=3.0)
    right[:, 8:] = np.nan  # outside its window
    better = answer(text=over, refined=over, closer=right)
    assert calibrate([better]).thresholds.closer_share > 0.25
    assert calibrate([better]).dice_text == {"one/polyp": 1.0}
    worse = calibrate([answer(closer=logits(~truth()))])
    assert worse.thresholds.closer_share < 0.5
    assert worse.dice_text == {"one/polyp": 1.0}


def test_a_closer_look_that_tells_better_what_is_there_is_heard() -> None:
    cases = [answer(presence=p, closer_presence=0.9) for p in (0.3, 0.5)]
    nothing = np.zeros(SHAPE, np.bool_)
    cases += [answer(presence=p, closer_presence=0.1, is_present=False, truth=nothing) for p in (0.4, 0.6)]
    cases += [answer(presence=0.95), *[answer(presence=0.01, is_present=False, truth=nothing)] * 8]
    chosen = calibrate(cases)
    assert chosen.thresholds.closer_presence >= 0.3
    assert chosen.presence_auroc == 1.0


def test_a_concept_of_many_images_weighs_more_than_one_of_a_single_image() -> None:
    over = logits(truth(5), inside=1.0)  # the box decoder is right where the text is not, and the other way round
    helped = answer(concept="rare", text=over, refined=logits(truth(), inside=3.0))
    harmed = answer(refined=over, text=logits(truth(), inside=0.1, outside=-0.1))
    assert calibrate([helped] + [harmed] * 30).thresholds.refine_share == 0
    assert calibrate([helped] * 30 + [harmed]).thresholds.refine_share > 0.25


def test_few_images_do_not_move_what_the_weights_started_with() -> None:
    over = logits(truth(5), inside=1.0)
    better = answer(text=over, refined=logits(truth(), inside=3.0))  # the box decoder would get a share, see above
    prior = MiniThresholds(mask=0.45, box_share=0.3, closer_share=0.5)
    few = calibrate([better] * 19, prior)
    assert few.thresholds == prior
    assert few.dice_text == {"one/polyp": pytest.approx(32 / 36)}
    assert calibrate([better] * 20, prior).thresholds.refine_share > 0.25


def present_at(*probabilities: float) -> list[Answer]:
    return [answer(presence=p) for p in probabilities]


def absent_at(*probabilities: float, concept: str = "polyp") -> list[Answer]:
    nothing = np.zeros(SHAPE, np.bool_)
    return [answer(presence=p, concept=concept, is_present=False, truth=nothing) for p in probabilities]


def test_what_lies_between_most_that_is_present_and_most_that_is_absent_is_not_sure() -> None:
    chosen = calibrate([*present_at(0.3234, 0.8, 0.95), *absent_at(*[0.1] * 8, 0.6, 0.9)])
    assert (chosen.thresholds.presence, chosen.thresholds.presence_sure) == (
        0.323,
        0.901,
    )  # of ten absent, none is sure
    assert chosen.presence_auroc == pytest.approx((8 + 9 + 10) / 30)  # .3234 is above eight, .8 above nine of ten
    assert chosen.presence_kept == ""


def test_the_limits_of_presence_move_only_as_far_as_they_must() -> None:
    def chosen(present: float, absent: float, prior: float) -> tuple[float, float | None]:
        found = calibrate([*present_at(*[present] * 9), *absent_at(*[absent] * 10)], MiniThresholds(presence=prior))
        return found.thresholds.presence, found.thresholds.presence_sure

    assert chosen(0.9995, 0.01, prior=0.5) == (0.5, 0.5)  # told apart: .999 would miss what is less clear elsewhere
    assert chosen(0.9995, 0.6, prior=0.5) == (0.5, 0.601)
    assert chosen(0.4, 0.01, prior=0.5) == (0.4, 0.4)


def test_kinds_of_a_lesion_have_limits_of_their_own() -> None:
    kinds = [
        *(answer(concept="melanoma", presence=p) for p in (0.1004, 0.4, 0.9)),
        *absent_at(*[0.05] * 9, 0.7, concept="melanoma"),
    ]
    tumors = [*present_at(*[0.9] * 5), *absent_at(*[0.2] * 10)]
    found = calibrate([*tumors, *kinds]).thresholds
    assert (found.presence, found.presence_sure) == (0.5, 0.5)
    assert (found.kind_presence, found.kind_sure) == (0.1, 0.701)
    alone = calibrate([*tumors, *kinds[:5]]).thresholds  # two negatives say nothing of kinds
    assert alone.of_kinds is None


@pytest.mark.parametrize("negatives", [0, 9])
def test_without_enough_negatives_what_is_known_of_presence_stays(negatives: int) -> None:
    prior = MiniThresholds(presence=0.42, closer_presence=0.3)
    seen = [*present_at(0.9991, 0.9995, 0.9999), *absent_at(*[0.1] * negatives)]
    found = calibrate(seen, prior)
    assert (found.thresholds.presence, found.thresholds.closer_presence) == (0.42, 0.3)
    assert found.presence_auroc is None
    assert f"stays at 0.42, and no AUROC is given: in the val images {negatives} answers" in found.presence_kept
    assert calibrate(seen).thresholds.presence == 0.5  # no weights to start from
    assert calibrate([*seen, *absent_at(0.1)]).presence_auroc == (1.0 if negatives == 9 else None)


def test_a_concept_that_is_never_present_gives_no_negatives() -> None:
    found = calibrate([*present_at(0.999), *absent_at(*[0.1] * 30, concept="teapot")])
    assert found.thresholds.presence == 0.5 and found.presence_auroc is None
    assert calibrate(absent_at(*[0.1] * 30)).thresholds.presence == 0.5


def test_one_of_twenty_present_concepts_may_be_missed() -> None:
    present = present_at(0.1, 0.4, *np.linspace(0.7, 0.9, 19))  # the 5 % quantile of 21 values is the second
    assert presence_limits([*present, *absent_at(0.39)], 0.0, PresenceLimits(0.5, 0.5)) == PresenceLimits(0.4, 0.4)
