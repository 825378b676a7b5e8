"""The interactive decoder as the small model uses it: the mask so far and what a person said to a mask, in a window.

The window lies around the mask and the clicks, taken from the frame's own pixels, so that what is small is outlined as
finely as what is large. Nothing is remembered between calls but features.

Source of the window: Chen et al., "FocalClick", CVPR 2022.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medsam3.errors import InputError
from medsam3.geometry import BoolArray, box_of_mask
from medsam3.models.detector import VisionLevels, without_values
from medsam3.models.mini.click_decoder import ClickDecoder, ClickDecoderConfig, Drawn, FrameMaps, OnSquare, drawn
from medsam3.models.mini.click_extent import ExtentHead, seen_at
from medsam3.models.mini.click_window import ClickWindow, window_around
from medsam3.models.mini.letterbox import RGB, SIDE
from medsam3.models.refiner import error_depth, follow_click, pixel_of
from medsam3.prompts import Box, Point
from medsam3.store import sha256_of

REACH, LEAST_DEPTH_PX = 3.0, 3.0
"""A click changes nothing further away than so many times its depth in the error, which counts as so deep at least."""
WEIGHTS = Path(__file__).parents[2] / "weights" / "mini-interactive.safetensors"


@dataclass(frozen=True)
class Said:
    """What is said of one object of a frame: the mask so far (H, W), clicks and a box, in the frame's pixels."""

    mask: BoolArray
    clicks: tuple[Point, ...]
    box: Box | None = None

    @property
    def window(self) -> ClickWindow:
        """Where to look: around the mask so far, the clicks and the box."""
        found = box_of_mask(self.mask)
        edges = [] if found is None else [found]
        edges += [] if self.box is None else [self.box.xyxy]
        edges += [(p.x, p.y, p.x, p.y) for p in self.clicks]
        low, high = np.array(edges)[:, :2].min(axis=0), np.array(edges)[:, 2:].max(axis=0)
        return window_around((*low.tolist(), *high.tolist()), self.mask.shape)

    def drawn_in(self, window: ClickWindow) -> Drawn:
        """The same in a window, as the decoder reads it."""
        places = window.points(self.clicks).tolist()
        clicks = [(x, y, int(p.is_positive)) for (x, y), p in zip(places, self.clicks, strict=True)]
        box = None if self.box is None else window.box(self.box)
        return drawn([OnSquare(clicks, box, window.labels(self.mask), self._last_in(window))])

    def _last_in(self, window: ClickWindow) -> tuple[float, float, float, float] | None:
        """The newest click that the mask contradicts; see `OnSquare`."""
        wrong = [p for p in self.clicks if self.mask[pixel_of(p, self.mask.shape)] != p.is_positive]
        if not wrong:
            return None
        depth = error_depth(self.mask, wrong[-1]) * SIDE / window.side
        x, y = window.points(wrong[-1:])[0].tolist()
        return x, y, 1.0 if wrong[-1].is_positive else -1.0, depth


@dataclass(frozen=True)
class ClickFrame:
    """A frame (H, W, 3) and its levels of each detector; what the decoder made of them is kept."""

    rgb: RGB
    levels: tuple[VisionLevels, ...]
    made: list[FrameMaps] = field(default_factory=list, repr=False)


class Clicker:
    """Answers hints by the decoder, and guesses how large what a click is on may be."""

    def __init__(self, decoder: ClickDecoder, extents: ExtentHead) -> None:
        self.decoder = decoder.eval().requires_grad_(False)
        self.extents = extents.eval().requires_grad_(False)

    def box_around(self, frame: ClickFrame, click: Point) -> Box:
        """Guess the box of the object that a first click is on, inside the frame."""
        height, width = frame.rgb.shape[:2]
        longest = max(height, width)
        with torch.inference_mode():
            pixels = ClickWindow(0.0, 0.0, float(longest), longest).pixels(frame.rgb)
            _, middle, coarse = (level.cpu()[0] for level in frame.levels[0].maps)
            seen = seen_at(middle, coarse, pixels, ((click.x + 0.5) / longest, (click.y + 0.5) / longest))
            left, up, right, down = (self.extents.reach(seen[None])[0] * longest).tolist()
        x0, y0 = max(click.x - left, -0.5), max(click.y - up, -0.5)
        return Box(x0, y0, min(click.x + right, width - 0.5), min(click.y + down, height - 0.5))

    def corrected(self, frame: ClickFrame, said: Said, newest: Point) -> BoolArray:
        """Change the mask so far around the newest click, so that all clicks hold.

        What is far from the click, for how deep that lies in the error, stays as it is; where the decoder does not
        follow a click, a disc does.
        """
        logits = self.logits(frame, said)
        rows, columns = np.ogrid[: said.mask.shape[0], : said.mask.shape[1]]
        reach = REACH * max(error_depth(said.mask, newest), LEAST_DEPTH_PX)
        near = (rows - newest.y) ** 2 + (columns - newest.x) ** 2 <= reach**2
        found = follow_click((logits > 0).numpy(), newest, lambda so_far, at: ())
        mask: BoolArray = np.where(near, found, said.mask)
        for click in said.clicks:
            mask = follow_click(mask, click, lambda so_far, at: ())
        return mask

    def logits(self, frame: ClickFrame, said: Said) -> Tensor:
        """Logits (H, W) of the object that was said, which beyond the window hold to the mask so far."""
        with torch.inference_mode():
            window = said.window
            image = self.decoder.image(self._maps(frame), window.shares[None].float(), window.pixels(frame.rgb)[None])
            logits, _ = self.decoder(image, said.drawn_in(window))
            kept = torch.from_numpy(said.mask).float() * 20 - 10
            return window.onto(logits[0], kept)

    def _maps(self, frame: ClickFrame) -> FrameMaps:
        """What the decoder makes of a frame, once."""
        if not frame.made:
            frame.made.append(self.decoder.frame(tuple(level.cpu() for level in frame.levels[0].maps)))
        return frame.made[0]


def load_clicker(levels: nn.Module, weights: Path = WEIGHTS) -> Clicker | None:
    """Read the decoder's weights, to be used with a detector of these levels; None where it was trained on others.

    Raises:
        InputError: Weights or card are missing, damaged, or not of this decoder.
    """
    path = weights.with_suffix(".json")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        sizes = ClickDecoderConfig(**card["decoder"])
        wanted, expected = str(card["stands_on"]["levels_sha256"]), str(card["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a card of the interactive decoder ({error!r}): install medsam3 anew"
        ) from error
    if not weights.is_file() or sha256_of(weights) != expected:
        raise InputError(f"{weights} is missing or not the file that its card names: install medsam3 anew")
    if levels_sha256(levels) != wanted:
        return None
    with without_values():
        decoder, extents = ClickDecoder(sizes), ExtentHead(sizes.level_width)
    holder = clicker_weights(decoder, extents)
    try:
        holder.load_state_dict({name: value.float() for name, value in load_file(weights).items()}, assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{weights} does not hold the decoder ({reason}): install medsam3 anew") from error
    return Clicker(decoder, extents)


def clicker_weights(decoder: ClickDecoder, extents: ExtentHead) -> nn.ModuleDict:
    """Hold the two networks together, as their weights lie in one file."""
    return nn.ModuleDict({"decoder": decoder, "extents": extents})


def levels_sha256(levels: nn.Module) -> str:
    """Compute a SHA-256 of the levels' tensors with their names, in half precision, as they ship."""
    digest = hashlib.sha256()
    for name, value in sorted(levels.state_dict().items()):
        digest.update(f"{name}/{tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()
