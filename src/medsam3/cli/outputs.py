"""The folder of results: what was found in numbers, names of the files, and the list by which a run is resumed.

A line of `results.jsonl` is either a claim on file names, written before the files take their places, or the record of
a result, written after. So a file that no line names is not ours, and is not replaced unless that is asked for.
"""

from __future__ import annotations

import glob
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from medsam3.errors import InputError
from medsam3.image import Image, Masks, ObjectMask, PresenceVerdict
from medsam3.prompts import Mode, Prompt
from medsam3.store import LONGEST_SLUG, Journal, JsonObject, name_bytes, scratch_folder, shortened, slug

if TYPE_CHECKING:
    from medsam3.cli.remote import HowRead

HEADINGS = ("file", "concept", "present", "objects", "area px", "area mm2", "score")
LIST_NAME = "results.jsonl"
COCO_NAME = "annotations.coco.json"
_PARTS = ".coco"  # folder of the COCO files that COCO_NAME is made of
_HEADING = {"list": "results of medsam3 segment", "version": 1}
_TEMPORARY = ".writing-"
_LONGEST_STEM = 120  # characters, which leaves room for endings below the 255 bytes that file systems allow
_LONGEST_SIDES = 8.0  # long to short side, above which a picture is shown so small that objects are lost
_REFUSING = ("png", "coco", "seg")
"""Formats that need a package, or do not take every image."""


@dataclass(frozen=True)
class ObjectRow:
    """One object.

    Attributes:
        score: Confidence in 0..1.
        box: xyxy in float pixels, outer pixel edges included.
        area_px: Pixels, in a stack of all slices together.
        area_mm2: The same in square millimetres; None if the spacing is not known.
    """

    score: float
    box: tuple[float, float, float, float]
    area_px: int
    area_mm2: float | None


@dataclass(frozen=True)
class ResultRow:
    """One concept in one image.

    Attributes:
        file: The input as it was named.
        concept: The phrase; "" if only boxes or points were given.
        mode: T, I or T+I.
        presence: Probability in 0..1; None if no phrase was asked.
        is_present: Whether it is affirmed, surely or not; None likewise.
        shape: (N, H, W).
        objects: Best score first.
        area_px: Pixels of all objects together, overlaps counted once.
        area_mm2: The same in square millimetres; None if the spacing is not known.
        outputs: Names of the files that were written.
        read_as: What the phrase was taken for, with what is taken away, a side, and what is not heeded; None if it was
            asked as it stands.
        is_taught: Whether the weights were taught what the phrase means; None if that is not known.
        warning: Why the answer may be wrong, and what to do; None if nothing speaks against it.
        verdict: Yes, not sure, or no; None if no phrase was asked.
    """

    file: str
    concept: str
    mode: Mode
    presence: float | None
    is_present: bool | None
    shape: tuple[int, int, int]
    objects: tuple[ObjectRow, ...]
    area_px: int
    area_mm2: float | None
    outputs: tuple[str, ...]
    read_as: str | None = None
    is_taught: bool | None = None
    warning: str | None = None
    verdict: PresenceVerdict | None = None

    @classmethod
    def from_masks(
        cls,
        file: str,
        prompt: Prompt,
        masks: Masks,
        image: Image,
        outputs: tuple[str, ...],
        reading: HowRead | None = None,
    ) -> Self:
        """Measure what was found."""
        area_px = int(masks.union().sum()) if len(masks) else 0
        return cls(
            file=file,
            concept=prompt.text or "",
            mode=prompt.mode,
            presence=masks.presence,
            is_present=masks.is_present,
            shape=masks.shape,
            objects=tuple(
                ObjectRow(one.score, one.box, one.voxels, image.area_mm2(one.voxels)) for one in masks.objects
            ),
            area_px=area_px,
            area_mm2=image.area_mm2(area_px),
            outputs=outputs,
            read_as=None if reading is None else reading.told,
            is_taught=None if reading is None else reading.is_taught,
            warning=_warning(image),
            verdict=masks.verdict,
        )

    def to_json(self) -> JsonObject:
        """Give the fields as JSON takes them."""
        return asdict(self)

    def cells(self) -> tuple[str, ...]:
        """Give one row of the table under `HEADINGS`."""
        verdict = "" if self.verdict is None else f" {self.verdict}"
        concept = f"{self.concept} (not taught)" if self.is_taught is False else self.concept or "-"
        return (
            self.file,
            concept if self.read_as is None else f"{self.concept} (as {self.read_as})",
            ("-" if self.presence is None else f"{self.presence:.2f}{verdict}") + (" (see below)" * bool(self.warning)),
            str(len(self.objects)),
            str(self.area_px),
            "-" if self.area_mm2 is None else f"{self.area_mm2:.1f}",
            f"{self.objects[0].score:.2f}" if self.objects else "-",
        )


