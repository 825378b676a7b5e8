"""MedSAM-3's adapters (LoRA) on SAM 3: read in the authors' own format, merged into the weights or kept apart.

Their file holds `<module>.lora.lora_A` (in, r) and `.lora_B` (r, out) under Meta's module names, but neither rank nor
alpha: these come from their YAML file or from the caller. A module changes by alpha / rank * x A B.

Source: Hu et al., LoRA, ICLR 2022; Liu et al., MedSAM-3, arXiv 2511.19046.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from medsam3.errors import InputError, require
from medsam3.models.sam3.keys import places
from medsam3.store import JsonObject

_A, _B = ".lora.lora_A", ".lora.lora_B"
_V1_HINT = "MedSAM-3 v1 has rank 16 and alpha 32"


@dataclass(frozen=True)
class LoraSource:
    """The place of an adapter, and its two numbers as far as the caller knows them.

    Attributes:
        weights: `best_lora_weights.pt`.
        config: Its YAML file; None looks for a single one beside the weights.
        alpha: Overrides the YAML.
        rank: Overrides the YAML; has to agree with the weights.
    """

    weights: Path
    config: Path | None = None
    alpha: float | None = None
    rank: int | None = None


@dataclass(frozen=True)
class LoraFactors:
    """The change of one weight (out, in) of transformers' layout: scale * (a b) transposed."""

    name: str
    a: Tensor  # (in, r)
    b: Tensor  # (r, out)

    def shape(self) -> tuple[int, int]:
        """Shape of the weight that is changed."""
        return self.b.shape[1], self.a.shape[0]


@dataclass(frozen=True)
class Adapter:
    """All factors of one adapter.

    Attributes:
        factors: One for each weight that is changed.
        scale: alpha / rank.
        modules: How many modules of Meta's code were adapted.
        left_over: Modules that have no home in transformers' model (point projections, which it lacks).
    """

    factors: tuple[LoraFactors, ...]
    scale: float
    modules: int
    left_over: tuple[str, ...]


class AdapterSwitch:
    """An adapter that is kept apart from the weights of a network, on while `is_on`."""

    def __init__(self, network: nn.Module, adapter: Adapter) -> None:
        self.is_on = True
        modules = dict(network.named_modules())
        for factor in adapter.factors:
            module = modules.get(factor.name.removesuffix(".weight"))
            if not isinstance(module, nn.Linear) or tuple(module.weight.shape) != factor.shape():
                raise InputError(_misfit(factor, "none" if module is None else str(tuple(module.weight.shape))))
            self._attach(module, factor, adapter.scale)

    @contextmanager
    def off(self) -> Iterator[None]:
        """The network without the adapter, for as long as the context lasts."""
        before, self.is_on = self.is_on, False
        try:
            yield
        finally:
            self.is_on = before

    def _attach(self, module: nn.Linear, factor: LoraFactors, scale: float) -> None:
        a = factor.a.to(module.weight.device, module.weight.dtype)
        b = (factor.b * scale).to(module.weight.device, module.weight.dtype)

        def add_change(_: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            return output + (inputs[0] @ a) @ b if self.is_on else output

        module.register_forward_hook(add_change)


def adapter_from(tensors: Mapping[str, Tensor], source: LoraSource) -> Adapter:
    """The factors of `tensors` under transformers' names.

    Raises:
        InputError: Not an adapter of MedSAM-3's, half of a pair missing, rank or alpha unknown or contradictory.
    """
    modules = _pairs(tensors, source.weights)
    ranks = {tensors[module + _A].shape[1] for module in modules}
    if len(ranks) != 1:
        raise InputError(f"{source.weights} holds ranks {sorted(ranks)}, one rank for all modules is allowed")
    rank = ranks.pop()
    alpha = _alpha(source, rank)
    factors, left_over = [], []
    for module in modules:
        found = places(f"detector.{module}.weight")
        if not found:
            left_over.append(module)
        a, b = tensors[module + _A].detach(), tensors[module + _B].detach()
        for place in found:
            factors.append(LoraFactors(place.name, a, place.take(b.transpose(0, 1)).transpose(0, 1)))
    return Adapter(tuple(factors), alpha / rank, len(modules), tuple(left_over))


def merge(tensors: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """Weights under transformers' names with the adapter's change added, in their own number format.

    Raises:
        InputError: A weight that the adapter changes is missing or of another shape.
    """
    merged = dict(tensors)
    for factor in adapter.factors:
        weight = merged.get(factor.name)
        if weight is None or tuple(weight.shape) != factor.shape():
            raise InputError(_misfit(factor, "none" if weight is None else str(tuple(weight.shape))))
        change = adapter.scale * (factor.a.float() @ factor.b.float()).transpose(0, 1)
        merged[factor.name] = (weight.float() + change).to(weight.dtype)
    return merged


def _pairs(tensors: Mapping[str, Tensor], path: Path) -> list[str]:
    modules = [name.removesuffix(_A) for name in tensors if name.endswith(_A)]
    if not modules:
        raise InputError(f"{path} holds no adapter of MedSAM-3's, no name ends in {_A}: give best_lora_weights.pt")
    expected = {module + end for module in modules for end in (_A, _B)}
    odd = sorted(expected ^ set(tensors))
    if odd:
        raise InputError(f"{path} has {len(odd)} tensors without a partner, first {odd[0]}: download the file again")
    return modules


def _alpha(source: LoraSource, rank: int) -> float:
    """Alpha from the caller or the YAML, after both have agreed with the weights on the rank."""
    fields = _yaml_fields(source)
    told = source.rank if source.rank is not None else fields.get("rank")
    if told is not None and told != rank:
        raise InputError(f"rank is said to be {told}, the weights have {rank}: give the YAML file that belongs to them")
    alpha = source.alpha if source.alpha is not None else fields.get("alpha")
    if alpha is None:
        raise InputError(
            f"alpha of {source.weights} is unknown, the file does not hold it: give its YAML file or alpha ({_V1_HINT})"
        )
    if not isinstance(alpha, (int, float)) or not alpha > 0:
        raise InputError(f"alpha is {alpha!r}, a number above 0 is allowed ({_V1_HINT})")
    return float(alpha)


def _yaml_fields(source: LoraSource) -> JsonObject:
    path = source.config
    if path is None:
        beside = sorted(source.weights.parent.glob("*.yaml"))
        if len(beside) != 1:
            return {}
        path = beside[0]
    yaml = require("yaml", extra="sam3")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML ({type(error).__name__}): give MedSAM-3's own file") from error
    section = fields.get("lora") if isinstance(fields, dict) else None
    if not isinstance(section, dict):
        raise InputError(f"{path} has no section 'lora' with rank and alpha: give MedSAM-3's own file")
    return section


def _misfit(factor: LoraFactors, got: str) -> str:
    return (
        f"the adapter changes {factor.name} of shape {factor.shape()}, the weights have {got}: "
        "give the SAM 3 weights that it was trained on"
    )
