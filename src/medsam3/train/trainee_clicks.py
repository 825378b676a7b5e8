"""The interactive decoder as it trains: batches of objects that a simulated person means, rounds of clicks, the loss.

The detector's levels under it are frozen. It knows no folder and no loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medsam3.data.samples import Instances, Sample
from medsam3.geometry import BoolArray, box_of_mask
from medsam3.measure.outline import dice
from medsam3.models.mini.click_decoder import OUT, ClickDecoder, Drawn, OnSquare, drawn
from medsam3.models.mini.click_window import ClickWindow, window_around
from medsam3.models.mini.letterbox import RGB, SIDE
from medsam3.models.refiner import error_depth
from medsam3.prompts import Point
from medsam3.train.averaged import Averaged
from medsam3.train.batches import dataset_chances
from medsam3.train.cache import Features
from medsam3.train.config import ClickFitConfig
from medsam3.train.person import Logits, Meant, Rng, begun, clicked_next, objects_meant, part_of_answer

FOCUS = 2.0
"""Exponent of the focal loss."""
FIT_WEIGHT = 0.3
DEPTH_NOISE = (0.6, 1.2)
"""Of the depth of a click in the error, how much the decoder is told: people do not click in its very middle."""


@dataclass(frozen=True)
class ClickBatch:
    """A few pictures, and the objects that are meant in them.

    Attributes:
        levels: The detector's, (B, D, 64, 64) and (B, D, 32, 32).
        image: (K,) the picture of each object.
        windows: (K, 3) the window around each object, in shares of the square.
        pixels: (K, 3, 256, 256) in 0..1, what the windows show.
        meant: The objects, in their windows, with what was said of them at the start.
        seed: Of the person's further clicks.
    """

    levels: tuple[Tensor, Tensor]
    image: Tensor
    windows: Tensor
    pixels: Tensor
    meant: tuple[Meant, ...]
    seed: tuple[int, ...]


class ClickBatchMaker:
    """Draws batches. Batch `step` depends on seed and step alone, so a resumed run goes on as it was.

    Pictures and label maps are read once and kept.
    """

    def __init__(self, samples: Sequence[Sample], features: Features, config: ClickFitConfig) -> None:
        self.samples, self.features, self.config = samples, features, config
        rows = [sample.dataset for sample in samples]
        self.chances = dataset_chances(samples, rows, config.dataset_power)
        self._kept: dict[str, tuple[RGB, list[Instances]]] = {}

    def batch(self, step: int) -> ClickBatch:
        """Make batch number `step`."""
        rng = np.random.default_rng([self.config.seed, step])
        levels: list[tuple[Tensor, Tensor]] = []
        image, placed = list[int](), list[tuple[Meant, ClickWindow, Tensor]]()
        while len(levels) < self.config.images:
            sample = self.samples[int(rng.choice(len(self.samples), p=self.chances))]
            rgb, labels = self._read(sample)
            found = objects_meant(rgb, labels, self.config.person, rng)
            if not found:
                continue
            values = self.features.get(sample.name, 0)
            is_mirrored = bool(rng.random() < 0.5) and rgb.shape[0] == rgb.shape[1]
            step_x = -1 if is_mirrored else 1
            answers = values["answers"][0, :, :, ::step_x].astype(np.float32)
            shown = np.ascontiguousarray(rgb[:, ::step_x])
            for truth in found:
                placed.append(placed_object(shown, np.ascontiguousarray(truth[:, ::step_x]), answers, self.config, rng))
                image.append(len(levels))
            middle, coarse = (
                torch.from_numpy(values[name][0, :, :, ::step_x].astype(np.float32)) for name in ("middle", "coarse")
            )
            levels.append((middle, coarse))
        return ClickBatch(
            (torch.stack([one for one, _ in levels]), torch.stack([two for _, two in levels])),
            torch.tensor(image),
            torch.stack([window.shares for _, window, _ in placed]).float(),
            torch.stack([pixels for _, _, pixels in placed]),
            tuple(meant for meant, _, _ in placed),
            (self.config.seed, step, 1),
        )

    def _read(self, sample: Sample) -> tuple[RGB, list[Instances]]:
        if sample.name not in self._kept:
            labels = [target.load() for target in sample.targets if target.is_present]
            self._kept[sample.name] = sample.load_rgb(), [one.astype(np.int16) for one in labels]
        return self._kept[sample.name]


def placed_object(
    rgb: RGB, truth: BoolArray, answers: Logits, config: ClickFitConfig, rng: Rng
) -> tuple[Meant, ClickWindow, Tensor]:
    """Begin with an object of a frame, in a window around it and what is begun with.

    Args:
        rgb: (H, W, 3) the frame.
        truth: (H, W) the object.
        answers: (A, 64, 64) logits of the detector's answers over the square.
        config: Shares.
        rng: Random numbers.

    Returns:
        What is meant and said, in the window; the window; its pixels.
    """
    edges = box_of_mask(truth)
    assert edges is not None, "a person means something"
    answer = part_of_answer(truth, answers, config.person, rng)
    if answer is not None:
        scale = max(truth.shape) / answer.shape[0]
        found = box_of_mask(answer > 0)
        assert found is not None, "an answer has a part"
        low, high = (np.array(found).reshape(2, 2) + 0.5) * scale - 0.5
        edges = (*np.minimum(edges[:2], low).tolist(), *np.maximum(edges[2:], high).tolist())
    window = window_around(edges, truth.shape, rng.uniform(0.4, 0.85))
    shift = rng.uniform(-0.08, 0.08, size=2) * window.side
    left, top = np.clip(np.array([window.left, window.top]) + shift, 0, window.longest - window.side)
    window = replace(window, left=float(left), top=float(top))
    own = window.labels(truth)
    own = own if own.any() else np.ones_like(own)
    start = None if answer is None else _answer_in(window, answer)
    return begun(own, start, config.person, rng), window, window.pixels(rgb)


def _answer_in(window: ClickWindow, answer: Logits) -> BoolArray:
    """An answer's logits (64, 64) over the square, as a mask of the window."""
    whole = torch.from_numpy(answer)[None, None].float()
    left, top, side = window.shares.tolist()
    steps = (torch.arange(SIDE) + 0.5) / SIDE * side
    x, y = (left + steps) * 2 - 1, (top + steps) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None].float()
    mask: BoolArray = (F.grid_sample(whole, grid, align_corners=False, padding_mode="border")[0, 0] > 0).numpy()
    return mask


