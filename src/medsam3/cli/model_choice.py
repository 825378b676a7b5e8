"""Which model the command line asks for: its options, its loading, and the hashes of the weights that it stands on."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import medsam3
from medsam3.errors import InputError

if TYPE_CHECKING:
    from medsam3.models.sam3.lora import LoraSource
    from medsam3.models.segmenter import Segmenter

_SHIPPED = Path(medsam3.__file__).parent / "weights"
_BESIDE = ("config.json", "vocab.json", "merges.txt", "tokenizer.json")


@dataclass(frozen=True)
class AdapterChoice:
    """An adapter (LoRA) and its numbers as far as they were given; see `LoraSource`, which needs torch.

    Attributes:
        weights: `best_lora_weights.pt`.
        config: Its YAML file; None takes a single one beside the weights.
        alpha: Above 0; None takes the YAML file's.
        rank: At least 1; None takes the YAML file's.
    """

    weights: Path
    config: Path | None = None
    alpha: float | None = None
    rank: int | None = None

    def source(self) -> LoraSource:
        """The same as the models take it."""
        from medsam3.models.sam3.lora import LoraSource  # noqa: PLC0415  torch

        return LoraSource(self.weights, self.config, self.alpha, self.rank)

    def files(self) -> Iterator[Path]:
        """What it is read from."""
        yield self.weights
        yield from [self.config] if self.config is not None else sorted(self.weights.parent.glob("*.yaml"))


@dataclass(frozen=True)
class ModelChoice:
    """A model as the command line names it.

    Attributes:
        name: As `registry.load` takes it.
        weights: A file in place of the model's own; None for those.
        adapter: To go on SAM 3's weights.
        vocabulary: CLIP's, for SAM 3's phrases; None looks in the usual places.
        device: Where it runs.
        flips: Ask phrases of the mirrored picture too.
    """

    name: str = "mini"
    weights: Path | None = None
    adapter: AdapterChoice | None = None
    vocabulary: Path | None = None
    device: str = "cpu"
    flips: bool = False

    def load(self) -> Segmenter:
        """The model, ready to segment.

        Raises:
            InputError: As `registry.load`.
        """
        from medsam3.models import registry  # noqa: PLC0415  may bring torch, which most errors do not need

        lora = None if self.adapter is None else self.adapter.source()
        return registry.load(
            self.name,
            device=self.device,
            weights=self.weights,
            lora=lora,
            vocabulary=self.vocabulary,
            flips=self.flips,
        )

    @cached_property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of each file that the weights consist of, by name, an adapter's with `lora/` before it.

        A file that is missing is left to `load`, which says so.

        Raises:
            InputError: A hub's repository that cannot be had, a file that cannot be read.
        """
        hashes = {path.name: _sha256_of(path) for path in self._files() if path.is_file()}
        files = () if self.adapter is None else self.adapter.files()
        return hashes | {f"lora/{path.name}": _sha256_of(path) for path in files if path.is_file()}

    @cached_property
    def taught(self) -> tuple[str, ...]:
        """Names of the concepts that the weights were taught, as their card says; () if they have none."""
        from medsam3.models.registry import is_sam3  # noqa: PLC0415

        if is_sam3(self.name):
            return ()
        *_, card = self._files()
        try:
            return tuple(json.loads(card.read_text(encoding="utf-8"))["concepts"])
        except (OSError, ValueError, KeyError, TypeError):
            return ()  # `load` says what is wrong with it

    def _files(self) -> Iterator[Path]:
        from medsam3.models.registry import SAM3_NAME, is_sam3  # noqa: PLC0415

        if not is_sam3(self.name):
            weights = self.weights or _SHIPPED / f"{self.name}.safetensors"
            yield from (weights, weights.with_suffix(".json"))
        elif self.weights is not None:
            yield from _sam3_files(self.weights)
        elif self.name == SAM3_NAME:
            from medsam3.models.sam3.checkpoints import locate  # noqa: PLC0415  torch

            yield from _sam3_files(locate(self.name))
        else:
            yield from _sam3_files(Path(self.name))


def add_sam3_arguments(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Declare what SAM 3 alone takes: `--lora` and what belongs to it, `--vocabulary`."""
    group.add_argument("--lora", type=Path, metavar="FILE", help="MedSAM-3's adapter for SAM 3: best_lora_weights.pt")
    group.add_argument(
        "--lora-config", type=Path, metavar="YAML", help="the adapter's rank and alpha; default: the YAML beside it"
    )
    group.add_argument("--alpha", type=float, metavar="A", help="the adapter's alpha, where no YAML tells it")
    group.add_argument("--rank", type=int, metavar="R", help="the adapter's rank, to be checked against its weights")
    group.add_argument(
        "--vocabulary",
        type=Path,
        metavar="PATH",
        help="CLIP's vocabulary for SAM 3's phrases, where it is not beside the weights",
    )


def adapter_from(args: argparse.Namespace) -> AdapterChoice | None:
    """The adapter that the arguments ask for.

    Raises:
        InputError: One of its options without it, or a number that is not allowed.
    """
    if args.lora is None:
        for option in ("lora_config", "alpha", "rank"):
            if getattr(args, option) is not None:
                raise InputError(f"--{option.replace('_', '-')} belongs to an adapter: give its file with --lora")
        return None
    if args.alpha is not None and not 0 < args.alpha < float("inf"):
        raise InputError(f"--alpha is {args.alpha}, allowed is a finite number above 0")
    if args.rank is not None and args.rank < 1:
        raise InputError(f"--rank is {args.rank}, allowed is 1 and above")
    return AdapterChoice(args.lora, args.lora_config, args.alpha, args.rank)


def vocabulary_from(args: argparse.Namespace) -> Path | None:
    """The vocabulary that the arguments name.

    Raises:
        InputError: It is not there.
    """
    path: Path | None = args.vocabulary
    if path is not None and not path.exists():
        raise InputError(f"--vocabulary {path} does not exist: correct the path")
    return path


def _sam3_files(place: Path) -> Iterator[Path]:
    """The weights at a place, and what beside them changes the results."""
    folder = place if place.is_dir() else place.parent
    if place.is_file():
        yield place
    else:
        yield from sorted(folder.glob("*.safetensors")) or [folder / "sam3.pt"]
    yield from (folder / name for name in _BESIDE)


def _sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give a file that you may read") from error
