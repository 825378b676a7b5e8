"""From SAM 3's raw numbers to objects, and from prompts to its numbers: pure functions, no network.

Frames are stretched to a square as Meta's code does it, so that 0..1 of the square is 0..1 of the frame. Masks come
back at the frame's size one at a time, as bool, so that two hundred of them never exist as floats at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PilImage
from torch import Tensor
from torch.nn import functional as F

from medsam3.geometry import BoolArray, FloatArray, box_iou, normalised_cxcywh_from_xyxy
from medsam3.image import ObjectMask
from medsam3.models.detector import ExemplarBoxes, PromptTokens
from medsam3.models.segmenter import RGB
from medsam3.prompts import Box, Point

_BOX_CORNER_LABELS = (2, 3)


def stretched(rgb: RGB, size: int) -> RGB:
    """The frame (H, W, 3) as (size, size, 3), bilinear with antialiasing."""
    height, width = rgb.shape[:2]
    if (height, width) == (size, size):
        return rgb
    picture = PilImage.fromarray(np.ascontiguousarray(rgb))
    return np.asarray(picture.resize((size, size), PilImage.Resampling.BILINEAR))


def exemplar_boxes(boxes: Sequence[Sequence[Box]], shape: tuple[int, int]) -> ExemplarBoxes:
    """Boxes of B prompts on a frame (H, W), cut at its border and padded to one length.

    With no box at all there is one padding slot, since the geometry encoder's CLS token is always on.
    """
    longest = max(1, *(len(own) for own in boxes))
    cxcywh = torch.full((len(boxes), longest, 4), 0.5)
    is_positive = torch.zeros(len(boxes), longest, dtype=torch.bool)
    is_used = torch.zeros(len(boxes), longest, dtype=torch.bool)
    height, width = shape
    corner = np.array([width, height, width, height]) - 0.5
    for item, own in enumerate(boxes):
        for slot, box in enumerate(own):
            inside = np.clip(np.array(box.xyxy), -0.5, corner)
            cxcywh[item, slot] = torch.from_numpy(normalised_cxcywh_from_xyxy(inside, height, width)).float()
            is_positive[item, slot] = box.is_positive
            is_used[item, slot] = True
    return ExemplarBoxes(cxcywh, is_positive, is_used, is_empty=not any(boxes))


def padded(tokens: Sequence[PromptTokens]) -> PromptTokens:
    """Text tokens of B phrases, each (1, L, D) of its own length, as one batch."""
    longest = max(one.features.shape[1] for one in tokens)
    features = [F.pad(one.features, (0, 0, 0, longest - one.features.shape[1])) for one in tokens]
    masks = [F.pad(one.mask, (0, longest - one.mask.shape[1])) for one in tokens]
    return PromptTokens(torch.cat(features), torch.cat(masks))


def click_points(boxes: Sequence[Box], clicks: Sequence[Point]) -> tuple[FloatArray, NDArray[np.int64]]:
    """Points (K, P, 2) x and y in frame pixels with their labels (K, P): 1 on, 0 off, 2 and 3 a box's corners.

    All clicks, with the one box if there is one, are one object; boxes alone are an object each.
    """
    corners = [[(box.x0, box.y0), (box.x1, box.y1)] for box in boxes]
    if not clicks:
        labels = np.tile(np.array(_BOX_CORNER_LABELS, dtype=np.int64), (len(corners), 1))
        return np.array(corners, dtype=np.float64), labels
    places = [(point.x, point.y) for point in clicks]
    own_labels = [int(point.is_positive) for point in clicks]
    if corners:
        places, own_labels = [*corners[0], *places], [*_BOX_CORNER_LABELS, *own_labels]
    return np.array([places], dtype=np.float64), np.array([own_labels], dtype=np.int64)


def best_for_boxes(scores: FloatArray, boxes: FloatArray, asked: Sequence[Box]) -> list[int]:
    """For each asked box the candidate with the highest score x IoU, each candidate once; none that touches none.

    Args:
        scores: (Q,) of the candidates.
        boxes: (Q, 4) xyxy of the candidates.
        asked: The boxes of the prompt.
    """
    fit = box_iou([box.xyxy for box in asked], boxes) * scores  # (asked, Q)
    chosen = [int(row.argmax()) for row in fit if row.max() > 0]
    return list(dict.fromkeys(chosen))


def unlike(iou: FloatArray, limit: float) -> list[int]:
    """Indices of (K, K) candidates, best first, that overlap no better kept one by more than `limit`."""
    kept: list[int] = []
    for candidate in range(len(iou)):
        if not any(iou[candidate, better] > limit for better in kept):
            kept.append(candidate)
    return kept


def mask_iou(masks: Tensor) -> FloatArray:
    """IoU of every pair of masks (K, h, w) bool, (K, K) in [0, 1]; 0 where both are empty."""
    flat = masks.flatten(1).float()
    overlap = flat @ flat.T
    areas = flat.sum(dim=1)
    union = areas[:, None] + areas[None] - overlap
    result: FloatArray = (overlap / union.clamp(min=1)).cpu().numpy().astype(np.float64)
    return result


def upsampled(logits: Tensor, scores: Sequence[float], shape: tuple[int, int]) -> list[ObjectMask]:
    """Mask logits (K, h, w) as objects at the frame's size (H, W); empty ones are left out."""
    found = []
    for one, score in zip(logits, scores, strict=True):
        if not bool((one > 0).any()):  # bilinear sampling makes nothing positive out of negatives
            continue
        dense: BoolArray = F.interpolate(one[None, None], size=shape, mode="bilinear")[0].gt(0).cpu().numpy()
        mask = ObjectMask.from_dense(dense, score)
        if mask is not None:
            found.append(mask)
    return found
