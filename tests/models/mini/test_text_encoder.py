"""The text encoder: tokens, padding, memory, errors with random weights; known cosines with the published ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import BertConfig, BertModel

from medsam3.errors import InputError
from medsam3.models.mini import text_encoder
from medsam3.models.mini.encoder_files import locate
from medsam3.models.mini.text_encoder import MAX_TOKENS, MiniLM, TextEncoder

OPEN, CLOSE = 1, 2
WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "optic", "disc", "cup", "polyp", "of", "the", "left", "eye")


def word_tokenizer(words: int = 30522) -> Tokenizer:
    """One token for each word of WORDS, small letters, filled up with unused words; it pads and cuts, as MiniLM's."""
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    vocabulary |= {f"unused{index}": index for index in range(len(WORDS), words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", OPEN), ("[SEP]", CLOSE)]
    )
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(4)
    return tokenizer


@pytest.fixture(scope="module")
def random_model() -> MiniLM:
    torch.manual_seed(7)
    return MiniLM()


@pytest.fixture
def encoder(random_model: MiniLM) -> TextEncoder:
    return TextEncoder(lambda: (random_model, word_tokenizer()))


@pytest.fixture(scope="module")
def files(random_model: MiniLM, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Random weights in the published form, and the tokenizer of words."""
    folder = tmp_path_factory.mktemp("text")
    unused = {
        "pooler.dense.weight": torch.zeros(384, 384),
        "pooler.dense.bias": torch.zeros(384),
        "embeddings.position_ids": torch.arange(512)[None],
    }
    save_file({**random_model.state_dict(), **unused}, folder / "model.safetensors")
    word_tokenizer().save(str(folder / "tokenizer.json"))
    return folder / "model.safetensors", folder / "tokenizer.json"


def small_state() -> dict[str, Tensor]:
    return {"embeddings.word_embeddings.weight": torch.zeros(2, 2), "head.weight": torch.zeros(1)}


def test_features_are_those_of_transformers_with_the_same_random_weights(random_model: MiniLM) -> None:
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    stock = BertModel(config, add_pooling_layer=False).eval()
    assert stock.load_state_dict(random_model.state_dict()).missing_keys == []
    ids = torch.tensor([[1, 4, 5, 2], [1, 7, 2, 0]])
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    with torch.no_grad():
        expected = stock(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        found = random_model.eval()(ids, mask)
    assert (found - expected)[mask].abs().max() < 1e-5


def test_a_phrase_has_a_feature_for_each_word_and_two_more(encoder: TextEncoder) -> None:
    tokens = encoder.encode(["optic disc"])  # [CLS] optic disc [SEP]
    assert tokens.features.shape == (1, 4, 384)
    assert tokens.features.dtype == torch.float32
    assert tokens.mask.tolist() == [[True] * 4]


def test_no_phrase_gives_empty_tokens(encoder: TextEncoder) -> None:
    tokens = encoder.encode([])
    assert tokens.features.shape == (0, 0, 384)
    assert tokens.mask.shape == (0, 0)


def test_phrases_together_equal_one_by_one(random_model: MiniLM) -> None:
    phrases = ["polyp", "optic disc of the left eye", "optic cup", "polyp"]
    together = TextEncoder(lambda: (random_model, word_tokenizer())).encode(phrases)
    assert together.mask.sum(dim=1).tolist() == [3, 8, 4, 3]
    for index, phrase in enumerate(phrases):
        alone = TextEncoder(lambda: (random_model, word_tokenizer())).encode([phrase]).features[0]
        row = together.features[index]
        torch.testing.assert_close(row[: len(alone)], alone, atol=1e-5, rtol=0)
        assert (row[len(alone) :] == 0).all()


def test_letter_size_and_white_space_are_of_no_matter(encoder: TextEncoder) -> None:
    plain, loud = encoder.encode(["optic disc", "  Optic\tDISC "]).features
    assert torch.equal(plain, loud)


def test_the_mean_of_a_phrase_has_length_one_and_ignores_padding(encoder: TextEncoder) -> None:
    mean = encoder.encode(["polyp", "optic disc of the left eye"]).mean()
    alone = encoder.encode(["polyp"]).features[0].mean(dim=0)
    assert mean.norm(dim=1).tolist() == pytest.approx([1, 1])
    torch.testing.assert_close(mean[0], alone / alone.norm(), atol=1e-5, rtol=0)


def test_a_long_phrase_is_cut_with_a_warning_that_does_not_repeat_it(
    encoder: TextEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    long = " ".join(["eye"] * 40)
    with caplog.at_level(logging.WARNING):
        tokens = encoder.encode([long])
    assert tokens.features.shape == (1, MAX_TOKENS, 384)
    assert "42 tokens, only the first 32" in caplog.text  # 40 words, opening and closing
    assert "eye" not in caplog.text
    same = encoder.encode([" ".join(["eye"] * 30)])  # fits exactly: 30 + 2
    assert torch.equal(tokens.features, same.features)


def test_a_remembered_phrase_is_not_run_again(encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = encoder.encode(["polyp", "optic cup"])
    monkeypatch.setattr(encoder, "_run", lambda keys: pytest.fail("was run again"))
    assert torch.equal(encoder.encode(["Polyp", "optic cup"]).features, first.features)


def test_the_oldest_phrases_are_forgotten(random_model: MiniLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "REMEMBERED_PHRASES", 2)
    encoder = TextEncoder(lambda: (random_model, word_tokenizer()))
    encoder.encode(["polyp"])
    encoder.encode(["optic disc"])
    encoder.encode(["polyp"])  # so that the disc is the oldest
    encoder.encode(["optic cup"])
    runs: list[int] = []
    run = encoder._run

    def counted(keys: Sequence[tuple[int, ...]]) -> list[Tensor]:
        runs.append(len(keys))
        return run(keys)

    monkeypatch.setattr(encoder, "_run", counted)
    encoder.encode(["polyp", "optic cup", "optic disc"])
    assert runs == [1]


def test_more_phrases_than_are_remembered_are_all_answered(
    random_model: MiniLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_encoder, "REMEMBERED_PHRASES", 1)
    monkeypatch.setattr(text_encoder, "PHRASES_AT_ONCE", 2)
    encoder = TextEncoder(lambda: (random_model, word_tokenizer()))
    tokens = encoder.encode(["polyp", "optic disc", "optic cup", "the left eye", "optic disc"])
    assert tokens.mask.sum(dim=1).tolist() == [3, 4, 4, 5, 4]
    assert torch.equal(tokens.features[1], tokens.features[4])


def test_changing_an_answer_does_not_change_the_next(encoder: TextEncoder) -> None:
    before = encoder.encode(["polyp"]).features.clone()
    encoder.encode(["polyp"]).features.zero_()
    assert torch.equal(encoder.encode(["polyp"]).features, before)


@pytest.mark.parametrize(("phrase", "message"), [("  ", "empty"), ("x" * 10_000, "10000 characters")])
def test_an_empty_or_endless_phrase_is_refused(encoder: TextEncoder, phrase: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder.encode(["polyp", phrase])


def test_files_give_the_model_that_was_saved(files: tuple[Path, Path], encoder: TextEncoder) -> None:
    read = TextEncoder.from_files(*files)
    torch.testing.assert_close(read.encode(["optic disc"]).features, encoder.encode(["optic disc"]).features)


def test_missing_and_damaged_files_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    weights, tokenizer = files
    bad = tmp_path / "bad"
    bad.write_text("not what it should be")
    for path in (bad, tmp_path / "missing"):
        with pytest.raises(InputError, match=r"cannot be read as safetensors .* give model\.safetensors"):
            TextEncoder.from_files(path, tokenizer).encode(["polyp"])
        with pytest.raises(InputError, match=r"cannot be read as a tokenizer .* give tokenizer\.json"):
            TextEncoder.from_files(weights, path).encode(["polyp"])


def test_another_model_s_weights_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    save_file(small_state(), tmp_path / "small.safetensors")
    # MiniLM without its pooler has 5 embedding tensors and 16 in each of 6 layers: 101, of which one is there.
    message = "of 101 tensors 100 are missing, 1 unknown, 1 of another shape"
    with pytest.raises(InputError, match=message):
        TextEncoder.from_files(tmp_path / "small.safetensors", files[1]).encode(["polyp"])


def test_another_model_s_tokenizer_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    word_tokenizer(words=100).save(str(tmp_path / "small.json"))
    assert json.loads((tmp_path / "small.json").read_text())["version"]
    with pytest.raises(InputError, match="has 100 tokens"):
        TextEncoder.from_files(files[0], tmp_path / "small.json").encode(["polyp"])


@pytest.mark.weights
def test_the_published_weights_give_the_known_cosines() -> None:
    try:
        found = locate()
    except InputError as error:
        pytest.skip(str(error))
    encoder = TextEncoder.from_files(found.text_model, found.tokenizer)
    vectors = encoder.encode(["polyp", "colonic adenoma", "optic cup", "optic disc"]).mean()
    # Measured with the library that the weights were made for, mean-pooled.
    assert (vectors[0] @ vectors[1]).item() == pytest.approx(0.1709, abs=1e-3)
    assert (vectors[2] @ vectors[3]).item() == pytest.approx(0.6042, abs=1e-3)
    # "polyp" is [CLS] poly ##p [SEP]
    first = encoder.encode(["Polyp"]).features[0, :, :3]
    expected = [[0.0240, -0.0701, 0.6116], [-0.4631, -0.3712, 0.8213], [-1.0197, 0.2403, 0.9214]]
    torch.testing.assert_close(first[:3], torch.tensor(expected), atol=1e-3, rtol=0)
    assert len(first) == 4
