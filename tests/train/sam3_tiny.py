"""A SAM 3 that is small and random, as a folder in transformers' layout, and samples for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from transformers.models.sam3.configuration_sam3 import Sam3Config

from medsam3.data.samples import Instances, Sample, Target
from medsam3.models.sam3.checkpoints import read_checkpoint, write_folder
from medsam3.models.sam3.clip_phrases import PhraseTokenizer, load_tokenizer, vocabulary_of_bpe
from medsam3.models.sam3.network import Architecture, Sam3Network, architecture_from_json, blank_network, fill_network
from medsam3.train.config import Sam3FitConfig, SamplingConfig
from sam3_small import detector_fields, seeded_tensors

SAMPLING = SamplingConfig(images=2, prompts=2, max_objects=8)
CONFIG = Sam3FitConfig(
    steps=4, warmup_steps=2, learning_rate=1e-3, bf16=False, save_every=2, clip_norm=1.0, sampling=SAMPLING
)


def architecture(*, image_size: int = 112, width: int = 32, queries: int = 10) -> Architecture:
    """A detector of some width on a trunk of the same width."""
    fields = detector_fields(
        width=width, trunk_width=width, feed_forward=2 * width, image_size=image_size, queries=queries
    )
    return architecture_from_json(Sam3Config(**fields).to_dict())


def random_tensors(chosen: Architecture) -> dict[str, Tensor]:
    """Seeded values of natural size for every tensor."""
    return seeded_tensors(chosen, 5)


def network(chosen: Architecture | None = None) -> Sam3Network:
    """The random network in float32."""
    sizes = chosen or architecture()
    return fill_network(blank_network(sizes), random_tensors(sizes), dtype=torch.float32, device=torch.device("cpu"))


def weights_folder(folder: Path, chosen: Architecture | None = None) -> Path:
    """The random network on disk with a vocabulary of single letters."""
    sizes = chosen or architecture()
    write_folder(folder, sizes, random_tensors(sizes))
    merges = [("p", "o"), ("l", "y")]
    (folder / "vocab.json").write_text(json.dumps(vocabulary_of_bpe(merges)), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\np o\nl y\n", encoding="utf-8")
    assert len(read_checkpoint(folder).tensors) == len(random_tensors(sizes))
    return folder


def tokenizer(folder: Path) -> PhraseTokenizer:
    return load_tokenizer(None, folder)


def bright_squares(folder: Path, count: int = 4, *, split: str = "train") -> tuple[Sample, ...]:
    """Grey pictures of 90 x 120 with a bright rectangle each, the `polyp`; `needle` is in none."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = rng.integers(40, 80, size=(90, 120, 3)).astype(np.uint8)
        top, left = rng.integers(5, 40, size=2)
        labels = np.zeros((90, 120), np.int32)
        labels[top : top + 40, left : left + 50] = 1
        pixels[labels > 0] += 150
        path = folder / f"{split}{number}.png"
        PIL.Image.fromarray(pixels).save(path)
        targets = (Target("polyp", True, _constant(labels)), Target("needle", False, _constant(0 * labels)))
        samples.append(Sample(path.name, path, "squares", path.stem, "train" if split == "train" else "val", targets))
    return tuple(samples)


def _constant(labels: Instances) -> Callable[[], Instances]:
    return lambda: labels


def configured(**changes: object) -> Sam3FitConfig:
    """`CONFIG` with some values changed."""
    return replace(CONFIG, **changes)  # type: ignore[arg-type]


def curve(folder: Path) -> Sequence[float]:
    """The total loss of each update of a run."""
    return [json.loads(line)["total"] for line in (folder / "curves.jsonl").read_text().splitlines()[1:]]
