"""Many images as one job, and their results as one zip."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from medsam3.errors import InputError
from medsam3.server import reader
from medsam3.server.holdings import HeldImage, HeldJob, HeldResult, new_id
from medsam3.server.problems import RefusedError
from medsam3.server.schemas import FolderAsked, Found, JobAsked, Source, WindowAsked
from medsam3.server.service import Service
from medsam3.store import csv_text, replacing

TABLE = "found.csv"
COLUMNS = ("file", "phrase", "verdict", "presence", "objects", "pixels", "area_mm2", "volume_ml")


@dataclass(frozen=True)
class Kept:
    """Kept masks of one image, for the process that writes them out."""

    name: str
    stem: str
    source: Source
    masks: Path
    window: WindowAsked | None
    found: Found


async def segment_each(service: Service, job: HeldJob, images: Sequence[HeldImage], asked: FolderAsked) -> None:
    """Segment one image after the other; one that fails is noted with its reason, and the others go on."""
    job.of_images = (0, len(images))
    options = asked.model_dump(exclude={"kind", "images"})
    for done, image in enumerate(images, 1):
        try:
            held = service.holdings.image(image.owner, image.id)
            result = await service.segment_one(job, held, JobAsked(image=image.id, **options))
            job.results[image.id] = result.id
        except (InputError, RefusedError) as error:
            job.failures[image.id] = str(error)
        job.of_images = (done, len(images))


async def zip_of(service: Service, results: Sequence[HeldResult], form: str) -> Path:
    """Write results in a format into one zip, with a table of all; its place is the caller's to remove."""
    kept = [Kept(one.image.about.name, one.stem, one.image.source, one.masks, one.window, one.found) for one in results]
    target = service.holdings.folder / f"results-{new_id()}.zip"
    await service.read(write_zip, kept, form, target)
    return target


def write_zip(kept: Sequence[Kept], form: str, target: Path) -> None:
    """Write each result in a format, and put all into one zip beside a table; equal names are numbered.

    Raises:
        InputError: A format that is not known, or does not take one of the images or its masks.
    """
    stems = _distinct([one.stem for one in kept])
    with replacing(target, ".zip") as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as packed:
        for one, stem in zip(kept, stems, strict=True):
            try:
                path = reader.write_result(one.source, one.masks, form, stem, one.window)
            except InputError as error:
                raise InputError(f"{one.name}: {error}") from error
            packed.write(path, path.name)
        packed.writestr(TABLE, csv_text(COLUMNS, [row for one in kept for row in _rows(one)]))


def _rows(kept: Kept) -> Iterator[Sequence[object]]:
    for one in kept.found.concepts:
        sizes = (one.objects, one.pixels, one.area_mm2, one.volume_ml)
        yield (kept.name, one.phrase, one.verdict, one.presence, *sizes)


def _distinct(stems: Sequence[str]) -> list[str]:
    """Number stems that come again: a, a-2, a-3."""
    taken: dict[str, None] = {}
    for stem in stems:
        numbers = (stem if n == 1 else f"{stem}-{n}" for n in count(1))
        taken[next(one for one in numbers if one not in taken)] = None
    return list(taken)
