"""Names of models and how each is loaded. Knows no architecture: a loader imports its own module when it is called."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from medsam3.errors import InputError
from medsam3.models.segmenter import Segmenter

if TYPE_CHECKING:
    from medsam3.models.sam3.checkpoints import Conversion
    from medsam3.models.sam3.lora import LoraSource

Precision = Literal["float32", "bfloat16", "float16"]
Loader = Callable[[Path | None, "Running"], Segmenter]
"""From a weights file (None: the ones that come with the model) and how it runs to a model."""

SAM3_NAME = "facebook/sam3"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
NO_FLIPS = "model {name} does not ask mirrored pictures, mini does: leave the flips out"
MOST_HEADER_BYTES = 8_000_000
"""Longest list of tensors in a weights file that is read; that of SAM 3 takes 0.3 MB."""
DAMAGED_PICKLE = (
    *(RuntimeError, OSError, EOFError, ValueError),
    *(LookupError, TypeError, AttributeError, AssertionError),
)
"""What `torch.load` raises of a file that is cut short or damaged, besides `pickle.UnpicklingError`."""


@dataclass(frozen=True)
class Running:
    """How a model runs.

    Attributes:
        device: `cpu`, `cuda`, `cuda:1` or `mps`.
        precision: Number format of SAM 3's weights and activations; None takes float32.
        image_size: Side in pixels of the square that SAM 3 sees; None takes the weights' own.
    """

    device: str = "cpu"
    precision: Precision | None = None
    image_size: int | None = None


def load(
    name: str = "mini",
    *,
    device: str | Running = "cpu",
    weights: Path | str | None = None,
    lora: LoraSource | Path | str | None = None,
    vocabulary: Path | None = None,
    flips: bool = False,
) -> Segmenter:
    """A model that is ready to segment.

    Args:
        name: A name of `names()`, or where SAM 3's weights lie: a folder in transformers' layout, `sam3.pt`, or another
            repository of the Hugging Face hub (`owner/name`).
        device: Where it runs, or a `Running` that chooses precision and image size too.
        weights: A file in place of the model's own weights; of `mini`, one made by `medsam3 train`.
        lora: MedSAM-3's adapter to put on SAM 3's weights; a path takes rank and alpha from the YAML file beside it.
        vocabulary: CLIP's, for SAM 3's phrases, where it is not beside the weights.
        flips: Ask phrases of the mirrored picture too and answer with the mean, in twice the time; the small model can.

    Raises:
        InputError: An unknown name or device, weights that are missing, damaged or of a form that could run code, an
            adapter, a vocabulary or flips for a model that takes none.
    """
    chosen = None if weights is None else Path(weights)
    running = device if isinstance(device, Running) else Running(device)
    is_place = name not in LOADERS and (Path(name).exists() or HUB_NAME.fullmatch(name) is not None)
    if not is_place and name not in LOADERS:
        raise InputError(
            f"there is no model {name!r}, allowed are: {', '.join(names())}, a folder or file with SAM 3's weights, or "
            "their repository on the hub (owner/name)"
        )
    if is_place and chosen is not None:
        raise InputError(f"model {name} is a place of weights, and weights {chosen} were given too: give one of them")
    if (lora is not None or vocabulary is not None) and not is_sam3(name):
        raise InputError(
            f"model {name} takes no adapter and no vocabulary, SAM 3 does: give {SAM3_NAME}, a folder or sam3.pt"
        )
    if is_sam3(name):
        if flips:
            raise InputError(NO_FLIPS.format(name=name))
        return _load_sam3(name if is_place else chosen, running, lora=lora, vocabulary=vocabulary)
    if running.precision is not None or running.image_size is not None:
        raise InputError(f"model {name} has one precision and image size, SAM 3 has several: leave them out")
    segmenter = LOADERS[name](chosen, running)
    if not flips:
        return segmenter
    if not isinstance(segmenter, CanFlip):
        raise InputError(NO_FLIPS.format(name=name))
    return segmenter.with_flips()


@runtime_checkable
class CanFlip(Protocol):
    """A segmenter that can ask the mirrored picture too."""

    def with_flips(self) -> Segmenter:
        """The same, doing so."""
        ...


def is_sam3(name: str) -> bool:
    """Whether a name that `load` takes stands for SAM 3, on which adapters go: its hub name, a folder or a file."""
    return name == SAM3_NAME or name not in LOADERS


def convert_sam3(
    source: str | Path,
    out_dir: Path,
    *,
    lora: LoraSource | None = None,
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32",
    vocabulary: Path | None = None,
) -> Conversion:
    """`checkpoints.convert`, for callers that do not know torch: its number formats go by their short names.

    Raises:
        InputError: As `checkpoints.convert`.
    """
    import torch  # noqa: PLC0415

    from medsam3.models.sam3.checkpoints import convert  # noqa: PLC0415

    formats = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return convert(source, out_dir, lora=lora, dtype=formats[dtype], vocabulary=vocabulary)


def names() -> tuple[str, ...]:
    """Names that `load` takes."""
    return tuple(sorted(LOADERS))


def check_safetensors(path: Path) -> Path:
    """The path of a weights file that can hold nothing but tensors.

    Raises:
        InputError: Missing, empty, or not a safetensors file; pickles (.pt, .pth, .bin) are refused unread.
    """
    if not path.is_file():
        raise InputError(f"weights {path} are not a file: give a .safetensors file made by medsam3 train")
    with path.open("rb") as stream:
        head = stream.read(9)
    if not head:
        raise InputError(f"weights {path} are empty: copy the file again")
    header_length = int.from_bytes(head[:8], "little")
    if len(head) < 9 or head[8:] != b"{" or not 2 <= header_length <= MOST_HEADER_BYTES:
        raise InputError(
            f"weights {path} are not in the safetensors format: give a .safetensors file made by medsam3 train "
            "(pickled files can run code and are not opened)"
        )
    if header_length + 8 > path.stat().st_size:
        raise InputError(f"weights {path} are cut short: copy the file again")
    return path


def _beside_mini(name: str) -> Loader:
    """Loads other shipped weights of the small model, which carry a name of their own."""

    def load_shipped(weights: Path | None, running: Running) -> Segmenter:
        if weights is not None:
            raise InputError(f"model {name} has its own weights, {weights} were given too: give them to model mini")
        from medsam3.models.mini.segmenter import SHIPPED_WEIGHTS  # noqa: PLC0415

        return _load_mini(SHIPPED_WEIGHTS.with_name(f"{name}.safetensors"), running, name)

    return load_shipped


def _load_mini(weights: Path | None, running: Running, name: str = "mini") -> Segmenter:
    checked = None if weights is None else check_safetensors(weights)
    from medsam3.models.mini.encoder_files import locate  # noqa: PLC0415

    encoders = locate()
    from medsam3.models.mini.segmenter import MiniOptions, load_mini  # noqa: PLC0415  torch only once all files are there

    return load_mini(checked, encoders, MiniOptions(name, device=running.device))


def _load_sam3(
    weights: str | Path | None,
    running: Running,
    *,
    lora: LoraSource | Path | str | None = None,
    vocabulary: Path | None = None,
) -> Segmenter:
    from medsam3.models.sam3.lora import LoraSource  # noqa: PLC0415
    from medsam3.models.sam3.segmenter import Sam3Options, load_sam3  # noqa: PLC0415  torch, and the code of the large model

    adapter = LoraSource(Path(lora)) if isinstance(lora, (str, Path)) else lora
    options = Sam3Options(running.device, running.precision or "float32", running.image_size)
    return load_sam3(weights or SAM3_NAME, options=options, lora=adapter, vocabulary=vocabulary)


LOADERS: dict[str, Loader] = {
    "mini": _load_mini,
    "mini-frozen": _beside_mini("mini-frozen"),
    "mini-open": _beside_mini("mini-open"),
    SAM3_NAME: _load_sam3,
}
"""`mini-frozen` is the small model by the paper's recipe alone, with both encoders frozen; `mini-open` was trained
only on data under open licences.
"""
