"""Following an object with the small model: where its features went, then LiteMedSAM's box decoder around that place.

Every cell of the new frame looks for the cells most like it on the frames remembered and takes over whether they were
of the object. The box around what came of it goes to the mask decoder, which takes a box well and a mask badly. The
features are those of LiteMedSAM's encoder, which nobody trained for this.

Source: label propagation by the likeness of features, Jabri et al., NeurIPS 2020, there with features of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from medsam3.geometry import BoolArray, FloatArray, box_of_mask
from medsam3.models.detector import VisionLevels
from medsam3.models.mini.letterbox import SIDE, Letterbox, letterbox
from medsam3.models.mini.lite_medsam import NECK_DIM, NECK_SIZE
from medsam3.models.mini.segmenter import MiniFeatures, MiniSegmenter
from medsam3.models.tracker import KeptOf, Past
from medsam3.prompts import Box

CELL_PX = SIDE // NECK_SIZE
NECK_BYTES = 2 * NECK_DIM * NECK_SIZE**2
HALF = 0.5
GROWTH, LEAST_GROWTH_PX = 0.3, 2.0
"""An object grows from slice to slice by at most this share of its sides, and these pixels, to each side."""


@dataclass
class KeptFrame:
    """The kept part of a frame.

    Attributes:
        place: In the square.
        neck: (1, 256, 64, 64) in half precision, 2 MiB; None until it is first needed.
        square: What the neck is made of; None where it is there.
    """

    place: Letterbox
    neck: Tensor | None
    square: NDArray[np.uint8] | None = None


class _Grid:
    """A frame's cells.

    Attributes:
        features: (R, C, 256) unit vectors, the frame's mean taken off before.
        places: (R, C, 2) row and column in cells of the full resolution.
    """

    def __init__(self, neck: Tensor, pool: int = 1) -> None:
        """Take features (1, 256, R, C)."""
        self._neck = neck
        pooled = F.avg_pool2d(neck, pool, ceil_mode=True) if pool > 1 else neck
        cells = pooled[0].permute(1, 2, 0)
        self.features = F.normalize(cells - cells.mean(dim=(0, 1)), dim=-1)
        rows, columns = (torch.arange(size) * pool + (pool - 1) / 2 for size in cells.shape[:2])
        self.places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)

    def halved(self) -> _Grid:
        """Halve the resolution."""
        return _Grid(self._neck, 2)


@dataclass(frozen=True)
class FollowRules:
    """How an object is looked for.

    Attributes:
        nearest: How many of the remembered frames are looked at, the nearest first, beside the oldest one.
        alike: How many remembered cells each new cell asks.
        temperature: Of their weights, by cosine likeness.
        reach: Standard deviation, in cells of the neck's 64 x 64 grid, of how far an object moves between frames; the
            oldest frame, which may lie far back, knows no such limit.
        threshold: Share of the asked cells, by weight, that must be of the object.
        margin: The box is widened on each side by this share of its size.
    """

    nearest: int = 2
    alike: int = 10
    temperature: float = 0.07
    reach: float = 12.0
    threshold: float = 0.5
    margin: float = 0.03


class MiniTracker:
    """See `models.tracker.Tracker`."""

    def __init__(self, segmenter: MiniSegmenter, rules: FollowRules | None = None) -> None:
        self.segmenter = segmenter
        self.rules = rules or FollowRules()

    def keep(self, features: MiniFeatures) -> KeptFrame:
        """Keep place and square, or the neck if it is there: to make it takes most of the time of a frame."""
        is_made = "neck" in vars(features) or any(one.config.is_frozen for one in self.segmenter.detectors)
        if is_made or features.frame is None:
            return KeptFrame(features.place, features.neck.half())
        return KeptFrame(features.place, None, letterbox(features.frame.rgb)[0])

    def kept_bytes(self, kept: KeptFrame) -> int:
        """Bytes of square and neck, made or not."""
        return NECK_BYTES + (0 if kept.square is None else kept.square.nbytes)

    def _neck(self, kept: KeptFrame) -> Tensor:
        """Make the neck, if it is not there."""
        if kept.neck is None:
            assert kept.square is not None, "a frame without its neck has its square"
            kept.neck = self.segmenter.lite_medsam.neck(kept.square).half()
        return kept.neck.float()

    def follow(self, n: int, past: Sequence[Past], kept_of: KeptOf) -> BoolArray:
        """See `Tracker.follow`."""
        here: KeptFrame = kept_of(n)
        looked_at = [*past[: self.rules.nearest]]
        if len(past) > self.rules.nearest:
            looked_at.append(past[-1])
        with torch.inference_mode():
            share = self._share(here, [(kept_of(one.n), one.mask) for one in looked_at])
            box = self._box(share)
            if box is None:
                return np.zeros(here.place.shape, dtype=np.bool_)
            boxes = torch.from_numpy(box[None]).float()
            answer = self.segmenter.lite_medsam.decode(self._neck(here), boxes)
            mask: BoolArray = (here.place.logits_to_frame(answer.logits)[0] > 0).numpy()
        return mask

    def _share(self, here: KeptFrame, remembered: Sequence[tuple[KeptFrame, BoolArray]]) -> Tensor:
        """How much each cell of the frame is of the object, (R, C) in 0..1, the padding left out.

        First at half the resolution over the whole frame, then at the full one around what came of that, so that the
        cost stays small.
        """
        rows, columns = _cells(here.place)
        covered = [_coverage(mask, frame.place, rows, columns) for frame, mask in remembered]
        grids = [_Grid(self._neck(frame)[:, :, :rows, :columns]) for frame, _ in remembered]
        grid = _Grid(self._neck(here)[:, :, :rows, :columns])
        everywhere = [torch.ones_like(cover[::2, ::2], dtype=torch.bool) for cover in covered]
        halves = [F.avg_pool2d(cover[None, None], 2, ceil_mode=True)[0, 0] for cover in covered]
        coarse = self._asked(grid.halved(), [one.halved() for one in grids], halves, (everywhere[0], everywhere))
        near = _widened(coarse > self.rules.threshold / 2, 3)
        near = near.repeat_interleave(2, dim=0).repeat_interleave(2, dim=1)[:rows, :columns]
        around = [_widened(cover > 0, 8) for cover in covered]
        return self._asked(grid, grids, covered, (near, around))

    def _asked(
        self,
        grid: _Grid,
        remembered: Sequence[_Grid],
        covered: Sequence[Tensor],
        which: tuple[Tensor, Sequence[Tensor]],
    ) -> Tensor:
        """Labels (R, C) that cells take over from cells of other grids: `which` of this one, and of each of those."""
        asking, answering = which
        result = torch.zeros(asking.shape)
        if not asking.any():
            return result
        likeness, labels = [], []
        for k, (other, cover, chosen) in enumerate(zip(remembered, covered, answering, strict=True)):
            alike = grid.features[asking] @ other.features[chosen].T / self.rules.temperature
            if k < self.rules.nearest:
                steps = torch.cdist(grid.places[asking], other.places[chosen])
                alike -= steps**2 / (2 * self.rules.reach**2)
            likeness.append(alike)
            labels.append(cover[chosen])
        every = torch.cat(likeness, dim=1)
        best, index = every.topk(min(self.rules.alike, every.shape[1]), dim=1)
        result[asking] = (best.softmax(dim=1) * torch.cat(labels)[index]).sum(dim=1)
        return result

    def _box(self, share: Tensor) -> FloatArray | None:
        """Box on the square around the largest connected part of the object's cells; None where there is none."""
        labels, count = ndimage.label(share.numpy() > self.rules.threshold)
        if count == 0:
            return None
        weights = ndimage.sum_labels(share.numpy(), labels, range(1, count + 1))
        found = box_of_mask(labels == 1 + int(np.argmax(weights)))
        assert found is not None, "a part has cells"
        box: FloatArray = (np.array(found) + 0.5) * CELL_PX - 0.5
        margin = self.rules.margin * (box[2:] - box[:2])
        widened: FloatArray = np.clip(np.concatenate([box[:2] - margin, box[2:] + margin]), -0.5, SIDE - 0.5)
        return widened


