"""The criterion's terms against values worked out by hand."""

import math

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from medsam3.models.detector import Detection, MaskLogits, PromptTokens
from medsam3.train.losses import (
    LossWeights,
    PromptTarget,
    dice_loss,
    focal,
    mask_losses,
    match_costs,
    pairwise_iou,
    query_losses,
    score_loss,
    weigh,
)


def target(boxes: list[list[float]], side: int = 4) -> PromptTarget:
    masks = torch.zeros(len(boxes), side, side)
    return PromptTarget(torch.tensor(boxes).reshape(-1, 4), masks, torch.zeros(side, side), is_present=bool(boxes))


def detection(boxes: torch.Tensor, logits: torch.Tensor, presence: torch.Tensor) -> Detection:
    layers, batch, queries = logits.shape
    tokens = PromptTokens(torch.zeros(batch, 1, 8), torch.ones(batch, 1, dtype=torch.bool))
    return Detection(logits, boxes, presence, torch.zeros(layers, batch, queries, 8), torch.zeros(batch, 4, 8), tokens)


def test_iou_of_half_overlapping_boxes_is_a_third_and_giou_the_same_as_the_hull_is_full() -> None:
    # x from 0 to .4 and from .2 to .6, both .2 high: overlap .2 x .2, union .6 x .2, hull = union.
    iou, giou = pairwise_iou(torch.tensor([0.2, 0.5, 0.4, 0.2]), torch.tensor([0.4, 0.5, 0.4, 0.2]))
    assert iou.item() == pytest.approx(1 / 3, abs=1e-6)
    assert giou.item() == pytest.approx(1 / 3, abs=1e-6)


def test_giou_of_separate_boxes_is_minus_the_empty_share_of_the_hull() -> None:
    # Unit squares of .2 with a gap of .2: hull .6 x .2 = .12, union .08, so -(.12 - .08) / .12.
    _, giou = pairwise_iou(torch.tensor([0.1, 0.1, 0.2, 0.2]), torch.tensor([0.5, 0.1, 0.2, 0.2]))
    assert giou.item() == pytest.approx(-1 / 3, abs=1e-6)


def test_focal_loss_of_an_undecided_pixel() -> None:
    # p = .5: positive .25 * .25 * ln 2, negative .75 * .25 * ln 2.
    values = focal(torch.zeros(2), torch.tensor([1.0, 0.0]))
    assert values.tolist() == pytest.approx([0.0625 * math.log(2), 0.1875 * math.log(2)])


def test_dice_loss_of_a_sure_and_right_mask_is_zero_and_of_a_miss_nearly_one() -> None:
    truth = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    sure = (truth * 2 - 1) * 50
    assert dice_loss(sure, truth).item() == pytest.approx(0, abs=1e-6)
    # Nothing is found: 1 - (0 + 1) / (0 + 1 + 1).
    assert dice_loss(torch.full((2, 2), -50.0), truth).item() == pytest.approx(0.5)


def test_matching_takes_the_pairs_of_least_total_cost() -> None:
    truth = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.8, 0.8, 0.2, 0.2]])
    boxes = torch.tensor([[0.8, 0.8, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2]])
    queries, objects = linear_sum_assignment(match_costs(torch.zeros(3), boxes, truth, LossWeights()).numpy())
    assert dict(zip(queries.tolist(), objects.tolist(), strict=True)) == {0: 1, 2: 0}


def test_score_loss_pulls_the_matched_query_to_a_soft_target() -> None:
    # p = .5, IoU = 1: target .5 ** .25; the other query weighs p ** 2 = .25 and aims at 0; all over 10.
    first = torch.tensor([0])
    loss = score_loss(
        torch.zeros(1, 1, 2), (first, first, first), torch.tensor([1.0]), torch.tensor([[1]]), LossWeights()
    )
    assert loss.item() == pytest.approx((10 * math.log(2) + 0.25 * math.log(2)) / 10, rel=1e-5)


def test_absent_concepts_add_to_presence_alone() -> None:
    found = detection(torch.rand(2, 1, 3, 4), torch.zeros(2, 1, 3), torch.zeros(2, 1, 1))
    terms, matches = query_losses(found, [target([])], LossWeights())
    assert matches == []
    assert terms["box_l1"] == terms["box_giou"] == terms["score"] == 0
    assert terms["presence"].item() == pytest.approx(math.log(2))


def test_perfect_boxes_cost_nothing_on_any_layer() -> None:
    truth = [[0.3, 0.4, 0.2, 0.1]]
    boxes = torch.tensor(truth).expand(3, 1, 1, 4)
    terms, matches = query_losses(
        detection(boxes, torch.zeros(3, 1, 1), torch.full((3, 1, 1), 9.0)), [target(truth)], LossWeights()
    )
    assert terms["box_l1"].item() == 0
    assert terms["box_giou"].item() == pytest.approx(0, abs=1e-6)
    assert [pair.tolist() for pair in matches[0]] == [[0], [0]]


def test_two_prompts_cost_the_mean_of_one_by_one() -> None:
    generator = torch.Generator().manual_seed(4)
    boxes = torch.rand(2, 2, 3, 4, generator=generator) * 0.4 + 0.2
    logits, presence = torch.randn(2, 2, 3, generator=generator), torch.randn(2, 2, 1, generator=generator)
    targets = [target([[0.3, 0.3, 0.2, 0.2]]), target([[0.5, 0.6, 0.3, 0.1], [0.2, 0.2, 0.1, 0.1]])]
    both, _ = query_losses(detection(boxes, logits, presence), targets, LossWeights())
    single = [
        query_losses(detection(boxes[:, [i]], logits[:, [i]], presence[:, [i]]), [targets[i]], LossWeights())[0]
        for i in range(2)
    ]
    for name, value in both.items():
        assert value.item() == pytest.approx((single[0][name] + single[1][name]).item() / 2, rel=1e-5), name


def test_mask_terms_vanish_for_a_right_and_sure_answer() -> None:
    mask = torch.zeros(1, 4, 4)
    mask[0, 1:3, 1:4] = 1
    truth = PromptTarget(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), mask, mask[0], is_present=True)
    sure = (mask * 2 - 1)[None] * 50
    terms = mask_losses(MaskLogits(sure, sure), [truth], [(torch.tensor([0]), torch.tensor([0]))])
    assert all(value.item() == pytest.approx(0, abs=1e-5) for value in terms.values())
    assert weigh(terms, LossWeights()).item() == pytest.approx(0, abs=1e-3)
