"""SAM 3's detector as one forward pass over transformers' parts, for the small and the full-size model alike.

It differs from transformers' own `Sam3Model.forward` in what training and parity need: outputs of all decoder layers,
presence included, and the geometry encoder's CLS token always on, as in the original. It knows no image encoder and
no text encoder: it starts from feature maps and text tokens.

Source: Carion et al., SAM 3: Segment Anything with Concepts, arXiv 2511.16719.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.models.sam3.modeling_sam3 import inverse_sigmoid

from medsam3.models.roi_align import use_plain_roi_align


class DetectorParts(Protocol):
    """The five modules of a detector, under transformers' names."""

    geometry_encoder: Any
    detr_encoder: Any
    detr_decoder: Any
    mask_decoder: Any
    dot_product_scoring: Any


@dataclass(frozen=True)
class VisionLevels:
    """Feature maps (B, D, H_i, W_i) from fine to coarse, and the sine position code of the coarsest."""

    maps: tuple[Tensor, ...]
    position: Tensor  # (1 or B, D, H, W) of the last level

    @property
    def coarsest(self) -> VisionLevels:
        """The last map alone, which is all that `detect` reads."""
        return VisionLevels(self.maps[-1:], self.position)

    def select(self, items: Tensor) -> VisionLevels:
        """The batch items at `items` (n,) int64, repeated where an index repeats."""
        maps = tuple(level.index_select(0, items) for level in self.maps)
        position = self.position if self.position.shape[0] == 1 else self.position.index_select(0, items)
        return VisionLevels(maps, position)


@dataclass(frozen=True)
class ExemplarBoxes:
    """Boxes of a batch, padded to one length.

    Attributes:
        cxcywh: (B, n, 4) in 0..1 of the model's input.
        is_positive: (B, n) bool.
        is_used: (B, n) bool; False marks padding.
    """

    cxcywh: Tensor
    is_positive: Tensor
    is_used: Tensor

    @classmethod
    def none(cls, batch: int, device: torch.device) -> ExemplarBoxes:
        """No box: one padding slot an item, so that the CLS token of the geometry encoder stays."""
        slot = torch.zeros(batch, 1, dtype=torch.bool, device=device)
        return cls(torch.full((batch, 1, 4), 0.5, device=device), slot, slot)

    def mirrored(self) -> ExemplarBoxes:
        """The same boxes of the picture with left and right exchanged."""
        centres = torch.cat((1 - self.cxcywh[..., :1], self.cxcywh[..., 1:]), dim=-1)
        return ExemplarBoxes(centres, self.is_positive, self.is_used)


@dataclass(frozen=True)
class PromptTokens:
    """Text and geometry tokens together: (B, L, D), and (B, L) bool, True where a token is real."""

    features: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Detection:
    """Raw outputs of the decoder. The first axis is the decoder layer; the last layer is the prediction."""

    logits: Tensor  # (layers, B, Q), not multiplied by presence
    boxes_cxcywh: Tensor  # (layers, B, Q, 4) in 0..1
    presence: Tensor  # (layers, B, 1) logits
    queries: Tensor  # (layers, B, Q, D)
    fused: Tensor  # (B, H*W, D), the prompt-conditioned coarsest level
    prompt: PromptTokens


@dataclass(frozen=True)
class MaskLogits:
    """Mask logits at the finest level's size."""

    instances: Tensor  # (B, Q, h, w)
    semantic: Tensor  # (B, 1, h, w)


def encode_geometry(parts: DetectorParts, levels: VisionLevels, exemplars: ExemplarBoxes) -> PromptTokens:
    """Tokens of the exemplar boxes and the CLS token, (B, n + 1, D)."""
    use_plain_roi_align()  # here, so that a model out of a pickle has it too
    encoded = parts.geometry_encoder(
        box_embeddings=exemplars.cxcywh.to(levels.maps[-1].dtype),
        box_mask=exemplars.is_used,
        box_labels=exemplars.is_positive.long(),
        img_feats=levels.maps,
        img_pos_embeds=(levels.position.expand_as(levels.maps[-1]),),
    )
    return PromptTokens(encoded.last_hidden_state, encoded.attention_mask.bool())


def detect(parts: DetectorParts, levels: VisionLevels, text: PromptTokens, exemplars: ExemplarBoxes) -> Detection:
    """Fuse image and prompt, and decode the queries.

    Args:
        parts: The detector's modules.
        levels: Feature maps of B images, one a prompt.
        text: Text tokens of the B prompts.
        exemplars: Boxes of the B prompts.
    """
    geometry = encode_geometry(parts, levels, exemplars)
    prompt = PromptTokens(
        torch.cat([text.features, geometry.features], dim=1), torch.cat([text.mask, geometry.mask], dim=1)
    )
    coarse = levels.maps[-1]
    encoded = parts.detr_encoder(
        vision_features=[coarse],
        text_features=prompt.features,
        vision_pos_embeds=[levels.position.expand_as(coarse)],
        text_mask=prompt.mask,
    )
    decoded = parts.detr_decoder(
        vision_features=encoded.last_hidden_state,
        text_features=prompt.features,
        vision_pos_encoding=encoded.pos_embeds_flattened,
        text_mask=prompt.mask,
        spatial_shapes=encoded.spatial_shapes,
    )
    queries = decoded.intermediate_hidden_states
    offsets = parts.detr_decoder.box_head(queries)
    logits = parts.dot_product_scoring(
        decoder_hidden_states=queries, text_features=prompt.features, text_mask=prompt.mask
    )
    return Detection(
        logits=logits.squeeze(-1),
        boxes_cxcywh=(inverse_sigmoid(decoded.reference_boxes) + offsets).sigmoid(),
        presence=decoded.presence_logits,
        queries=queries,
        fused=encoded.last_hidden_state,
        prompt=prompt,
    )


def decode_masks(parts: DetectorParts, levels: VisionLevels, detection: Detection) -> MaskLogits:
    """Masks of the last decoder layer's queries, and of the concept as a whole."""
    decoded = parts.mask_decoder(
        decoder_queries=detection.queries[-1],
        backbone_features=list(levels.maps),
        encoder_hidden_states=detection.fused,
        prompt_features=detection.prompt.features,
        prompt_mask=detection.prompt.mask,
    )
    return MaskLogits(instances=decoded.pred_masks, semantic=decoded.semantic_seg)


def select_items(detection: Detection, items: Tensor) -> Detection:
    """The batch items at `items` (n,) int64: masks are decoded for these alone."""
    return Detection(
        logits=detection.logits.index_select(1, items),
        boxes_cxcywh=detection.boxes_cxcywh.index_select(1, items),
        presence=detection.presence.index_select(1, items),
        queries=detection.queries.index_select(1, items),
        fused=detection.fused.index_select(0, items),
        prompt=PromptTokens(
            detection.prompt.features.index_select(0, items), detection.prompt.mask.index_select(0, items)
        ),
    )
