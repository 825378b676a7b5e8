"""SAM 3 as it trains: what is frozen and what changes, the forward pass to the loss, and the optimiser's groups.

The frozen image encoder may be left out, with its output cached on disk, and so may the frozen text encoder. It knows
no file and no loop.

The adapter is that of MedSAM-3 v1 (LoRA). Its modules are those of Meta's code, where the trunk's query, key and value
are one projection: here their three projections share one A and take a third of B each. Its file has the authors' keys,
so that their code reads it. Source: Hu et al., LoRA, ICLR 2022; Liu et al., MedSAM-3, arXiv 2511.19046.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medsam3.models.detector import (
    Detection,
    PromptTokens,
    VisionLevels,
    decode_masks,
    detect,
    select_items,
)
from medsam3.models.sam3.clip_phrases import PhraseTokenizer
from medsam3.models.sam3.keys import places
from medsam3.models.sam3.network import Sam3Network, fill_constants
from medsam3.models.sam3.objects import padded
from medsam3.train.batches import Batch, exemplar_boxes
from medsam3.train.config import LoraConfig, Sam3FitConfig
from medsam3.train.estimate import Parts, PartSize, sizes_by_part
from medsam3.train.loop import Maker
from medsam3.train.losses import PromptTarget, mask_losses, query_losses, weigh
from medsam3.train.workers import State

_PARTS: Parts = (
    ("image encoder", ("vision_encoder.",)),
    ("text encoder", ("text_encoder.", "text_projection.")),
    ("exemplar encoder", ("geometry_encoder.",)),
    ("fusion encoder", ("detr_encoder.",)),
    ("decoder and presence", ("detr_decoder.",)),
    ("mask head", ("mask_decoder.",)),
    ("scoring", ("dot_product_scoring.",)),
)
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


class Sam3Trainee(nn.Module):
    """The network with what trains in it switched on. Give it a function that returns a batch; see `forward`."""

    def __init__(
        self,
        network: Sam3Network,
        config: Sam3FitConfig,
        *,
        tokenizer: PhraseTokenizer | None = None,
        phrases: Mapping[str, PromptTokens] | None = None,
    ) -> None:
        super().__init__()
        assert (tokenizer is None) != (phrases is None), "phrases are encoded beforehand, or in every step"
        self.network = network
        self.config = config
        self.tokenizer = tokenizer
        self.phrases = phrases
        self.adapter: TrainedAdapter | None = None
        network.requires_grad_(False)
        if config.trains == "lora":
            self.adapter = add_adapter(network, config.lora)
        for name, parameter in network.detector_model.named_parameters():
            parameter.requires_grad_(_is_trained(name, config))
        if config.is_checkpointed:
            recompute_layers(network)
        self.train()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def has_trained_encoders(self) -> bool:
        """Gradients go through both encoders."""
        return self.config.trains != "detector"

    def train(self, mode: bool = True) -> Sam3Trainee:
        """Dropout on or off; always off in frozen encoders."""
        super().train(mode)
        if not self.has_trained_encoders:
            self.network.detector_model.vision_encoder.eval()
        return self

    def forward(self, give: Callable[[], Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted loss of a batch and its terms."""
        batch, config = give(), self.config
        questions = batch.questions
        with self._autocast():
            levels, detection = self.detect(batch)
        targets = [question.truth.on(self.device) for question in questions]
        terms, matches = query_losses(detection, targets, config.loss)
        present = [number for number, target in enumerate(targets) if target.is_present]
        if present:
            with self._autocast():
                terms |= self._mask_terms(batch, levels, detection, [(i, targets[i]) for i in present], matches)
        return weigh(terms, config.loss), terms

    def detect(self, batch: Batch) -> tuple[VisionLevels, Detection]:
        """Levels of the batch's images, and the detection of each of its questions."""
        images = torch.tensor([question.image for question in batch.questions], device=self.device)
        levels = self._levels(batch)
        tokens = self._tokens([question.phrase for question in batch.questions])
        exemplars = exemplar_boxes(batch.questions, self.device)
        return levels, detect(self.network.detector_model, levels.coarsest.select(images), tokens, exemplars)

    def _mask_terms(
        self,
        batch: Batch,
        levels: VisionLevels,
        detection: Detection,
        present: Sequence[tuple[int, PromptTarget]],
        matches: Sequence[tuple[Tensor, Tensor]],
    ) -> dict[str, Tensor]:
        """Mask terms of the present prompts: only the masks of matched queries are ever made."""
        items = torch.tensor([number for number, _ in present], device=self.device)
        images = torch.tensor([batch.questions[number].image for number, _ in present], device=self.device)
        chosen = select_items(detection, items)
        most = max(len(queries) for queries, _ in matches)
        kept = [torch.cat([queries, queries.new_zeros(most - len(queries))]) for queries, _ in matches]
        rows = torch.stack(kept).to(self.device)[..., None].expand(-1, -1, chosen.queries.shape[-1])  # (P, most, D)
        matched = replace(chosen, queries=chosen.queries[-1].gather(1, rows)[None])
        masks = decode_masks(self.network.detector_model, levels.select(images), matched)
        own = [(torch.arange(len(objects)), objects) for _, objects in matches]
        return mask_losses(masks, [target for _, target in present], own)

    def _levels(self, batch: Batch) -> VisionLevels:
        with torch.set_grad_enabled(self.has_trained_encoders and torch.is_grad_enabled()):
            neck_type = next(self.network.detector_model.vision_encoder.neck.parameters()).dtype
            if batch.features is not None:
                return self.network.detector_levels(batch.features.to(self.device, neck_type))
            assert batch.pixels is not None, "a batch has pixels or cached features"
            return self.network.detector_levels(trunk_of(self.network, batch.pixels).to(neck_type))

    def _tokens(self, phrases: Sequence[str]) -> PromptTokens:
        if self.phrases is not None:
            return _on_device(padded([self.phrases[phrase] for phrase in phrases]), self.device)
        assert self.tokenizer is not None
        return encode_phrases(self.network, self.tokenizer, phrases)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16)

    @property
    def module(self) -> nn.Module:
        """The module that the loop calls."""
        return self

    def own_batch(self, maker: Maker, step: int, rank: int, count: int) -> Batch:
        """Take every `count`-th batch whole: one image a batch cannot be shared out."""
        batch: Batch = maker.batch(step * count + rank)
        return batch

    def optimizer(self) -> torch.optim.Optimizer:
        """Make AdamW."""
        return torch.optim.AdamW(self._groups())

    def after_update(self, step: int) -> None:
        """Do nothing: there is no moving average."""

    def further_state(self) -> State:
        """Give nothing: the trained weights are all there is."""
        return {}

    def put_further_state(self, state: State) -> None:
        """Take nothing."""

    def candidate(self) -> State:
        """Give a copy of what trains, on the CPU."""
        trained = {name for name, parameter in self.network.named_parameters() if parameter.requires_grad}
        state = self.network.state_dict()
        return {name: value.detach().cpu().clone() for name, value in state.items() if name in trained}

    def trained_tensors(self, gathered: State) -> dict[str, Tensor]:
        """Give what trained under the network's names, from the loop's names for it."""
        return {name.removeprefix("network."): tensor for name, tensor in gathered.items()}

    def _groups(self) -> list[dict[str, Any]]:
        """AdamW's groups: a rate for each encoder and one for the rest, no weight decay on biases and norms."""
        config = self.config
        rates = {"vision_encoder.": config.vision_learning_rate, "text_": config.text_learning_rate}
        sorted_out: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.network.detector_model.named_parameters():
            if parameter.requires_grad:
                own = [rate for start, rate in rates.items() if name.startswith(start) and config.trains == "all"]
                decay = config.weight_decay if parameter.ndim >= 2 else 0.0
                sorted_out.setdefault((own[0] if own else config.learning_rate, decay), []).append(parameter)
        return [
            {"params": parameters, "lr": rate, "peak": rate, "weight_decay": decay}
            for (rate, decay), parameters in sorted_out.items()
        ]

    def parts(self) -> list[PartSize]:
        """How many parameters each part has and how many of them train."""
        model = self.network.detector_model
        is_trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        return sizes_by_part(model, is_trained, _PARTS)


