"""SAM 3's tracker as Meta runs it: points and boxes on one image, and the step from frame to frame.

transformers' model departs from Meta's in three places, which are put right here: the mask that becomes a memory is
binarised or squashed before it is resized, not after; memories keep the model's number format, where transformers
rounds them to bfloat16; the object pointer of a mask prompt comes from the single-mask token, not from the best of
three. It knows no file, and of images only their levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoModel

from medsam3.geometry import FloatArray

_MASK_LOGIT_SCALE, _MASK_LOGIT_BIAS = 20.0, -10.0  # a given mask as logits: -10 off the object, 10 on it


class ExactTracker(Sam3TrackerVideoModel):  # type: ignore[misc]  # transformers is not typed
    """transformers' tracker with Meta's numbers. It inherits because the session drives these methods by name."""

    def project_levels(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The tracker's neck levels (B, D, H_i, W_i), the finer two as its mask decoder wants them."""
        fine, middle, coarse = maps
        return self.mask_decoder.conv_s0(fine), self.mask_decoder.conv_s1(middle), coarse

    def get_image_wide_positional_embeddings(self) -> Tensor:
        """The position code (1, D, H, W), computed in float32, in the model's number format."""
        codes: Tensor = super().get_image_wide_positional_embeddings()
        return codes.to(self.no_memory_embedding.dtype)

    def _encode_new_memory(
        self,
        current_vision_feats: Tensor,
        pred_masks_high_res: Tensor,
        object_score_logits: Tensor,
        is_mask_from_pts: bool,
    ) -> tuple[Tensor, Tensor]:
        """Memory features and their position code, both (H*W, B, C)."""
        batch = current_vision_feats.shape[1]
        height, width = self.backbone_feature_sizes[-1]
        levels = current_vision_feats.permute(1, 2, 0).view(batch, self.hidden_dim, height, width)
        logits = pred_masks_high_res.float()
        mask = (logits > 0).float() if is_mask_from_pts else logits.sigmoid()
        mask = mask * self.config.sigmoid_scale_for_mem_enc + self.config.sigmoid_bias_for_mem_enc
        size = tuple(4 * side for side in self.prompt_encoder.mask_input_size)
        if mask.shape[-2:] != size:
            mask = F.interpolate(mask, size=size, mode="bilinear", align_corners=False, antialias=True)
        memory, position = self.memory_encoder(levels, mask.to(levels.dtype))
        if self.occlusion_spatial_embedding_parameter is not None:
            is_absent = (object_score_logits <= 0).to(memory.dtype).view(batch, 1, 1, 1)
            memory = memory + is_absent * self.occlusion_spatial_embedding_parameter[..., None, None]
        return memory.flatten(2).permute(2, 0, 1), position.to(memory.dtype).flatten(2).permute(2, 0, 1)

    def _single_frame_forward(self, *args: Any, **inputs: Any) -> Any:
        """One mask for a mask prompt, where transformers asks for the best of three."""
        if inputs.get("input_masks") is not None and "multimask_output" not in inputs:
            inputs["multimask_output"] = False
        return super()._single_frame_forward(*args, **inputs)


def segment_by_points(
    tracker: ExactTracker, levels: Sequence[Tensor], points: Tensor, labels: Tensor, masks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Masks of objects in one image, each given by its own points.

    Args:
        tracker: The tracker.
        levels: Of one image, as `ExactTracker.project_levels` makes them.
        points: (K, P, 2) x and y in pixels of the model's input, pixel centres at integers.
        labels: (K, P) 1 on the object, 0 off it, 2 and 3 the corners of a box.
        masks: (K, 1, h, w) masks so far, 0 and 1 over the model's square input at any size; None gives none.

    Returns:
        Mask logits (K, h, w) at a quarter of the input's side, and the expected IoU of each mask, (K,).
    """
    dtype, so_far = levels[-1].dtype, None
    if masks is not None:
        size = tuple(tracker.prompt_encoder.mask_input_size)
        so_far = F.interpolate(masks * _MASK_LOGIT_SCALE + _MASK_LOGIT_BIAS, size=size, mode="bilinear", antialias=True)
    sparse, dense = tracker.prompt_encoder(
        input_points=points[None],
        input_labels=labels[None],
        input_boxes=None,
        input_masks=None if so_far is None else so_far.to(dtype),
    )
    masks, ious, _, _ = tracker.mask_decoder(
        image_embeddings=levels[-1] + tracker.no_memory_embedding.view(1, -1, 1, 1),
        image_positional_embeddings=tracker.get_image_wide_positional_embeddings(),
        sparse_prompt_embeddings=sparse.to(dtype),
        dense_prompt_embeddings=dense,
        multimask_output=points.shape[1] == 1 and masks is None,  # one click is ambiguous, as Meta has it
        high_resolution_features=list(levels[:-1]),
    )
    best = ious[0].argmax(dim=-1)  # (K,)
    objects = torch.arange(len(best), device=best.device)
    return masks[0, objects, best], ious[0, objects, best]


def model_points(points: FloatArray, image_shape: tuple[int, int], image_size: int) -> FloatArray:
    """Points (..., 2) x and y of an image (H, W) as pixels of the square input, both with centres at integers."""
    height, width = image_shape
    scale = image_size / np.array([width, height])
    result: FloatArray = (points + 0.5) * scale - 0.5
    return result
