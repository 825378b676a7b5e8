"""The frozen text encoder of the small model: all-MiniLM-L6-v2, from phrases to token features.

One job: phrases in, features of their tokens out, remembered per phrase. It knows nothing of images or synonyms; the
projection to the detector's width is trained and lives there.

Source: Wang et al., MiniLM, NeurIPS 2020; Reimers and Gurevych, Sentence-BERT, EMNLP 2019.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from cachetools import LRUCache
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from medsam3.errors import InputError
from medsam3.models.detector import without_values
from medsam3.models.mini.text_lora import TextLora
from medsam3.prompts import check_phrase

FEATURE_DIM, HIDDEN_DIM, HEADS = 384, 1536, 12
VOCABULARY = 30522
NORM_EPS = 1e-12
MAX_TOKENS = 32  # with the opening and closing token; a concept of ten words has about fifteen
REMEMBERED_PHRASES = 4096
PHRASES_AT_ONCE = 64

# In the file, and of no use here: the pooler's output is not read, the positions are counted anew.
_UNUSED = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TextTokens:
    """Features of B phrases, filled up to the longest one's L tokens.

    Attributes:
        features: (B, L, 384) float32, 0 where there is no token.
        mask: (B, L) bool, true where there is a token.
    """

    features: Tensor
    mask: Tensor

    def mean(self) -> Tensor:
        """One vector for each phrase, the mean over its tokens, of length 1: (B, 384)."""
        return nn.functional.normalize(self.features.sum(dim=1), dim=-1)


class TextEncoder:
    """all-MiniLM-L6-v2 with its tokenizer, which sets letters small and takes accents off."""

    def __init__(self, read: Callable[[], tuple[MiniLM, Tokenizer]]) -> None:
        """Remember how the model and its tokenizer are read, which is done for the first phrase."""
        self._read = read
        self._remembered: LRUCache[tuple[int, ...], Tensor] = LRUCache(REMEMBERED_PHRASES)
        self._lock = Lock()

    def __getstate__(self) -> dict[str, object]:
        """Leave what was remembered behind, and the lock, which no other process shares."""
        return {"_parts": self._parts}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _remembered=LRUCache(REMEMBERED_PHRASES), _lock=Lock())

    @classmethod
    def from_files(cls, weights: Path, tokenizer: Path) -> TextEncoder:
        """The encoder in `model.safetensors` and `tokenizer.json` of all-MiniLM-L6-v2.

        The first phrase raises an InputError if a file is missing, damaged, or of another model.
        """
        return cls(lambda: (_load_model(_read_tensors(weights), weights), _read_tokenizer(tokenizer)))

    @cached_property
    def _parts(self) -> tuple[MiniLM, Tokenizer]:
        model, tokenizer = self._read()
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return model.requires_grad_(False).eval(), tokenizer

    def knows_word(self, word: str) -> bool:
        """Whether a word, in small letters, is common enough to be one token."""
        return self._parts[1].token_to_id(word) is not None

    def encode(self, phrases: Sequence[str]) -> TextTokens:
        """Token features of each phrase; the same whether phrases come alone or together.

        Args:
            phrases: Any number; none gives empty tensors. Tokens over `MAX_TOKENS` are cut off, with a logged warning.

        Returns:
            On the CPU, as the last hidden state of the encoder.

        Raises:
            InputError: A phrase is empty, too long or not printable.
        """
        keys = [self._token_ids(check_phrase(phrase)) for phrase in phrases]
        features = self._features(keys)
        return _fill_up([features[key] for key in keys])

    def encode_with(self, lora: TextLora, phrases: Sequence[str]) -> TextTokens:
        """Encode through the encoder with an adapter, whose gradients flow; nothing is remembered."""
        keys = [self._token_ids(check_phrase(phrase)) for phrase in phrases]
        return _fill_up(self._hidden(keys, lora.merged(dict(self._parts[0].named_parameters()))))

    def adapted(self, lora: TextLora) -> TextEncoder:
        """This encoder with an adapter merged in for good."""

        def read() -> tuple[MiniLM, Tokenizer]:
            model, tokenizer = self._parts
            model = copy.deepcopy(model)
            with torch.no_grad():
                for name, value in lora.merged(dict(model.named_parameters())).items():
                    model.get_parameter(name).copy_(value)
            return model, tokenizer

        return TextEncoder(read)

    def _token_ids(self, phrase: str) -> tuple[int, ...]:
        ids: list[int] = self._parts[1].encode(phrase).ids
        if len(ids) > MAX_TOKENS:
            # The phrase itself stays out of the log: a user may have put a name into it.
            logger.warning("a phrase has %d tokens, only the first %d are read: shorten it", len(ids), MAX_TOKENS)
            ids = [*ids[: MAX_TOKENS - 1], ids[-1]]  # the last one closes every phrase
        return tuple(ids)

    def _features(self, keys: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Tensor]:
        with self._lock:
            found = {key: self._remembered[key] for key in keys if key in self._remembered}
        # Sorted by length, a batch holds little padding.
        new = sorted({key for key in keys if key not in found}, key=lambda key: (len(key), key))
        for start in range(0, len(new), PHRASES_AT_ONCE):
            batch = new[start : start + PHRASES_AT_ONCE]
            found.update(zip(batch, self._run(batch), strict=True))
        with self._lock:
            self._remembered.update({key: found[key] for key in keys})
        return found

    @torch.no_grad()
    def _run(self, keys: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [row.clone() for row in self._hidden(keys, {})]

    def _hidden(self, keys: Sequence[tuple[int, ...]], changed: dict[str, Tensor]) -> list[Tensor]:
        length = max(len(key) for key in keys)
        ids = torch.tensor([[*key, *[0] * (length - len(key))] for key in keys])
        mask = torch.arange(length) < torch.tensor([len(key) for key in keys])[:, None]  # (B, L)
        hidden = torch.func.functional_call(self._parts[0], changed, (ids, mask))
        return [row[: len(key)] for row, key in zip(hidden, keys, strict=True)]


class _Layer(nn.Module):
    """Self-attention and feed-forward, each added and then normalised, under BERT's names."""

    def __init__(self) -> None:
        super().__init__()
        own = nn.ModuleDict({name: nn.Linear(FEATURE_DIM, FEATURE_DIM) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": own, "output": _output(FEATURE_DIM)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(FEATURE_DIM, HIDDEN_DIM)})
        self.output = _output(HIDDEN_DIM)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens (B, L, 384) with their mask (B, 1, 1, L)."""
        own: Any = self.attention["self"]
        out: Any = self.attention["output"]
        query, key, value = (
            own[name](tokens).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in ("query", "key", "value")
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        tokens = out["LayerNorm"](tokens + out["dense"](attended))
        hidden = F.gelu(self.intermediate["dense"](tokens))
        result: Tensor = self.output["LayerNorm"](tokens + self.output["dense"](hidden))
        return result


class MiniLM(nn.Module):
    """BERT at the sizes of all-MiniLM-L6-v2, without pooler and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {
                "word_embeddings": nn.Embedding(VOCABULARY, FEATURE_DIM),
                "position_embeddings": nn.Embedding(512, FEATURE_DIM),
                "token_type_embeddings": nn.Embedding(2, FEATURE_DIM),
                "LayerNorm": nn.LayerNorm(FEATURE_DIM, eps=NORM_EPS),
            }
        )
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Layer() for _ in range(6))})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The last hidden state (B, L, 384) of token ids (B, L) with their mask (B, L) bool."""
        parts: Any = self.embeddings
        words: Tensor = parts["word_embeddings"](ids) + parts["token_type_embeddings"].weight[0]
        tokens: Tensor = parts["LayerNorm"](words + parts["position_embeddings"].weight[: ids.shape[1]])
        layers: Any = self.encoder["layer"]
        for layer in layers:
            tokens = layer(tokens, mask[:, None, None])
        return tokens


def _output(inputs: int) -> nn.ModuleDict:
    norm = nn.LayerNorm(FEATURE_DIM, eps=NORM_EPS)
    return nn.ModuleDict({"dense": nn.Linear(inputs, FEATURE_DIM), "LayerNorm": norm})


def blank_text_model() -> MiniLM:
    """The encoder without values, for weights to be assigned to."""
    with without_values():
        return MiniLM()


def _fill_up(rows: Sequence[Tensor]) -> TextTokens:
    length = max((len(row) for row in rows), default=0)
    features = torch.zeros(len(rows), length, FEATURE_DIM)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        features[index, : len(row)] = row
        mask[index, : len(row)] = True
    return TextTokens(features=features, mask=mask)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} cannot be read as safetensors ({error}); give model.safetensors of all-MiniLM-L6-v2, "
            "or run: medsam3 weights fetch"
        ) from error


def _load_model(state: dict[str, Tensor], path: Path) -> MiniLM:
    model = blank_text_model()
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items() if name not in _UNUSED}
    wrong = sorted(name for name, shape in expected.items() if given.get(name, shape) != shape)
    missing, unknown = sorted(expected.keys() - given.keys()), sorted(given.keys() - expected.keys())
    if missing or unknown or wrong:
        raise InputError(
            f"{path} is not all-MiniLM-L6-v2: of {len(expected)} tensors {len(missing)} are missing, {len(unknown)} "
            f"unknown, {len(wrong)} of another shape (first: {[*missing, *unknown, *wrong][0]}); "
            "give its model.safetensors"
        )
    model.load_state_dict({name: state[name].float() for name in expected}, assign=True)
    return model


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(
            f"{path} cannot be read as a tokenizer ({error}); give tokenizer.json of all-MiniLM-L6-v2, "
            "or run: medsam3 weights fetch"
        ) from error
    size = tokenizer.get_vocab_size()
    if size != VOCABULARY:
        raise InputError(f"{path} has {size} tokens, all-MiniLM-L6-v2 has 30522; give its tokenizer.json")
    return tokenizer