def _warning(image: Image) -> str | None:
    """Say that a long picture was shown small."""
    _, height, width = image.shape
    per_row, per_column = image.pixel_size_mm or (1.0, 1.0)
    sides = height * per_row, width * per_column
    if max(sides) <= _LONGEST_SIDES * min(sides):
        return None
    return (
        f"{width} x {height} pixels are shown to the model whole, and so very small: what is small is missed; "
        "cut the picture into pieces that are nearly square"
    )


@dataclass(frozen=True)
class Task:
    """One concept to look for in one image.

    Attributes:
        source: Absolute path of the image.
        fingerprint: Changes with the image.
        job: Changes with the prompt, the model and the form of the results.
        concept: The phrase, or "".
    """

    source: str
    fingerprint: str
    job: str
    concept: str


@dataclass(frozen=True)
class _Done:
    """A finished task as the list keeps it; `stem` begins the names of its files."""

    stem: str
    task: Task
    result: ResultRow

    def __post_init__(self) -> None:
        if not all(_is_name(name) for name in (self.stem, *self.result.outputs)):
            raise ValueError("a name leads out of the folder")

    @property
    def files(self) -> list[str]:
        """Files that must be there for the result to count as done."""
        return [f"{_PARTS}/{self.stem}.coco.json" if name == COCO_NAME else name for name in self.result.outputs]


@dataclass(frozen=True)
class MadeFiles:
    """Files of one result, in a folder of their own until they take their places; the block's end removes that.

    Attributes:
        folder: The folder, inside that of the results.
        files: By format, in its order.
    """

    folder: Path
    files: dict[str, Path]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def make_files(
    place: Path, stem: str, masks: Masks, image: Image, formats: Sequence[str], identity: str | None
) -> MadeFiles:
    """Write masks in each format inside a folder of results, for `OutputFolder.take`; any process may do so.

    Raises:
        InputError: The folder cannot be written, or a format does not take this image.
    """
    from medsam3.io import write_format  # noqa: PLC0415

    try:
        folder = Path(tempfile.mkdtemp(dir=place, prefix=_TEMPORARY))
    except OSError as error:
        raise _cannot_be_written(place, error) from error
    try:
        return MadeFiles(folder, {name: write_format(name, [masks], image, folder, stem, identity) for name in formats})
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise _cannot_be_written(place, error) from error
        raise


