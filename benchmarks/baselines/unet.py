"""The U-Net that a user would train on one data set, as a segmenter: asked by a concept's name, it gives that channel.

The network is MONAI's residual U-Net with the channels of MONAI's own examples (1.6 M parameters) and a 1 x 1 head,
on the square of 256 x 256 that the small model sees too. It knows the concepts of its data set and no other phrase, and
takes no boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medsam3.data.samples import connected_objects
from medsam3.errors import InputError, require
from medsam3.image import Masks
from medsam3.models.mini.letterbox import Letterbox, letterbox, square_tensor
from medsam3.prompts import Prompt

CHANNELS = (16, 32, 64, 128, 256)
START_BIAS = -3.0
"""Most pixels are background; from a bias of 0, hundreds of steps would go into learning that."""
MASK_THRESHOLD = 0.5
RGB = NDArray[np.uint8]


def unet(concepts: int) -> nn.Module:
    """The untrained network, (B, 3, 256, 256) to logits (B, concepts, 256, 256).

    Raises:
        InputError: MONAI is not installed.
    """
    nets = require("monai.networks.nets", extra="baseline")
    body = nets.UNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=CHANNELS[0],
        channels=CHANNELS,
        strides=(2,) * (len(CHANNELS) - 1),
        num_res_units=2,
    )
    head = nn.Conv2d(CHANNELS[0], concepts, 1)
    nn.init.constant_(head.bias, START_BIAS)  # type: ignore[arg-type]
    network = nn.Sequential(body, head)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


@dataclass(frozen=True)
class UnetFeatures:
    """A frame's answer to every concept at once."""

    place: Letterbox
    logits: Tensor  # (K, 256, 256)


class UnetSegmenter:
    """A trained U-Net; see `models.segmenter.Segmenter`."""

    def __init__(self, network: nn.Module, concepts: Sequence[str]) -> None:
        self.network = network.eval()
        self.concepts = tuple(concepts)

    @property
    def name(self) -> str:
        """`unet`."""
        return "unet"

    def encode(self, rgb: RGB) -> UnetFeatures:
        """All concepts' logits of a frame (H, W, 3) uint8."""
        square, place = letterbox(rgb)
        with torch.inference_mode():
            images = square_tensor(square).to(memory_format=torch.channels_last)
            return UnetFeatures(place, self.network(images)[0].float())

    def decode(self, features: UnetFeatures, prompt: Prompt, *, threshold: float | None = None) -> Masks:
        """The connected parts of one concept over (1, H, W).

        Presence is the highest probability of any pixel, and the concept is present where some pixel passes one half.

        Raises:
            InputError: A prompt that is not the bare name of one of the trained concepts.
        """
        if prompt.mode != "T" or prompt.text not in self.concepts:
            raise InputError(f"this U-Net answers to {', '.join(self.concepts)} and takes no boxes, got {prompt}")
        channel = self.concepts.index(prompt.text)
        with torch.inference_mode():
            logits = features.place.logits_to_frame(features.logits[channel : channel + 1])
            probability = logits.sigmoid().numpy()[0]
        parts = connected_objects(probability > MASK_THRESHOLD)
        masks = np.array([parts == n for n in range(1, parts.max() + 1)], dtype=np.bool_).reshape(-1, 1, *parts.shape)
        scores = [float(probability[mask[0]].mean()) for mask in masks]
        kept = [n for n, score in enumerate(scores) if score >= (threshold or 0.0)]
        return Masks.from_dense(
            masks[kept],
            [scores[n] for n in kept],
            concept=prompt.text,
            presence=float(probability.max()),
            is_present=bool(kept),
        )
