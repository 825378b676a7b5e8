"""The frozen text encoder of the small model: all-MiniLM-L6-v2, from phrases to token features.

One job: phrases in, features of their tokens out, remembered per phrase. It knows nothing of images or synonyms; the
projection to the detector's width is trained and lives there.

Source: Wang et al., MiniLM, NeurIPS 2020; Reimers and Gurevych, Sentence-BERT, EMNLP 2019.
"""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from medsam3.errors import InputError
from medsam3.models.mini.text_lora import TextLora
from medsam3.prompts import check_phrase

FEATURE_DIM = 384
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

    def __init__(self, model: BertModel, tokenizer: Tokenizer) -> None:
        self._model = model.requires_grad_(False).eval()
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._remembered: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def from_files(cls, weights: Path, tokenizer: Path) -> TextEncoder:
        """Read `model.safetensors` and `tokenizer.json` of all-MiniLM-L6-v2.

        Raises:
            InputError: A file is missing or damaged, or its tensors are not those of this model.
        """
        state = _read_tensors(weights)
        return cls(_load_model(state, weights), _read_tokenizer(tokenizer))

    def knows_word(self, word: str) -> bool:
        """Whether a word, in small letters, is common enough to be one token."""
        return self._tokenizer.token_to_id(word) is not None

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
        """As `encode` through the encoder with an adapter, whose gradients flow; nothing is remembered."""
        keys = [self._token_ids(check_phrase(phrase)) for phrase in phrases]
        return _fill_up(self._hidden(keys, lora.merged(dict(self._model.named_parameters()))))

    def adapted(self, lora: TextLora) -> TextEncoder:
        """This encoder with an adapter merged in for good."""
        model = copy.deepcopy(self._model)
        with torch.no_grad():
            for name, value in lora.merged(dict(model.named_parameters())).items():
                model.get_parameter(name).copy_(value)
        return TextEncoder(model, self._tokenizer)

    def _token_ids(self, phrase: str) -> tuple[int, ...]:
        ids: list[int] = self._tokenizer.encode(phrase).ids
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
            for key in keys:
                self._remembered[key] = found[key]
                self._remembered.move_to_end(key)
            while len(self._remembered) > REMEMBERED_PHRASES:
                self._remembered.popitem(last=False)
        return found

    @torch.no_grad()
    def _run(self, keys: Sequence[tuple[int, ...]]) -> list[Tensor]:
        return [row.clone() for row in self._hidden(keys, {})]

    def _hidden(self, keys: Sequence[tuple[int, ...]], changed: dict[str, Tensor]) -> list[Tensor]:
        length = max(len(key) for key in keys)
        ids = torch.tensor([[*key, *[0] * (length - len(key))] for key in keys])
        mask = torch.arange(length) < torch.tensor([len(key) for key in keys])[:, None]  # (B, L)
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        hidden = torch.func.functional_call(self._model, changed, (), inputs).last_hidden_state
        return [row[: len(key)] for row, key in zip(hidden, keys, strict=True)]


def minilm_config() -> BertConfig:
    """The sizes of all-MiniLM-L6-v2."""
    return BertConfig(
        vocab_size=30522,
        hidden_size=FEATURE_DIM,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        max_position_embeddings=512,
        pad_token_id=0,
    )


def blank_text_model() -> BertModel:
    """The encoder without values: no time is spent on random numbers that weights replace."""
    with torch.device("meta"):
        return BertModel(minilm_config(), add_pooling_layer=False)


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


def _load_model(state: dict[str, Tensor], path: Path) -> BertModel:
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
    # Not in the state, so still without memory:
    positions = model.config.max_position_embeddings
    model.embeddings.register_buffer("position_ids", torch.arange(positions)[None], persistent=False)
    model.embeddings.register_buffer("token_type_ids", torch.zeros(1, positions, dtype=torch.long), persistent=False)
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
    if size != minilm_config().vocab_size:
        raise InputError(f"{path} has {size} tokens, all-MiniLM-L6-v2 has 30522; give its tokenizer.json")
    return tokenizer
