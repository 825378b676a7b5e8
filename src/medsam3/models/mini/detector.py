"""The trained half of the small model: SAM 3's detector at small sizes on top of frozen features.

Frozen before it: LiteMedSAM's image encoder and MiniLM's text encoder. Trained here: the level adapter, the text
projection, and the parts of `models.detr`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsam3.models import detr
from medsam3.models.detector import PromptTokens, VisionLevels
from medsam3.models.mini.efficientnet import EfficientNet, Variant
from medsam3.models.mini.text_lora import TextLora

ImageEncoderName = Literal["lite-medsam", "lite0", "lite2"]


@dataclass(frozen=True)
class MiniDetectorConfig:
    """Sizes of the small detector; saved as JSON beside its weights.

    `image_encoder` says what the detector sees: LiteMedSAM's frozen neck (the pure recipe), or an EfficientNet-Lite
    whose coarser stages are trained along with it. `text_rank` is that of an adapter on the text encoder, 0 is none.
    """

    width: int = 96
    heads: int = 4
    feed_forward: int = 384
    encoder_layers: int = 2
    decoder_layers: int = 3
    geometry_layers: int = 1
    queries: int = 24
    dropout: float = 0.0
    neck_channels: int = 256
    text_channels: int = 384
    detail_channels: int = 32
    image_encoder: ImageEncoderName = "lite-medsam"
    text_rank: int = 0

    @property
    def is_frozen(self) -> bool:
        """The image encoder is LiteMedSAM's, and nothing of it trains."""
        return self.image_encoder == "lite-medsam"


class LevelAdapter(nn.Module):
    """Frozen neck features and pixels to three levels of one width, at strides 2, 4 and 8."""

    def __init__(self, config: MiniDetectorConfig) -> None:
        super().__init__()
        width, detail = config.width, config.detail_channels
        self.detail = nn.Sequential(
            nn.Conv2d(3, detail, 3, stride=2, padding=1),
            nn.GroupNorm(8, detail),
            nn.GELU(),
            nn.Conv2d(detail, detail, 3, padding=1),
            nn.GroupNorm(8, detail),
            nn.GELU(),
            nn.Conv2d(detail, width, 1),
        )
        self.middle = nn.Sequential(nn.Conv2d(config.neck_channels, width, 1), nn.GroupNorm(8, width))
        self.coarse = nn.Sequential(
            nn.Conv2d(config.neck_channels, width, 3, stride=2, padding=1), nn.GroupNorm(8, width)
        )

    def forward(self, pixels: Tensor, neck: Tensor | None) -> VisionLevels:
        """Levels of `pixels` (B, 3, 256, 256) in 0..1 and their `neck` (B, 256, 64, 64)."""
        assert neck is not None  # the caller has read `is_frozen`
        fine = self.detail(pixels * 2 - 1)
        coarse = self.coarse(neck)
        position = detr.sine_positions(coarse.shape[1], coarse.shape[-2:], coarse.device)
        return VisionLevels((fine, self.middle(neck), coarse), position)


class TrunkLevels(nn.Module):
    """Pixels to three levels of one width, at strides 2, 4 and 8, through an EfficientNet-Lite.

    Its stem and first two stages keep the weights of ImageNet. The deepest maps come down to stride 8 as in a feature
    pyramid (Lin et al., CVPR 2017).
    """

    def __init__(self, config: MiniDetectorConfig, variant: Variant) -> None:
        super().__init__()
        width = config.width
        self.trunk = EfficientNet(variant)
        self.trunk.freeze_below(stride=4)
        fine, middle, *deep = self.trunk.widths
        self.fine = nn.Sequential(
            nn.Conv2d(fine, config.detail_channels, 3, padding=1),
            nn.GroupNorm(8, config.detail_channels),
            nn.GELU(),
            nn.Conv2d(config.detail_channels, width, 1),
        )
        self.middle = nn.Sequential(nn.Conv2d(middle, width, 3, padding=1), nn.GroupNorm(8, width))
        self.lateral = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in deep)
        self.smooth = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.GELU()) for _ in deep[:-1]
        )
        self.coarse = nn.Sequential(nn.Conv2d(width, width, 1), nn.GroupNorm(8, width))

    def forward(self, pixels: Tensor, neck: Tensor | None) -> VisionLevels:
        """Levels of `pixels` (B, 3, 256, 256) in 0..1; the neck is not looked at."""
        del neck
        fine, middle, *deep = self.trunk(pixels)
        down = self.lateral[-1](deep[-1])
        for lateral, smooth, finer in zip(
            list(self.lateral)[-2::-1], list(self.smooth)[::-1], deep[-2::-1], strict=True
        ):
            down = smooth(lateral(finer) + F.interpolate(down, size=finer.shape[-2:], mode="nearest"))
        coarse = self.coarse(down)
        position = detr.sine_positions(coarse.shape[1], coarse.shape[-2:], coarse.device)
        return VisionLevels((self.fine(fine), self.middle(middle), coarse), position)


class TextProjection(nn.Module):
    """Frozen text tokens (B, L, 384) to the detector's width."""

    def __init__(self, config: MiniDetectorConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.text_channels)
        self.first = nn.Linear(config.text_channels, 2 * config.width)
        self.second = nn.Linear(2 * config.width, config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Projected tokens (B, L, D)."""
        result: Tensor = self.second(F.gelu(self.first(self.norm(tokens))))
        return result


class MiniDetector(nn.Module):
    """All trained parts of the small model; `models.detector` runs them."""

    def __init__(self, config: MiniDetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.levels = (
            LevelAdapter(config) if config.image_encoder == "lite-medsam" else TrunkLevels(config, config.image_encoder)
        )
        self.text_projection = TextProjection(config)
        self.text_lora = TextLora(config.text_rank) if config.text_rank else None
        sizes = detr.PartSizes(
            width=config.width,
            heads=config.heads,
            feed_forward=config.feed_forward,
            queries=config.queries,
            upsampling_stages=2,
            dropout=config.dropout,
        )
        self.geometry_encoder = detr.GeometryEncoder(replace(sizes, layers=config.geometry_layers))
        self.detr_encoder = detr.DetrEncoder(replace(sizes, layers=config.encoder_layers))
        self.detr_decoder = detr.DetrDecoder(replace(sizes, layers=config.decoder_layers))
        self.mask_decoder = detr.MaskDecoder(sizes)
        self.dot_product_scoring = detr.Scoring(sizes)
        self._spread_start()

    def _spread_start(self) -> None:
        """Start from unit-gain weights and queries that differ: SAM 3's own start (0.02 all over) learns slowly."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        for part in (self.detr_encoder, self.detr_decoder, self.mask_decoder):
            for name, value in part.named_parameters():
                if name.endswith(".bias"):
                    nn.init.zeros_(value)
        decoder = self.detr_decoder
        nn.init.normal_(decoder.query_embed.weight)
        nn.init.normal_(decoder.presence_token.weight)
        with torch.no_grad():  # cxcywh as logits: centres all over the frame, sides about a third of it
            decoder.reference_points.weight.uniform_(-1.5, 1.5)
            decoder.reference_points.weight[:, 2:].sub_(0.7)
        for last in (decoder.box_head.layer3, decoder.presence_head.layer3):
            assert last is not None, "both have three layers"
            nn.init.normal_(last.weight, std=0.01)

    def project_text(self, tokens: Tensor, mask: Tensor) -> PromptTokens:
        """Text tokens (B, L, 384) with their mask (B, L) bool, at the detector's width."""
        return PromptTokens(self.text_projection(tokens), mask)
