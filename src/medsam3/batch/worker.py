"""One worker of a batch: fetches a piece, segments it, writes its masks, and says in rows what came of it."""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from medsam3.batch.pieces import Piece, is_local, place_of, stamp_of
from medsam3.batch.target import Known, OutputTarget, Row, hash_of
from medsam3.errors import InputError
from medsam3.image import Image, Masks
from medsam3.io import write_format
from medsam3.io.files import HEADERS
from medsam3.models.segmenter import Segmenter
from medsam3.prompts import Prompt
from medsam3.segmentation.options import Options
from medsam3.segmentation.run import segment
from medsam3.store import sha256_of, slug

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
    """

    prompts: tuple[Prompt, ...]
    formats: tuple[str, ...] | None
    options: Options
    load: Callable[[], Segmenter]
    find: Callable[[Path], Iterable[FoundInput]]
    key: Callable[[Prompt], str]
    default_formats: dict[str, tuple[str, ...]]
    weights: str = ""

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
                piece = replace(piece, stamp=_stamp(piece.url))
                row = replace(row, stamp=piece.stamp)
            if self._known.has(self._known.states, hash_of(piece.url, piece.stamp, job)):
                report.skipped += 1
                return []
            report.changed += self._known.has(self._known.places, hash_of(piece.url, job))
            with fetched(piece) as path:
                place = str(path)
                row = replace(row, sha256=_sha256(path))
                made = self._copied(row)
                is_copied = bool(made)
                made = made or self._segmented(piece, path, row)
        except InputError as error:
            said = " ".join(str(error).removeprefix(f"{place}: ").split())
            return [_failed(replace(row, error=said), report)]
        except Exception as error:
            _LOG.debug("unexpected error", exc_info=True)
            said = (
                "the memory is full"
                if isinstance(error, MemoryError)
                else f"unexpected {type(error).__name__}: {error}"
            )
            is_ours = not isinstance(error, MemoryError | OSError)
            return [_failed(replace(row, error=" ".join(said.split()), is_ours=is_ours), report)]
        report.copied += is_copied
        report.done += not is_copied
        report.objects += sum(one.object > 0 for one in made)
        return made

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
        prompts, rows = piece.prompts or self._work.prompts, []
        for found in self._work.find(path):
            image = found.open()
            for masks, prompt in _answers(image, prompts, self._segmenter, self._work.options):
                names = self._write(masks, image, replace(row, series=found.series))
                base = replace(row, series=found.series, outputs=names, mode=prompt.mode)
                rows += _rows_of_masks(base, masks, image)
        return rows

    def _write(self, masks: Masks, image: Image, row: Row) -> tuple[str, ...]:
        """Write the masks in each format, named by the content and the concept."""
        place = f"masks/{row.sha256[:2]}"
        series = f"_series-{slug(row.series)}" if row.series else ""
        stem = f"{row.sha256[:16]}{series}_{slug(masks.concept) or 'prompt'}_{row.job[:8]}"
        formats = self._work.formats or self._work.default_formats[image.kind]
        with tempfile.TemporaryDirectory(prefix="medsam3-") as temporary:
            files = [write_format(name, [masks], image, Path(temporary), stem) for name in formats]
            for file in files:
                self._target.put(file, f"{place}/{file.name}")
        return tuple(f"{place}/{file.name}" for file in files)


@contextmanager
def fetched(piece: Piece) -> Iterator[Path]:
    """Give a path of this machine with the content of a piece, which is removed afterwards if it came from elsewhere.

    Raises:
        InputError: It is not there, or may not be read.
    """
    system, path = place_of(piece.url)
    if is_local(system) and not piece.names:
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="medsam3-") as temporary:
        folder = Path(temporary) / _name(path)
        folder.mkdir()
        try:
            if is_local(system):
                for name in piece.names:
                    (folder / name).symlink_to(Path(path).resolve() / name)
            else:
                for source in _sources(system, piece, path):
                    system.get_file(source, str(folder / _name(source)))
        except FileNotFoundError as error:
            raise InputError("it does not exist any more: correct the path") from error
        except OSError as error:
            raise InputError(
                f"it cannot be fetched ({' '.join(str(error).split())}): run again to try it anew"
            ) from error
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
    try:
        return stamp_of(system.info(path))
    except FileNotFoundError as error:
        raise InputError("it does not exist: correct the list") from error
    except OSError as error:
        raise InputError(
            f"it cannot be read ({' '.join(str(error).split())}): correct the list, or the rights"
        ) from error


def _sha256(path: Path) -> str:
    """Hash a file, or the files of a folder with their names."""
    if path.is_file():
        return sha256_of(path)
    if not path.is_dir():
        raise InputError("it does not exist: correct the path")
    lines = "\n".join(f"{file.name} {sha256_of(file)}" for file in sorted(path.iterdir()) if file.is_file())
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _answers(
    image: Image, prompts: Sequence[Prompt], segmenter: Segmenter, options: Options
) -> Iterator[tuple[Masks, Prompt]]:
    """Give masks with the prompt that they answer; a phrase that joins concepts has several."""
    for prompt in prompts:
        for masks in segment(image, prompt, segmenter, options):
            yield masks, prompt


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
    size = image.pixel_size_mm
    mm2 = None if size is None or image.kind != "picture" else size[0] * size[1]
    ml = (
        None
        if image.affine is None or image.kind != "volume"
        else abs(float(np.linalg.det(image.affine[:3, :3]))) / 1e3
    )
    rows = []
    for number, one in enumerate(masks.objects, start=1):
        x0, y0, x1, y1 = (float(side) for side in one.box)
        rows.append(replace(base, object=number, score=float(one.score), x0=x0, y0=y0, x1=x1, y1=y1, voxels=one.voxels))
        rows[-1] = replace(
            rows[-1],
            area_mm2=None if mm2 is None else one.voxels * mm2,
            volume_ml=None if ml is None else one.voxels * ml,
        )
    return rows or [base]


def _failed(row: Row, report: Report) -> Row:
    report.failed += 1
    report.ours += row.is_ours
    report.errors.append(f"{row.file}: {row.error}")
    return row
