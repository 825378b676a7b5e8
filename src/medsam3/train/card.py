"""The card beside trained weights: how they were made, from what data and start, and what they reach on val."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from medsam3 import __version__
from medsam3.data.samples import Sample, contents_digest
from medsam3.models.mini.card import CARD_FORMAT
from medsam3.store import JsonObject, sha256_of, write_json

WRITTEN_ANEW = frozenset({"model", "format", "sha256", "made", "val", "versions", "thresholds"})
"""What every card says of its own weights, even if the rest is another card's."""


class DataSummary(TypedDict):
    """The data of a run: images by data set and split, and the digest of all contents."""

    images: dict[str, dict[str, int]]
    sha256: str


def write_card(path: Path, model: str, weights: Path, content: Mapping[str, object]) -> None:
    """Write a card.

    Args:
        path: The JSON file.
        model: `mini` or `sam3`.
        weights: The finished file that the card is about.
        content: All that is not the same for every card.

    Raises:
        InputError: The folder cannot be written.
    """
    versions = {
        "medsam3": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
    made = datetime.now(UTC).strftime("%Y-%m-%d")
    about = {"model": model, "format": CARD_FORMAT, "sha256": sha256_of(weights), "made": made}
    write_json(path, {**about, **content, "versions": versions})


def lineage(initial: Path | None) -> JsonObject | None:
    """Tell how the weights that a run starts from were made, by their card."""
    card = None if initial is None else initial.with_suffix(".json")
    if card is None or not card.exists():
        return None
    content = json.loads(card.read_text(encoding="utf-8"))
    made_of = {key: content[key] for key in ("joined", "averaged") if key in content}
    return {key: content.get(key) for key in ("sha256", "made", "training", "data", "curve", "started_from")} | made_of


def data_summary(samples: Sequence[Sample]) -> DataSummary:
    """Count images by data set and split, with the digest of all their contents."""
    counts: dict[str, dict[str, int]] = {}
    for sample in sorted(samples, key=lambda sample: sample.name):
        counts.setdefault(sample.dataset, Counter())[sample.split] += 1
    return {"images": counts, "sha256": contents_digest(samples)}


def curve_summary(records: Sequence[JsonObject], *, points: int = 40) -> list[dict[str, float]]:
    """Average the loss curve over `points` stretches."""
    stretches = [part.tolist() for part in np.array_split(np.arange(len(records)), points) if len(part)]
    return [
        {"step": records[part[-1]]["step"], "total": round(float(np.mean([records[n]["total"] for n in part])), 3)}
        for part in stretches
    ]