@dataclass(frozen=True)
class KeptSlice:
    """What is kept of a slice: where it lies in the square, and the maps of each detector, in half precision."""

    place: Letterbox
    maps: tuple[tuple[Tensor, ...], ...]
    position: Tensor

    def features(self) -> MiniFeatures:
        """What the detector is asked with; neck and mirrored square are not at hand."""
        levels = tuple(VisionLevels(tuple(one.float() for one in own), self.position) for own in self.maps)
        return MiniFeatures(self.place, levels, lambda: torch.empty(0), lambda: levels)


class SliceTracker:
    """Follows an object through the slices of a volume, where it stays near its place; see `models.tracker.Tracker`.

    The box around the mask on the slice before is an example, and the parts of the answer that touch that mask are the
    object. LiteMedSAM's encoder, which is most of the time of `MiniTracker`, is not needed.
    """

    def __init__(self, segmenter: MiniSegmenter) -> None:
        self.segmenter = segmenter

    def keep(self, features: MiniFeatures) -> KeptSlice:
        """Place and levels, about 4 MiB a detector."""
        maps = tuple(tuple(one.half() for one in levels.maps) for levels in features.levels)
        return KeptSlice(features.place, maps, features.levels[0].position)

    def kept_bytes(self, kept: KeptSlice) -> int:
        """What the levels take."""
        return sum(one.nbytes for own in kept.maps for one in own)

    def follow(self, n: int, past: Sequence[Past], kept_of: KeptOf) -> BoolArray:
        """See `Tracker.follow`."""
        kept: KeptSlice = kept_of(n)
        before = past[0].mask
        edges = box_of_mask(before)
        assert edges is not None, "a past mask is not empty"
        x0, y0, x1, y1 = edges
        box = Box(float(x0), float(y0), float(x1), float(y1))
        with torch.inference_mode():
            probability = self.segmenter.like(kept.features(), None, None, box)
        parts, _ = ndimage.label(probability > HALF)
        touching = np.unique(parts[before])
        found: BoolArray = np.isin(parts, touching[touching > 0]) & _near(edges, before.shape)
        return found


