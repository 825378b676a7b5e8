"""Token ids: a vocabulary of four merges worked out by hand, and CLIP's own where it is at hand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from medsam3.errors import InputError
from medsam3.models.sam3.clip_phrases import VISUAL_TOKENS, load_tokenizer, vocabulary_files, vocabulary_of_bpe
from sam3_small import needs_parity, parity

MERGES = "#version: 0.2\np o\nl y\nly p</w>\npo lyp</w>\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any vocabulary."""
    monkeypatch.setenv("MEDSAM3_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    return tmp_path


def bpe_file(folder: Path) -> Path:
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress(MERGES.encode()))
    return path


def test_bytes_come_first_then_word_ends_then_merges_then_marks() -> None:
    numbers = vocabulary_of_bpe([("p", "o")])
    # "!" is the first printable byte, 33; "a" is byte 97, so 64 places on; 256 bytes, 256 that end a word
    assert (numbers["!"], numbers["a"], numbers["!</w>"], numbers["po"]) == (0, 64, 256, 512)
    assert (numbers["<|startoftext|>"], numbers["<|endoftext|>"]) == (513, 514)


def test_a_phrase_is_lower_cased_and_merged_in_order(home: Path) -> None:
    tokenize = load_tokenizer(bpe_file(home), None)
    # po 512, ly 513, lyp 514, polyp 515, begin 516, end 517; "a" alone ends a word: 256 + 64
    assert tokenize("Polyp") == (516, 515, 517)
    assert tokenize("a  polyp") == (516, 320, 515, 517)
    assert tokenize("po") == (516, 79, 256 + 78, 517)  # "po" that ends a word was never merged: p, o</w>


def test_the_same_ids_come_from_a_file_a_folder_and_a_published_folder(home: Path) -> None:
    path = bpe_file(home)
    published = home / "published"
    published.mkdir()
    pairs = [tuple(line.split()) for line in MERGES.splitlines()[1:]]
    (published / "vocab.json").write_text(json.dumps(vocabulary_of_bpe([(a, b) for a, b in pairs])))
    (published / "merges.txt").write_text(MERGES)
    for vocabulary in (path, home, published, published / "vocab.json", published / "merges.txt"):
        assert load_tokenizer(vocabulary, None)("a polyp") == (516, 320, 515, 517)
    assert load_tokenizer(None, published)("a polyp") == (516, 320, 515, 517)
    assert [file.name for file in vocabulary_files(None, published)] == ["vocab.json", "merges.txt"]


def test_the_cache_folder_is_looked_into(home: Path) -> None:
    (home / "home").mkdir()
    bpe_file(home / "home")
    assert load_tokenizer(None, None)("polyp") == (516, 515, 517)


def test_no_vocabulary_says_where_to_get_one(home: Path) -> None:
    with pytest.raises(InputError, match="pip download --no-deps open_clip_torch"):
        load_tokenizer(None, home)
    with pytest.raises(InputError, match="there is none in"):
        load_tokenizer(home / "nowhere", None)
    assert vocabulary_files(None, home) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bpe_simple_vocab_16e6.txt.gz", b"not gzip"),
        ("bpe_simple_vocab_16e6.txt.gz", gzip.compress(b"#version\none two three\n", mtime=0)),
        ("tokenizer.json", b'{"model": {"type": "WordPiece"}}'),
        ("tokenizer.json", b"{"),
    ],
)
def test_a_damaged_vocabulary_is_refused(home: Path, name: str, content: bytes) -> None:
    (home / name).write_bytes(content)
    with pytest.raises(InputError, match="is not CLIP's vocabulary"):
        load_tokenizer(home / name, None)


@needs_parity
def test_metas_ids_are_reproduced_with_clips_own_vocabulary() -> None:
    try:
        tokenize = load_tokenizer(None, None)
    except InputError:
        pytest.skip("needs CLIP's vocabulary in the cache folder or an installed open_clip")
    phrases = json.loads((parity("tiny") / "phrases.json").read_text())
    expected = load_file(parity("tiny") / "inputs.safetensors")["token_ids"].tolist()
    for phrase, ids in zip(phrases, expected, strict=True):
        assert tokenize(phrase) == tuple(number for number in ids if number)
    assert tokenize("visual") == VISUAL_TOKENS
