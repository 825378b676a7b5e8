"""One worker of a batch: fetches a piece, segments it, writes its masks, and says in rows what came of it."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from medsam3.batch.pieces import Elsewhere, Piece, is_local, place_of, stamp_of
from medsam3.batch.target import Known, OutputTarget, Row, hash_of
from medsam3.errors import InputError, reason_of
from medsam3.image import Image, Kind, Masks
from medsam3.io import write_format
from medsam3.io.files import HEADERS
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Prompt
from medsam3.segmentation.options import Options
from medsam3.segmentation.run import segment
from medsam3.store import scratch_folder, sha256_of, sha256_of_all, slug

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FoundInput:
    """An image of a piece: which series of a folder it is, "" if there is but one, and how to open it."""

    series: str
    open: Callable[[], Image]


@dataclass(frozen=True)
class BatchWork:
    """What is done with every piece; it is sent to the workers.

    Attributes:
        prompts: Asked of each image, unless its piece brings its own.
        formats: How masks are written; None takes what suits the image.
        options: Settings of `segment`.
        load: Loads the model.
        find: Finds the images in a file or folder.
        key: Hashes what a prompt's result depends on beside the image, the weights among it.
        default_formats: By kind of image, if `formats` is None.
        weights: SHA-256 of the weights, for the manifest.
        elsewhere: Fetches pieces that no file system holds.
    """

    prompts: tuple[Prompt, ...]
    formats: tuple[str, ...] | None
    options: Options
    load: Callable[[], Segmenter]
    find: Callable[[Path], Iterable[FoundInput]]
    key: Callable[[Prompt], str]
    default_formats: Mapping[Kind, tuple[str, ...]]
    weights: str = ""
    elsewhere: Elsewhere | None = None

    def job(self, piece: Piece) -> str:
        """Hash all that is asked of a piece."""
        keys = ",".join(self.key(prompt) for prompt in piece.prompts or self.prompts)
        return hashlib.sha256(keys.encode()).hexdigest()[:16]


@dataclass
class Report:
    """What came of some pieces, in numbers.

    Attributes:
        done: Pieces that were segmented.
        copied: Pieces whose content was known under another name.
        skipped: Pieces that were done before.
        failed: Pieces with an error, those of the program's own fault among them.
        ours: Of these, pieces that failed by the program's fault.
        changed: Pieces that were done before in another state.
        objects: Objects that were found.
        seconds: Time that it took.
        errors: First errors, for people to read.
    """

    done: int = 0
    copied: int = 0
    skipped: int = 0
    failed: int = 0
    ours: int = 0
    changed: int = 0
    objects: int = 0
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    @property
    def pieces(self) -> int:
        """How many pieces were dealt with."""
        return self.done + self.copied + self.skipped + self.failed

    def add(self, other: Report) -> None:
        """Count what another one counted, and keep the first few errors."""
        for name in ("done", "copied", "skipped", "failed", "ours", "changed", "objects", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.errors = (self.errors + other.errors)[:20]


class BatchWorker:
    """Segments pieces with one model, which it loads when the first piece needs it."""

    def __init__(self, work: BatchWork, target: str, known: Known) -> None:
        self._work, self._target, self._known = work, OutputTarget(target), known
        self._segmenter: Segmenter | None = None

    def ready(self) -> bool:
        """Load the model.

        Raises:
            InputError: It cannot be loaded.
        """
        if self._segmenter is None:
            self._segmenter = self._work.load()
        return True

    def do(self, pieces: Sequence[Piece], part: str) -> Report:
        """Segment pieces and write their part of the manifest.

        Raises:
            InputError: The model cannot be loaded, or the target cannot be written.
        """
        report, rows, start = Report(), [], time.monotonic()  # type: Report, list[Row], float
        for piece in pieces:
            begun = time.monotonic()
            made = self._rows_of(piece, report)
            seconds, now = round(time.monotonic() - begun, 3), time.time()
            rows += [replace(row, seconds=seconds, finished=now) for row in made]
        if rows:
            self._target.write_part(part, rows)
        report.seconds = time.monotonic() - start
        return report

    def _rows_of(self, piece: Piece, report: Report) -> list[Row]:
        job = self._work.job(piece)
        row, place = Row(piece.url, "", piece.stamp, "", job, weights=self._work.weights), piece.url
        try:
            if not piece.stamp:
                piece = replace(piece, stamp=self._stamp(piece.url))
                row = replace(row, stamp=piece.stamp)
            if self._known.has(self._known.states, hash_of(piece.url, piece.stamp, job)):
                report.skipped += 1
                return []
            report.changed += self._known.has(self._known.places, hash_of(piece.url, job))
            with fetched(piece, self._work.elsewhere) as path:
                place = str(path)
                row = replace(row, sha256=_sha256(path))
                made = self._copied(row)
                is_copied = bool(made)
                made = made or self._segmented(piece, path, row)
        except InputError as error:
            said = " ".join(str(error).removeprefix(f"{place}: ").split())
            return [_failed(row, said, report)]
        except Exception as error:
            _LOG.debug("unexpected error", exc_info=True)
            is_full = isinstance(error, MemoryError)
            said = "the memory is full" if is_full else f"unexpected {type(error).__name__}: {reason_of(error)}"
            return [_failed(replace(row, is_ours=not isinstance(error, MemoryError | OSError)), said, report)]
        report.copied += is_copied
        report.done += not is_copied
        report.objects += sum(one.object > 0 for one in made)
        return made

    def _stamp(self, url: str) -> str:
        elsewhere = self._work.elsewhere
        return elsewhere.stamp(url) if elsewhere is not None and elsewhere.knows(url) else _stamp(url)

    def _copied(self, row: Row) -> list[Row]:
        """Give the rows that the same content had under another name, if its files are all there."""
        part = self._known.part_with(hash_of(row.sha256, row.job))
        if part is None or not self._target.has(f"manifest/{part}"):
            return []
        rows = self._target.copies(part, row.sha256, row.job)
        if not all(self._target.has(name) for one in rows for name in one.outputs):
            return []
        return [replace(one, file=row.file, stamp=row.stamp) for one in rows]

    def _segmented(self, piece: Piece, path: Path, row: Row) -> list[Row]:
        self.ready()
        assert self._segmenter is not None
        prompts, rows, taken = piece.prompts or self._work.prompts, list[Row](), set[str]()
        for found in self._work.find(path):
            image, base = found.open(), replace(row, series=found.series)
            for mode, alike in groupby(prompts, lambda prompt: prompt.mode):  # at once, so that frames are encoded once
                for masks in segment(image, list(alike), self._segmenter, self._work.options):
                    stem = _stem(base, masks.concept, taken)
                    names = self._write(masks, image, stem)
                    rows += _rows_of_masks(replace(base, outputs=names, mode=mode), masks, image)
        return rows

    def _write(self, masks: Masks, image: Image, stem: str) -> tuple[str, ...]:
        """Write the masks in each format."""
        place = f"masks/{stem[:2]}"
        formats = self._work.formats or self._work.default_formats[image.kind]
        with scratch_folder() as scratch:
            files = [write_format(name, [masks], image, scratch, stem) for name in formats]
            for file in files:
                self._target.put(file, f"{place}/{file.name}")
        return tuple(f"{place}/{file.name}" for file in files)


@contextmanager
def fetched(piece: Piece, elsewhere: Elsewhere | None = None) -> Iterator[Path]:
    """Give a path of this machine with the content of a piece, which is removed afterwards if it came from elsewhere.

    Raises:
        InputError: It is not there, or may not be read.
    """
    if elsewhere is not None and elsewhere.knows(piece.url):
        with scratch_folder() as scratch:
            place = scratch / _name(piece.url)
            elsewhere.fetch(piece.url, place)
            yield place
        return
    system, path = place_of(piece.url)
    if is_local(system) and not piece.names:
        yield Path(path)
        return
    with scratch_folder() as scratch:
        folder = scratch / _name(path)
        folder.mkdir()
        with _refused("does not exist any more: correct the path", "be fetched", "run again to try it anew"):
            if is_local(system):
                for name in piece.names:
                    (folder / name).symlink_to(Path(path).resolve() / name)
            else:
                for source in _sources(system, piece, path):
                    system.get_file(source, str(folder / _name(source)))
        yield folder if piece.names else folder / _name(path)


def _sources(system: Any, piece: Piece, path: str) -> list[str]:
    """Name the files to fetch: those of a folder, a header with what lies beside it, or the file itself."""
    if piece.names:
        return [f"{path.rstrip('/')}/{name}" for name in piece.names]
    if not path.lower().endswith(HEADERS):
        return [path]
    start = path[: path.rindex(".")]
    return [name for name in system.ls(path.rpartition("/")[0], detail=False) if str(name).startswith(f"{start}.")]


def _name(path: str) -> str:
    """Give the last part of a path or URL, which is never one that leads elsewhere."""
    name = PurePosixPath(path.partition("?")[0]).name
    return name if name not in ("", ".", "..") else "piece"


def _stamp(url: str) -> str:
    system, path = place_of(url)
    with _refused("does not exist: correct the list", "be read", "correct the list, or the rights"):
        return stamp_of(system.info(path))


@contextmanager
def _refused(if_missing: str, what: str, advice: str) -> Iterator[None]:
    """Tell in one line what a file system refuses."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"it {if_missing}") from error
    except OSError as error:
        raise InputError(f"it cannot {what} ({reason_of(error)}): {advice}") from error


