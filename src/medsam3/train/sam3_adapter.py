"""Training of MedSAM-3 v1's adapter (LoRA): its modules, their factors inside the network, and its file format.

The modules are those of Meta's code, where the trunk's query, key and value are one projection: here their three
projections share one A and take a third of B each. The file has the authors' keys, so that their code reads it, and
`sam3_lora` too. Source: Hu et al., LoRA, ICLR 2022; Liu et al., MedSAM-3, arXiv 2511.19046.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsam3.models.sam3.keys import places
from medsam3.models.sam3.network import Sam3Network
from medsam3.train.config import LoraConfig

_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_POINTS = ("points_direct_project", "points_pool_project", "points_pos_enc_project")
_YAML = """# written by medsam3 train
lora:
  rank: {rank}
  alpha: {alpha:g}
  dropout: {dropout:g}
  target_modules: ["q_proj", "k_proj", "v_proj", "out_proj", "qkv", "proj", "fc1", "fc2", "c_fc", "c_proj", \
"linear1", "linear2"]
  apply_to_vision_encoder: true
  apply_to_text_encoder: true
  apply_to_geometry_encoder: true
  apply_to_detr_encoder: true
  apply_to_detr_decoder: true
  apply_to_mask_decoder: true
"""


class LoraPair(nn.Module):
    """The two factors of one module of Meta's: A (in, r) random, B (r, out) zero, so that nothing changes at first."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(inputs, rank))
        self.lora_B = nn.Parameter(torch.zeros(rank, outputs))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))


@dataclass(frozen=True)
class TrainedAdapter:
    """The pairs by Meta's module name.

    Attributes:
        pairs: Those that the network has a place for, and their prefix in its state.
        homeless: Shapes (in, out) of the point projections, which transformers' model lacks.
        config: Rank, alpha and dropout.
    """

    pairs: Mapping[str, str]
    homeless: Mapping[str, tuple[int, int]]
    config: LoraConfig

    def authors_tensors(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The file's content from a network's state: `<module>.lora.lora_A` and `.lora_B`, all modules of v1.

        The point projections get factors that change nothing.
        """
        tensors = {}
        for module, place in self.pairs.items():
            for factor in ("lora_A", "lora_B"):
                tensors[f"{module}.lora.{factor}"] = state[f"{place}.{factor}"].detach().float().cpu().contiguous()
        for module, (inputs, outputs) in self.homeless.items():
            tensors[f"{module}.lora.lora_A"] = torch.zeros(inputs, self.config.rank)
            tensors[f"{module}.lora.lora_B"] = torch.zeros(self.config.rank, outputs)
        return tensors

    def yaml(self) -> str:
        """The YAML file to put beside it: rank and alpha, which the weights do not hold."""
        return _YAML.format(rank=self.config.rank, alpha=self.config.alpha, dropout=self.config.dropout)


def add_adapter(network: Sam3Network, config: LoraConfig) -> TrainedAdapter:
    """Put a fresh adapter into the network, on every module of v1; the caller has seeded the random numbers."""
    modules = dict(network.named_modules())
    width = int(network.detector_model.text_projection.weight.shape[0])
    pairs, homeless = {}, {}
    for name in v1_modules(network):
        found = places(f"detector.{name}.weight")
        if not found:
            homeless[name] = (2 if name.endswith("direct_project") else width, width)
            continue
        linears = [modules[place.name.removesuffix(".weight")] for place in found]
        assert all(isinstance(linear, nn.Linear) for linear in linears), f"{name} is made of linear layers"
        widths = [int(linear.weight.shape[0]) for linear in linears]
        pair = LoraPair(int(linears[0].weight.shape[1]), sum(widths), config.rank).to(linears[0].weight.device)
        linears[0].add_module("lora", pair)
        start = 0
        for linear, outputs in zip(linears, widths, strict=True):
            _hook(linear, pair, slice(start, start + outputs), config)
            start += outputs
        pairs[name] = f"{found[0].name.removesuffix('.weight')}.lora"
    return TrainedAdapter(pairs, homeless, config)


def _hook(linear: nn.Module, pair: LoraPair, columns: slice, config: LoraConfig) -> None:
    scale = config.alpha / config.rank

    def add_change(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        dropped = F.dropout(inputs[0], config.dropout, module.training)
        return output + (dropped @ pair.lora_A) @ pair.lora_B[:, columns] * scale

    linear.register_forward_hook(add_change)


def v1_modules(network: Sam3Network) -> Iterator[str]:
    """Names, in Meta's code and without `detector.`, of the modules that v1 adapts: 458 at full size."""
    model = network.detector_model
    trunk, text = "backbone.vision_backbone.trunk.blocks", "backbone.language_backbone.encoder.transformer.resblocks"
    for layer in range(len(model.vision_encoder.backbone.layers)):
        yield from (f"{trunk}.{layer}.{part}" for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"))
    for layer in range(len(model.text_encoder.text_model.encoder.layers)):
        yield from (f"{text}.{layer}.attn.{part}" for part in _ATTENTION)
        yield from (f"{text}.{layer}.mlp.{part}" for part in ("c_fc", "c_proj"))
    yield from (
        f"geometry_encoder.{part}" for part in (*_POINTS, "boxes_direct_project", "boxes_pos_enc_project", "final_proj")
    )
    stacks = (
        ("geometry_encoder.encode", len(model.geometry_encoder.layers), ("self_attn", "cross_attn_image")),
        ("transformer.encoder.layers", len(model.detr_encoder.layers), ("self_attn", "cross_attn_image")),
        ("transformer.decoder.layers", len(model.detr_decoder.layers), ("cross_attn", "ca_text", "self_attn")),
    )
    for stack, layers, attentions in stacks:
        for layer in range(layers):
            yield from (f"{stack}.{layer}.{attention}.{part}" for attention in attentions for part in _ATTENTION)
            yield from (f"{stack}.{layer}.{part}" for part in ("linear1", "linear2"))
    yield from (f"segmentation_head.cross_attend_prompt.{part}" for part in _ATTENTION)
    yield from ("dot_prod_scoring.prompt_proj", "dot_prod_scoring.hs_proj")
