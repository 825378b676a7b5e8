"""What a fine-tuning run will take in memory, on disk and in time: estimated from sizes, and said to be so.

Work is counted in floating-point operations of matrix products and convolutions; the device's speed is that of one
matrix product, measured on it, times the share of it that such networks reach. Memory is counted from what is kept.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medsam3.models.sam3.network import Sam3Network
from medsam3.train.parts import PartSize
from medsam3.train.sam3_config import Sam3FitConfig
from medsam3.train.sam3_trainee import sides_of

REACHED = 0.4
"""Share of a single matrix product's speed that a whole step reaches; an assumption."""

_ENCODERS = ("image encoder", "text encoder")


@dataclass(frozen=True)
class Work:
    """Floating-point operations of forward passes, in tera: of an image, and of a prompt on it."""

    image: float
    prompt: float
    neck: float


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        memory_gib: On the device, while training.
        cache_gib: On disk.
        step_s: One update.
        cache_s: Filling the cache.
        total_s: Both together for all updates.
    """

    memory_gib: float
    cache_gib: float
    step_s: float
    cache_s: float
    total_s: float


def work_of(network: Sam3Network, parts: Sequence[PartSize]) -> Work:
    """Counted from layer sizes: twice the weights a token, the attention's products, the mask head's convolutions."""
    size = {part.name: part.total for part in parts}
    config = network.detector_model.config
    trunk = config.vision_config.backbone_config
    tokens = (network.image_size // trunk.patch_size) ** 2
    around = len(trunk.global_attn_indexes)
    windows = trunk.num_hidden_layers - around
    attention = 4 * tokens * trunk.hidden_size * (around * tokens + windows * min(tokens, trunk.window_size**2))
    neck = sum(p.numel() for p in network.detector_model.vision_encoder.neck.parameters())
    image = 2 * (size["image encoder"] - neck) * tokens + attention
    width, mask = config.detr_encoder_config.hidden_size, sides_of(network).mask
    fusion = 2 * size["fusion encoder"] * tokens + 4 * config.detr_encoder_config.num_layers * tokens**2 * width
    queries = 1 + config.detr_decoder_config.num_queries
    layers = config.detr_decoder_config.num_layers
    decoder = 2 * size["decoder and presence"] * queries + layers * 4 * tokens * width * (queries + width)
    masks = 2 * 9 * width**2 * (mask**2 + mask**2 / 4) + 4 * width**2 * mask**2
    return Work(image / 1e12, (fusion + decoder + masks) / 1e12, 2 * neck * tokens * 4 / 1e12)


def estimate(
    network: Sam3Network, parts: Sequence[PartSize], config: Sam3FitConfig, *, images: int, tera: float
) -> Estimate:
    """For a run on one device.

    Args:
        network: With its encoders.
        parts: Of the trainee.
        config: Of the run.
        images: Train images.
        tera: The device's speed in tera operations a second; see `measured_tera`.
    """
    work, sampling = work_of(network, parts), config.sampling
    kept = 4.0 if config.is_checkpointed else 3.0  # forward, twice as much backward, and once more what is not kept
    image = work.image * (kept if config.trains != "detector" else 1.0 if config.keeps_trunk else 0.0) + work.neck
    an_update = config.accumulate * sampling.images * (image + sampling.prompts * kept * work.prompt)
    step_s = an_update / (tera * REACHED)
    views = images * config.views if not config.keeps_trunk else 0
    trunk = network.detector_model.config.vision_config.backbone_config
    tokens = (network.image_size // trunk.patch_size) ** 2
    cache_s = views * work.image / (tera * REACHED)
    return Estimate(
        memory_gib=(_weights_bytes(parts, config) + _activation_bytes(network, config)) / 2**30,
        cache_gib=views * tokens * trunk.hidden_size * 2 / 2**30,
        step_s=step_s,
        cache_s=cache_s,
        total_s=cache_s + step_s * config.steps,
    )


def _weights_bytes(parts: Sequence[PartSize], config: Sam3FitConfig) -> float:
    """Weights, and for each that trains its gradient and AdamW's two moments in float32."""
    held = sum(4 * part.total for part in parts if part.name not in _ENCODERS)
    if config.keeps_trunk:
        small = config.trains == "detector" and config.bf16
        held += sum((2 if small else 4) * part.total for part in parts if part.name == "image encoder")
        held += sum(4 * part.total for part in parts if part.name == "text encoder" and config.trains != "detector")
    adapter = sum(part.trained for part in parts) if config.trains == "lora" else 0
    return held + 4 * adapter + 12 * sum(part.trained for part in parts)


def _activation_bytes(network: Sam3Network, config: Sam3FitConfig) -> float:
    """What the backward pass needs: layer inputs, one layer's inside, attention biases, and the mask head's maps."""
    model, wide = network.detector_model.config, 2 if config.bf16 else 4
    trunk, fusion, decoder = model.vision_config.backbone_config, model.detr_encoder_config, model.detr_decoder_config
    tokens = (network.image_size // trunk.patch_size) ** 2
    inside = 14 * fusion.hidden_size + 2 * fusion.intermediate_size
    layers = fusion.num_layers * (fusion.hidden_size if config.is_checkpointed else inside)
    biases = 2 * decoder.num_layers * decoder.num_attention_heads * (1 + decoder.num_queries) * 4
    finest = 9 * sides_of(network).mask ** 2 * fusion.hidden_size
    prompt = tokens * (wide * (layers + inside) + biases) + wide * finest
    image = 5 * wide * sides_of(network).mask ** 2 * fusion.hidden_size
    if config.trains != "detector":
        in_layer = 10 * trunk.hidden_size + 3 * trunk.intermediate_size
        image += (
            wide
            * tokens
            * (in_layer + trunk.num_hidden_layers * (trunk.hidden_size if config.is_checkpointed else in_layer))
        )
    elif config.keeps_trunk:
        image += 4 * wide * tokens * trunk.intermediate_size
    return float(config.sampling.images * (image + config.sampling.prompts * prompt))


def measured_tera(device: torch.device, dtype: torch.dtype) -> float:
    """Tera operations a second of one matrix product on the device, the best of three."""
    side = 1024 if device.type == "cpu" else 8192
    left = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        float((left @ left)[0, 0])  # reading a value waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best / 1e12


def described(found: Estimate, tera: float) -> list[str]:
    """Lines for a person."""
    lines = [
        f"estimated memory while training: {found.memory_gib:.1f} GiB (weights, gradients, AdamW, kept activations)",
        f"estimated time: {_duration(found.step_s)} an update, {_duration(found.total_s)} in all, at {REACHED:.0%} of "
        f"a matrix product's speed here, {tera:.2g} tera operations a second",
    ]
    if found.cache_gib:
        lines.append(
            f"features to cache: {found.cache_gib:.2f} GiB on disk, about {_duration(found.cache_s)} of that time"
        )
    return lines


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
