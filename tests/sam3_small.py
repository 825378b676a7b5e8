"""A SAM 3 with tracker that is small and random, and where the parity fixtures lie."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.sam3_video.configuration_sam3_video import Sam3VideoConfig

from medsam3.models.sam3.network import Architecture, Sam3Network, architecture_from_json, blank_network, fill_network

ROOT = Path(__file__).parents[1]
KEYS = ROOT / "tests" / "data" / "parity" / "meta_sam3_keys.json"
PARITY = os.environ.get("MEDSAM3_PARITY", "")
needs_parity = pytest.mark.skipif(
    not PARITY, reason="needs the parity fixtures, too large to be kept here: set MEDSAM3_PARITY"
)


def parity(name: str) -> Path:
    """A folder of the fixtures; only in tests marked `needs_parity`."""
    assert PARITY
    return Path(PARITY) / name


def detector_fields(
    *, width: int, trunk_width: int, feed_forward: int, image_size: int = 112, queries: int = 12
) -> dict[str, Any]:
    """Sizes of a small detector, patches of 14 pixels."""
    sizes = {"hidden_size": width, "num_attention_heads": 4, "intermediate_size": feed_forward, "num_layers": 2}
    tokens = image_size // 14
    trunk = {
        "model_type": "sam3_vit_model",
        "hidden_size": trunk_width,
        "intermediate_size": 2 * trunk_width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": image_size,
        "pretrain_image_size": 56,
        "window_size": 4,
        "global_attn_indexes": [1],
    }
    vision = {
        "model_type": "sam3_vision_model",
        "backbone_config": trunk,
        "fpn_hidden_size": width,
        "backbone_feature_sizes": [[4 * tokens, 4 * tokens], [2 * tokens, 2 * tokens], [tokens, tokens]],
    }
    text = {
        "model_type": "clip_text_model",
        "vocab_size": 49408,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "projection_dim": 8,
    }
    return {
        "vision_config": vision,
        "text_config": text,
        "geometry_encoder_config": sizes,
        "detr_encoder_config": sizes,
        "detr_decoder_config": {**sizes, "num_queries": queries},
        "mask_decoder_config": {"hidden_size": width, "num_attention_heads": 4},
    }


def small_architecture() -> Architecture:
    """Detector and tracker of width 128 on a trunk of width 32, for 112 pixels."""
    detector = detector_fields(width=128, trunk_width=32, feed_forward=96)
    tracker = {
        "vision_config": detector["vision_config"],
        "prompt_encoder_config": {"hidden_size": 128, "image_size": 112},
        "mask_decoder_config": {"hidden_size": 128, "mlp_dim": 64, "iou_head_hidden_dim": 32},
        "image_size": 112,
        "memory_attention_hidden_size": 128,
        "memory_attention_num_layers": 1,
        "memory_attention_feed_forward_hidden_size": 64,
        "memory_encoder_hidden_size": 128,
        "mask_downsampler_embed_dim": 128,
        "memory_fuser_embed_dim": 128,
        "memory_fuser_intermediate_dim": 64,
    }
    fields = Sam3VideoConfig(detector_config=detector, tracker_config=tracker).to_dict()
    return architecture_from_json(fields)


def seeded_tensors(architecture: Architecture, seed: int, *, gain: float = 1.0) -> dict[str, Tensor]:
    """Seeded values of natural size for every tensor, those of matrices times `gain`."""
    source = torch.Generator().manual_seed(seed)
    made = {}
    for name, blank in blank_network(architecture).state_dict().items():
        values = torch.randn(blank.shape, generator=source)
        if blank.dim() >= 2:
            made[name] = values * gain / math.sqrt(blank[0].numel())
        else:
            made[name] = 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
    return made


def random_tensors(architecture: Architecture, seed: int = 20260704) -> dict[str, Tensor]:
    """Seeded values for every tensor; the presence head leans to yes."""
    made = seeded_tensors(architecture, seed, gain=1.2)
    made["detector_model.detr_decoder.presence_head.layer3.bias"] += 3
    return made


def small_network(architecture: Architecture | None = None) -> Sam3Network:
    """The random network on the CPU in float32."""
    chosen = architecture or small_architecture()
    return fill_network(blank_network(chosen), random_tensors(chosen), dtype=torch.float32, device=torch.device("cpu"))
