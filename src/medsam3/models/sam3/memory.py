"""Following an object with SAM 3's tracker: masks on other frames become memories, which the next frame attends to.

The tracker is driven without a video in memory: a session is made for one step, holds only the frames that the step
needs, and their features are handed to it. Every remembered mask is a conditioning frame, so that what agreement has
made of a mask is what is remembered, and a run can be taken up at any frame. Nothing lags.

transformers skips the filling of holes and the removal of sprinkles without saying so where an optional package is
missing; here both are done for every mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from transformers.models.sam3_tracker_video.modeling_sam3_tracker_video import Sam3TrackerVideoInferenceSession

from medsam3.errors import InputError
from medsam3.geometry import BoolArray
from medsam3.models.sam3.network import Sam3Network
from medsam3.models.sam3.segmenter import Sam3Features, Sam3Segmenter
from medsam3.models.sam3.tracker import ExactTracker
from medsam3.models.tracker import KeptOf, Past

LARGEST_SPECK_PX = 16
"""Holes and sprinkles up to this area of the tracker's low-resolution mask go, as in Meta's code."""
_OBJECT = 1


@dataclass(frozen=True)
class KeptLevels:
    """The part of a frame that is kept: its size (H, W) and the tracker's levels."""

    shape: tuple[int, int]
    levels: tuple[Tensor, ...]


class Sam3Tracker:
    """See `models.tracker.Tracker`."""

    def __init__(self, segmenter: Sam3Segmenter) -> None:
        """A tracker on a segmenter's own network.

        Raises:
            InputError: The weights hold no tracker.
        """
        if not segmenter.has_tracker:
            raise InputError("the weights hold no tracker, which follows objects: load all of sam3.pt")
        self.network: Sam3Network = segmenter.network

    def keep(self, features: Sam3Features) -> KeptLevels:
        """The tracker's levels; the detector's are not needed any more."""
        assert features.levels.tracker is not None, "there is a tracker"
        return KeptLevels(features.shape, features.levels.tracker)

    def kept_bytes(self, kept: KeptLevels) -> int:
        """Bytes of the levels."""
        return sum(level.nbytes for level in kept.levels)

    def follow(self, n: int, past: Sequence[Past], kept_of: KeptOf) -> BoolArray:
        """See `Tracker.follow`."""
        tracker = self._tracker()
        here: KeptLevels = kept_of(n)
        is_backwards = n < past[0].n
        remembered = list(past)[: tracker.config.max_cond_frame_num]
        with torch.inference_mode():
            session = self._session([n, *(one.n for one in remembered)], kept_of)
            item = session.obj_id_to_idx(_OBJECT)
            for one in remembered:
                session.obj_with_new_inputs = [_OBJECT]
                session.add_mask_inputs(item, one.n, self._squared(one.mask))
                session.frames_tracked_per_obj[item].pop(one.n, None)
                tracker(session, frame_idx=one.n)
            session.obj_with_new_inputs = []
            answer = tracker(session, frame_idx=n, reverse=is_backwards, run_mem_encoder=False)
        return self._mask(answer.pred_masks[0, 0], float(answer.object_score_logits.reshape(-1)[0]), here.shape)

    def _tracker(self) -> ExactTracker:
        tracker = self.network.tracker_model
        assert tracker is not None, "checked when this was made"
        return tracker

    def _session(self, frames: Sequence[int], kept_of: KeptOf) -> Sam3TrackerVideoInferenceSession:
        side, device = self.network.image_size, self.network.device
        session = Sam3TrackerVideoInferenceSession(
            video_height=side,
            video_width=side,
            inference_device=device,
            inference_state_device=device,
            dtype=self.network.dtype,
            max_vision_features_cache_size=len(set(frames)),
        )
        # The session wants to know of as many frames as there are pointers, whatever the stack's length.
        pointers = self._tracker().config.max_object_pointers_in_encoder
        session.processed_frames = dict.fromkeys(range(max(frames) + 1 + pointers))
        for n in dict.fromkeys(frames):
            session.cache.cache_vision_features(n, self._vision(kept_of(n)))
        return session

    def _vision(self, kept: KeptLevels) -> dict[str, list[Tensor]]:
        """Features and the coarse level's position code as the tracker wants them, (H*W, 1, C)."""
        encoding: Any = self.network.tracker_neck.position_encoding  # type: ignore[union-attr]
        coarse = kept.levels[-1]
        code = encoding(coarse.shape, coarse.device, torch.float32).to(coarse.dtype)
        flat = [level.flatten(2).permute(2, 0, 1) for level in kept.levels]
        return {"vision_feats": flat, "vision_pos_embeds": [code.flatten(2).permute(2, 0, 1)]}

    def _squared(self, mask: BoolArray) -> Tensor:
        """A mask (H, W) stretched to the model's square, (1, 1, S, S) of 0 and 1."""
        side = self.network.image_size
        given = torch.from_numpy(mask).float()[None, None]
        stretched = F.interpolate(given, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
        return (stretched > 0.5).to(self.network.dtype)

    def _mask(self, logits: Tensor, object_score: float, shape: tuple[int, int]) -> BoolArray:
        if object_score <= 0:
            return np.zeros(shape, dtype=np.bool_)
        cleaned = without_small_parts((logits > 0).cpu().numpy(), LARGEST_SPECK_PX)
        # Where a hole was filled or a sprinkle went, the logit gets the least certain value of the other side.
        values = logits.float().cpu()
        sign = torch.from_numpy(cleaned)
        values = torch.where(sign, values.clamp(min=0.1), values.clamp(max=-0.1))
        frame = F.interpolate(values[None, None], size=shape, mode="bilinear", align_corners=False)
        mask: BoolArray = (frame[0, 0] > 0).numpy()
        return mask


def without_small_parts(mask: BoolArray, largest: int) -> BoolArray:
    """A mask (H, W) without holes up to `largest` pixels, and without parts up to that size if larger ones remain."""
    holes = ndimage.label(~mask, structure=np.ones((3, 3)))[0]
    sizes = np.bincount(holes.reshape(-1))
    is_small = sizes <= largest
    is_small[0] = False
    filled = mask | is_small[holes]
    parts = ndimage.label(filled, structure=np.ones((3, 3)))[0]
    sizes = np.bincount(parts.reshape(-1))
    is_kept = sizes > largest
    is_kept[0] = False
    kept: BoolArray = is_kept[parts]
    return kept if kept.any() else filled
