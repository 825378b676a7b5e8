"""Batches for tests: dark pictures with bright rectangles, asked of a model that needs no weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image as Picture

from medsam3.batch.crew import work_here
from medsam3.batch.pieces import find_pieces
from medsam3.batch.target import OutputTarget
from medsam3.batch.worker import BatchWork, Report
from medsam3.cli.batch import found_at
from medsam3.image import Kind
from medsam3.prompts import Prompt
from medsam3.segmentation.options import Options
from slow_segmenter import load_fake

FORMATS: dict[Kind, tuple[str, ...]] = {"picture": ("png",), "volume": ("nifti",), "video": ("coco",)}


def work_for(*phrases: str) -> BatchWork:
    prompts = tuple(Prompt(text) for text in phrases)
    return BatchWork(
        prompts, None, Options(), partial(load_fake, ""), found_at, lambda prompt: prompt.to_json(), FORMATS
    )


def run(sources: list[str], out: str, *phrases: str, retry: bool = False) -> Report:
    target, total = OutputTarget(out), Report()
    target.prepare()
    known = target.known(without_failures=retry)
    for report in work_here(find_pieces(sources, leave_out=target.url), work_for(*phrases), out, known):
        total.add(report)
    if total.changed:
        target.known()
    return total


def manifest(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "manifest").to_pylist()
    return sorted(rows, key=lambda row: (row["file"], row["concept"], row["object"]))


def picture(path: Path, *boxes: tuple[int, int, int, int], size: tuple[int, int] = (40, 30)) -> Path:
    """A dark picture of (width, height) with bright rectangles (x0, y0, x1, y1), ends left out."""
    pixels = np.zeros((size[1], size[0]), dtype=np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(pixels).save(path)
    return path
