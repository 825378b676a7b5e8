"""Weights of SAM 3 and MedSAM-3 from where users have them, and `convert` to one folder in transformers' layout.

Sources: a repository of the Hugging Face hub, a folder in transformers' layout (one file or shards), Meta's `sam3.pt`,
a safetensors file under either's names. Pickles are opened with `weights_only=True` alone, which runs no code.
What is missing, cut short or of another model is named and refused before a network exists.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from medsam3.errors import InputError, first_few, reason_of
from medsam3.models.registry import DAMAGED_PICKLE, HUB_NAME, MOST_HEADER_BYTES
from medsam3.models.sam3.clip_phrases import vocabulary_files
from medsam3.models.sam3.keys import (
    Renamed,
    is_homeless,
    is_meta_name,
    rename,
    with_full_names,
    without_tracking_of_31,
)
from medsam3.models.sam3.lora import Adapter, LoraSource, adapter_from, merge
from medsam3.models.sam3.network import Architecture, Sam3Network, architecture_from_json, blank_network, full_size
from medsam3.store import JsonObject, replacing, write_text

WEIGHTS_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"
_CONFIG_FILE = "config.json"
_PICKLES = (".pt", ".pth", ".bin")
_HUB_FILES = ("*.json", "*.safetensors", "merges.txt", "vocab.json")
_INNER_TABLES = ("model", "state_dict")
_PREFIXES = ("detector_model.", "tracker_model.", "tracker_neck.")
_INSTEAD = "medsam3.load('mini') works now and needs no such weights"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Weights under transformers' names, known to fit their architecture.

    Attributes:
        architecture: Sizes, from `config.json`, or those of the published model.
        tensors: Every tensor of the network and no other.
        left_over: Names in the source that have no home in the network.
        folder: Where the source lies; its vocabulary may lie there as well.
    """

    architecture: Architecture
    tensors: dict[str, Tensor]
    left_over: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class Conversion:
    """The files and counts of what `convert` wrote.

    Attributes:
        folder: The folder in transformers' layout.
        tensors: How many tensors it holds.
        left_over: Names in the source that have no home there.
        adapted: How many modules an adapter changed.
        has_tracker: Whether points and boxes can be answered by the tracker's head.
        has_vocabulary: Whether the folder brings CLIP's vocabulary.
    """

    folder: Path
    tensors: int
    left_over: tuple[str, ...]
    adapted: int
    has_tracker: bool
    has_vocabulary: bool


def read_checkpoint(source: str | Path, *, download: Callable[..., str] = snapshot_download) -> Checkpoint:
    """Weights from a hub repository, a folder or a file.

    Args:
        source: For example `facebook/sam3`, a folder with `config.json`, or `sam3.pt`.
        download: Fetches a hub repository and returns its folder.

    Raises:
        InputError: Gated, missing, damaged, cut short, of another model, or with tensors missing or too many.
    """
    path = locate(source, download=download)
    folder = path if path.is_dir() else path.parent
    found = with_full_names(_read_tensors(path))
    config = folder / _CONFIG_FILE
    architecture = architecture_from_json(_read_json(config)) if config.is_file() else full_size()
    renamed = _in_transformers_names(found, path)
    if not any(name.startswith("tracker_model.") for name in renamed.tensors):
        architecture = architecture.without_tracker()
    _refuse_unknown(renamed.left_over, path)
    unused = () if architecture.tracker is not None else ("tracker_model.", "tracker_neck.")
    tensors = {name: tensor for name, tensor in renamed.tensors.items() if not name.startswith(unused)}
    left_over = (*renamed.left_over, *sorted(set(renamed.tensors) - set(tensors)))
    try:
        blank = blank_network(architecture)
    except (RuntimeError, ValueError, TypeError, ArithmeticError, AssertionError, AttributeError, LookupError) as error:
        reason = reason_of(error)[:200]
        raise InputError(f"{config} does not describe a SAM 3 ({reason}): download the folder again") from error
    check_fit(blank, tensors, path)
    if left_over:
        _log.info("%d tensors of %s have no home in the model and are left out", len(left_over), path.name)
    return Checkpoint(architecture, tensors, left_over, folder)


def read_adapter(source: LoraSource) -> Adapter:
    """MedSAM-3's adapter, its rank and alpha checked.

    Raises:
        InputError: As `read_checkpoint` and `adapter_from` say.
    """
    if not source.weights.is_file():
        raise InputError(f"adapter {source.weights} is not a file: give MedSAM-3's best_lora_weights.pt")
    return adapter_from(_read_file(source.weights), source)


