"""SAM 3's heavy parts on a CPU through OpenVINO: the image encoder, the fusion encoder and the mask head.

`use_openvino` puts compiled parts in the place of a network's own, behind the same calls, so that everything around
them stays as it is. What is small (text, exemplars, decoder, scores) and the tracker's head stay in torch. It answers
only: no gradients. Precision is said, never chosen by the machine: OpenVINO alone would take bfloat16 where it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from medsam3.errors import InputError, require
from medsam3.models.sam3.network import Sam3Network
from medsam3.models.sam3.segmenter import Sam3Segmenter

OpenVinoPrecision = Literal["float32", "bfloat16"]
_HINTS: dict[str, str] = {"float32": "f32", "bfloat16": "bf16"}
_PROMPT_TOKENS = 9
_QUERIES = 4


class _Trunk(nn.Module):
    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        tokens: Tensor = self.backbone(pixels).last_hidden_state
        return tokens


class _Masks(nn.Module):
    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, queries: Tensor, fine: Tensor, middle: Tensor, coarse: Tensor, fused: Tensor, prompt: Tensor
    ) -> tuple[Tensor, Tensor]:
        masks, whole = self.decoder(queries, [fine, middle, coarse], fused, prompt)
        return masks, whole


class _Compiled:
    """A compiled part: tensors of one item in, tensors out."""

    def __init__(self, part: nn.Module, examples: Sequence[Tensor], free: Sequence[int], hint: str) -> None:
        """Compile.

        Args:
            part: What to compile, with tensors in and out.
            examples: Inputs of the shapes it will get.
            free: Numbers of the inputs whose second axis may have any length.
            hint: OpenVINO's name of the number format.
        """
        openvino: Any = require("openvino", extra="openvino")
        shapes = [list(example.shape) for example in examples]
        lengths: list[dict[int, Any]] = [{} for _ in examples]
        for number in free:
            shapes[number][1] = -1
            lengths[number] = {1: torch.export.Dim.DYNAMIC}
        with torch.no_grad():  # exported without computing: a trace of the trunk would keep 12 GiB of its activations
            exported = torch.export.export(part, tuple(examples), dynamic_shapes=lengths, strict=False)
            converted = openvino.convert_model(exported, input=shapes)
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        self._model = openvino.Core().compile_model(converted, "CPU", settings)

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        given = [np.ascontiguousarray(one.detach().float().numpy()) for one in inputs]
        answers = self._model(given)
        return [torch.from_numpy(np.array(answers[number])) for number in range(len(self._model.outputs))]


class CompiledTrunk(nn.Module):
    """In the place of the trunk."""

    def __init__(self, backbone: Any, image_size: int, hint: str) -> None:
        super().__init__()
        self._run = _Compiled(_Trunk(backbone), [torch.zeros(1, 3, image_size, image_size)], (), hint)

    def forward(self, pixels: Tensor) -> SimpleNamespace:
        """`last_hidden_state` (B, H*W, D) of pixels (B, 3, S, S)."""
        return SimpleNamespace(last_hidden_state=torch.cat([self._run(one[None])[0] for one in pixels]))


class CompiledLevel(nn.Module):
    """In the place of one level of a neck."""

    def __init__(self, layer: nn.Module, example: Tensor, hint: str) -> None:
        super().__init__()
        self._run = _Compiled(layer, [example], (), hint)

    def forward(self, trunk: Tensor) -> Tensor:
        """The level of the trunk's output (B, D, H, W)."""
        return torch.cat([self._run(one[None])[0] for one in trunk])


class CompiledFusion(nn.Module):
    """In the place of the fusion encoder, called as `detector.detect` calls it."""

    def __init__(self, encoder: nn.Module, image: Tensor, prompt: Tensor, hint: str) -> None:
        super().__init__()
        self._run = _Compiled(encoder, [image, torch.zeros_like(image), prompt], (2,), hint)

    def forward(self, image: Tensor, position: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
        """The fused level; prompt tokens that the mask leaves out are taken out."""
        items = range(len(image))
        return torch.cat([self._run(image[[i]], position[[i]], prompt[[i]][:, mask[i]])[0] for i in items])


class CompiledMasks(nn.Module):
    """In the place of the mask head, called as `detector.decode_masks` calls it."""

    def __init__(self, decoder: nn.Module, levels: Sequence[Tensor], fused: Tensor, prompt: Tensor, hint: str) -> None:
        super().__init__()
        queries = torch.zeros(1, _QUERIES, fused.shape[-1])
        self._run = _Compiled(_Masks(decoder), [queries, *levels, fused, prompt], (0, 5), hint)

    def forward(
        self, queries: Tensor, maps: Sequence[Tensor], fused: Tensor, prompt: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Masks of each query, and the concept's as a whole."""
        answers = [
            self._run(queries[[i]], *(level[[i]] for level in maps), fused[[i]], prompt[[i]][:, mask[i]])
            for i in range(len(queries))
        ]
        masks, whole = (torch.cat(parts) for parts in zip(*answers, strict=True))
        return masks, whole


def use_openvino(segmenter: Sam3Segmenter, *, precision: OpenVinoPrecision = "bfloat16") -> Sam3Segmenter:
    """The segmenter with its heavy parts compiled, their weights in torch given free.

    Args:
        segmenter: On the CPU in float32, without a switchable adapter.
        precision: Number format inside the compiled parts; what goes between parts is float32.

    Raises:
        InputError: Another device or number format, an adapter kept apart, or OpenVINO is not installed.
    """
    network = segmenter.network
    if precision not in _HINTS:
        raise InputError(f"precision is {precision!r}, allowed are {', '.join(_HINTS)}")
    if network.device.type != "cpu" or network.dtype != torch.float32:
        raise InputError(
            f"the model is on {network.device} in {network.dtype}: load it on cpu in float32, then OpenVINO computes "
            "in the precision asked for"
        )
    if segmenter.adapter is not None:
        raise InputError("the adapter is kept apart from the weights: merge it (is_lora_switchable=False)")
    _compile_parts(network, _HINTS[precision])
    return segmenter


def _compile_parts(network: Sam3Network, hint: str) -> None:
    """Each part in turn, the largest first, and its torch weights freed before the next."""
    model = network.detector_model
    side = network.image_size // model.config.vision_config.backbone_config.patch_size
    trunk = torch.zeros(1, model.config.vision_config.backbone_config.hidden_size, side, side)
    model.vision_encoder.backbone = CompiledTrunk(model.vision_encoder.backbone, network.image_size, hint)
    with torch.no_grad():
        levels = network.detector_levels(trunk).maps
    necks: list[Any] = [neck for neck in (model.vision_encoder.neck, network.tracker_neck) if neck is not None]
    for neck in necks:
        for number in range(len(levels)):
            neck.fpn_layers[number] = CompiledLevel(neck.fpn_layers[number], trunk, hint)
    width = levels[-1].shape[1]
    prompt = torch.zeros(1, _PROMPT_TOKENS, width)
    fused = torch.zeros(1, side * side, width)
    model.detr_encoder = CompiledFusion(model.detr_encoder, fused, prompt, hint)
    model.mask_decoder = CompiledMasks(model.mask_decoder, levels, fused, prompt, hint)
