"""LiteMedSAM as published, as a segmenter that answers boxes: with a box from the truth, it is an oracle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsam3.errors import InputError
from medsam3.image import Masks
from medsam3.models.mini.box_decoder import BoxDecoder, Geometry
from medsam3.models.mini.encoder_files import locate
from medsam3.models.mini.letterbox import Letterbox, letterbox, square_tensor
from medsam3.models.mini.tinyvit import TinyViT, convert_lite_medsam
from medsam3.prompts import Prompt

RGB = NDArray[np.uint8]


@dataclass(frozen=True)
class BoxFeatures:
    """An encoded frame."""

    place: Letterbox
    neck: Tensor  # (1, 256, 64, 64)


class LiteMedSam:
    """Image encoder, prompt encoder and mask decoder of LiteMedSAM; see `models.segmenter.Segmenter`."""

    def __init__(self, encoder: TinyViT, decoder: BoxDecoder) -> None:
        self.encoder, self.decoder = encoder.eval().requires_grad_(False), decoder

    @property
    def name(self) -> str:
        """`litemedsam`."""
        return "litemedsam"

    def encode(self, rgb: RGB) -> BoxFeatures:
        """Features of a frame (H, W, 3) uint8."""
        square, place = letterbox(rgb)
        with torch.inference_mode():
            return BoxFeatures(place, self.encoder(square_tensor(square)).neck.float())

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
            answer = self.decoder.decode(features.neck, Geometry(boxes=boxes))
            masks = features.place.logits_to_frame(answer.logits[:, 0]).numpy() > 0  # (K, H, W)
        scores = answer.iou[:, 0].clamp(0, 1).tolist()
        kept = [k for k, score in enumerate(scores) if score >= (threshold or 0.0)]
        return Masks.from_dense(masks[kept][:, None], [scores[k] for k in kept])


def load_litemedsam() -> LiteMedSam:
    """LiteMedSAM with its published weights.

    Raises:
        InputError: The file was not fetched, or is damaged.
    """
    state: dict[str, Tensor] = torch.load(locate().lite_medsam, weights_only=True, map_location="cpu")
    encoder = TinyViT()
    encoder.load_state_dict(convert_lite_medsam(state))
    return LiteMedSam(encoder, BoxDecoder.from_lite_medsam(state))
