"""Vectors of all listed phrasings, computed once and shipped: an unlisted phrase costs one pass of the encoder.

Run `python -m medsam3.models.mini.phrase_table` after a change of `concepts.json`. A table that is out of date is not
used, and the vectors are computed when they are needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from medsam3.concepts import CONCEPTS, normalised
from medsam3.models.mini.text_encoder import TextEncoder
from medsam3.models.phrase_reader import Vectors
from medsam3.store import replacing

TABLE = Path(__file__).parents[2] / "weights" / "phrases.safetensors"


def listed_phrases() -> tuple[str, ...]:
    """All phrasings by which concepts are recognised, as they are compared."""
    return tuple(sorted({normalised(phrase) for concept in CONCEPTS for phrase in concept.recognised}))


def vectors_of(phrases: Sequence[str], texts: TextEncoder) -> Vectors:
    """(n, 384) float32 of length 1; those of listed phrasings come from the table."""
    known = _table()
    new = [phrase for phrase in phrases if phrase not in known]
    found = dict(zip(new, texts.encode(new).mean().numpy(), strict=True)) if new else {}
    return np.stack([known[phrase] if phrase in known else found[phrase] for phrase in phrases])


def write_table(texts: TextEncoder, path: Path = TABLE) -> None:
    """Compute and write it, in float16."""
    phrases = listed_phrases()
    vectors = texts.encode(phrases).mean().half().contiguous()
    with replacing(path, path.suffix) as temporary:
        save_file({"vectors": vectors}, temporary, metadata={"phrases_sha256": _digest(phrases)})
        temporary.chmod(0o644)


@cache
def _table() -> dict[str, Vectors]:
    """Read the table, by phrase; empty if the file is missing or of other phrases."""
    if not TABLE.is_file():
        return {}
    phrases = listed_phrases()
    with safe_open(TABLE, "pt") as stored:
        if (stored.metadata() or {}).get("phrases_sha256") != _digest(phrases):
            return {}
        vectors: torch.Tensor = stored.get_tensor("vectors")
    return dict(zip(phrases, vectors.float().numpy(), strict=True))


def _digest(phrases: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(phrases).encode()).hexdigest()


def _main() -> None:
    from medsam3.models.mini.encoder_files import locate  # noqa: PLC0415

    files = locate()
    write_table(TextEncoder.from_files(files.text_model, files.tokenizer))


if __name__ == "__main__":
    _main()