def _sha256(path: Path) -> str:
    """Hash a file, or the files of a folder with their names."""
    if path.is_file():
        return sha256_of(path)
    if not path.is_dir():
        raise InputError("it does not exist: correct the path")
    return sha256_of_all((file for file in path.iterdir() if file.is_file()), path)


def _stem(row: Row, concept: str, taken: set[str]) -> str:
    """Name the files of masks by the content and the concept, and number those of prompts that have one name."""
    series = f"_series-{slug(row.series)}" if row.series else ""
    number, named = 1, slug(concept) or "prompt"
    while (stem := f"{row.sha256[:16]}{series}_{named}_{row.job[:8]}") in taken:
        number += 1
        named = f"{slug(concept) or 'prompt'}-{number}"
    taken.add(stem)
    return stem


def _rows_of_masks(base: Row, masks: Masks, image: Image) -> list[Row]:
    frames, height, width = masks.shape
    base = replace(
        base,
        concept=masks.concept,
        presence=masks.presence,
        is_present=masks.is_present,
        frames=frames,
        rows=height,
        columns=width,
    )
    rows = []
    for number, one in enumerate(masks.objects, start=1):
        x0, y0, x1, y1 = (float(side) for side in one.box)
        found = replace(base, object=number, score=float(one.score), x0=x0, y0=y0, x1=x1, y1=y1, voxels=one.voxels)
        area = image.area_mm2(one.voxels) if image.kind == "picture" else None
        rows.append(replace(found, area_mm2=area, volume_ml=image.volume_ml(one.voxels)))
    return rows or [base]


def _failed(row: Row, error: str, report: Report) -> Row:
    report.failed += 1
    report.ours += row.is_ours
    report.errors.append(f"{row.file}: {error}")
    return replace(row, error=error)
