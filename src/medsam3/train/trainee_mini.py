"""The small model as it trains: what is frozen, the forward pass to the loss, and the moving average that is kept.

It knows no folder and no loop.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from medsam3.errors import InputError
from medsam3.models.detector import PromptTokens, decode_masks, detect, select_items
from medsam3.models.mini.detector import MiniDetector
from medsam3.models.mini.efficientnet import convert_efficientnet
from medsam3.models.mini.text_encoder import TextEncoder
from medsam3.models.precision import has_fast_bfloat16
from medsam3.train.averaged import Averaged
from medsam3.train.batches import Batch, exemplar_boxes
from medsam3.train.config import FitConfig, Trains
from medsam3.train.loop import Maker
from medsam3.train.losses import mask_losses, query_losses, weigh

TRUNK = "levels.trunk."


@dataclass(frozen=True)
class Start:
    """Files that a run starts from.

    Attributes:
        weights: Weights of `medsam3 train`, those of `FitConfig.initial_sha256`.
        trunk: The published image encoder, for one that trains along and is not in `weights`.
    """

    weights: Path | None = None
    trunk: Path | None = None


class MiniTrainee(Averaged[MiniDetector]):
    """The small detector with what trains in it switched on, and its moving average."""

    def __init__(
        self,
        config: FitConfig,
        text: TextEncoder,
        *,
        start: Start | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make weights from the seed, the same ones on every device, or from `start`.

        Raises:
            InputError: The tensors of `start` are not those of the configured detector.
        """
        super().__init__()
        self.config, self._text = config, text
        torch.manual_seed(config.seed)
        self.detector, average = MiniDetector(config.detector), MiniDetector(config.detector)
        freeze_all_but(self.detector, config.trains)
        if start is not None:
            start_from(self.detector, start)
        average.load_state_dict(self.detector.state_dict())
        self.detector.to(device=torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.keep_average(self.detector, average.to(device), config.ema_decay)

    def average_on_cpu(self) -> MiniDetector:
        """Give the moving average to measure it on the CPU; a copy if it is elsewhere."""
        return self.average if self.device.type == "cpu" else copy.deepcopy(self.average).cpu()

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.detector.text_projection.norm.weight.device

    def own_batch(self, maker: Maker, step: int, rank: int, count: int) -> Batch:
        """Take this process's share of the images of a batch, so that several processes do what one does."""
        batch: Batch = maker.batch(step).share(rank, count)
        return batch

    def optimizer(self) -> torch.optim.Optimizer:
        """Make AdamW: no decay on biases, norms and embeddings; an image encoder that trains along at its own rate."""
        config = self.config
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.detector.named_parameters():
            if parameter.requires_grad:
                decay = config.weight_decay if parameter.ndim >= 2 else 0.0
                rate = config.learning_rate * (config.trunk_rate if name.startswith(TRUNK) else 1.0)
                groups.setdefault((decay, rate), []).append(parameter)
        listed = [{"params": own, "weight_decay": decay, "peak": rate} for (decay, rate), own in groups.items()]
        return torch.optim.AdamW(listed, lr=config.learning_rate, fused=True)

    def forward(self, give: Callable[[], Batch]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the weighted loss of a batch and its terms; masks are decoded for present concepts alone."""
        batch, config, device = give(), self.config, self.device
        assert batch.pixels is not None, "the small model sees the pixels, whatever its encoder"
        pixels = batch.pixels.to(device).float() / 255
        neck = None
        if batch.features is not None:
            neck = batch.features.to(device).float().contiguous(memory_format=torch.channels_last)
        questions = batch.questions
        images = torch.tensor([question.image for question in questions], device=device)
        is_bf16 = config.bf16 and has_fast_bfloat16(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            levels = self.detector.levels(pixels, neck)
            tokens = self._tokens([question.phrase for question in questions])
            coarsest = levels.coarsest.select(images)
            detection = detect(self.detector, coarsest, tokens, exemplar_boxes(questions, device))
        targets = [question.truth.on(device) for question in questions]
        terms, matches = query_losses(detection, targets, config.loss)
        numbers = [i for i, target in enumerate(targets) if target.is_present]
        if numbers:
            present = torch.tensor(numbers, device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
                masks = decode_masks(self.detector, levels.select(images[present]), select_items(detection, present))
            terms |= mask_losses(masks, [targets[i] for i in numbers], matches)
        return weigh(terms, config.loss), terms

    def _tokens(self, phrases: Sequence[str]) -> PromptTokens:
        """Encode phrases; their features have full precision, whoever asks for them first."""
        lora = self.detector.text_lora
        with torch.autocast(self.device.type, enabled=False):
            tokens = self._text.encode(phrases) if lora is None else self._text.encode_with(lora, phrases)
        return self.detector.project_text(tokens.features.to(self.device), tokens.mask.to(self.device))


def freeze_all_but(model: MiniDetector, trains: Trains) -> None:
    """Leave gradients to what trains; the finest stages of an image encoder never have any."""
    for name, parameter in model.named_parameters():
        is_chosen = name.startswith("text_projection.") if trains == "text" else not name.startswith(TRUNK)
        if trains != "all" and not is_chosen:
            parameter.requires_grad_(False)


def start_from(model: MiniDetector, start: Start) -> None:
    """Put the files' weights into the model. Weights with another image encoder give all but their levels.

    Raises:
        InputError: The tensors are not those of the model.
    """
    tensors: dict[str, Tensor] = {}
    if start.trunk is not None:
        published = convert_efficientnet(torch.load(start.trunk, weights_only=True, map_location="cpu"))
        tensors |= {f"{TRUNK}{name}": value for name, value in published.items()}
    if start.weights is not None:
        given = load_file(start.weights)
        own = model.state_dict()
        is_same_encoder = all(name in own for name in given)
        tensors |= {n: v.float() for n, v in given.items() if is_same_encoder or not n.startswith("levels.")}
    try:
        missing, extra = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise InputError(f"{start.weights} does not fit the detector: its tensors have other sizes") from error
    unfilled = [name for name in missing if not name.startswith(("levels.", "text_lora."))] if start.weights else []
    if extra or unfilled:
        raise InputError(
            f"{start.weights} does not fit the detector ({len(unfilled)} tensors missing, {len(extra)} unknown): "
            "give weights that medsam3 train made"
        )
