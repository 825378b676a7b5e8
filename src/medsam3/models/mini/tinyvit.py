"""TinyViT, the frozen image encoder of the small model, in the shape of LiteMedSAM's weights.

One job: 256 x 256 pixels to feature maps. It knows nothing of prompts, files or training.
Batch norms are folded into their convolutions when the weights are loaded, so the module has no state to update.

Source: Wu et al., TinyViT, ECCV 2022; the sizes are those of LiteMedSAM (Ma et al., Nature Communications 15, 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH_NORM_EPS = 1e-5


@dataclass(frozen=True)
class TinyViTFeatures:
    """Feature maps of a batch of 256 x 256 images, each (B, C, H, W)."""

    fine: Tensor  # (B, 128, 128, 128), stride 2
    middle: Tensor  # (B, 160, 64, 64), stride 4
    neck: Tensor  # (B, 256, 64, 64), stride 4: what LiteMedSAM's mask decoder reads


@dataclass(frozen=True)
class LayerStage:
    """Sizes of one attention stage."""

    dim: int
    depth: int
    heads: int
    window: int
    next_dim: int | None
    stride: int


STAGES = (
    LayerStage(dim=128, depth=2, heads=4, window=7, next_dim=160, stride=2),
    LayerStage(dim=160, depth=6, heads=5, window=14, next_dim=320, stride=1),
    LayerStage(dim=320, depth=2, heads=10, window=7, next_dim=None, stride=1),
)


class MBConv(nn.Module):
    """Inverted bottleneck with a residual; keeps the shape (B, C, H, W)."""

    def __init__(self, dim: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = dim * expansion
        self.conv1 = nn.Conv2d(dim, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.conv3 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        hidden = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.conv3(hidden))


class Downsample(nn.Module):
    """Channel change, and halved height and width where the stride is 2."""

    def __init__(self, dim: int, next_dim: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, next_dim, 1)
        self.conv2 = nn.Conv2d(next_dim, next_dim, 3, stride=stride, padding=1, groups=next_dim)
        self.conv3 = nn.Conv2d(next_dim, next_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, next_dim, H / stride, W / stride)."""
        result: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return result


def relative_offsets(window: int) -> Tensor:
    """Index of each pair's absolute (row, column) offset in the bias table: (window**2, window**2) int64."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    return (rows[:, None] - rows[None]).abs() * window + (columns[:, None] - columns[None]).abs()


class WindowAttention(nn.Module):
    """Attention inside square windows with a learned bias per offset; tokens (B, N, D)."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        self.window = window

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) of B windows, attended within each."""
        batch, count, dim = tokens.shape
        qkv = self.qkv(self.norm(tokens)).view(batch, count, self.heads, 3, dim // self.heads)
        query, key, value = qkv.permute(3, 0, 2, 1, 4)  # each (B, heads, N, D/heads)
        offsets = relative_offsets(self.window).to(tokens.device)
        bias = self.attention_biases[:, offsets]  # (heads, N, N)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
        result: Tensor = self.proj(attended.transpose(1, 2).reshape(batch, count, dim))
        return result


class Mlp(nn.Module):
    """Pre-normalised two-layer perceptron on the last axis."""

    def __init__(self, dim: int, expansion: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, dim * expansion)
        self.fc2 = nn.Linear(dim * expansion, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) to the same shape."""
        result: Tensor = self.fc2(F.gelu(self.fc1(self.norm(tokens))))
        return result


