"""The loss of a batch of questions: forward pass of the small model, matching, weighted terms. It updates nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medsam3.models.detector import ExemplarBoxes, PromptTokens, decode_masks, detect, select_items
from medsam3.models.mini.detector import MiniDetector
from medsam3.models.mini.text_encoder import TextEncoder
from medsam3.models.precision import has_fast_bfloat16
from medsam3.train.batches import Batch, Question
from medsam3.train.losses import mask_losses, query_losses, weigh
from medsam3.train.mini_config import FitConfig


def text_tokens(model: MiniDetector, text: TextEncoder, phrases: Sequence[str]) -> PromptTokens:
    """The phrases' projected tokens; their features have full precision, whoever asks for them first."""
    device = model.text_projection.norm.weight.device
    with torch.autocast(device.type, enabled=False):
        tokens = text.encode(phrases) if model.text_lora is None else text.encode_with(model.text_lora, phrases)
    return model.project_text(tokens.features.to(device), tokens.mask.to(device))


def exemplar_boxes(questions: Sequence[Question], device: torch.device | str = "cpu") -> ExemplarBoxes:
    """The questions' exemplars as one padded batch with one slot each."""
    boxes = [[0.5, 0.5, 0.5, 0.5] if q.exemplar is None else list(q.exemplar.cxcywh) for q in questions]
    used = torch.tensor([[q.exemplar is not None] for q in questions]).to(device)
    return ExemplarBoxes(torch.tensor(boxes)[:, None].to(device), used, used)


def batch_loss(
    model: MiniDetector, text: TextEncoder, batch: Batch, config: FitConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted loss of a batch and its terms. Masks are decoded for prompts whose concept is present.

    The batch and the truth of its questions lie on the model's device.
    """
    questions, device = batch.questions, batch.pixels.device
    images = torch.tensor([question.image for question in questions]).to(device)
    is_bf16 = config.bf16 and has_fast_bfloat16(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
        levels = model.levels(batch.pixels, batch.neck)
        tokens = text_tokens(model, text, [question.phrase for question in questions])
        detection = detect(model, levels.coarsest.select(images), tokens, exemplar_boxes(questions, device))
    targets = [question.truth for question in questions]
    terms, matches = query_losses(detection, targets, config.loss)
    numbers = [i for i, target in enumerate(targets) if target.is_present]
    if numbers:
        present = torch.tensor(numbers).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            masks = decode_masks(model, levels.select(images[present]), select_items(detection, present))
        terms |= mask_losses(masks, [targets[i] for i in numbers], matches)
    return weigh(terms, config.loss), terms
