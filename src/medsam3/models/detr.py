"""The parts of SAM 3's detector in plain torch, at any size: prompt encoder, fusion encoder, decoder, mask head.

The tensor names are those of the published `facebook/sam3`, so that its weights load without renaming. The order of the
steps lies in `detector.py`. This module knows no image encoder, no text encoder and no file.

Source: Carion et al., SAM 3: Segment Anything with Concepts, arXiv 2511.16719.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsam3.models.kept import Kept, convolved, doubled, is_first, once
from medsam3.models.roi_align import roi_align

ROI_BINS = 7
MOST_PRESENCE_LOGIT, MOST_SCORE_LOGIT = 10.0, 12.0
_TEMPERATURE = 10_000
_RPB_SCALE = 8  # of distances to a box's edges, before their logarithm


@dataclass(frozen=True)
class PartSizes:
    """Sizes of one part of a detector; the defaults are those of the published model's encoder and decoder."""

    width: int = 256
    heads: int = 8
    feed_forward: int = 2048
    layers: int = 6
    queries: int = 200
    upsampling_stages: int = 3
    dropout: float = 0.1


class Decoded(NamedTuple):
    """Outputs of all decoder layers, the layer first; `references` are the boxes that each layer started from."""

    queries: Tensor  # (layers, B, Q, D)
    references: Tensor  # (layers, B, Q, 4) cxcywh in 0..1
    presence: Tensor  # (layers, B, 1) logits


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Logits of values in 0..1, those near the ends held to `eps`."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def sine_code(values: Tensor, features: int) -> Tensor:
    """Sines and cosines in turn of values (...) at `features` wavelengths, (..., features)."""
    number = torch.arange(features, device=values.device)
    wavelength = _TEMPERATURE ** (2 * (number // 2).to(values.dtype) / features)
    angles = values[..., None] / wavelength
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def sine_positions(width: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Position codes (1, width, H, W) in float32 of a map's rows and columns, counted from 1 and scaled to 2 pi."""
    rows, columns = (torch.arange(1, length + 1, device=device) / (length + 1e-6) * (2 * math.pi) for length in size)
    codes = torch.cat(
        (
            sine_code(rows, width // 2)[:, None].expand(-1, size[1], -1),
            sine_code(columns, width // 2)[None].expand(size[0], -1, -1),
        ),
        dim=-1,
    )
    return codes.permute(2, 0, 1)[None]


class Attention(nn.Module):
    """Multi-head attention of tokens (B, N, D) to tokens (B, M, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; `mask` is broadcast to (B, heads, N, M): bool, True where to look, or float, added to the logits."""
        query, key, value = (
            part.view(*part.shape[:2], self.heads, -1).transpose(1, 2)
            for part in (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        result: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return result


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to the same shape."""
        result: Tensor = self.fc2(F.relu(self.fc1(x)))
        return result


class Perceptron(nn.Module):
    """Two or three linear layers with ReLUs between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int) -> None:
        super().__init__()
        widths = [inputs, *[hidden] * (layers - 1), outputs]
        self.layer1 = nn.Linear(widths[0], widths[1])
        self.layer2 = nn.Linear(widths[1], widths[2])
        self.layer3 = nn.Linear(widths[2], widths[3]) if layers == 3 else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        x = self.layer2(F.relu(self.layer1(x)))
        result: Tensor = x if self.layer3 is None else self.layer3(F.relu(x))
        return result


class FusionLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward on tokens, each normalised before and added."""

    def __init__(self, sizes: PartSizes) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(sizes.width)
        self.self_attn = Attention(sizes.width, sizes.heads)
        self.dropout = nn.Dropout(sizes.dropout)
        self.cross_attn = Attention(sizes.width, sizes.heads)
        self.layer_norm2 = nn.LayerNorm(sizes.width)
        self.mlp = FeedForward(sizes.width, sizes.feed_forward)
        self.layer_norm3 = nn.LayerNorm(sizes.width)

    def attend_other(self, tokens: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """The steps after self-attention."""
        tokens = tokens + self.dropout(self.cross_attn(self.layer_norm2(tokens), key, value, mask))
        result: Tensor = tokens + self.dropout(self.mlp(self.layer_norm3(tokens)))
        return result


class GeometryLayer(FusionLayer):
    """Prompt tokens attend to each other, then to the image."""

    def forward(self, tokens: Tensor, image: Tensor, position: Tensor, mask: Tensor) -> Tensor:
        """Prompt tokens (B, n, D) with their mask (B, n) bool, and image tokens (B, N, D) with their positions."""
        normed = self.layer_norm1(tokens)
        tokens = tokens + self.dropout(self.self_attn(normed, normed, normed, mask[:, None, None]))
        return self.attend_other(tokens, image + position, image)


class EncoderLayer(FusionLayer):
    """Image tokens attend to each other, then to the prompt."""

    def forward(self, image: Tensor, position: Tensor, prompt: Tensor, mask: Tensor | None) -> Tensor:
        """Image tokens (B, N, D) with their positions, and prompt tokens (B, L, D) with their mask (B, L) bool."""
        return self.attend_prompt(self.attend_self(image, position), prompt, mask)

    def attend_self(self, image: Tensor, position: Tensor) -> Tensor:
        """The first step, which knows nothing of the prompt."""
        normed = self.layer_norm1(image)
        placed = normed + position
        seen: Tensor = image + self.dropout(self.self_attn(placed, placed, normed))
        return seen

    def attend_prompt(self, image: Tensor, prompt: Tensor, mask: Tensor | None) -> Tensor:
        """The steps after that."""
        return self.attend_other(image, prompt, prompt, None if mask is None else mask[:, None, None])


class GeometryEncoder(nn.Module):
    """Tokens of exemplar boxes, and one more for the image as a whole."""

    def __init__(self, sizes: PartSizes) -> None:
        super().__init__()
        width = sizes.width
        self.label_embed = nn.Embedding(2, width)
        self.cls_embed = nn.Embedding(1, width)
        self.boxes_direct_project = nn.Linear(4, width)
        self.boxes_pool_project = nn.Conv2d(width, width, ROI_BINS)
        self.boxes_pos_enc_project = nn.Linear(width + 2, width)
        self.vision_layer_norm = nn.LayerNorm(width)
        self.final_proj = nn.Linear(width, width)
        self.prompt_layer_norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(GeometryLayer(sizes) for _ in range(sizes.layers))
        self.output_layer_norm = nn.LayerNorm(width)

    def forward(
        self, image: Tensor, position: Tensor, boxes: Tensor, is_positive: Tensor, is_used: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, n + 1, D) and their mask (B, n + 1), the image's own token after the boxes that are used.

        Args:
            image: (B, D, H, W).
            position: (B, D, H, W) position codes.
            boxes: (B, n, 4) cxcywh in 0..1.
            is_positive: (B, n) bool.
            is_used: (B, n) bool, True first; False marks padding.
        """
        encoded = self._encode_boxes(image, boxes, is_positive)
        counts = is_used.sum(dim=1)
        own = self.cls_embed.weight[None].expand(len(boxes), 1, -1).to(encoded.dtype)
        place = counts[:, None, None].expand(-1, 1, own.shape[-1])
        tokens = F.pad(encoded, (0, 0, 0, 1)).scatter(1, place, own)
        mask = torch.arange(tokens.shape[1], device=counts.device) <= counts[:, None]
        tokens = self.prompt_layer_norm(self.final_proj(tokens))
        flat, flat_position = image.flatten(2).transpose(1, 2), position.flatten(2).transpose(1, 2)  # (B, H*W, D)
        for layer in self.layers:
            tokens = layer(tokens, flat, flat_position, mask)
        return self.output_layer_norm(tokens), mask

    def _encode_boxes(self, image: Tensor, boxes: Tensor, is_positive: Tensor) -> Tensor:
        """Label, edges, features inside and place of each box, (B, n, D)."""
        height, width = image.shape[-2:]
        normed = self.vision_layer_norm(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        edges = _xyxy(boxes) * boxes.new_tensor([width, height, width, height])
        pooled = self.boxes_pool_project(roi_align(normed, edges.unbind(0), ROI_BINS)).view(*boxes.shape[:2], -1)
        x, y, w, h = boxes.unbind(-1)
        half = self.final_proj.in_features // 2
        codes = [sine_code(value * (2 * math.pi), half) for value in (y, x)]
        place = self.boxes_pos_enc_project(torch.cat((*codes, h[..., None], w[..., None]), dim=-1))
        result: Tensor = self.label_embed(is_positive.long()) + self.boxes_direct_project(boxes) + pooled + place
        return result


class DetrEncoder(nn.Module):
    """Fuses the prompt into the image's coarsest level."""

    def __init__(self, sizes: PartSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(sizes) for _ in range(sizes.layers))

    def forward(
        self, image: Tensor, position: Tensor, prompt: Tensor, mask: Tensor | None = None, kept: Kept | None = None
    ) -> Tensor:
        """Image tokens (B, N, D) and positions, prompt tokens (B, L, D) and their mask (B, L), to (B, N, D)."""
        layers: list[Any] = list(self.layers)
        first, *others = layers
        own = once(kept, "attended", lambda: first.attend_self(image, position))
        image = first.attend_prompt(own, prompt, mask)
        for layer in others:
            image = layer(image, position, prompt, mask)
        return image


class DecoderLayer(nn.Module):
    """Queries attend to each other, to the prompt and to the image, each added and then normalised."""

    def __init__(self, sizes: PartSizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes.width, sizes.heads)
        self.self_attn_layer_norm = nn.LayerNorm(sizes.width)
        self.text_cross_attn = Attention(sizes.width, sizes.heads)
        self.text_cross_attn_layer_norm = nn.LayerNorm(sizes.width)
        self.vision_cross_attn = Attention(sizes.width, sizes.heads)
        self.vision_cross_attn_layer_norm = nn.LayerNorm(sizes.width)
        self.mlp = FeedForward(sizes.width, sizes.feed_forward)
        self.mlp_layer_norm = nn.LayerNorm(sizes.width)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, queries: Tensor, place: Tensor, prompt: tuple[Tensor, Tensor], image: Sequence[Tensor]) -> Tensor:
        """Refine queries.

        Args:
            queries: (B, Q, D), and their `place` of the same shape.
            place: Position codes of the queries.
            prompt: Tokens (B, L, D) and their mask, broadcast to (B, heads, Q, L).
            image: Tokens (B, N, D), the same with positions, and what is added to the logits, (B, heads, Q, N).
        """
        drop = self.dropout
        placed = queries + place
        queries = self.self_attn_layer_norm(queries + drop(self.self_attn(placed, placed, queries)))
        tokens, mask = prompt
        told = self.text_cross_attn(queries + place, tokens, tokens, mask)
        queries = self.text_cross_attn_layer_norm(queries + drop(told))
        seen = self.vision_cross_attn(queries + place, image[1], image[0], image[2])
        queries = self.vision_cross_attn_layer_norm(queries + drop(seen))
        result: Tensor = self.mlp_layer_norm(queries + drop(self.mlp(queries)))
        return result


class DetrDecoder(nn.Module):
    """Queries to objects: boxes that each layer refines, and a token that says whether the concept is there."""

    def __init__(self, sizes: PartSizes) -> None:
        super().__init__()
        width = sizes.width
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(sizes.layers))
        self.output_layer_norm = nn.LayerNorm(width)
        self.box_head = Perceptron(width, width, 4, 3)
        self.query_embed = nn.Embedding(sizes.queries, width)
        self.reference_points = nn.Embedding(sizes.queries, 4)
        self.presence_token = nn.Embedding(1, width)
        self.presence_head = Perceptron(width, width, 1, 3)
        self.presence_layer_norm = nn.LayerNorm(width)
        self.ref_point_head = Perceptron(2 * width, width, width, 2)
        self.box_rpb_embed_x = Perceptron(2, width, sizes.heads, 2)
        self.box_rpb_embed_y = Perceptron(2, width, sizes.heads, 2)

    def forward(self, image: Tensor, position: Tensor, prompt: Tensor, mask: Tensor, size: tuple[int, int]) -> Decoded:
        """Decode.

        Args:
            image: Fused tokens (B, H*W, D).
            position: Their position codes (B, H*W, D).
            prompt: Tokens (B, L, D).
            mask: (B, L) bool, True where a prompt token is real.
            size: H and W.
        """
        batch, (token, start) = len(image), (self.presence_token.weight, self.query_embed.weight)
        queries = torch.cat((token, start)).expand(batch, -1, -1)
        boxes = here = self.reference_points.weight.sigmoid().expand(batch, -1, -1)
        told, placed = (prompt, mask[:, None, None]), image + position
        outputs, references, presences = [], [], []
        for layer in self.layers:
            references.append(boxes)
            place = F.pad(self.ref_point_head(self._encode_places(here)), (0, 0, 1, 0))  # the presence token has none
            near = F.pad(self._nearness(here, size), (0, 0, 1, 0))  # and looks everywhere alike
            queries = layer(queries, place, told, (image, placed, near))
            found = self.output_layer_norm(queries[:, 1:])
            outputs.append(found)
            presence = self.presence_head(self.presence_layer_norm(queries[:, :1])).squeeze(-1)
            presences.append(presence.clamp(-MOST_PRESENCE_LOGIT, MOST_PRESENCE_LOGIT))
            boxes = self.refined_boxes(here, found)
            here = boxes.detach()
        return Decoded(torch.stack(outputs), torch.stack(references), torch.stack(presences))

    def refined_boxes(self, references: Tensor, queries: Tensor) -> Tensor:
        """Boxes (..., Q, 4) cxcywh that the queries (..., Q, D) make of the boxes they started from."""
        result: Tensor = (inverse_sigmoid(references) + self.box_head(queries)).sigmoid()
        return result

    def _encode_places(self, boxes: Tensor) -> Tensor:
        x, y, w, h = (boxes * (2 * math.pi)).unbind(-1)
        half = self.output_layer_norm.normalized_shape[0] // 2
        return torch.cat([sine_code(value, half) for value in (y, x, w, h)], dim=-1)

    def _nearness(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Compute what is added to attention logits for each cell's distances to a box's edges, (B, heads, Q, H*W)."""
        edges = _xyxy(boxes)
        rows, columns = (torch.arange(length, device=boxes.device, dtype=boxes.dtype) / length for length in size)
        down = self.box_rpb_embed_y(_log_distance(rows[:, None] - edges[:, :, None, 1::2]))  # (B, Q, H, heads)
        along = self.box_rpb_embed_x(_log_distance(columns[:, None] - edges[:, :, None, 0::2]))  # (B, Q, W, heads)
        near: Tensor = (down[:, :, :, None] + along[:, :, None]).flatten(2, 3)  # (B, Q, H*W, heads)
        return near.permute(0, 3, 1, 2).contiguous()


class Scoring(nn.Module):
    """Scores of queries: their product with the mean prompt token."""

    def __init__(self, sizes: PartSizes) -> None:
        super().__init__()
        width = sizes.width
        self.text_mlp = Perceptron(width, sizes.feed_forward, width, 2)
        self.text_mlp_dropout = nn.Dropout(sizes.dropout)
        self.text_mlp_out_norm = nn.LayerNorm(width)
        self.text_proj = nn.Linear(width, width)
        self.query_proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, prompt: Tensor, mask: Tensor) -> Tensor:
        """Logits (layers, B, Q) of queries (layers, B, Q, D), for prompt tokens (B, L, D) with their mask (B, L)."""
        tokens = self.text_mlp_out_norm(prompt + self.text_mlp_dropout(self.text_mlp(prompt)))
        is_real = mask[..., None].to(tokens.dtype)
        mean = self.text_proj((tokens * is_real).sum(dim=1) / is_real.sum(dim=1).clamp(min=1))  # (B, D)
        scores = self.query_proj(queries) @ mean[..., None]
        scaled: Tensor = scores.squeeze(-1) / math.sqrt(mean.shape[-1])
        return scaled.clamp(-MOST_SCORE_LOGIT, MOST_SCORE_LOGIT)


class MaskEmbedder(nn.Module):
    """Queries (B, Q, D) to what their masks are multiplied with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))

    def forward(self, queries: Tensor) -> Tensor:
        """(B, Q, D) to the same shape."""
        first, second, last = self.layers
        result: Tensor = last(F.relu(second(F.relu(first(queries)))))
        return result


class PixelDecoder(nn.Module):
    """A feature pyramid from the coarsest map up to the finest."""

    def __init__(self, sizes: PartSizes) -> None:
        super().__init__()
        width, stages = sizes.width, range(sizes.upsampling_stages)
        self.conv_layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in stages)
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in stages)

    def forward(self, coarse: Tensor, finer: Sequence[Tensor], kept: Kept | None = None) -> Tensor:
        """The coarsest map (B, D, H, W) joined with the finer ones, from fine to coarse, at the finest size."""
        is_asked_again = kept is not None and not is_first(kept, "pixels")
        convs: list[Any] = list(self.conv_layers)
        for level, conv, norm in zip(finer[::-1], convs, self.norms, strict=False):
            is_double = level.shape[-2:] == (2 * coarse.shape[-2], 2 * coarse.shape[-1])
            if is_asked_again and is_double:
                own = once(kept, f"convolved {len(level[0, 0])}", partial(convolved, conv, level))
                joined = doubled(coarse, conv.weight).add_(own)
            else:
                joined = conv(F.interpolate(coarse, size=level.shape[-2:], mode="nearest") + level)
            coarse = F.relu(norm(joined))
        return coarse


class MaskDecoder(nn.Module):
    """Masks of queries, and of the concept as a whole."""

    def __init__(self, sizes: PartSizes) -> None:
        super().__init__()
        width = sizes.width
        self.pixel_decoder = PixelDecoder(sizes)
        self.mask_embedder = MaskEmbedder(width)
        self.instance_projection = nn.Conv2d(width, width, 1)
        self.semantic_projection = nn.Conv2d(width, 1, 1)
        self.prompt_cross_attn = Attention(width, sizes.heads)
        self.prompt_cross_attn_norm = nn.LayerNorm(width)
        self.prompt_cross_attn_dropout = nn.Dropout(sizes.dropout)

    def forward(
        self,
        queries: Tensor,
        maps: Sequence[Tensor],
        fused: Tensor,
        prompt: Tensor,
        mask: Tensor | None = None,
        kept: Kept | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (B, Q, h, w) and (B, 1, h, w) at the size of the finest map.

        Args:
            queries: (B, Q, D); with Q = 0 the concept's mask alone is computed.
            maps: Image levels (B, D, H_i, W_i) from fine to coarse.
            fused: The coarsest level with the prompt fused in, (B, H*W, D), which takes its place.
            prompt: Tokens (B, L, D).
            mask: (B, L) bool, True where a token is real; None if all are.
            kept: What is kept of the image for its next prompt.
        """
        seen = None if mask is None else mask[:, None, None]
        told = self.prompt_cross_attn(self.prompt_cross_attn_norm(fused), prompt, prompt, seen)
        fused = fused + self.prompt_cross_attn_dropout(told)
        pixels = self.pixel_decoder(fused.transpose(1, 2).reshape(maps[-1].shape), maps[:-1], kept)
        semantic = self.semantic_projection(pixels)
        if not queries.shape[1]:
            return semantic.new_zeros(len(semantic), 0, *semantic.shape[-2:]), semantic
        instances = torch.einsum("bqd,bdhw->bqhw", self.mask_embedder(queries), self.instance_projection(pixels))
        return instances, semantic


def _xyxy(boxes: Tensor) -> Tensor:
    """Corners of boxes (..., 4) cxcywh."""
    centres, sides = boxes[..., :2], boxes[..., 2:]
    return torch.cat((centres - sides / 2, centres + sides / 2), dim=-1)


def _log_distance(distance: Tensor) -> Tensor:
    scaled = distance * _RPB_SCALE
    return scaled.sign() * torch.log2(scaled.abs() + 1) / math.log2(_RPB_SCALE)
