"""Phrases to CLIP's token ids, as SAM 3's text encoder wants them. It knows no text encoder.

CLIP's vocabulary is not part of this package. It comes with the published folder (`vocab.json` and `merges.txt`, or
`tokenizer.json`), or as `bpe_simple_vocab_16e6.txt.gz` with Meta's code and in the wheel of open_clip_torch.

Source: Radford et al., CLIP, ICML 2021: byte-pair encoding of lower-cased text.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from medsam3.errors import InputError
from medsam3.store import cache_folder

CONTEXT_TOKENS = 32
"""Length of SAM 3's text encoder, begin and end included."""

VISUAL_TOKENS = (49406, 7195, 49407)
"""The phrase "visual", which stands where a prompt has boxes and no text."""

VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_HOW_TO_GET = (
    f"give the published folder's vocab.json and merges.txt, or {VOCABULARY_FILE} "
    "(pip download --no-deps open_clip_torch, then unzip the wheel), with vocabulary="
)

_log = logging.getLogger(__name__)


class PhraseTokenizer:
    """Token ids of phrases, begin and end marked, cut at the encoder's length."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def __call__(self, phrase: str) -> tuple[int, ...]:
        """At most 32 token ids; what is longer is cut before the end mark, as Meta's code does, with a warning."""
        ids = tuple(self._tokenizer.encode(phrase).ids)
        if len(ids) <= CONTEXT_TOKENS:
            return ids
        _log.warning(
            "a phrase has %d tokens, SAM 3 reads %d: its end is cut off, name the concept in fewer words",
            len(ids),
            CONTEXT_TOKENS,
        )
        return (*ids[: CONTEXT_TOKENS - 1], ids[-1])


def load_tokenizer(vocabulary: Path | None, folder: Path | None) -> PhraseTokenizer:
    """The tokenizer from where its vocabulary is found first.

    Args:
        vocabulary: A folder or file of the user's; None looks in the places below.
        folder: The model's own folder, then the cache folder of this package, then installed packages that bring it.

    Raises:
        InputError: No vocabulary anywhere, or one that is damaged or not CLIP's.
    """
    for place in [vocabulary] if vocabulary is not None else _usual_places(folder):
        source = _source_in(place)
        if source is not None:
            return PhraseTokenizer(_read(source))
    where = f"in {vocabulary}" if vocabulary is not None else "beside the weights"
    raise InputError(f"phrases need CLIP's vocabulary and there is none {where}: {_HOW_TO_GET}")


def vocabulary_of_bpe(merges: list[tuple[str, str]]) -> dict[str, int]:
    """CLIP's token numbers: bytes, bytes that end a word, merges in their order, begin, end."""
    letters = list(_byte_letters())
    words = [*letters, *(letter + "</w>" for letter in letters), *(first + second for first, second in merges)]
    return {word: number for number, word in enumerate([*words, *_SPECIAL])}


def vocabulary_files(vocabulary: Path | None, folder: Path | None) -> list[Path]:
    """The files to copy beside weights so that they bring their vocabulary; empty where none is found."""
    for place in [vocabulary] if vocabulary is not None else _usual_places(folder):
        source = _source_in(place)
        if source is not None:
            return [source.with_name("vocab.json"), source] if source.name == "merges.txt" else [source]
    return []


def _usual_places(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        yield folder
    yield cache_folder()
    for package, inner in (("sam3", "assets"), ("open_clip", "")):
        found = importlib.util.find_spec(package)
        if found is not None and found.origin is not None:
            yield Path(found.origin).parent / inner


def _source_in(place: Path) -> Path | None:
    """The vocabulary's main file: itself, or the first that the folder holds."""
    if place.is_file():
        beside = place.with_name("merges.txt")
        return beside if place.name == "vocab.json" and beside.is_file() else place
    if (place / "vocab.json").is_file() and (place / "merges.txt").is_file():
        return place / "merges.txt"
    for name in ("tokenizer.json", VOCABULARY_FILE):
        if (place / name).is_file():
            return place / name
    return None


def _read(source: Path) -> Any:
    """The tokenizer in a file, checked before it is built, since the tokenizers package raises bare exceptions."""
    try:
        if source.name == "tokenizer.json":
            return _from_tokenizer_json(source.read_text(encoding="utf-8"))
        if source.name == "merges.txt":
            merges = _pairs(source.read_text(encoding="utf-8").splitlines())
            vocabulary = json.loads(source.with_name("vocab.json").read_text(encoding="utf-8"))
        else:
            merges = _pairs(gzip.decompress(source.read_bytes()).decode("utf-8").splitlines()[: _MERGES + 1])
            vocabulary = vocabulary_of_bpe(merges)
        unknown = [pair for pair in merges if "".join(pair) not in vocabulary]
        if unknown or any(mark not in vocabulary for mark in _SPECIAL):
            raise ValueError(f"{len(unknown)} of its merges are not in the vocabulary, or a mark is missing")
        return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_TOKENS).backend_tokenizer
    except (OSError, ValueError, EOFError, zlib.error, TypeError) as error:
        raise InputError(f"{source} is not CLIP's vocabulary ({error}): {_HOW_TO_GET}") from error


def _from_tokenizer_json(text: str) -> Any:
    model = json.loads(text).get("model", {})
    if model.get("type") != "BPE" or any(mark not in model.get("vocab", {}) for mark in _SPECIAL):
        raise ValueError("it holds another kind of tokenizer")
    return Tokenizer.from_str(text)


def _pairs(lines: list[str]) -> list[tuple[str, str]]:
    """The merges of a file whose first line is its version."""
    pairs = [tuple(line.split()) for line in lines[1:] if line.strip()]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError("it has lines that are not two parts of a word")
    return [(pair[0], pair[1]) for pair in pairs]


def _byte_letters() -> Iterator[str]:
    """A printable letter for each byte, in CLIP's order: printable bytes first, the others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    yield from map(chr, printable)
    yield from (chr(256 + count) for count in range(256 - len(printable)))
