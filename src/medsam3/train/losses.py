"""The criterion of SAM 3: matching of queries to objects, and the terms of boxes, scores, presence and masks.

All terms are plain functions of tensors; `criterion` weighs and sums them. Masks are compared at the finest level of
the detector, for matched queries of the last layer only, so that memory stays small with many objects.

Source: Carion et al., SAM 3, arXiv 2511.16719 (weights in `LossWeights`); Lin et al., Focal Loss, ICCV 2017;
Rezatofighi et al., Generalized IoU, CVPR 2019; Milletari et al., V-Net (Dice loss), 3DV 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from medsam3.models.detector import Detection, MaskLogits


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms, and of the matching costs."""

    box_l1: float = 5.0
    box_giou: float = 2.0
    score: float = 20.0
    score_positive: float = 10.0
    presence: float = 10.0
    mask_focal: float = 200.0
    mask_dice: float = 10.0
    semantic_focal: float = 20.0
    semantic_dice: float = 30.0
    match_score: float = 2.0


@dataclass(frozen=True)
class PromptTarget:
    """Truth of one prompt.

    Attributes:
        boxes_cxcywh: (n, 4) in 0..1; n = 0 for a concept that is absent.
        masks: (n, h, w) float 0 or 1 at the finest level's size.
        semantic: (h, w) float 0 or 1: all of the concept, objects left out of `masks` included.
        is_present: The concept is in the image.
    """

    boxes_cxcywh: Tensor
    masks: Tensor
    semantic: Tensor
    is_present: bool


def xyxy(boxes: Tensor) -> Tensor:
    """Corners (..., 4) of boxes cxcywh (..., 4)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def pairwise_iou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of boxes cxcywh that broadcast against each other: (...), (...)."""
    a, b = xyxy(first), xyxy(second)
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = first[..., 2:].prod(-1) + second[..., 2:].prod(-1) - overlap
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    iou = overlap / union.clamp(min=1e-7)
    return iou, iou - (hull - union) / hull.clamp(min=1e-7)


def focal(logits: Tensor, truth: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of each element, same shape as `logits`."""
    probability = logits.sigmoid()
    right = probability * truth + (1 - probability) * (1 - truth)
    balance = alpha * truth + (1 - alpha) * (1 - truth)
    return balance * (1 - right) ** gamma * F.binary_cross_entropy_with_logits(logits, truth, reduction="none")


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """1 - soft Dice over the last two axes, with one pixel added to both sides."""
    probability = logits.sigmoid()
    overlap = 2 * (probability * truth).sum((-2, -1)) + 1
    return 1 - overlap / (probability.sum((-2, -1)) + truth.sum((-2, -1)) + 1)


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, truth: Tensor, weights: LossWeights) -> tuple[Tensor, Tensor]:
    """Assign each object to one query at the least cost (Hungarian algorithm).

    Args:
        logits: (Q,) scores of the queries.
        boxes: (Q, 4) cxcywh.
        truth: (n, 4) cxcywh, n at most Q.
        weights: Weights of the costs.

    Returns:
        Queries (n,) and objects (n,), both int64.
    """
    probability = logits.sigmoid()
    positive = 0.25 * (1 - probability) ** 2 * -F.logsigmoid(logits)
    negative = 0.75 * probability**2 * -F.logsigmoid(-logits)
    _, giou = pairwise_iou(boxes[:, None], truth[None])
    cost = weights.match_score * (positive - negative)[:, None] - weights.box_giou * giou
    cost = cost + weights.box_l1 * torch.cdist(boxes, truth, p=1)  # (Q, n)
    finite = cost.float().nan_to_num(nan=1e9, posinf=1e9, neginf=-1e9)  # a broken loss is for the loop to report
    queries, objects = linear_sum_assignment(finite.cpu().numpy())
    return torch.as_tensor(queries, device=boxes.device), torch.as_tensor(objects, device=boxes.device)


def score_loss(logits: Tensor, queries: Tensor, iou: Tensor, weights: LossWeights) -> Tensor:
    """IoU-aware cross entropy of one prompt's scores (Q,): matched queries aim at p^.25 IoU^.75, others at 0."""
    probability = logits.detach().sigmoid()
    truth = torch.zeros_like(logits)
    truth[queries] = (probability[queries] ** 0.25 * iou.detach() ** 0.75).clamp(min=0.01)
    weight = probability**2
    weight[queries] = weights.score_positive
    loss = F.binary_cross_entropy_with_logits(logits, truth, weight=weight, reduction="sum")
    return loss / max(1, len(queries)) / weights.score_positive


def query_losses(
    detection: Detection, targets: Sequence[PromptTarget], weights: LossWeights
) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """Box, score and presence terms over all decoder layers, and the last layer's matches a prompt."""
    layers, batch = detection.logits.shape[:2]
    zero = detection.logits.new_zeros(())
    sums = {"box_l1": zero, "box_giou": zero, "score": zero}
    matches: list[tuple[Tensor, Tensor]] = []
    present = [item for item in range(batch) if targets[item].is_present and len(targets[item].boxes_cxcywh)]
    for layer in range(layers):
        for item in present:
            logits, boxes = detection.logits[layer, item].float(), detection.boxes_cxcywh[layer, item].float()
            truth = targets[item].boxes_cxcywh
            queries, objects = match(logits, boxes, truth, weights)
            iou, giou = pairwise_iou(boxes[queries], truth[objects])
            sums["box_l1"] = sums["box_l1"] + F.l1_loss(boxes[queries], truth[objects], reduction="sum") / len(queries)
            sums["box_giou"] = sums["box_giou"] + (1 - giou).mean()
            sums["score"] = sums["score"] + score_loss(logits, queries, iou, weights)
            if layer == layers - 1:
                matches.append((queries, objects))
    terms = {name: value / max(1, len(present) * layers) for name, value in sums.items()}
    is_present = torch.tensor([float(target.is_present) for target in targets], device=zero.device)
    presence = detection.presence[..., 0].float()  # (layers, B)
    terms["presence"] = F.binary_cross_entropy_with_logits(presence, is_present.expand_as(presence))
    return terms, matches


def mask_losses(
    masks: MaskLogits, targets: Sequence[PromptTarget], matches: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Mask terms of prompts whose concept is present: one entry of each argument a prompt."""
    zero = masks.semantic.new_zeros((), dtype=torch.float32)
    sums = {"mask_focal": zero, "mask_dice": zero, "semantic_focal": zero, "semantic_dice": zero}
    for item, (target, (queries, objects)) in enumerate(zip(targets, matches, strict=True)):
        predicted, truth = masks.instances[item, queries].float(), target.masks[objects]
        sums["mask_focal"] = sums["mask_focal"] + focal(predicted, truth).mean()
        sums["mask_dice"] = sums["mask_dice"] + dice_loss(predicted, truth).mean()
        semantic = masks.semantic[item, 0].float()
        sums["semantic_focal"] = sums["semantic_focal"] + focal(semantic, target.semantic, alpha=0.5).mean()
        sums["semantic_dice"] = sums["semantic_dice"] + dice_loss(semantic, target.semantic)
    return {name: value / max(1, len(targets)) for name, value in sums.items()}


def weigh(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """The weighted sum of all terms, a scalar."""
    total: Tensor = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
    return total