def drawn_of(meant: Sequence[Meant], rng: Rng | None = None) -> Drawn:
    """Put what was said of objects into tensors; with random numbers, the depth of the last click is not exact."""
    objects = []
    for one in meant:
        last = None
        if one.clicks and one.mask is not None:
            last = last_click(one.mask, one.clicks[-1], 1.0 if rng is None else rng.uniform(*DEPTH_NOISE))
        objects.append(OnSquare(one.clicks, one.box, one.mask, last))
    return drawn(objects)


def last_click(
    mask: BoolArray, click: tuple[float, float, int], share: float = 1.0
) -> tuple[float, float, float, float] | None:
    """Describe the newest click as `OnSquare.last` has it; None where the mask is right there already."""
    x, y, label = click
    row, column = (int(np.clip(round(at), 0, SIDE - 1)) for at in (y, x))
    if bool(mask[row, column]) == bool(label):
        return None
    return x, y, 2.0 * label - 1, share * error_depth(mask, Point(x, y, is_positive=bool(label)))


def click_losses(logits: Tensor, truths: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised focal loss and Dice loss of (K, S, S) logits against truths in 0..1, each the mean over objects.

    Source: Sofiiuk et al., ICIP 2022.
    """
    chance = logits.sigmoid()
    right = truths * chance + (1 - truths) * (1 - chance)
    weight = (1 - right).detach() ** FOCUS
    share = weight / weight.sum(dim=(1, 2), keepdim=True).clamp(min=1e-3)
    entropy = F.binary_cross_entropy_with_logits(logits, truths, reduction="none")
    focal = (share * entropy).sum(dim=(1, 2))
    both = (chance * truths).sum(dim=(1, 2))
    overlap = 1 - (2 * both + 1) / (chance.sum(dim=(1, 2)) + truths.sum(dim=(1, 2)) + 1)
    return focal.mean(), overlap.mean()


def fit_loss(fits: Tensor, meant: Sequence[Meant]) -> Tensor:
    """Cross entropy of the fits (K,) that the decoder gives the masks so far, against their Dice."""
    shown = [k for k, one in enumerate(meant) if one.mask is not None]
    if not shown:
        return fits.sum() * 0
    known = [dice(meant[k].truth, mask) for k in shown if (mask := meant[k].mask) is not None]
    return F.binary_cross_entropy_with_logits(fits[shown], torch.tensor(known, dtype=fits.dtype, device=fits.device))


class ClickTrainee(Averaged[ClickDecoder]):
    """The decoder, and its moving average."""

    def __init__(self, config: ClickFitConfig, device: torch.device | str = "cpu") -> None:
        """Make weights from the seed.

        Args:
            config: The run's settings.
            device: Where it trains.
        """
        super().__init__()
        self.config = config
        torch.manual_seed(config.seed)
        self.decoder = ClickDecoder(config.decoder).to(device)
        average = ClickDecoder(config.decoder).to(device)
        average.load_state_dict(self.decoder.state_dict())
        self.keep_average(self.decoder, average, config.ema_decay)

    def own_batch(self, maker: ClickBatchMaker, step: int, rank: int, count: int) -> ClickBatch:
        """Draw a batch of this process's own; several processes make larger updates."""
        return maker.batch(step * count + rank)

    def optimizer(self) -> torch.optim.Optimizer:
        """Make AdamW; no decay on biases and norms."""
        parameters = list(self.decoder.parameters())
        config = self.config
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([group | {"peak": config.learning_rate} for group in groups], lr=config.learning_rate)

    def forward(self, give: Callable[[], ClickBatch]) -> tuple[Tensor, dict[str, Tensor]]:
        """Answer round by round, the person clicking into each answer's largest error; the mean loss of all rounds."""
        batch, config = give(), self.config
        device = self.decoder.prior.device
        maps = self.decoder.frame((batch.levels[0], *(level.to(device) for level in batch.levels)))
        seen = self.decoder.image(
            maps.select(batch.image.to(device)), batch.windows.to(device), batch.pixels.to(device)
        )
        rng, meant = np.random.default_rng(batch.seed), list(batch.meant)
        whole = torch.from_numpy(np.stack([one.truth for one in meant])).to(device).float()
        truths = F.avg_pool2d(whole[:, None], OUT)[:, 0]
        focal, overlap, fit = (torch.zeros((), device=device) for _ in range(3))
        for number in range(config.person.rounds):
            if number:
                meant = [clicked_next(one, rng) for one in meant]
            shown = [replace(one, mask=None) if self._forgets(one, rng) else one for one in meant]
            logits, fits = self.decoder(seen, drawn_of(shown, rng).to(device))
            own_focal, own_overlap = click_losses(logits, truths)
            focal, overlap = focal + own_focal, overlap + own_overlap
            fit = fit + FIT_WEIGHT * fit_loss(fits, shown)
            if number + 1 < config.person.rounds:
                masks = (logits.detach() > 0).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).cpu().numpy()
                meant = [replace(one, mask=mask) for one, mask in zip(meant, masks, strict=True)]
        total = (focal + overlap + fit) / config.person.rounds
        parts = {"mask_focal": focal, "mask_dice": overlap, "score": fit}
        return total, {name: value / config.person.rounds for name, value in parts.items()}

    def _forgets(self, one: Meant, rng: np.random.Generator) -> bool:
        has_more = one.box is not None or any(click[2] for click in one.clicks)
        return has_more and bool(rng.random() < self.config.person.forgets)
