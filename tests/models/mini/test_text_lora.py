"""The adapter on the text encoder: nothing at first, the same merged or not, and gradients reach it."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from medsam3.models.mini.text_encoder import MiniLM, TextEncoder
from medsam3.models.mini.text_lora import TextLora, targets


def encoder() -> TextEncoder:
    torch.manual_seed(0)
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "optic": 1, "disc": 2, "polyp": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    model = MiniLM()
    return TextEncoder(lambda: (model, tokenizer))


def test_a_new_adapter_changes_nothing() -> None:
    texts, phrases = encoder(), ["optic disc", "polyp"]
    torch.testing.assert_close(texts.encode_with(TextLora(4), phrases).features, texts.encode(phrases).features)


def test_a_merged_adapter_answers_as_one_that_is_kept_apart_and_leaves_the_encoder_as_it_was() -> None:
    texts, phrases, lora = encoder(), ["optic disc", "polyp"], TextLora(4)
    before = texts.encode(phrases).features
    torch.nn.init.normal_(lora.up, std=0.1)
    apart = texts.encode_with(lora, phrases)
    assert not torch.allclose(apart.features, before, atol=1e-3)
    torch.testing.assert_close(texts.adapted(lora).encode(phrases).features, apart.features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(texts.encode(["polyp"]).features[0, 0], before[1, 0])
    assert bool(apart.mask.equal(texts.encode(phrases).mask))


def test_gradients_reach_the_adapter_and_nothing_else() -> None:
    texts, lora = encoder(), TextLora(4)
    torch.nn.init.normal_(lora.up, std=0.1)
    texts.encode_with(lora, ["optic disc"]).features.square().sum().backward()  # type: ignore[no-untyped-call]
    assert lora.up.grad is not None
    assert lora.down.grad is not None
    assert float(lora.up.grad.abs().min(dim=0).values.max()) > 0


def test_all_four_projections_of_six_layers_are_adapted() -> None:
    names = set(dict(MiniLM().named_parameters()))
    assert len(targets()) == 24
    assert set(targets()) <= names
    assert sum(p.numel() for p in TextLora(8).parameters()) == pytest.approx(24 * 2 * 8 * 384)
