"""The report on the data for people: lines for the terminal, and a page with a few samples of each concept drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL.Image

from medsam3.data.index import SPLITS
from medsam3.data.report import TINY_PIXELS, DataReport, Duplicate
from medsam3.data.samples import RGB, Sample
from medsam3.errors import first_few
from medsam3.eval.case_pictures import outlined
from medsam3.page import data_url, render
from medsam3.store import JsonObject, without_nan, write_json, write_text

PER_CONCEPT = 6
_MOST_NAMED = 5
_SIDE = 220


def set_lines(report: DataReport) -> list[str]:
    """Images and their sizes by data set and split."""
    lines = [f"{'data set':24}{'split':>6}{'images':>8}{'empty':>7}  sizes (rows x columns)"]
    for one in report.sets:
        sizes = " to ".join(f"{height}x{width}" for height, width in dict.fromkeys((one.smallest, one.largest)))
        lines.append(f"{one.dataset:24}{one.split:>6}{one.images:8}{one.empty:7}  {sizes}")
    return lines


def report_lines(report: DataReport) -> list[str]:
    """Concepts by split, then what is wrong with the data, the worst first."""
    lines = [f"{'concept, present/absent':32}" + "".join(f"{split:>12}" for split in SPLITS) + "   too small"]
    for concept in sorted({one.concept for one in report.concepts}):
        own = {one.split: one for one in report.concepts if one.concept == concept}
        counts = [f"{own[split].present}/{own[split].absent}" if split in own else "-" for split in SPLITS]
        small = sum(one.tiny + one.gone for one in own.values())
        lines.append(f"{concept:32}" + "".join(f"{count:>12}" for count in counts) + (f"{small:12}" if small else ""))
    return [*lines, "", *problems(report)]


def problems(report: DataReport) -> list[str]:
    """One line for each kind of problem; a line that says so where there is none."""
    across = [pair for pair in report.duplicates if pair.is_across]
    within = [pair for pair in report.duplicates if not pair.is_across]
    gone = [f"{one.concept} ({one.gone} in {one.split})" for one in report.concepts if one.gone]
    tiny = [f"{one.concept} ({one.tiny} in {one.split})" for one in report.concepts if one.tiny]
    lacking = [
        f"{one.concept} ({one.split})" for one in report.concepts if not one.present and one.split in ("train", "val")
    ]
    kinds: list[tuple[str, Sequence[str]]] = [
        ("masks of another size than their image", report.mismatched),
        ("the index and the mask disagree on presence", report.belied),
        ("groups that stand in two splits", report.crossing),
        ("look-alikes across splits", [_pair(pair) for pair in across]),
        ("look-alikes within a split, of different groups", [_pair(pair) for pair in within]),
        ("phrases that collide", report.collisions),
        ("concepts without synonyms or family (see medsam3 concepts)", report.unknown),
        ("never present", lacking),
        ("gone at 256 x 256, so taught as absent", gone),
        (f"smaller than {TINY_PIXELS} pixels at 256 x 256", tiny),
    ]
    lines = [f"! {name}: {len(own)}: {first_few(own, most=_MOST_NAMED, joined_by='; ')}" for name, own in kinds if own]
    return lines or ["no problem was found in the data"]


def write_page(report: DataReport, samples: Sequence[Sample], folder: Path) -> list[Path]:
    """Write `data.json` and `data.html` into the run's folder.

    Raises:
        InputError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "data.json", without_nan({**asdict(report), "lines": report_lines(report)}))
    write_text(folder / "data.html", html_page(report, samples))
    return [folder / "data.json", folder / "data.html"]


def written_lines(folder: Path, digest: str) -> list[str] | None:
    """The lines of the report that the folder holds; None where it holds none on just these data."""
    try:
        content: JsonObject = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        return list(content["lines"]) if content["digest"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def html_page(report: DataReport, samples: Sequence[Sample]) -> str:
    """Write the tables, and a few samples of each concept with its outline, chosen by a hash of their names."""
    concepts = sorted({target.concept for sample in samples for target in sample.targets})
    return render(
        "train/data_page.html.jinja",
        title="Data of a medsam3 training run",
        lines=[*set_lines(report), "", *report_lines(report)],
        concepts={name: [_figure(one, name) for one in chosen_samples(samples, name)] for name in concepts},
    )


def chosen_samples(samples: Sequence[Sample], concept: str) -> list[Sample]:
    """At most `PER_CONCEPT` samples that show a concept, of as many data sets as possible."""
    by_set: dict[str, list[Sample]] = {}
    for sample in samples:
        if any(target.concept == concept and target.is_present for target in sample.targets):
            by_set.setdefault(sample.dataset, []).append(sample)
    for own in by_set.values():
        own.sort(key=lambda sample: hashlib.sha256(sample.name.encode()).digest())
    turns = max((len(own) for own in by_set.values()), default=0)
    ordered = [own[turn] for turn in range(min(turns, PER_CONCEPT)) for own in by_set.values() if turn < len(own)]
    return ordered[:PER_CONCEPT]


def _figure(sample: Sample, concept: str) -> dict[str, str]:
    """Draw a sample with the outline of a concept, as the template takes it."""
    mask = next(target for target in sample.targets if target.concept == concept and target.is_present).load() > 0
    rgb = sample.load_rgb()
    if mask.shape == rgb.shape[:2]:
        enlarged = _enlarged(rgb, PIL.Image.Resampling.BILINEAR)
        large = _enlarged(np.where(mask, 255, 0).astype(np.uint8), PIL.Image.Resampling.NEAREST) > 0
        rgb = outlined(enlarged, large, np.zeros_like(large))
    source = data_url(PIL.Image.fromarray(rgb), "JPEG", quality=85)
    return {"source": source, "caption": f"{sample.name} ({sample.split})"}


def _enlarged(values: RGB, how: PIL.Image.Resampling) -> RGB:
    """Small pictures (slices of a crop) larger, so that the outline is finer than the pixels."""
    scale = max(1, round(_SIDE / max(values.shape[:2])))
    size = (values.shape[1] * scale, values.shape[0] * scale)
    return np.asarray(PIL.Image.fromarray(values).resize(size, how))


def _pair(pair: Duplicate) -> str:
    kind = "same" if pair.is_exact else "alike"
    return f"{pair.first} ({pair.splits[0]}) and {pair.second} ({pair.splits[1]}), {kind}"