def convert(
    source: str | Path,
    out_dir: Path,
    *,
    lora: LoraSource | None = None,
    dtype: torch.dtype = torch.float32,
    vocabulary: Path | None = None,
) -> Conversion:
    """Write weights as a folder in transformers' layout: `config.json`, `model.safetensors`, the vocabulary if found.

    Args:
        source: As for `read_checkpoint`.
        out_dir: The folder, made if it is not there; weights in it are replaced.
        lora: An adapter to merge into the weights.
        dtype: Number format of the weights that are written.
        vocabulary: CLIP's vocabulary to copy beside them; None looks in the usual places.

    Raises:
        InputError: A source as `read_checkpoint` refuses it, an adapter of other weights, a folder that is a file.
    """
    checkpoint = read_checkpoint(source)
    tensors, adapted = checkpoint.tensors, 0
    if lora is not None:
        adapter = read_adapter(lora)
        tensors, adapted = merge(tensors, adapter), adapter.modules - len(adapter.left_over)
    files = vocabulary_files(vocabulary, checkpoint.folder)
    write_folder(out_dir, checkpoint.architecture, tensors, dtype=dtype, vocabulary=files)
    has_tracker = checkpoint.architecture.tracker is not None
    return Conversion(out_dir, len(tensors), checkpoint.left_over, adapted, has_tracker, bool(files))


def write_folder(
    out_dir: Path,
    architecture: Architecture,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype = torch.float32,
    vocabulary: Iterable[Path] = (),
) -> None:
    """Write `config.json`, `model.safetensors` and copies of the vocabulary's files, each whole or not at all.

    Args:
        out_dir: The folder, made if it is not there; weights in it are replaced.
        architecture: Of the network that the tensors fill.
        tensors: Under transformers' names.
        dtype: Number format of the weights that are written.
        vocabulary: The files of `clip_phrases.vocabulary_files`.

    Raises:
        InputError: A folder that is a file.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise InputError(f"{out_dir} is a file, a folder is needed: give another name") from error
    with replacing(out_dir / WEIGHTS_FILE) as temporary:
        _save(tensors, dtype, temporary, architecture)
    text = json.dumps(architecture.to_json(), indent=2, sort_keys=True, default=str)
    write_text(out_dir / _CONFIG_FILE, text + "\n")
    for file in vocabulary:
        if file.parent.resolve() != out_dir.resolve():
            with replacing(out_dir / file.name) as temporary:
                shutil.copyfile(file, temporary)


def locate(source: str | Path, *, download: Callable[..., str] = snapshot_download) -> Path:
    """The file or folder of a source, fetched from the hub if it is a repository's name.

    A repository's pickled weights are fetched only if it holds no safetensors.

    Raises:
        InputError: Neither there nor a repository that may be read.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if path.suffix in (".safetensors", *_PICKLES) or not is_hub_name(source):
        raise InputError(
            f"weights {source} are not there: give a folder, sam3.pt, or 'facebook/sam3' for the hub; {_INSTEAD}"
        )
    try:
        folder = Path(download(str(source), allow_patterns=list(_HUB_FILES)))
        if not any(folder.glob("*.safetensors")):
            patterns = [*_HUB_FILES, *(f"*{ending}" for ending in _PICKLES)]
            folder = Path(download(str(source), allow_patterns=patterns))
        return folder
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise InputError(
            f"{source} is gated or not there for you: ask for access at https://huggingface.co/{source}, "
            f"then log in with: hf auth login; {_INSTEAD}"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{source} cannot be fetched from huggingface.co ({type(error).__name__}) and is not in its cache: check "
            f"the network, or download https://huggingface.co/{source} elsewhere and give the folder; {_INSTEAD}"
        ) from error


def is_hub_name(source: str | Path) -> bool:
    """Whether a source has the form of a hub repository's name, such as `facebook/sam3.1`."""
    return HUB_NAME.fullmatch(str(source)) is not None


