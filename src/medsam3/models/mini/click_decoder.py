"""The small model's interactive decoder: one object's mask from clicks, a box and the mask so far.

A small convolutional network over the frozen levels of the detector's image encoder, the pixels, and maps of what was
drawn. It sees a window around the object, enlarged or shrunk to 256 x 256, of whatever size that is in the picture.
It knows no files and no sessions.

Source: maps of clicks and the mask so far as inputs by Sofiiuk et al., "Reviving iterative training with mask guidance
for interactive segmentation", ICIP 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medsam3.geometry import BoolArray
from medsam3.models.mini.letterbox import SIDE

OUT, MIDDLE, COARSE = 2, 4, 8
"""Strides of the answer, and of the two grids that it is worked out on."""
ANSWER_SIDE = SIDE // OUT
CONE_CELLS = 3.0
"""Radius of a click's map, in cells of the grid that it is drawn on."""
FAR_CELLS = (2.0, 8.0)
"""How far a click is felt on the coarse grid."""
CELL = COARSE // MIDDLE
MIDDLE_MAPS = 4 + (MIDDLE // OUT) ** 2
"""Two of clicks, the box, the reach of the last click, and the mask so far at its own stride."""
COARSE_MAPS = MIDDLE_MAPS * CELL**2 + 2 * len(FAR_CELLS) + 2 * 4
GROUPS = 8
START_GAIN = 0.5


@dataclass(frozen=True)
class ClickDecoderConfig:
    """Sizes of the decoder; saved as JSON beside its weights."""

    level_width: int = 96
    detail: int = 8
    middle: int = 12
    coarse: int = 32
    deep: int = 48
    deep_blocks: int = 2
    coarse_blocks: int = 1
    key: int = 16


@dataclass(frozen=True)
class FrameMaps:
    """What the decoder makes of whole frames' levels: maps (B, C, H, W) over the square at strides 4 and 8."""

    middle: Tensor
    coarse: Tensor

    def select(self, index: Tensor) -> FrameMaps:
        """Take frames by number, one several times if wanted."""
        return FrameMaps(self.middle[index], self.coarse[index])


@dataclass(frozen=True)
class ClickImage:
    """What the decoder makes of a window once, for all clicks: maps (B, C, H, W) at stride 4, and three at 8."""

    middle: Tensor
    coarse: Tensor
    kinds: Tensor  # what a place is, of length 1 along C
    looks: Tensor  # how it looks, of length 1 along C

    def select(self, index: Tensor) -> ClickImage:
        """Take images by number, one several times if wanted."""
        return ClickImage(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Drawn:
    """What was said about K objects, on the square.

    Attributes:
        clicks: (K, P, 3) x, y in pixels of the square, and 1 on the object, 0 off it, -1 for no click.
        boxes: (K, 4) xyxy; NaN where there is none.
        masks: (K, 128, 128) from -1 (off) to 1 (on) the mask so far; 0 all over where there is none.
        last: (K, 4) of the newest click x, y, 1 on the object or -1 off it, and how far the outline of the mask so far
            is from it, in pixels of the square; 0 all over where there is none.
    """

    clicks: Tensor
    boxes: Tensor
    masks: Tensor
    last: Tensor

    def to(self, device: torch.device) -> Drawn:
        """Put it where the decoder is."""
        return Drawn(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class OnSquare:
    """What was said about one object, in pixels of the square.

    Attributes:
        clicks: x, y, and 1 on the object or 0 off it.
        box: xyxy; None where there is none.
        mask: (256, 256) the mask so far; None where there is none.
        last: x, y, 1 or -1, and depth of the newest click, as `Drawn.last` has them; None where it says nothing new.
    """

    clicks: Sequence[tuple[float, float, int]]
    box: tuple[float, float, float, float] | None = None
    mask: BoolArray | None = None
    last: tuple[float, float, float, float] | None = None


def drawn(objects: Sequence[OnSquare]) -> Drawn:
    """Put what was said about objects into tensors."""
    most = max([1, *(len(one.clicks) for one in objects)])
    clicks = torch.full((len(objects), most, 3), -1.0)
    boxes = torch.full((len(objects), 4), torch.nan)
    masks = torch.zeros(len(objects), SIDE, SIDE)
    last = torch.zeros(len(objects), 4)
    for k, one in enumerate(objects):
        if one.clicks:
            clicks[k, : len(one.clicks)] = torch.tensor(one.clicks)
        if one.box is not None:
            boxes[k] = torch.tensor(one.box)
        if one.mask is not None:
            masks[k] = torch.from_numpy(one.mask).float() * 2 - 1
        if one.last is not None:
            last[k] = torch.tensor(one.last)
    return Drawn(clicks, boxes, F.avg_pool2d(masks[:, None], OUT)[:, 0], last)


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.first_norm = nn.GroupNorm(GROUPS, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.normal_(self.second.weight, std=START_GAIN * (2 / (9 * width)) ** 0.5)  # near the identity at first

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        out: Tensor = x + self.second(F.relu(self.first_norm(self.first(x))))
        return out


class ClickDecoder(nn.Module):
    """Clicks, a box and the mask so far to logits (K, 128, 128) over the square, of one object each."""

    def __init__(self, config: ClickDecoderConfig | None = None) -> None:
        super().__init__()
        self.config = sizes = config or ClickDecoderConfig()
        width, cell = sizes.level_width, CELL**2
        self.middle_image = nn.Conv2d(width, sizes.detail, 1)
        self.pixels = nn.Conv2d(3 * MIDDLE**2, sizes.middle, 1)
        details = sizes.detail + sizes.middle
        self.detail = nn.Conv2d(details, sizes.middle, 1)
        self.detail_coarse = nn.Conv2d(details * cell, sizes.coarse, 1)
        self.coarse_image = nn.Conv2d(width, sizes.coarse, 1)
        self.kind = nn.Conv2d(width, sizes.key, 1)
        self.look = nn.Conv2d(details * cell, sizes.key, 1)
        self.coarse_hints = nn.Conv2d(COARSE_MAPS, sizes.coarse, 3, padding=1)
        self.coarse_norm = nn.GroupNorm(GROUPS, sizes.coarse)
        self.down = nn.Conv2d(sizes.coarse, sizes.deep, 3, stride=2, padding=1)
        self.deep = nn.Sequential(*(ResidualBlock(sizes.deep) for _ in range(sizes.deep_blocks)))
        self.whole = nn.Linear(sizes.deep, sizes.deep)
        self.up = nn.Conv2d(sizes.deep, sizes.coarse, 1)
        self.coarse_out = nn.Sequential(*(ResidualBlock(sizes.coarse) for _ in range(sizes.coarse_blocks)))
        self.to_middle = nn.Conv2d(sizes.coarse, sizes.middle * cell, 1)
        self.middle_hints = nn.Conv2d(MIDDLE_MAPS, sizes.middle, 3, padding=1)
        self.middle_out = nn.Conv2d(sizes.middle, sizes.middle, 3, padding=1)
        self.last = nn.Conv2d(sizes.middle, (MIDDLE // OUT) ** 2, 3, padding=1)
        self.fit = nn.Linear(sizes.deep, 1)
        self.prior = nn.Parameter(torch.tensor([3.0, -3.0, 0.5, 3.0, 2.0]))

    def frame(self, levels: tuple[Tensor, ...]) -> FrameMaps:
        """Make of the detector's levels, of which the last two count, what all windows of a frame need."""
        _, middle, coarse = levels
        return FrameMaps(self.middle_image(middle), torch.cat([self.coarse_image(coarse), self.kind(coarse)], dim=1))

    def image(self, maps: FrameMaps, windows: Tensor, pixels: Tensor) -> ClickImage:
        """Make of windows what all clicks in them need.

        Args:
            maps: Of the K frames.
            windows: (K, 3) left, top and side of each window, as shares of the square's side.
            pixels: (K, 3, 256, 256) in 0..1, what the windows show.
        """
        middle, coarse = (sampled_in(own, windows) for own in (maps.middle, maps.coarse))
        details = F.relu(torch.cat([middle, self.pixels(F.pixel_unshuffle(pixels * 2 - 1, MIDDLE))], dim=1))
        cells = F.pixel_unshuffle(details, CELL)
        about, kinds = torch.split(coarse, [self.config.coarse, self.config.key], dim=1)
        return ClickImage(
            self.detail(details),
            about + self.detail_coarse(cells),
            F.normalize(kinds, dim=1),
            F.normalize(self.look(cells), dim=1),
        )

    def forward(self, image: ClickImage, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Answer for one object on each of K images.

        Returns:
            Logits of the object (K, 128, 128); logit (K,) of how well the mask so far fits it, in Dice.
        """
        mask = F.pixel_unshuffle(drawn.masks[:, None], MIDDLE // OUT)
        maps = [click_maps(drawn.clicks, MIDDLE), _box_map(drawn.boxes, MIDDLE), reach_map(drawn.last), mask]
        middle = torch.cat(maps, dim=1)
        alike = [alike_maps(keys, drawn) for keys in (image.kinds, image.looks)]
        hints = torch.cat([F.pixel_unshuffle(middle, CELL), far_maps(drawn), *alike], dim=1)
        x = F.relu(self.coarse_norm(image.coarse + self.coarse_hints(hints)))
        deep = self.deep(F.relu(self.down(x)))
        mean = deep.mean(dim=(2, 3))
        deep = deep + self.whole(mean)[:, :, None, None]
        x = self.coarse_out(x + _doubled(self.up(deep)))
        x = F.relu(F.pixel_shuffle(self.to_middle(x), CELL) + image.middle + self.middle_hints(middle))
        x = self.last(F.relu(x + self.middle_out(x)))
        said = (middle[:, :4] * self.prior[:4, None, None]).sum(dim=1, keepdim=True)
        logits = F.pixel_shuffle(x + said, MIDDLE // OUT)[:, 0] + self.prior[4] * drawn.masks
        return logits, self.fit(mean)[:, 0]


def sampled_in(maps: Tensor, windows: Tensor) -> Tensor:
    """Sample maps (K, C, H, W) over the square in windows (K, 3) of it, each stretched to the same H x W."""
    steps = (torch.arange(maps.shape[-1], device=maps.device) + 0.5) / maps.shape[-1]
    x, y = ((windows[:, k, None] + windows[:, 2, None] * steps) * 2 - 1 for k in (0, 1))
    grid = torch.stack([x[:, None, :].expand(-1, y.shape[1], -1), y[:, :, None].expand(-1, -1, x.shape[1])], dim=-1)
    return F.grid_sample(maps, grid, align_corners=False, padding_mode="border")


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def click_maps(clicks: Tensor, stride: int) -> Tensor:
    """Draw positive and negative clicks (K, P, 3) as cones on a grid of the square: (K, 2, H, W) in 0..1."""
    cones = (1 - _distances(clicks, stride) / CONE_CELLS).clamp(min=0)
    own = clicks[:, :, 2, None, None]
    return torch.cat([_most(cones * (own == label)) for label in (1, 0)], dim=1)


def reach_map(last: Tensor) -> Tensor:
    """Draw the newest click (K, 4) as a cone as wide as it lies deep in the error, (K, 1, 64, 64) in -1..1."""
    far = _distances(last[:, None, :2], MIDDLE)
    wide = (last[:, 3] / MIDDLE).clamp(min=0.5)[:, None, None, None]
    return (1 - far / wide).clamp(min=0) * last[:, 2, None, None, None]


def far_maps(drawn: Drawn) -> Tensor:
    """Say how near the next click of either kind is, (K, 2 x reaches, 32, 32) in 0..1."""
    far = _distances(drawn.clicks, COARSE)
    own = drawn.clicks[:, :, 2, None, None]
    return torch.cat(
        [_most(torch.exp(-far / reach) * (own == label)) for label in (1, 0) for reach in FAR_CELLS], dim=1
    )


def alike_maps(keys: Tensor, drawn: Drawn) -> Tensor:
    """Say how alike each place is to what was clicked on, and to the mask so far or the box, and to what is not.

    Args:
        keys: (K, C, 32, 32) of length 1 along C.
        drawn: What was said.

    Returns:
        (K, 4, 32, 32) in -1..1; 0 where nothing was said.
    """
    grid = ((drawn.clicks[:, :, :2] + 0.5) / SIDE * 2 - 1)[:, :, None]  # (K, P, 1, 2)
    at = F.grid_sample(keys, grid, align_corners=False, padding_mode="border")[..., 0]  # (K, C, P)
    alike = torch.einsum("kcp,kchw->kphw", at, keys)
    own = drawn.clicks[:, :, 2, None, None]
    clicked = [_most(torch.where(own == label, alike + 1, 0.0)) for label in (1, 0)]
    said = F.avg_pool2d(drawn.masks[:, None], drawn.masks.shape[-1] // keys.shape[-1])
    said = torch.where((said == 0).all(dim=(2, 3), keepdim=True), _box_map(drawn.boxes, COARSE), said)
    parts = []
    for weight in (said.clamp(min=0), (-said).clamp(min=0)):
        mean = (keys * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3)).clamp(min=1e-3)
        parts.append(torch.einsum("kc,kchw->khw", mean, keys)[:, None])
    return torch.cat([*clicked, *parts], dim=1)


def _distances(clicks: Tensor, stride: int) -> Tensor:
    """Distance in cells from each click to each cell, (K, P, H, W)."""
    cells = torch.arange(SIDE // stride, device=clicks.device, dtype=clicks.dtype)
    x, y = ((clicks[:, :, k, None] + 0.5) / stride - 0.5 - cells for k in (0, 1))
    return torch.sqrt(x[:, :, None, :] ** 2 + y[:, :, :, None] ** 2)


def _most(maps: Tensor) -> Tensor:
    """The largest of each object's maps (K, P, H, W), as (K, 1, H, W)."""
    return maps.amax(dim=1, keepdim=True)


def _box_map(boxes: Tensor, stride: int) -> Tensor:
    """1 in the box, -1 outside it, 0 all over where there is none: (K, 1, H, W)."""
    cells = torch.arange(SIDE // stride, device=boxes.device, dtype=boxes.dtype)
    low, high = ((boxes[:, k : k + 2] + 0.5) / stride - 0.5 for k in (0, 2))
    across, down = (
        (torch.minimum(cells + 0.5, high[:, k, None]) - torch.maximum(cells - 0.5, low[:, k, None])).clamp(0, 1)
        for k in (0, 1)
    )
    inside = down[:, :, None] * across[:, None, :]
    return torch.nan_to_num(inside * 2 - 1, nan=0.0)[:, None]
