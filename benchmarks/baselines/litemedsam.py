"""LiteMedSAM as published, as a segmenter that answers boxes: with a box from the truth, it is an oracle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam3.errors import InputError
from medsam3.image import Masks
from medsam3.models.mini.encoder_files import locate
from medsam3.models.mini.letterbox import Letterbox, letterbox
from medsam3.models.mini.lite_medsam import LiteMedSam
from medsam3.prompts import Prompt

RGB = NDArray[np.uint8]


@dataclass(frozen=True)
class BoxFeatures:
    """An encoded frame."""

    place: Letterbox
    neck: Tensor  # (1, 256, 64, 64)


class BoxSegmenter:
    """LiteMedSAM behind the calls of `models.segmenter.Segmenter`."""

    def __init__(self, model: LiteMedSam) -> None:
        self.model = model

    @property
    def name(self) -> str:
        """`litemedsam`."""
        return "litemedsam"

    def encode(self, rgb: RGB) -> BoxFeatures:
        """Features of a frame (H, W, 3) uint8."""
        square, place = letterbox(rgb)
        return BoxFeatures(place, self.model.neck(square))

    def decode(self, features: BoxFeatures, prompt: Prompt, *, threshold: float | None = None) -> Masks:
        """One object a box over (1, H, W); its score is the decoder's guess of its IoU.

        Raises:
            InputError: A prompt with anything but boxes.
        """
        if prompt.text is not None or prompt.points or prompt.exemplars or not prompt.boxes:
            raise InputError("LiteMedSAM takes boxes and nothing else")
        edges = np.array([box.xyxy for box in prompt.boxes], dtype=np.float64)
        with torch.inference_mode():
            boxes = torch.from_numpy(features.place.boxes_to_square(edges)).float()
            answer = self.model.decode(features.neck, boxes)
            masks = features.place.logits_to_frame(answer.logits).numpy() > 0  # (K, H, W)
        scores = answer.iou.clamp(0, 1).tolist()
        kept = [k for k, score in enumerate(scores) if score >= (threshold or 0.0)]
        return Masks.from_dense(masks[kept][:, None], [scores[k] for k in kept])


def load_litemedsam() -> BoxSegmenter:
    """LiteMedSAM with its published weights.

    Raises:
        InputError: The file was not fetched, or is damaged.
    """
    return BoxSegmenter(LiteMedSam(locate().lite_medsam))
