"""Provenance: what a number was made with, such as hashes of weights and data, commit, command, versions."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np

import medsam3
from medsam3.data.index import IndexRow
from medsam3.store import sha256_of

_PACKAGES = ("numpy", "scipy", "pillow", "torch", "transformers")
_HERE = Path(medsam3.__file__).parent


@dataclass(frozen=True)
class Provenance:
    """The origin of results.

    Attributes:
        model: Name of the model.
        weights_sha256: Of the weights file; None where the model has none to name.
        data_sha256: Of the index and the chosen images and masks.
        commit: Of this package's repository, with `+changes` where files differ from it; None outside of one.
        command: As it was called.
        date: UTC, to the minute.
        versions: Of Python, this package and those that it computes with.
    """

    model: str
    weights_sha256: str | None
    data_sha256: str
    commit: str | None
    command: str
    date: str
    versions: dict[str, str]


def provenance(model: str, weights: Path | None, folder: Path, rows: Iterable[IndexRow], command: str) -> Provenance:
    """Gather what tells this run from others; `weights` None stands for those that come with the model."""
    return Provenance(
        model=model,
        weights_sha256=weights_hash(model, weights),
        data_sha256=data_hash(folder, rows),
        commit=commit(),
        command=command,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        versions=versions(),
    )


def weights_hash(model: str, weights: Path | None) -> str | None:
    """Give the SHA-256 of a weights file, or of the shipped one of that name; None if there is none."""
    path = weights if weights is not None else _HERE / "weights" / f"{model}.safetensors"
    return sha256_of(path) if path.is_file() else None


def data_hash(folder: Path, rows: Iterable[IndexRow]) -> str:
    """Hash the rows and the content of their files by SHA-256, independent of where the folder lies."""
    total = hashlib.sha256()
    files: set[Path] = set()
    for row in sorted(rows, key=lambda row: (row.image, row.concept)):
        fields = (row.dataset, row.concept, *map(str, row.label_values), row.split, row.group, str(row.is_present))
        total.update("\0".join(fields).encode())
        if row.loader is None:
            files.update(path for path in (row.mask, row.instances) if path is not None)
        else:
            total.update(np.ascontiguousarray(row.loader(), dtype=np.int32).tobytes())
        files.add(row.image)
    for path in sorted(files):
        content = sha256_of(path) if path.is_file() else "missing"
        total.update(f"{path.relative_to(folder).as_posix()}\0{content}\0".encode())
    return total.hexdigest()


def commit() -> str | None:
    """Name the commit of the repository that this package lies in; None if it was installed elsewhere."""
    number = _git("rev-parse", "HEAD")
    if number is None or _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    return f"{number}+changes" if _git("status", "--porcelain", "--", ".") else number


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """List the versions of what computes the results: of Python, this package, and those of others that are there."""
    found = {"python": platform.python_version(), "medsam3": medsam3.__version__}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=_HERE,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