class OutputFolder:
    """A folder of results and its list, which one run at a time may write. A context manager."""

    def __init__(self, path: Path, *, replaces_foreign: bool = False, has_one_coco: bool = False) -> None:
        """Open the folder; one that is not there is made only when there is something to write.

        Args:
            path: The folder.
            replaces_foreign: Files that this command did not write are replaced too.
            has_one_coco: The format coco gives one file for all images in place of one for each result.

        Raises:
            InputError: It cannot be written, another run is at work in it, or a file of someone else is in the way.
        """
        self.path = path
        self._replaces_foreign, self._has_one_coco = replaces_foreign, has_one_coco
        self._list: Journal | None = None
        self._stems: dict[tuple[str, str], str] = {}  # by source and concept
        self._done: dict[str, _Done] = {}  # by stem in lower case, the last result
        self._ours: set[str] = set()
        check_can_hold(path)
        if (path / LIST_NAME).exists():
            self.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Take the folder for this run: read its list, and remove what a killed run left half written."""
        if self._list is not None:
            return
        with self._written():
            self.path.mkdir(parents=True, exist_ok=True)
        self._list = Journal(self.path / LIST_NAME, _HEADING, other="keep")
        self._read_list(self._list.records)
        self._remove_left()
        if self._has_one_coco:
            self._claim([COCO_NAME])

    def close(self) -> None:
        """Write the one COCO file if there is one, and let other runs in."""
        if self._list is None:
            return
        try:
            parts = [done for done in self._done.values() if any(name.endswith(".coco.json") for name in done.files)]
            if self._has_one_coco and parts:
                self._join(parts)
        finally:
            self._remove_left()
            is_empty = not self._list.records
            self._list.close()
            self._list = None
            if is_empty:  # nothing came of the run: the folder is left as it was found
                with suppress(OSError):
                    (self.path / LIST_NAME).unlink()
                    self.path.rmdir()

    def finished(self, task: Task) -> ResultRow | None:
        """Find the result of a task that was done before and whose files are all still there."""
        for done in self._done.values():
            if done.task == task and all((self.path / name).is_file() for name in done.files):
                return done.result
        return None

    def stem(self, task: Task, source_stem: str) -> str:
        """Name the files of a source and concept, without an ending, always in the same way."""
        owner = (task.source, task.concept)
        base = f"{shortened(source_stem, _LONGEST_STEM)}_{slug(task.concept) or 'prompt'}"
        stem, number = self._stems.get(owner, base), 1
        taken = {known.lower() for other, known in self._stems.items() if other != owner}
        while stem.lower() in taken:
            number += 1
            stem = f"{base}_{number}"
        self._stems[owner] = stem
        return stem

    def take(self, stem: str, made: MadeFiles) -> tuple[str, ...]:
        """Give made files their places, all or none of them, and return their names.

        Raises:
            InputError: A file that is not ours is in the way, or the folder cannot be written.
        """
        self.open()
        with self._written(), made:
            placed = dict(made.files)
            part = placed.pop("coco") if self._has_one_coco and "coco" in placed else None
            self._claim([path.name for path in placed.values()])
            for path in placed.values():
                path.replace(self.path / path.name)
            if part is not None:
                (self.path / _PARTS).mkdir(exist_ok=True)
                part.replace(self.path / _PARTS / f"{stem}.coco.json")
        return tuple(placed[name].name if name in placed else COCO_NAME for name in made.files)

    def journal(self, source_stem: str, work: str) -> Path:
        """Name the hidden file by which a killed run of this work over a stack is resumed."""
        digest = hashlib.sha256(name_bytes(work)).hexdigest()[:16]
        return self.path / f".{shortened(source_stem, LONGEST_SLUG)}-{digest}.journal"

    def forget(self, journal: Path) -> None:
        """Remove a journal and those of its planes, once the results are recorded."""
        with self._written():
            for path in self.path.glob(f"{glob.escape(journal.stem)}*.journal"):
                path.unlink()

    def record(self, stem: str, task: Task, row: ResultRow) -> None:
        """Note a result as finished."""
        self._append({"stem": stem, "task": asdict(task), "result": row.to_json()})
        self._done[stem.lower()] = _Done(stem, task, row)

    def _remove_left(self) -> None:
        """Remove what was half written."""
        for left in self.path.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(left, ignore_errors=True)

    def _claim(self, names: Sequence[str]) -> None:
        foreign = [name for name in names if name not in self._ours and (self.path / name).exists()]
        if foreign and not self._replaces_foreign:
            raise InputError(
                f"{self.path / foreign[0]} is there and was not written by this command: "
                "name another folder with --out, or replace it with --overwrite"
            )
        if not self._ours.issuperset(names):
            self._append({"claims": list(names)})
            self._ours.update(names)

    def _append(self, line: JsonObject) -> None:
        assert self._list is not None, "open has been called"
        self._list.append(line)

    def _read_list(self, lines: Sequence[JsonObject]) -> None:
        """Take what the lines say; one of another form is passed over, so that its result is made again."""
        from pydantic import TypeAdapter  # noqa: PLC0415  a tenth of a second

        form = TypeAdapter(_Done)
        for line in lines:
            claims = line.get("claims")
            if isinstance(claims, list):
                self._ours.update(name for name in claims if isinstance(name, str))
                continue
            try:
                done = form.validate_python(line)
            except ValueError:
                continue
            self._stems[done.task.source, done.task.concept] = done.stem
            self._done[done.stem.lower()] = done

    def _join(self, parts: Sequence[_Done]) -> None:
        from medsam3.io.coco import join_coco  # noqa: PLC0415

        files = [
            (self.path / name, done.task.source) for done in parts for name in done.files if name.endswith(".coco.json")
        ]
        join_coco([(path, source) for path, source in files if path.is_file()], self.path / COCO_NAME)

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _cannot_be_written(self.path, error) from error


def check_can_hold(folder: Path) -> None:
    """Refuse an output folder that can neither be written nor made; nothing is left behind.

    Raises:
        InputError: It is a file, lies below one, or may not be written.
    """
    place = folder
    try:
        while not place.exists() and not place.is_symlink() and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise _cannot_be_written(folder, error) from error


def _cannot_be_written(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"output folder {folder} cannot be written ({error.strerror or error}): "
        "name another one with --out, or free space there"
    )


def check_formats(formats: Sequence[str], image: Image) -> None:
    """Refuse formats that cannot hold masks of this image, before the time for segmenting it is spent.

    Raises:
        InputError: As the writers say, a missing optional package among it.
    """
    from medsam3.io import write_format  # noqa: PLC0415

    one_pixel = ObjectMask((0, 0, 0), np.ones((1, 1, 1), dtype=np.bool_), 1.0)
    with scratch_folder() as scratch:
        for name in formats:
            if name in _REFUSING:
                write_format(name, Masks(image.shape, (one_pixel,)), image, scratch, "trial")


def _is_name(text: str) -> bool:
    return text == Path(text).name and text not in ("", ".", "..") and not set(text) & set("\\\0")