def _near(edges: tuple[float, float, float, float], shape: tuple[int, ...]) -> BoolArray:
    """The pixels (H, W) that an object in a box may reach on the next slice."""
    x0, y0, x1, y1 = edges
    dx, dy = GROWTH * (x1 - x0) + LEAST_GROWTH_PX, GROWTH * (y1 - y0) + LEAST_GROWTH_PX
    near = np.zeros(shape, dtype=np.bool_)
    near[max(0, int(y0 - dy)) : int(y1 + dy) + 1, max(0, int(x0 - dx)) : int(x1 + dx) + 1] = True
    return near


def _cells(place: Letterbox) -> tuple[int, int]:
    """Rows and columns of the neck's cells that the frame fills."""
    return -(-place.inner_height // CELL_PX), -(-place.inner_width // CELL_PX)


def _widened(chosen: Tensor, cells: int) -> Tensor:
    """Chosen cells (R, C) and those up to `cells` away from one."""
    wide = F.max_pool2d(chosen.float()[None, None], 2 * cells + 1, stride=1, padding=cells)
    return wide[0, 0] > 0


def _coverage(mask: BoolArray, place: Letterbox, rows: int, columns: int) -> Tensor:
    """How much of each cell (R, C) a mask (H, W) covers, in 0..1."""
    inner = F.interpolate(
        torch.from_numpy(mask).float()[None, None], size=(place.inner_height, place.inner_width), mode="area"
    )
    square = F.pad(inner, (0, columns * CELL_PX - place.inner_width, 0, rows * CELL_PX - place.inner_height))
    result: Tensor = F.avg_pool2d(square, CELL_PX)[0, 0]
    return result
