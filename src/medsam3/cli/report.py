"""The report of a run for pipelines: what was read and written by hash, with what, how, and how long it took."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from medsam3.cli.job import ModelChoice
from medsam3.errors import InputError
from medsam3.store import JsonObject, sha256_of, sha256_of_all, without_nan, write_json

if TYPE_CHECKING:
    from medsam3.cli.job import Job
    from medsam3.cli.segment import RunOutcome

_PACKAGES = ("torch", "numpy", "pydicom", "highdicom", "nibabel", "SimpleITK", "scipy", "transformers")


class Stopwatch:
    """Seconds by name: each lap is the time since the one before, laps of one name together."""

    def __init__(self) -> None:
        self.begun = datetime.now(UTC)
        self.laps: dict[str, float] = {}
        self._at = self._start = time.perf_counter()

    def lap(self, name: str) -> None:
        """Give the time since the last lap to a name."""
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._at
        self._at = now

    def add(self, laps: Mapping[str, float]) -> None:
        """Take laps of another process in; the next one begins now."""
        for name, seconds in laps.items():
            self.laps[name] = self.laps.get(name, 0.0) + seconds
        self._at = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start


@dataclass(frozen=True)
class InputFacts:
    """One input of a run.

    Attributes:
        name: The input as it was named.
        files: How many files it consists of; 0 if none was read, as of a series whose results an archive had.
        sha256: Of the file; of several, of their lines "SHA-256  name", as sha256sum writes them; None of none.
        seconds: Seconds by part of the work.
    """

    name: str
    files: int
    sha256: str | None
    seconds: dict[str, float]


def facts_of(name: str, files: Sequence[Path], folder: Path, seconds: dict[str, float]) -> InputFacts:
    """Hash the files of an input, which lie in a folder or below it."""
    try:
        digest = None if not files else sha256_of(files[0]) if len(files) == 1 else sha256_of_all(files, folder)
    except OSError:  # gone, or not to be read: the run says so itself
        digest = None
    return InputFacts(name, len(files), digest, seconds)


def write_report(path: Path, job: Job, run: RunOutcome, out: Path, stopwatch: Stopwatch) -> None:
    """Write the report of a run.

    Raises:
        InputError: The file cannot be written.
    """
    from medsam3.eval.provenance import versions  # noqa: PLC0415  the readers of data

    content = {
        "report": "medsam3 segment",
        "version": 1,
        "started": stopwatch.begun.isoformat(timespec="seconds"),
        "seconds": stopwatch.seconds,
        "versions": versions(_PACKAGES),
        "platform": platform.platform(),
        "model": {"name": job.model.model, "weights_sha256": job.model.sha256},
        "options": _options(job),
        "inputs": [asdict(one) for one in run.inputs],
        "results": [row.to_json() for row in run.rows],
        "outputs": [_output(out / name) for name in dict.fromkeys(name for row in run.rows for name in row.outputs)],
        "skipped": run.skipped,
        "in_archive_before": run.held,
        "failures": [asdict(one) for one in run.failures],
    }
    write_json(path, without_nan(content))


def check_report(path: Path) -> None:
    """Refuse a place for a report before the time for the run is spent.

    Raises:
        InputError: It is a folder, or there is no folder to put it into.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--report is {path}, allowed is a JSON file in a folder that is there: make the folder")


def _options(job: Job) -> JsonObject:
    return {
        "prompts": [json.loads(prompt.to_json()) for prompt in job.prompts],
        "formats": job.formats,
        "threshold": job.threshold,
        "frames": [asdict(one) for one in job.frames],
        "model": json.loads(json.dumps(asdict(job.model), default=str))
        if isinstance(job.model, ModelChoice)
        else "served",
        "stacks": asdict(job.stacks),
    }


def _output(path: Path) -> JsonObject:
    is_there = path.is_file()
    return {
        "file": str(path),
        "bytes": path.stat().st_size if is_there else None,
        "sha256": sha256_of(path) if is_there else None,
    }
