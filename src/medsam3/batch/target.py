"""Where a batch writes: files of masks, and a manifest in Parquet of which each part takes its place in one step.

A part holds the rows of a few pieces, and is written after their masks. So what the manifest names is there, and what
it does not name is made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medsam3.batch.pieces import MARK, is_local, place_of, protocols_of, url_of
from medsam3.errors import InputError, reason_of
from medsam3.store import folder_in_use, name_bytes, remove_left, replacing, scratch_folder

FORM = {"form": "target of medsam3 batch", "version": 1}
_WRITING = ".writing-"
_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "memory"}
"""Object stores: a file is there whole or not at all."""
Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Row:
    """One object that was found; a concept without objects, and a piece that failed, have one row too.

    Attributes:
        file: The piece, as a path or URL.
        series: Which series of a folder of DICOM files; "" where there is but one.
        stamp: State of the file, as its file system tells it.
        sha256: Of the content.
        job: Hash of what was asked and of the weights.
        concept: The phrase; "" where only boxes were given.
        mode: T, I or T+I.
        presence: Probability that the concept is there, in 0..1; None where no phrase was asked.
        is_present: The calibrated yes or no; None likewise.
        object: From 1, best score first; 0 where nothing was found.
        score: In 0..1.
        x0, y0, x1, y1: Box in pixels, outer pixel edges included.
        voxels: Pixels of the object, of a stack all slices together.
        area_mm2: Of a picture with a known pixel size.
        volume_ml: Of a volume with a known spacing.
        frames, rows, columns: Size of the image.
        outputs: Files of masks, relative to the target; one file holds all objects of a concept.
        weights: SHA-256 of the weights.
        seconds: Time for the whole piece.
        error: Why there is no result; None if there is one.
        is_ours: The fault is the program's.
        finished: When, in seconds since 1970 UTC.
    """

    file: str
    series: str
    stamp: str
    sha256: str
    job: str
    concept: str = ""
    mode: str = ""
    presence: float | None = None
    is_present: bool | None = None
    object: int = 0
    score: float | None = None
    x0: float | None = None
    y0: float | None = None
    x1: float | None = None
    y1: float | None = None
    voxels: int = 0
    area_mm2: float | None = None
    volume_ml: float | None = None
    frames: int = 0
    rows: int = 0
    columns: int = 0
    outputs: tuple[str, ...] = ()
    weights: str = ""
    seconds: float = 0.0
    error: str | None = None
    is_ours: bool = False
    finished: float = 0.0


_STATE = ("file", "stamp", "job", "error", "finished")
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}


def _schema() -> Any:
    hints = get_type_hints(Row)
    columns = []
    for column in fields(Row):
        hint = hints[column.name]
        plain = next((kind for kind in _TYPES if hint == kind or hint == kind | None), None)
        columns.append((column.name, pa.list_(pa.string()) if plain is None else _TYPES[plain]))
    return pa.schema(columns, metadata={"medsam3": json.dumps(FORM)})


SCHEMA = _schema()


def hash_of(*parts: str) -> int:
    """Give 64 bits that tell texts apart."""
    digest = hashlib.sha256(name_bytes("\0".join(parts))).digest()
    return int.from_bytes(digest[:8], "big")


def _place(row: Mapping[str, Any]) -> int:
    return hash_of(row["file"], row["job"])


@dataclass(frozen=True)
class Known:
    """What the manifest held at the start, 8 bytes a key, each array sorted.

    Attributes:
        states: Keys of (file, stamp, job): done, nothing to do.
        places: Keys of (file, job): the file is known, in whatever state.
        contents: Keys of (content, job): done under whatever name.
        part_of: For each of `contents`, the index of its part in `parts`.
        parts: Names of the parts.
    """

    states: Keys
    places: Keys
    contents: Keys
    part_of: NDArray[np.int32]
    parts: tuple[str, ...]

    @staticmethod
    def has(keys: Keys, key: int) -> bool:
        """Whether a key is among sorted ones."""
        at = int(np.searchsorted(keys, np.uint64(key)))
        return at < len(keys) and int(keys[at]) == key

    def part_with(self, content: int) -> str | None:
        """Name the part that holds a content's rows; None if none does."""
        at = int(np.searchsorted(self.contents, np.uint64(content)))
        if at == len(self.contents) or int(self.contents[at]) != content:
            return None
        return self.parts[int(self.part_of[at])]


