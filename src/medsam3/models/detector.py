"""SAM 3's detector as one forward pass, for the small and the full-size model alike.

It gives what training and parity need: outputs of all decoder layers, presence included, and the geometry encoder's CLS
token always on, as in the original. It knows no image encoder and no text encoder: it starts from feature maps and text
tokens.

Source: Carion et al., SAM 3: Segment Anything with Concepts, arXiv 2511.16719.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from medsam3.errors import InputError
from medsam3.models.kept import Kept


class _NoStart(TorchFunctionMode):
    """Leaves out the functions of `torch.nn.init`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return given.get("tensor", args[0] if args else None)
        return func(*args, **given)


@contextmanager
def without_values() -> Iterator[None]:
    """Build modules with names and shapes only, for weights to be assigned to.

    No time goes into random numbers that weights replace. On the meta device alone PyTorch would import its compiler to
    draw them, which takes longer than all else of a start.
    """
    with torch.device("meta"), _NoStart():
        yield


class DetectorParts(Protocol):
    """The five modules of a detector: those of `models.detr`, or compiled ones that are called alike."""

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
    kept: Kept | None = None  # what a prompt leaves for the next one; None keeps nothing

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
        is_empty: No item has a box, and each one slot of padding.
    """

    cxcywh: Tensor
    is_positive: Tensor
    is_used: Tensor
    is_empty: bool = False

    @classmethod
    def none(cls, batch: int, device: torch.device) -> ExemplarBoxes:
        """No box: one padding slot an item, so that the CLS token of the geometry encoder stays."""
        slot = torch.zeros(batch, 1, dtype=torch.bool, device=device)
        return cls(torch.full((batch, 1, 4), 0.5, device=device), slot, slot, True)

    def to(self, device: torch.device) -> ExemplarBoxes:
        """The boxes on a device."""
        return replace(
            self,
            cxcywh=self.cxcywh.to(device),
            is_positive=self.is_positive.to(device),
            is_used=self.is_used.to(device),
        )

    def mirrored(self) -> ExemplarBoxes:
        """Mirror the boxes with the picture: left and right exchanged."""
        centres = torch.cat((1 - self.cxcywh[..., :1], self.cxcywh[..., 1:]), dim=-1)
        return replace(self, cxcywh=centres)


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
    image = levels.maps[-1]
    if levels.kept is not None and exemplars.is_empty:
        if "geometry" not in levels.kept:
            fresh = encode_geometry(parts, replace(levels, kept=None), exemplars)
            levels.kept.update({"geometry": fresh.features, "geometry mask": fresh.mask})
        return PromptTokens(levels.kept["geometry"], levels.kept["geometry mask"])
    tokens, mask = parts.geometry_encoder(
        image,
        levels.position.expand_as(image),
        exemplars.cxcywh.to(image.dtype),
        exemplars.is_positive,
        exemplars.is_used,
    )
    return PromptTokens(tokens, mask)


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
    image, position = (level.flatten(2).transpose(1, 2) for level in (coarse, levels.position.expand_as(coarse)))
    fused = parts.detr_encoder(image, position, prompt.features, prompt.mask, *_kept(levels))
    decoded = parts.detr_decoder(fused, position, prompt.features, prompt.mask, coarse.shape[-2:])
    return Detection(
        logits=parts.dot_product_scoring(decoded.queries, prompt.features, prompt.mask),
        boxes_cxcywh=parts.detr_decoder.refined_boxes(decoded.references, decoded.queries),
        presence=decoded.presence,
        queries=decoded.queries,
        fused=fused,
        prompt=prompt,
    )


def decode_masks(parts: DetectorParts, levels: VisionLevels, detection: Detection) -> MaskLogits:
    """Masks of the last decoder layer's queries, and of the concept as a whole."""
    prompt = detection.prompt
    masks = parts.mask_decoder(
        detection.queries[-1], levels.maps, detection.fused, prompt.features, prompt.mask, *_kept(levels)
    )
    return MaskLogits(*masks)


def _kept(levels: VisionLevels) -> tuple[Kept, ...]:
    return () if levels.kept is None else (levels.kept,)  # compiled parts keep nothing


def decode_semantic(parts: DetectorParts, levels: VisionLevels, detection: Detection) -> Tensor:
    """The mask logits (B, 1, h, w) of the concept as a whole, without those of the queries."""
    return decode_masks(parts, levels, replace(detection, queries=detection.queries[:, :, :0])).semantic


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


def checked_device(name: str) -> torch.device:
    """The device of a name.

    Raises:
        InputError: It is not here, or none that the model runs on.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device {name!r} is not here, allowed are cpu, cuda and mps where the machine has one"
        ) from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device is {name!r}, allowed are cpu, cuda and mps")
    return device
