"""The folder of results: names of the files, and the list `results.jsonl` by which a broken run is taken up again.

A line of that list is either a claim on file names, written before the files take their places, or the record of a
result, written after. So a file that no line names is not ours, and is not replaced unless that is asked for.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsam3.cli.results import ResultRow
from medsam3.errors import InputError
from medsam3.image import Image, Masks, ObjectMask

LIST_NAME = "results.jsonl"
_LONGEST_STEM = 120  # characters, which leaves room for endings below the 255 bytes that file systems allow
_LONGEST_SLUG = 60
_REFUSING = ("png", "coco", "seg")
"""Formats that need a package, or do not take every image."""


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


class OutputFolder:
    """A folder of results and its list."""

    def __init__(self, path: Path, *, replaces_foreign_files: bool = False) -> None:
        """Open the folder; one that is not there is made only when there is something to write.

        Raises:
            InputError: It cannot be written.
        """
        self.path = path
        self._replaces_foreign_files = replaces_foreign_files
        self._stems: dict[tuple[str, str], str] = {}  # by source and concept
        self._rows: dict[str, tuple[Task, ResultRow]] = {}  # stem in lower case: last result
        self._ours: set[str] = set()
        check_can_hold(path)
        with self._written():
            self._read_list()

    def finished(self, task: Task) -> ResultRow | None:
        """The result of a task that was done before and whose files are all still there."""
        for known, row in self._rows.values():
            if known == task and all((self.path / name).is_file() for name in row.outputs):
                return row
        return None

    def stem(self, task: Task, source_stem: str) -> str:
        """Name for the results of a source and concept, without an ending, and always the same one for them."""
        owner = (task.source, task.concept)
        base = f"{_shortened(source_stem, _LONGEST_STEM)}_{slug(task.concept) or 'prompt'}"
        stem, number = self._stems.get(owner, base), 1
        taken = {known.lower() for other, known in self._stems.items() if other != owner}
        while stem.lower() in taken:
            number += 1
            stem = f"{base}_{number}"
        self._stems[owner] = stem
        return stem

    def write(self, stem: str, masks: Masks, image: Image, formats: Sequence[str]) -> tuple[str, ...]:
        """Write masks in each format, all or none of them, and return the files' names.

        Raises:
            InputError: A file that is not ours is in the way, or the folder cannot be written.
        """
        from medsam3.io import write_format  # noqa: PLC0415

        with self._written(), self._temporary_folder() as temporary:
            made = [write_format(name, [masks], image, temporary, stem) for name in formats]
            names = tuple(path.name for path in made)
            self._claim(names)
            for path in made:
                path.replace(self.path / path.name)
        return names

    def journal(self, source_stem: str, work: str) -> Path:
        """The hidden file by which a killed run of this work over a stack is taken up again."""
        digest = hashlib.sha256(os.fsencode(work)).hexdigest()[:16]
        return self.path / f".{_shortened(source_stem, _LONGEST_SLUG)}-{digest}.journal"

    def forget(self, journal: Path) -> None:
        """Remove a journal and those of its planes, once the results are recorded."""
        with self._written():
            for path in self.path.glob(f"{glob.escape(journal.stem)}*.journal"):
                path.unlink()

    def record(self, stem: str, task: Task, row: ResultRow) -> None:
        """Note a result as finished."""
        self._append({"stem": stem, "task": task.__dict__, "result": row.to_json()})
        self._rows[stem.lower()] = (task, row)

    def _claim(self, names: Sequence[str]) -> None:
        foreign = [name for name in names if name not in self._ours and (self.path / name).exists()]
        if foreign and not self._replaces_foreign_files:
            raise InputError(
                f"{self.path / foreign[0]} is there and was not written by this command: "
                "name another folder with --out, or replace it with --overwrite"
            )
        if not self._ours.issuperset(names):
            self._append({"claims": list(names)})
            self._ours.update(names)

    def _append(self, line: dict[str, Any]) -> None:
        with self._written(), (self.path / LIST_NAME).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    def _read_list(self) -> None:
        path = self.path / LIST_NAME
        if not path.exists():
            return
        text = path.read_text(encoding="utf-8", errors="replace")
        if text and not text.endswith("\n"):  # a run was cut off in the middle of a line
            with path.open("a", encoding="utf-8") as stream:
                stream.write("\n")
        for line in text.splitlines():
            try:
                self._read_line(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError):
                continue  # the cut line, which only means that its result is made again

    def _read_line(self, line: dict[str, Any]) -> None:
        if "claims" in line:
            self._ours.update(line["claims"])
            return
        task, row = Task(**line["task"]), ResultRow.from_json(line["result"])
        self._stems[task.source, task.concept] = line["stem"]
        self._rows[line["stem"].lower()] = (task, row)

    @contextmanager
    def _temporary_folder(self) -> Iterator[Path]:
        self.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.path, prefix=".writing-") as temporary:
            yield Path(temporary)

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _cannot_be_written(self.path, error) from error


def check_can_hold(folder: Path) -> None:
    """Refuse an output folder that cannot be written, or where it is not there, not be made; nothing is left behind.

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
    with tempfile.TemporaryDirectory(prefix="medsam3-") as temporary:
        for name in formats:
            if name in _REFUSING:
                write_format(name, Masks(image.shape, (one_pixel,)), image, Path(temporary), "trial")


def slug(concept: str) -> str:
    """The concept as a part of a file name: lower case, letters and digits of any script, the rest as single dashes."""
    words = "".join(letter if letter.isalnum() else " " for letter in concept.lower()).split()
    return _shortened("-".join(words), _LONGEST_SLUG)


def _shortened(name: str, longest: int) -> str:
    """The name, or where it is too long its start and a hash of it, so that long names stay apart."""
    if len(os.fsencode(name)) <= longest:
        return name
    start = os.fsencode(name)[: longest - 9].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
