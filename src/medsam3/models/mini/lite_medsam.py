"""LiteMedSAM, frozen: its image encoder, and its prompt encoder and mask decoder for boxes.

One job: from a 256 x 256 letterboxed square and boxes on it to the logits of their masks. It knows nothing of images,
phrases or the square's relation to the picture. The file is read when the first box, click or neck is asked for.

Coordinates are pixel centres at integers, as everywhere here: SAM's code adds 0.5 before it divides by 256, so x = 0 is
the middle of the first column, and x is the number that LiteMedSAM's own code takes. The tensor names are LiteMedSAM's.

Only boxes and the single mask are here. With the published weights SAM's other inputs behave as if never trained, in
the original code too: a point or a mask alone finds nothing, and added to a box they make the mask worse.

Source: Kirillov et al., Segment Anything, ICCV 2023; weights: Ma et al., Nature Communications 15, 2024.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from medsam3.errors import InputError
from medsam3.models.detector import without_values
from medsam3.models.mini.letterbox import SIDE, square_tensor
from medsam3.models.mini.tinyvit import ChannelNorm, TinyViT, convert_lite_medsam

NECK_SIZE = 64
NECK_DIM = 256
OBJECTS_AT_ONCE = 4  # time grows as their number, so a greater one only costs memory

_HEADS = 8
_MASK_TOKENS = 4
_PARTS = ("prompt_encoder.", "mask_decoder.")
_NOT_FOR_BOXES = re.compile(
    r"prompt_encoder\.(point_embeddings\.[01]|not_a_point_embed|mask_downscaling)\."
    r"|mask_decoder\.output_hypernetworks_mlps\.[1-3]\."
)


class BoxMasks(NamedTuple):
    """Masks of K objects in the letterboxed frame.

    Attributes:
        logits: (K, 256, 256) float, mask where > 0; pixel (row, column) is the input's own.
        iou: (K,) float, the decoder's guess of each mask's IoU; not held to 0..1.
    """

    logits: Tensor
    iou: Tensor


class LiteMedSam:
    """The published model in its file, each half built when it is first used."""

    def __init__(self, path: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        """Remember where `lite_medsam.pth` lies, whose SHA-256 `encoder_files.locate` has checked.

        Args:
            path: The file.
            dtype: Number format of the image encoder; what it gives is float32.
            device: Where both halves run.
        """
        self.path, self.dtype, self.device = path, dtype, torch.device(device)

    def neck(self, square: NDArray[np.uint8]) -> Tensor:
        """Neck features (1, 256, 64, 64) float32 of a square (256, 256, 3) uint8."""
        with torch.inference_mode():
            features = self.encoder(square_tensor(square).to(self.device, self.dtype))
        result: Tensor = features.neck.float().cpu()
        return result

    def decode(self, neck: Tensor, boxes: Tensor) -> BoxMasks:
        """Masks, on the CPU, of K boxes (K, 4) xyxy on the square, given its neck; see `BoxDecoder.decode`."""
        logits, iou = self.decoder.decode(neck, boxes)
        return BoxMasks(logits.cpu(), iou.cpu())

    @cached_property
    def encoder(self) -> TinyViT:
        """The image encoder."""
        with without_values():
            model = TinyViT()
        model.load_state_dict(convert_lite_medsam(self._state), assign=True)
        model.eval().requires_grad_(False)
        return model.to(self.device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    @cached_property
    def decoder(self) -> BoxDecoder:
        """Prompt encoder and mask decoder."""
        return BoxDecoder.from_lite_medsam(self._state).to(self.device)

    @cached_property
    def _state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = torch.load(self.path, weights_only=True, map_location="cpu", mmap=True)
        return state


class _Attention(nn.Module):
    """Multi-head attention of tokens (K, N, 256) to tokens (K, M, 256), at a width of its own inside."""

    def __init__(self, width: int = NECK_DIM // 2) -> None:
        super().__init__()
        self.q_proj = nn.Linear(NECK_DIM, width)
        self.k_proj = nn.Linear(NECK_DIM, width)
        self.v_proj = nn.Linear(NECK_DIM, width)
        self.out_proj = nn.Linear(width, NECK_DIM)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        heads = [part.view(*part.shape[:2], _HEADS, -1).transpose(1, 2) for part in parts]
        result: Tensor = self.out_proj(F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return result


class _TwoWayLayer(nn.Module):
    """Tokens attend to each other and to the image, then the image to the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = _Attention(NECK_DIM)
        self.cross_attn_token_to_image = _Attention()
        self.cross_attn_image_to_token = _Attention()
        self.mlp = nn.ModuleDict({"lin1": nn.Linear(NECK_DIM, 2048), "lin2": nn.Linear(2048, NECK_DIM)})
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(NECK_DIM) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor, prompt: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """One round; `prompt` is the tokens at the start, which stand for their places."""
        placed = tokens + prompt
        tokens = self.norm1(tokens + self.self_attn(placed, placed, tokens))
        return self.attend_image(tokens, image, prompt, position)

    def attend_image(self, tokens: Tensor, image: Tensor, prompt: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """The steps after self-attention."""
        seen = self.cross_attn_token_to_image(tokens + prompt, image + position, image)
        tokens = self.norm2(tokens + seen)
        tokens = self.norm3(tokens + self.mlp["lin2"](F.relu(self.mlp["lin1"](tokens))))
        told = self.cross_attn_image_to_token(image + position, tokens + prompt, tokens)
        return tokens, self.norm4(image + told)


class _FirstLayer(_TwoWayLayer):
    """The first round, in which tokens attend to each other without their places and are replaced."""

    def forward(self, tokens: Tensor, image: Tensor, prompt: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        return self.attend_image(self.norm1(self.self_attn(tokens, tokens, tokens)), image, prompt, position)


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_FirstLayer(), _TwoWayLayer()])
        self.final_attn_token_to_image = _Attention()
        self.norm_final_attn = nn.LayerNorm(NECK_DIM)

    def forward(self, prompt: Tensor, image: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (K, N, 256) and image (K, 4096, 256) after both have looked at each other."""
        tokens = prompt
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompt, position)
        seen = self.final_attn_token_to_image(tokens + prompt, image + position, image)
        return self.norm_final_attn(tokens + seen), image


class _Perceptron(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(NECK_DIM, width) for width in (NECK_DIM, NECK_DIM, outputs))

    def forward(self, x: Tensor) -> Tensor:
        first, second, last = self.layers
        result: Tensor = last(F.relu(second(F.relu(first(x)))))
        return result


class _PromptEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pe_layer = nn.ParameterDict({"positional_encoding_gaussian_matrix": torch.randn(2, NECK_DIM // 2)})
        self.point_embeddings = nn.ModuleDict({corner: nn.Embedding(1, NECK_DIM) for corner in ("2", "3")})
        self.no_mask_embed = nn.Embedding(1, NECK_DIM)

    def forward(self, boxes: Tensor) -> Tensor:
        """Tokens (K, 2, 256) of the corners of boxes (K, 4)."""
        corners = torch.cat(list(self.point_embeddings.parameters()))
        return self.places((boxes.view(-1, 2, 2) + 0.5) / SIDE) + corners

    def places(self, xy: Tensor) -> Tensor:
        """Position codes (..., 256) of points (..., 2) in 0..1, x before y."""
        matrix = self.pe_layer["positional_encoding_gaussian_matrix"]
        angles = 2 * math.pi * ((2 * xy - 1) @ matrix)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class _MaskDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.iou_token = nn.Embedding(1, NECK_DIM)
        self.mask_tokens = nn.Embedding(_MASK_TOKENS, NECK_DIM)
        self.transformer = _Transformer()
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(NECK_DIM, NECK_DIM // 4, 2, stride=2),
            ChannelNorm(NECK_DIM // 4),
            nn.GELU(),
            nn.ConvTranspose2d(NECK_DIM // 4, NECK_DIM // 8, 2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList([_Perceptron(NECK_DIM // 8)])
        self.iou_prediction_head = _Perceptron(_MASK_TOKENS)

    def forward(self, image: Tensor, position: Tensor, prompt: Tensor) -> BoxMasks:
        """Masks of K prompts (K, 2, 256) on an image (1, 256, 64, 64) with its position codes (1, 4096, 256)."""
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(prompt), -1, -1), prompt], dim=1)
        flat = image.flatten(2).transpose(1, 2).expand(len(prompt), -1, -1)
        tokens, flat = self.transformer(tokens, flat, position)
        pixels = self.output_upscaling(flat.transpose(1, 2).unflatten(2, (NECK_SIZE, NECK_SIZE)))  # (K, 32, 256, 256)
        weights = self.output_hypernetworks_mlps[0](tokens[:, 1])  # of the single mask
        iou = self.iou_prediction_head(tokens[:, 0])[:, 0]
        return BoxMasks(torch.einsum("kc,kchw->khw", weights, pixels), iou)


class BoxDecoder(nn.Module):
    """LiteMedSAM without its image encoder, and of that what a box needs. Its parameters are frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.prompt_encoder = _PromptEncoder()
        self.mask_decoder = _MaskDecoder()
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_lite_medsam(cls, state: Mapping[str, Tensor]) -> BoxDecoder:
        """The decoder with the tensors of `lite_medsam.pth`; those that no box needs are left alone.

        Raises:
            InputError: A tensor of the prompt encoder or mask decoder is missing, unknown, or of another shape.
        """
        with without_values():
            decoder = cls()
        expected = decoder.state_dict()
        given = {
            name: value for name, value in state.items() if name.startswith(_PARTS) and not _NOT_FOR_BOXES.match(name)
        }
        _check_names(set(expected), set(given))
        for name, empty in expected.items():
            _check_shape(f"{name} of the LiteMedSAM weights", given[name], tuple(empty.shape))
        decoder.load_state_dict(given, assign=True)
        return decoder.requires_grad_(False)

    def decode(self, neck: Tensor, boxes: Tensor) -> BoxMasks:
        """Masks of K objects of one image; each object is answered by itself.

        Args:
            neck: (1, 256, 64, 64), what `TinyViT` gives; half precision is widened.
            boxes: (K, 4) xyxy in pixels of the 256 x 256 letterboxed input.

        Returns:
            K = 0 gives empty tensors.

        Raises:
            InputError: The neck is not of one image, or the boxes are no (K, 4).
        """
        _check_shape("the neck", neck, (1, NECK_DIM, NECK_SIZE, NECK_SIZE))
        _check_shape("boxes", boxes, (len(boxes), 4))
        weight = self.mask_decoder.iou_token.weight
        image = neck.to(weight) + self.prompt_encoder.no_mask_embed.weight[..., None, None]
        position = self._neck_positions()
        found = [BoxMasks(weight.new_zeros(0, SIDE, SIDE), weight.new_zeros(0))]
        for start in range(0, len(boxes), OBJECTS_AT_ONCE):
            some = boxes[start : start + OBJECTS_AT_ONCE].to(weight)
            found.append(self.mask_decoder(image, position, self.prompt_encoder(some)))
        return BoxMasks(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _neck_positions(self) -> Tensor:
        """Position codes (1, 4096, 256) of the neck's cell centres."""
        centres = (torch.arange(NECK_SIZE, device=self.mask_decoder.iou_token.weight.device) + 0.5) / NECK_SIZE
        rows, columns = torch.meshgrid(centres, centres, indexing="ij")
        return self.prompt_encoder.places(torch.stack([columns, rows], dim=-1)).flatten(0, 1)[None]


def _check_names(expected: set[str], given: set[str]) -> None:
    missing, unknown = sorted(expected - given), sorted(given - expected)
    if missing or unknown:
        example = "lacks " + missing[0] if missing else "has " + unknown[0]
        raise InputError(
            f"the LiteMedSAM weights lack {len(missing)} and have {len(unknown)} unknown of the {len(expected)} "
            f"tensors of its prompt encoder and mask decoder ({example}); give the published lite_medsam.pth"
        )


def _check_shape(what: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise InputError(f"{what}: shape {tuple(value.shape)}, expected {shape}")