class TinyViTBlock(nn.Module):
    """Window attention, a depth-wise convolution, and an MLP; (B, H, W, D) in and out."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(dim, heads, window)
        self.local_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) to the same shape."""
        x = x + self._attend(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        result: Tensor = x + self.mlp(x)
        return result

    def _attend(self, x: Tensor) -> Tensor:
        batch, height, width, dim = x.shape
        size = self.window
        # Zero tokens fill up the last windows and are attended to: the published weights were trained so.
        x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
        rows, columns = x.shape[1] // size, x.shape[2] // size
        windows = x.view(batch, rows, size, columns, size, dim).transpose(2, 3)
        tokens = self.attn(windows.reshape(-1, size * size, dim))  # (B * rows * columns, size**2, D)
        x = tokens.view(batch, rows, columns, size, size, dim).transpose(2, 3)
        return x.reshape(batch, rows * size, columns * size, dim)[:, :height, :width]


class AttentionStage(nn.Module):
    """The blocks of one stage, and the change to the next one's width; (B, C, H, W) in and out."""

    def __init__(self, stage: LayerStage) -> None:
        super().__init__()
        blocks = [TinyViTBlock(stage.dim, stage.heads, stage.window) for _ in range(stage.depth)]
        self.blocks = nn.Sequential(*blocks)
        self.downsample = (
            nn.Identity() if stage.next_dim is None else Downsample(stage.dim, stage.next_dim, stage.stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) through the blocks to the next stage."""
        tokens = self.blocks(x.permute(0, 2, 3, 1))
        result: Tensor = self.downsample(tokens.permute(0, 3, 1, 2))
        return result


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), each pixel normalised."""
        channels_last = x.permute(0, 2, 3, 1)
        normed = F.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, eps=1e-6)
        return normed.permute(0, 3, 1, 2)


class TinyViT(nn.Module):
    """LiteMedSAM's image encoder.

    Input: (B, 3, 256, 256) float, 0..1, the image's long side resized to 256 and padded at the bottom and right.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(nn.Conv2d(3, 32, 1), nn.GELU(), nn.Conv2d(32, 64, 1))
        self.stem = nn.Sequential(MBConv(64), MBConv(64), Downsample(64, 128, stride=2))
        self.stages = nn.ModuleList(AttentionStage(stage) for stage in STAGES)
        self.neck = nn.Sequential(
            nn.Conv2d(320, 256, 1, bias=False),
            ChannelNorm(256),
            nn.Conv2d(256, 256, 3, padding=1, bias=False),
            ChannelNorm(256),
        )

    def forward(self, pixels: Tensor) -> TinyViTFeatures:
        """Pixels (B, 3, 256, 256) to the three feature maps."""
        fine = self.stem(self.patch_embed(pixels.contiguous(memory_format=torch.channels_last)))
        middle = self.stages[0](fine)
        deep = self.stages[2](self.stages[1](middle))
        return TinyViTFeatures(fine=fine, middle=middle, neck=self.neck(deep))


def fold_batch_norms(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace each `x.c.weight` + `x.bn.*` group by the convolution `x.weight`, `x.bias` that equals it."""
    folded = {name: value for name, value in state.items() if ".c." not in name and ".bn." not in name}
    for name, weight in state.items():
        if not name.endswith(".c.weight"):
            continue
        stem = name.removesuffix(".c.weight")
        norm = {part: state[f"{stem}.bn.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
        scale = norm["weight"] / torch.sqrt(norm["running_var"] + BATCH_NORM_EPS)
        folded[f"{stem}.weight"] = weight * scale[:, None, None, None]
        folded[f"{stem}.bias"] = norm["bias"] - norm["running_mean"] * scale
    return folded


def convert_lite_medsam(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """LiteMedSAM's `image_encoder.*` tensors under this module's names, batch norms folded."""
    encoder = {
        name.removeprefix("image_encoder."): value for name, value in state.items() if name.startswith("image_encoder.")
    }
    return {_rename(name): value for name, value in fold_batch_norms(encoder).items()}


def _rename(name: str) -> str:
    parts = name.split(".")
    if parts[:2] == ["patch_embed", "seq"]:
        return ".".join(["patch_embed", *parts[2:]])
    if parts[:3] == ["layers", "0", "blocks"]:
        return ".".join(["stem", *parts[3:]])
    if parts[:3] == ["layers", "0", "downsample"]:
        return ".".join(["stem", "2", *parts[3:]])
    if parts[0] == "layers":
        return ".".join(["stages", str(int(parts[1]) - 1), *parts[2:]])
    return name
