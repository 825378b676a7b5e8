"""EfficientNet-Lite, the small model's second image encoder, which is trained along with the detector.

One job: pixels to feature maps at strides 2 to 32. It knows nothing of prompts, files or training. Batch norms keep
the statistics of ImageNet and are folded into their convolutions at each call, so that a batch of different kinds of
pictures does not mix them; their scale and shift are learnt. `fold` does that once, for weights that no longer learn.

Source: Tan and Le, EfficientNet, ICML 2019; the Lite variants (ReLU6, no squeeze-and-excitation) are TensorFlow's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH_NORM_EPS = 1e-3
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Variant = Literal["lite0", "lite2"]


@dataclass(frozen=True)
class BlockRow:
    """Blocks of one width. `expansion` widens each block inside."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    width: int


_LITE0 = (
    BlockRow(1, 3, 1, 1, 16),
    BlockRow(2, 3, 2, 6, 24),
    BlockRow(2, 5, 2, 6, 40),
    BlockRow(3, 3, 2, 6, 80),
    BlockRow(3, 5, 1, 6, 112),
    BlockRow(4, 5, 2, 6, 192),
    BlockRow(1, 3, 1, 6, 320),
)
_LITE2 = (
    BlockRow(1, 3, 1, 1, 16),
    BlockRow(3, 3, 2, 6, 24),
    BlockRow(3, 5, 2, 6, 48),
    BlockRow(4, 3, 2, 6, 88),
    BlockRow(4, 5, 1, 6, 120),
    BlockRow(5, 5, 2, 6, 208),
    BlockRow(1, 3, 1, 6, 352),
)
STAGES: Mapping[Variant, Sequence[BlockRow]] = {"lite0": _LITE0, "lite2": _LITE2}


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve (B, C, H, W) by one pixel as a product of matrices: PyTorch takes a slow way for it on one thread."""
    return F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)


class NormedConv(nn.Module):
    """A convolution and a batch norm with fixed statistics, computed as one convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.extra = kernel - stride if stride > 1 else 0  # for sides that the stride divides
        padding = 0 if self.extra else kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.scale = nn.Parameter(torch.ones(outputs))
        self.shift = nn.Parameter(torch.zeros(outputs))
        self._folded: Tensor | None = None

    def fold(self) -> None:
        """Keep the scaled weight, so that no call computes it; for weights that stay as they are."""
        self._folded = (self.conv.weight * self.scale[:, None, None, None]).detach()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, outputs, H / stride, W / stride)."""
        conv = self.conv
        if self.extra:  # the published weights pad as TensorFlow does, more at the right and bottom
            before, after = self.extra // 2, self.extra - self.extra // 2
            x = F.pad(x, (before, after, before, after))
        weight = conv.weight * self.scale[:, None, None, None] if self._folded is None else self._folded
        if self._folded is not None and conv.kernel_size == (1, 1) and x.device.type == "cpu":
            return pointwise(x, weight, self.shift)
        return F.conv2d(x, weight, self.shift, conv.stride, conv.padding, conv.dilation, conv.groups)


class Block(nn.Module):
    """Inverted bottleneck, with a residual where the shape stays."""

    def __init__(self, inputs: int, stage: BlockRow, stride: int) -> None:
        super().__init__()
        hidden = inputs * stage.expansion
        self.expand = NormedConv(inputs, hidden, 1) if stage.expansion > 1 else None
        self.depthwise = NormedConv(hidden, hidden, stage.kernel, stride=stride, groups=hidden)
        self.project = NormedConv(hidden, stage.width, 1)
        self.has_residual = stride == 1 and inputs == stage.width

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, width, H / stride, W / stride)."""
        hidden = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.depthwise(hidden)))
        return x + out if self.has_residual else out


class EfficientNet(nn.Module):
    """The convolutional trunk; the classifier is left out."""

    def __init__(self, variant: Variant = "lite0") -> None:
        super().__init__()
        stages = STAGES[variant]
        self.stem = NormedConv(3, 32, 3, stride=2)
        blocks: list[Block] = []
        taken: list[int] = []
        inputs = 32
        for number, stage in enumerate(stages):
            for index in range(stage.blocks):
                blocks.append(Block(inputs, stage, stage.stride if index == 0 else 1))
                inputs = stage.width
            if number + 1 == len(stages) or stages[number + 1].stride == 2:
                taken.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.frozen_blocks = 0
        self.taken = tuple(taken)
        self.widths = tuple(blocks[index].project.conv.out_channels for index in taken)

    def freeze_below(self, *, stride: int) -> None:
        """Keep the stem and the stages down to this stride as they are; no gradient is computed for them."""
        last = self.taken[stride.bit_length() - 2]
        self.frozen_blocks = last + 1
        for module in (self.stem, *self.blocks[: last + 1]):
            module.requires_grad_(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Pixels (B, 3, H, W) in 0..1 to five maps at strides 2, 4, 8, 16, 32 of `widths` channels."""
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        x = F.relu6(self.stem((pixels - mean) / std))
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taken:
                maps.append(x)
        return maps


def fold_norms(module: nn.Module) -> None:
    """Fold all batch norms in a module whose weights stay as they are, on the device that they stay on."""
    for part in module.modules():
        if isinstance(part, NormedConv):
            part.fold()


def convert_efficientnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the published `efficientnet-lite*.pth` under this module's names; head and classifier are left out."""
    converted = {}
    for name, weight in state.items():
        if name.endswith("_conv.weight") or name == "_conv_stem.weight":
            target = _target(name)
            norm = name.removesuffix("weight")
            norm = _norm_of(norm.removesuffix("."))
            scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPS)
            converted[f"{target}.conv.weight"] = weight
            converted[f"{target}.scale"] = scale
            converted[f"{target}.shift"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    return converted


_PARTS = {
    "_expand_conv": ("expand", "_bn0"),
    "_depthwise_conv": ("depthwise", "_bn1"),
    "_project_conv": ("project", "_bn2"),
}


def _target(name: str) -> str:
    parts = name.split(".")
    return "stem" if parts[0] == "_conv_stem" else f"blocks.{parts[1]}.{_PARTS[parts[2]][0]}"


def _norm_of(conv: str) -> str:
    parts = conv.split(".")
    return "_bn0" if parts[0] == "_conv_stem" else f"_blocks.{parts[1]}.{_PARTS[parts[2]][1]}"