def check_fit(network: Sam3Network, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not exactly those of the network.

    Raises:
        InputError: Missing, extra or misshapen tensors, counted, the first few named.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    missing = sorted(set(expected) - set(shapes))
    extra = sorted(set(shapes) - set(expected))
    other = sorted(name for name in set(expected) & set(shapes) if expected[name] != shapes[name])
    complaints = []
    if missing:
        complaints.append(f"{len(missing)} of {len(expected)} tensors are missing ({first_few(missing)})")
    if extra:
        complaints.append(f"{len(extra)} tensors are too many ({first_few(extra)})")
    if other:
        first = other[0]
        complaints.append(
            f"{len(other)} tensors have another shape ({first} is {shapes[first]}, allowed {expected[first]})"
        )
    if complaints:
        raise InputError(
            f"weights {path} do not fit: {'; '.join(complaints)}: give complete SAM 3 weights, with their config.json "
            "beside them if they are not of the published size"
        )


def _refuse_unknown(left_over: Iterable[str], path: Path) -> None:
    """Refuse names of Meta's layout that are neither placed nor known to have no home.

    Raises:
        InputError: The names, counted, the first few named.
    """
    names = {name: None for name in left_over}
    known = set(names) - set(without_tracking_of_31(dict.fromkeys(names, torch.empty(0))))
    unknown = sorted(name for name in names if name not in known and not is_homeless(name))
    if unknown:
        raise InputError(
            f"weights {path} do not fit: {len(unknown)} tensors are too many ({first_few(unknown)}): give Meta's "
            "sam3.pt as it was published"
        )


def _in_transformers_names(found: Mapping[str, Tensor], path: Path) -> Renamed:
    """The tensors renamed if they carry Meta's names, or a bare detector's.

    Raises:
        InputError: Names of neither.
    """
    if any(is_meta_name(name) for name in found):
        kept = without_tracking_of_31(found)
        renamed = rename(kept)
        left_out = tuple(name for name in found if name not in kept)
        if left_out:
            parts = sorted({re.sub(r".*vision_backbone\.", "", name).split(".")[0] for name in left_out})
            told = "%s is a SAM 3.1: its detector is loaded; %d tensors are left out, of %s, so it answers no points"
            _log.warning(told, path.name, len(left_out), ", ".join(parts))
        return Renamed(renamed.tensors, (*renamed.left_over, *left_out))
    if any(name.startswith("vision_encoder.") for name in found):
        found = {f"detector_model.{name}": tensor for name, tensor in found.items()}
    if not any(name.startswith(_PREFIXES) for name in found):
        raise InputError(
            f"{path} holds {len(found)} tensors and none of SAM 3's (first {first_few(sorted(found))}): give Meta's "
            "sam3.pt or a folder in transformers' layout; an adapter goes on top of those"
        )
    return Renamed(dict(found), ())


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.is_file():
        return _read_file(path)
    if (path / _INDEX_FILE).is_file():
        return _read_shards(path)
    return _read_file(weights_in(path))


def weights_in(folder: Path) -> Path:
    """The file of weights in a folder without shards: the usual names, else the only file of weights there.

    Raises:
        InputError: None, or several.
    """
    for name in (WEIGHTS_FILE, "sam3.pt"):
        if (folder / name).is_file():
            return folder / name
    found = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", *_PICKLES))
    if len(found) > 1:
        raise InputError(
            f"folder {folder} holds {len(found)} files of weights ({first_few(p.name for p in found)}): give one"
        )
    if not found:
        raise InputError(f"folder {folder} holds no {WEIGHTS_FILE}, {_INDEX_FILE} or sam3.pt: download it again")
    return found[0]


def _read_shards(folder: Path) -> dict[str, Tensor]:
    places = _read_json(folder / _INDEX_FILE).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{folder / _INDEX_FILE} names no shards: download it again")
    shards = sorted(set(places.values()))
    absent = [name for name in shards if not (folder / name).is_file()]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(shards)} shards are missing in {folder}, first {absent[0]}: download them"
        )
    tensors: dict[str, Tensor] = {}
    for name in shards:
        tensors.update(_read_file(folder / name))
    lost = sorted(set(places) - set(tensors))
    if lost:
        raise InputError(
            f"{len(lost)} tensors named in {_INDEX_FILE} are in no shard ({first_few(lost)}): download it again"
        )
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    """All tensors of one file, read from disk only as they are used."""
    with path.open("rb") as stream:
        head = stream.read(40)
    if not head:
        raise InputError(f"weights {path} are empty: copy the file again")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"weights {path} are a pointer of Git LFS, not the file: run git lfs pull")
    if path.suffix == ".safetensors":
        header = int.from_bytes(head[:8], "little")
        if header > MOST_HEADER_BYTES:
            raise InputError(
                f"weights {path} are damaged or no SAM 3: their list of tensors takes {header:,} bytes, allowed are "
                f"{MOST_HEADER_BYTES:,}: copy the file again"
            )
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise InputError(f"weights {path} are cut short or damaged ({error}): copy the file again") from error
    if path.suffix in _PICKLES:
        return _read_pickle(path, is_zip=head.startswith(b"PK"))
    raise InputError(f"weights {path} end in {path.suffix!r}, allowed are .safetensors and {', '.join(_PICKLES)}")


def _read_pickle(path: Path, *, is_zip: bool) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights {path} hold more than tensors, or are no weights at all, and are not opened, since such a file "
            "can run code: save its tensors alone"
        ) from error
    except DAMAGED_PICKLE as error:
        raise InputError(
            f"weights {path} are cut short or damaged ({type(error).__name__}): copy the file again"
        ) from error
    while isinstance(loaded, dict) and (inner := [loaded[k] for k in _INNER_TABLES if isinstance(loaded.get(k), dict)]):
        loaded = inner[0]
    if not isinstance(loaded, dict) or not all(isinstance(tensor, Tensor) for tensor in loaded.values()):
        raise InputError(f"weights {path} are not a table of tensors: give Meta's sam3.pt or MedSAM-3's adapter")
    return loaded


def _read_json(path: Path) -> JsonObject:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON ({type(error).__name__}): download it again") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} holds no JSON object: download it again")
    return fields


def _save(tensors: Mapping[str, Tensor], dtype: torch.dtype, path: Path, architecture: Architecture) -> None:
    """Write one file; a detector alone gets the bare names that transformers' `Sam3Model` saves."""
    bare = architecture.tracker is None
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        ready = tensor.detach().to(dtype).contiguous()
        if ready.data_ptr() in seen or ready.untyped_storage().nbytes() != ready.nbytes:
            ready = ready.clone()  # safetensors refuses parts of one storage
        seen.add(ready.data_ptr())
        named[name.removeprefix("detector_model.") if bare else name] = ready
    save_file(named, path, metadata={"format": "pt"})
