"""The shipped vectors of the listed phrasings are those that the text encoder gives."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from medsam3.models.mini import phrase_table
from medsam3.models.mini.encoder_files import locate
from medsam3.models.mini.phrase_table import listed_phrases, vectors_of, write_table
from medsam3.models.mini.text_encoder import TextEncoder, TextTokens


class LengthTexts:
    """Stands for the text encoder: one token, whose direction tells the phrase's length. Counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, phrases: Sequence[str]) -> TextTokens:
        self.asked += phrases
        angles = torch.tensor([float(len(phrase)) for phrase in phrases])
        return TextTokens(torch.stack([angles.cos(), angles.sin()], dim=1)[:, None], torch.ones(len(phrases), 1).bool())


def test_the_table_spares_listed_phrases_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phrase_table, "TABLE", tmp_path / "phrases.safetensors")
    texts = LengthTexts()
    write_table(cast(TextEncoder, texts), phrase_table.TABLE)
    texts.asked.clear()
    phrase_table._table.cache_clear()
    found = vectors_of(["polyp", "xyz", "liver"], cast(TextEncoder, texts))
    phrase_table._table.cache_clear()
    assert texts.asked == ["xyz"]
    expected = [[np.cos(n), np.sin(n)] for n in (5, 3, 5)]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_table_of_other_phrases_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phrase_table, "TABLE", tmp_path / "phrases.safetensors")
    texts = LengthTexts()
    write_table(cast(TextEncoder, texts), phrase_table.TABLE)
    monkeypatch.setattr(phrase_table, "listed_phrases", lambda: (*listed_phrases(), "zzz"))
    texts.asked.clear()
    phrase_table._table.cache_clear()
    vectors_of(["polyp"], cast(TextEncoder, texts))
    phrase_table._table.cache_clear()
    assert texts.asked == ["polyp"]


@pytest.mark.weights
def test_the_shipped_table_is_of_these_phrases_and_this_encoder() -> None:
    files = locate()
    texts = TextEncoder.from_files(files.text_model, files.tokenizer)
    phrases = listed_phrases()
    assert set(phrases) <= phrase_table._table().keys(), "run: python -m medsam3.models.mini.phrase_table"
    some = phrases[::50]
    np.testing.assert_allclose(vectors_of(some, texts), texts.encode(some).mean().numpy(), atol=2e-3)