def _is_trained(name: str, config: Sam3FitConfig) -> bool:
    if config.trains == "lora":
        return ".lora." in name
    encoders = name.startswith(("vision_encoder.", "text_encoder.", "text_projection."))
    return config.trains == "all" or not encoders


def recompute_layers(network: Sam3Network) -> None:
    """Let each transformer layer keep only its input, and run again in the backward pass."""
    model = network.detector_model
    encoder = getattr(model.vision_encoder, "backbone", None)
    stacks = [model.detr_encoder.layers, model.detr_decoder.layers]
    stacks += [encoder.layers] if isinstance(encoder, nn.Module) and hasattr(encoder, "layers") else []
    stacks += [model.text_encoder.text_model.encoder.layers] if hasattr(model.text_encoder, "text_model") else []
    for stack in stacks:
        for layer in stack:
            layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


@dataclass(frozen=True)
class Sides:
    """Sides in pixels of the network's input and of its masks, and the objects that it can find."""

    image: int
    mask: int
    queries: int


def sides_of(network: Sam3Network) -> Sides:
    """Sides of a network's input and masks: the finest level has a quarter of the patch as its stride."""
    config = network.detector_model.config
    patch = config.vision_config.backbone_config.patch_size
    size = network.image_size
    return Sides(size, 4 * size // patch, int(config.detr_decoder_config.num_queries))


def trunk_of(network: Sam3Network, pixels: Tensor) -> Tensor:
    """The trunk's output (B, D, H, W) for pixels (B, 3, S, S) uint8."""
    weight = next(network.detector_model.vision_encoder.backbone.parameters())
    scaled = pixels.to(weight.device).float() / 127.5 - 1
    return network.encode_trunk(scaled.to(weight.dtype))


def encode_phrases(network: Sam3Network, tokenizer: PhraseTokenizer, phrases: Sequence[str]) -> PromptTokens:
    """Text tokens (B, L, D) of phrases, padded to the longest."""
    ids = [tokenizer(phrase) for phrase in phrases]
    longest = max(len(own) for own in ids)
    device = network.device
    token_ids = torch.tensor([(*own, *(0,) * (longest - len(own))) for own in ids], device=device)
    mask = torch.tensor([[1] * len(own) + [0] * (longest - len(own)) for own in ids], device=device)
    return network.encode_phrases(token_ids, mask)


def halve_trunk(network: Sam3Network) -> None:
    """Put a frozen trunk into bfloat16, its rotary positions kept in float32."""
    network.detector_model.vision_encoder.backbone.to(torch.bfloat16)
    fill_constants(network, network.device)


def drop_trunk(network: Sam3Network) -> None:
    """Free the image encoder's trunk, once all that it will be asked for is cached."""
    network.detector_model.vision_encoder.backbone = nn.Identity()


def drop_text_encoder(network: Sam3Network) -> None:
    """Free the text encoder, once all phrases are cached."""
    network.detector_model.text_encoder = nn.Identity()


def _on_device(tokens: PromptTokens, device: torch.device) -> PromptTokens:
    return PromptTokens(tokens.features.to(device), tokens.mask.to(device))


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