class OutputTarget:
    """The folder or bucket that a batch writes into."""

    def __init__(self, url: str) -> None:
        """Open it; nothing is made yet.

        Raises:
            InputError: A protocol that is not known.
        """
        self._system, path = place_of(url)
        self._root = path.rstrip("/")
        self.url = url_of(self._system, self._root).rstrip("/")

    @property
    def folder(self) -> Path | None:
        """The folder, if it is on this machine."""
        return Path(self._root) if is_local(self._system) else None

    def prepare(self) -> None:
        """Mark the place as a batch's target.

        Raises:
            InputError: It holds something else, is of a newer version, or cannot be written.
        """
        try:
            self.tidy()
            if self._system.exists(self._at(MARK)):
                found = json.loads(self._system.cat_file(self._at(MARK)))
                if found != FORM:
                    raise InputError(f"{self.url} was made by another version ({found}): name another target")
                return
            if self.folder is not None and any(not name.startswith(_WRITING) for name in self._names()):
                raise InputError(f"{self.url} holds something else: name a folder that is new or empty")
            with scratch_folder() as scratch:
                mark = scratch / MARK
                mark.write_text(json.dumps(FORM), encoding="utf-8")
                self.put(mark, MARK)
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(f"{self.url} cannot be written ({reason_of(error)}): name another") from error

    def put(self, file: Path, name: str) -> None:
        """Copy a file to a name below the target, so that it is there whole or not at all."""
        place = self._at(name)
        if self.folder is not None:
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            with (
                folder_in_use(self.folder, _WRITING) as beside,
                replacing(Path(place), folder=beside) as temporary,
            ):
                shutil.copyfile(file, temporary)
            return
        is_whole = bool(_WHOLE & protocols_of(self._system))
        self._system.makedirs(place.rpartition("/")[0], exist_ok=True)
        self._system.put_file(str(file), place if is_whole else f"{place}.part")
        if not is_whole:
            self._system.mv(f"{place}.part", place)

    def tidy(self) -> None:
        """Remove what killed processes left half written, on this machine."""
        if self.folder is not None:
            remove_left(self.folder, _WRITING)

    def _names(self) -> list[str]:
        """Name what lies in the target, if it is on this machine."""
        return [path.name for path in self.folder.iterdir()] if self.folder is not None and self.folder.exists() else []

    def has(self, name: str) -> bool:
        """Whether a file of that name is below the target."""
        return bool(self._system.exists(self._at(name)))

    def write_part(self, name: str, rows: Iterable[Row]) -> None:
        """Write a part of the manifest, in place of one of that name."""
        records = [asdict(row) for row in rows]
        self._write(name, pa.Table.from_pylist(records, schema=SCHEMA))

    def parts(self) -> list[str]:
        """Name the parts of the manifest, in order."""
        folder = self._at("manifest")
        if not self._system.exists(folder):
            return []
        names = (str(path).rpartition("/")[2] for path in self._system.ls(folder, detail=False, refresh=True))
        return sorted(name for name in names if name.startswith("part-") and name.endswith(".parquet"))

    def rows_of(self, part: str, columns: Sequence[str] | None = None) -> Any:
        """Read a part as a pyarrow table.

        Raises:
            InputError: It is damaged.
        """
        try:
            with self._system.open(self._at(f"manifest/{part}"), "rb") as stream:
                return pq.read_table(stream, columns=None if columns is None else list(columns))
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{self.url}/manifest/{part} cannot be read ({reason_of(error)}): remove it, what it held is then made "
                "again"
            ) from error

    def copies(self, part: str, sha256: str, job: str) -> list[Row]:
        """Read the rows of one content and job from a part; of several names of the content, those of the first."""
        table = self.rows_of(part)
        mask = pa.compute.and_(pa.compute.equal(table["sha256"], sha256), pa.compute.equal(table["job"], job))
        rows = [Row(**(record | {"outputs": tuple(record["outputs"])})) for record in table.filter(mask).to_pylist()]
        return [row for row in rows if row.file == rows[0].file]

    def known(self, *, without_failures: bool = False) -> Known:
        """Look up what the manifest holds, and drop what files held before they changed.

        Args:
            without_failures: Pieces that failed are to be tried again, so their rows are dropped first.

        Raises:
            InputError: A part is damaged.
        """
        names = self.parts()
        pairs, contents = [np.empty((0, 2), np.uint64)], [np.empty(0, np.uint64)]
        for part in names:
            rows = self.rows_of(part, ("file", "stamp", "sha256", "job", "error")).to_pylist()
            if without_failures and any(row["error"] is not None for row in rows):
                self._drop(part, lambda row: row["error"] is not None)
                rows = [row for row in rows if row["error"] is None]
            found = {(_place(row), hash_of(row["file"], row["stamp"], row["job"])) for row in rows}
            pairs.append(np.array(sorted(found), dtype=np.uint64).reshape(-1, 2))
            done = {hash_of(row["sha256"], row["job"]) for row in rows if row["sha256"] and row["error"] is None}
            contents.append(np.array(sorted(done), dtype=np.uint64))
        states = np.unique(np.concatenate(pairs), axis=0)
        places, counts = np.unique(states[:, 0], return_counts=True)
        self._drop_old(names, {int(place) for place in places[counts > 1]})
        keys = np.concatenate(contents)
        order = np.argsort(keys, kind="stable")
        part_of = np.repeat(np.arange(-1, len(names), dtype=np.int32), [len(one) for one in contents])
        return Known(np.sort(states[:, 1]), places, keys[order], part_of[order], tuple(names))

    def _drop_old(self, parts: Sequence[str], places: Collection[int]) -> None:
        """Of files that were done in two states, keep the rows of the later one."""
        if not places:
            return
        latest: dict[int, tuple[float, str]] = {}
        for part in parts:
            for row in self.rows_of(part, _STATE).to_pylist() if self.has(f"manifest/{part}") else ():
                if _place(row) in places:
                    latest[_place(row)] = max(latest.get(_place(row), (0.0, "")), (row["finished"], row["stamp"]))
        for part in parts:
            if self.has(f"manifest/{part}"):
                self._drop(part, lambda row: row["stamp"] != latest.get(_place(row), (0.0, row["stamp"]))[1])

    def _drop(self, part: str, is_dropped: Callable[[dict[str, Any]], bool]) -> None:
        table = self.rows_of(part)
        kept = [not is_dropped(row) for row in table.select(list(_STATE)).to_pylist()]
        if all(kept):
            return
        if any(kept):
            self._write(part, table.filter(pa.array(kept)))
        else:
            self._system.rm_file(self._at(f"manifest/{part}"))

    def _write(self, name: str, table: Any) -> None:
        with scratch_folder() as scratch:
            file = scratch / name
            pq.write_table(table, file)
            self.put(file, f"manifest/{name}")

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"
