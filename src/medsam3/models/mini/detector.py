"""The trained half of the small model: SAM 3's detector at small sizes on top of frozen features.

Frozen before it: LiteMedSAM's image encoder and MiniLM's text encoder. Trained here: the level adapter, the text
projection, and transformers' geometry encoder, DETR encoder, DETR decoder, scoring and mask decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import transformers.models.sam3.modeling_sam3 as sam3  # by its full name: the lazy package may give a dummy
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.sam3 import configuration_sam3 as sam3_config

from medsam3.models.detector import PromptTokens, VisionLevels
from medsam3.models.mini.efficientnet import EfficientNet, Variant
from medsam3.models.mini.text_lora import TextLora
from medsam3.models.roi_align import use_plain_roi_align

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
        self.position = sam3.Sam3SinePositionEmbedding(num_position_features=width // 2, normalize=True)

    def forward(self, pixels: Tensor, neck: Tensor | None) -> VisionLevels:
        """Levels of `pixels` (B, 3, 256, 256) in 0..1 and their `neck` (B, 256, 64, 64)."""
        assert neck is not None  # the caller has read `is_frozen`
        fine = self.detail(pixels * 2 - 1)
        coarse = self.coarse(neck)
        position = self.position(coarse.shape, coarse.device, torch.float32)[:1]
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
        self.position = sam3.Sam3SinePositionEmbedding(num_position_features=width // 2, normalize=True)

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
        position = self.position(coarse.shape, coarse.device, torch.float32)[:1]
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
        use_plain_roi_align()
        self.config = config
        self.levels = (
            LevelAdapter(config) if config.image_encoder == "lite-medsam" else TrunkLevels(config, config.image_encoder)
        )
        self.text_projection = TextProjection(config)
        self.text_lora = TextLora(config.text_rank) if config.text_rank else None
        parts = _sam3_config(config)
        self.geometry_encoder = sam3.Sam3GeometryEncoder(parts.geometry_encoder_config)
        self.detr_encoder = sam3.Sam3DetrEncoder(parts.detr_encoder_config)
        self.detr_decoder = sam3.Sam3DetrDecoder(parts.detr_decoder_config)
        self.mask_decoder = sam3.Sam3MaskDecoder(parts.mask_decoder_config)
        self.dot_product_scoring = sam3.Sam3DotProductScoring(parts)
        self._spread_start()

    def _spread_start(self) -> None:
        """Start from unit-gain weights and queries that differ: the parts' own start (0.02 all over) learns slowly."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        decoder = self.detr_decoder
        nn.init.normal_(decoder.query_embed.weight)
        nn.init.normal_(decoder.presence_token.weight)
        with torch.no_grad():  # cxcywh as logits: centres all over the frame, sides about a third of it
            decoder.reference_points.weight.uniform_(-1.5, 1.5)
            decoder.reference_points.weight[:, 2:].sub_(0.7)
        for last in (decoder.box_head.layer3, decoder.presence_head.layer3):
            nn.init.normal_(last.weight, std=0.01)

    def project_text(self, tokens: Tensor, mask: Tensor) -> PromptTokens:
        """Text tokens (B, L, 384) with their mask (B, L) bool, at the detector's width."""
        return PromptTokens(self.text_projection(tokens), mask)


def _sam3_config(config: MiniDetectorConfig) -> sam3_config.Sam3Config:
    shared = {
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "dropout": config.dropout,
    }
    sizes = {**shared, "intermediate_size": config.feed_forward}
    parts = sam3_config.Sam3Config(
        geometry_encoder_config={**sizes, "num_layers": config.geometry_layers},
        detr_encoder_config={**sizes, "num_layers": config.encoder_layers},
        detr_decoder_config={**sizes, "num_layers": config.decoder_layers, "num_queries": config.queries},
        mask_decoder_config={**shared, "num_upsampling_stages": 2},
    )
    for part in ("geometry_encoder", "detr_encoder", "detr_decoder", "mask_decoder"):
        getattr(parts, f"{part}_config")._attn_implementation = "sdpa"
    return parts
