"""What of a model is frozen and how many parameters train, by part; one table for both bases."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

Parts = Sequence[tuple[str, tuple[str, ...]]]
"""Names of parts, each with the beginnings of its parameters' names."""
_ADAPTER = ".lora."
MINI_PARTS: Parts = (
    ("image encoder", ("image.", "detector.levels.trunk.")),
    ("text encoder", ("text.", "detector.text_lora.")),
    ("level adapter", ("detector.levels.",)),
    ("text projection", ("detector.text_projection.",)),
    ("geometry encoder", ("detector.geometry_encoder.",)),
    ("encoder", ("detector.detr_encoder.",)),
    ("decoder and presence", ("detector.detr_decoder.",)),
    ("mask head", ("detector.mask_decoder.",)),
    ("scoring", ("detector.dot_product_scoring.",)),
)


@dataclass(frozen=True)
class PartSize:
    """How large a part of the model is, and how much of it trains, in parameters; an adapter's are extra."""

    name: str
    total: int
    trained: int


def part_sizes(model: nn.Module, frozen: Collection[str], parts: Parts) -> list[PartSize]:
    """Size and trained size of each part of a model; what belongs to none is the last row, `other`.

    Args:
        model: With all of its parameters.
        frozen: Beginnings of the names of parameters that do not train.
        parts: A parameter belongs to the first part that one of its beginnings fits.
    """
    is_trained = {name: not name.startswith(tuple(frozen)) for name, _ in model.named_parameters()}
    return sizes_by_part(model, is_trained, parts)


def sizes_by_part(model: nn.Module, is_trained: Mapping[str, bool], parts: Parts) -> list[PartSize]:
    """As `part_sizes`, told for each parameter whether it trains."""
    totals = {name: 0 for name, _ in parts}
    trained = dict(totals)
    for name, parameter in model.named_parameters():
        part = next((part for part, starts in parts if name.startswith(starts)), "other")
        totals[part] = totals.get(part, 0) + (0 if _ADAPTER in name else parameter.numel())
        trained[part] = trained.get(part, 0) + (parameter.numel() if is_trained[name] else 0)
    return [PartSize(name, totals[name], trained[name]) for name in totals]


def mini_sizes(image: nn.Module, text: nn.Module, detector: nn.Module) -> list[PartSize]:
    """Parts of the small model, from its two frozen encoders and its detector, whose parameters say what trains."""
    model = nn.ModuleDict({"image": image, "text": text, "detector": detector})
    is_trained = {name: name.startswith("detector.") and p.requires_grad for name, p in model.named_parameters()}
    return sizes_by_part(model, is_trained, MINI_PARTS)


def table_of(sizes: Sequence[PartSize]) -> list[str]:
    """Lines for a person: what is frozen, and how many parameters train."""
    lines = [f"{'part':24}{'parameters':>14}{'trained':>14}"]
    for part in sizes:
        lines.append(f"{part.name:24}{part.total:14,}" + (f"{part.trained:14,}" if part.trained else f"{'frozen':>14}"))
    total, trained = sum(part.total for part in sizes), sum(part.trained for part in sizes)
    return [*lines, f"{'all':24}{total:14,}{trained:14,}"]
