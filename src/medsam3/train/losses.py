"""The criterion of SAM 3: matching of queries to objects, and the terms of boxes, scores, presence and masks.

All terms are plain functions of tensors; `weigh` weighs and sums them. Masks are compared at the finest level of
the detector, for matched queries of the last layer only, so that memory stays small with many objects.

Source: Carion et al., SAM 3, arXiv 2511.16719 (weights in `LossWeights`); Lin et al., Focal Loss, ICCV 2017;
Rezatofighi et al., Generalized IoU, CVPR 2019; Milletari et al., V-Net (Dice loss), 3DV 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

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

    def on(self, device: torch.device) -> PromptTarget:
        """Give the same truth on a device."""
        return PromptTarget(
            self.boxes_cxcywh.to(device), self.masks.to(device), self.semantic.to(device), self.is_present
        )


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
def match_costs(logits: Tensor, boxes: Tensor, truth: Tensor, weights: LossWeights) -> Tensor:
    """Finite costs of giving each object to each query, for the Hungarian algorithm.

    Args:
        logits: (..., Q) scores of the queries.
        boxes: (..., Q, 4) cxcywh.
        truth: (..., n, 4) cxcywh.
        weights: Weights of the costs.

    Returns:
        (..., Q, n) float32.
    """
    probability = logits.sigmoid()
    positive = 0.25 * (1 - probability) ** 2 * -F.logsigmoid(logits)
    negative = 0.75 * probability**2 * -F.logsigmoid(-logits)
    first, second = boxes[..., :, None, :], truth[..., None, :, :]
    _, giou = pairwise_iou(first, second)
    cost = weights.match_score * (positive - negative)[..., None] - weights.box_giou * giou
    cost = cost + weights.box_l1 * (first - second).abs().sum(-1)
    return cost.float().nan_to_num(nan=1e9, posinf=1e9, neginf=-1e9)  # a broken loss is for the loop to report


def score_loss(
    logits: Tensor, matched: tuple[Tensor, Tensor, Tensor], iou: Tensor, counts: Tensor, weights: LossWeights
) -> Tensor:
    """IoU-aware cross entropy of scores: matched queries aim at p^.25 IoU^.75, others at 0.

    Args:
        logits: (layers, P, Q).
        matched: Layer, prompt and query of each match, each (m,).
        iou: (m,) of the matches.
        counts: (1, P) matches of each prompt.
        weights: Of the matched against the others.

    Returns:
        The sum over layers and prompts of each prompt's mean over its matches.
    """
    probability = logits.detach().sigmoid()
    truth, weight = torch.zeros_like(logits), probability**2
    truth[matched] = (probability[matched] ** 0.25 * iou.detach() ** 0.75).clamp(min=0.01)
    weight = weight.index_put(matched, weight.new_tensor(weights.score_positive))
    loss = F.binary_cross_entropy_with_logits(logits, truth, weight=weight, reduction="none").sum(-1)
    return (loss / counts).sum() / weights.score_positive


def query_losses(
    detection: Detection, targets: Sequence[PromptTarget], weights: LossWeights
) -> tuple[dict[str, Tensor], list[tuple[Tensor, Tensor]]]:
    """Box, score and presence terms over all decoder layers, and the last layer's matches a prompt, on the CPU.

    All prompts and layers are computed at once, and their costs go to the CPU together: a GPU waits for it once.
    """
    layers, batch = detection.logits.shape[:2]
    device = detection.logits.device
    present = [item for item in range(batch) if targets[item].is_present and len(targets[item].boxes_cxcywh)]
    is_present = torch.tensor([float(target.is_present) for target in targets]).to(device)
    presence = detection.presence[..., 0].float()  # (layers, B)
    presence_loss = F.binary_cross_entropy_with_logits(presence, is_present.expand_as(presence))
    if not present:
        zero = detection.logits.new_zeros(())
        return {"box_l1": zero, "box_giou": zero, "score": zero, "presence": presence_loss}, []
    items = torch.tensor(present).to(device)
    logits, boxes = detection.logits[:, items].float(), detection.boxes_cxcywh[:, items].float()
    counts = [len(targets[item].boxes_cxcywh) for item in present]
    truth = pad_sequence([targets[item].boxes_cxcywh for item in present], batch_first=True)  # (P, n, 4)
    costs = match_costs(logits, boxes, truth, weights).cpu().numpy()
    pairs = [
        [linear_sum_assignment(costs[layer, place, :, :count]) for place, count in enumerate(counts)]
        for layer in range(layers)
    ]
    rows = [
        np.stack([np.full(len(queries), layer), np.full(len(queries), place), queries, objects])
        for layer, own in enumerate(pairs)
        for place, (queries, objects) in enumerate(own)
    ]
    layer, place, query, object_ = torch.from_numpy(np.concatenate(rows, axis=1)).to(device)
    matched = torch.tensor([[min(count, logits.shape[-1]) for count in counts]]).to(device)  # (1, P)
    share = 1.0 / matched[0, place]
    found, wanted = boxes[layer, place, query], truth[place, object_]
    iou, giou = pairwise_iou(found, wanted)
    terms = {
        "box_l1": ((found - wanted).abs().sum(-1) * share).sum(),
        "box_giou": ((1 - giou) * share).sum(),
        "score": score_loss(logits, (layer, place, query), iou, matched, weights),
    }
    terms = {name: value / (len(present) * layers) for name, value in terms.items()}
    last = [(torch.from_numpy(queries), torch.from_numpy(objects)) for queries, objects in pairs[-1]]
    return {**terms, "presence": presence_loss}, last


def mask_losses(
    masks: MaskLogits, targets: Sequence[PromptTarget], matches: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Mask terms of prompts, at least one, whose concept is present: one entry of each argument a prompt."""
    count = len(targets)
    device = masks.semantic.device
    firsts = np.cumsum([0, *(len(target.masks) for target in targets)])
    rows = torch.cat(
        [
            torch.stack([torch.full_like(queries, item), queries, objects + int(firsts[item])])
            for item, (queries, objects) in enumerate(matches)
        ],
        dim=1,
    )
    shares = torch.cat([torch.full((len(queries),), 1.0 / max(1, len(queries))) for queries, _ in matches]) / count
    item, query, object_ = rows.to(device)
    shares = shares.to(device)
    predicted = masks.instances[item, query].float()
    truth = torch.cat([target.masks for target in targets])[object_]
    semantic, whole = masks.semantic[:, 0].float(), torch.stack([target.semantic for target in targets])
    return {
        "mask_focal": (focal(predicted, truth).mean((-2, -1)) * shares).sum(),
        "mask_dice": (dice_loss(predicted, truth) * shares).sum(),
        "semantic_focal": focal(semantic, whole, alpha=0.5).mean(),
        "semantic_dice": dice_loss(semantic, whole).mean(),
    }


def weigh(terms: dict[str, Tensor], weights: LossWeights) -> Tensor:
    """The weighted sum of all terms, a scalar."""
    total: Tensor = torch.stack([getattr(weights, name) * value for name, value in terms.items()]).sum()
    return total
