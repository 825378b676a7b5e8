"""How a server is set up: where it listens, who may ask, and the limits that hold before anything is decoded."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsam3.errors import InputError
from medsam3.server.clients import Dialect

LEAST_TOKEN_CHARACTERS = 16
LOCAL_OWNER = "local"

Load = Callable[[str], Any]
"""From a model's name to the model; called in the worker processes, so it must be a function of a module."""


@dataclass(frozen=True)
class ArchiveAccess:
    """How a server reaches an archive of DICOM series; both are called in a process of their own.

    Attributes:
        fetch: Brings the series of a UID into a folder; False if the archive has none.
        store: Stores a DICOM file, all of it or nothing.
    """

    fetch: Callable[[str, Path], bool]
    store: Callable[[Path], None]


def load_model(name: str) -> Any:
    """Load a model by its name, as `medsam3.load`."""
    from medsam3.models.registry import load  # noqa: PLC0415  only workers may bring torch in

    return load(name)


@dataclass(frozen=True)
class Limits:
    """Bounds on what a server takes on, and for how long it keeps it.

    Attributes:
        upload_bytes: Most bytes of one upload, and of what a zip in it unpacks to.
        upload_files: Most files of one upload, and of a zip in it.
        frames: Most slices or frames of an image.
        frame_pixels: Most pixels of one frame.
        volume_bytes: Most bytes of voxels that a viewer is given at once.
        worker_bytes: Most memory of a process that reads or has a model; the task that takes more fails.
        waiting: Most tasks that wait for one worker; one more is answered by 503.
        steps: Most steps of one session.
        images: Most images that are kept at once.
        step_s: Longest time for one step, frame or file.
        job_s: Longest time for one job.
        kept_s: Time after its last use at which an image with all that came of it is removed.
        sessions_in_memory: Sessions that a worker keeps ready; older ones are replayed when they are used again.
        feature_bytes: Most bytes of encoded frames that a worker keeps for its sessions; a frame in use stays anyway.
    """

    upload_bytes: int = 2 * 2**30
    upload_files: int = 5000
    frames: int = 20_000
    frame_pixels: int = 100_000_000
    volume_bytes: int = 2**30
    worker_bytes: int = 8 * 2**30
    waiting: int = 16
    steps: int = 1000
    images: int = 200
    step_s: float = 120.0
    job_s: float = 3600.0
    kept_s: float = 3600.0
    sessions_in_memory: int = 8
    feature_bytes: int = 512 * 2**20

    def __post_init__(self) -> None:
        wrong = [name for name, value in vars(self).items() if value <= 0]
        if wrong:
            raise InputError(f"{wrong[0]} is {getattr(self, wrong[0])}, allowed is above 0")


@dataclass(frozen=True)
class Settings:
    """A server's settings.

    Attributes:
        host: Address that it listens on.
        port: Port, 0 for any free one.
        model: Name of the model that answers.
        workers: Processes with a model.
        data: Folder whose files may be opened without an upload; None for none.
        tokens: Who may ask; empty lets everyone on this machine ask.
        hosts: Names by which browsers may reach the server, beside its own.
        origins: Pages of other sites that may ask, such as https://viewer.example.org.
        clients: Dialects of other tools that are answered.
        archive: Where series that a tool names are fetched from, and labels go back to; None for none.
        limits: What it takes on.
        llm: Address of the LLM that the agent may ask, as `--model` of `medsam3 agent`; None for none.
        sends_images: Pictures may go to it.
        weights_sha256: Of each file of the model's weights, by name, for clients that keep results by them.
        load: Loads the model in a worker.

    Raises:
        InputError: Another host than this machine without a token, a port or number of workers that is not allowed.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    model: str = "mini"
    workers: int = 1
    data: Path | None = None
    tokens: tuple[str, ...] = field(default=(), repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    clients: tuple[Dialect, ...] = ()
    archive: ArchiveAccess | None = None
    limits: Limits = field(default_factory=Limits)
    llm: str | None = None
    sends_images: bool = False
    weights_sha256: Mapping[str, str] = field(default_factory=dict)
    load: Load = load_model

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.tokens:
            raise InputError(
                f"host {self.host} can be reached from other machines: give a token with --token-file, "
                "or listen on 127.0.0.1"
            )
        if not 0 <= self.port <= 65535:
            raise InputError(f"port is {self.port}, allowed is 0 to 65535")
        if not 1 <= self.workers <= 64:
            raise InputError(f"workers are {self.workers}, allowed is 1 to 64")
        if self.sends_images and self.llm is None:
            raise InputError("pictures may go to an LLM, but none is named: give one with --llm, or leave it out")
        if self.data is not None and not self.data.is_dir():
            raise InputError(f"data folder {self.data} is no folder: correct the path")
        for origin in self.origins:
            if not re.fullmatch(r"https?://[^/*\s]+", origin):
                raise InputError(f"origin is {origin!r}, allowed is one such as https://images.example.org")

    @property
    def allowed_hosts(self) -> frozenset[str]:
        """Names that may stand in a request's Host, without a port."""
        here = {"localhost", "127.0.0.1", "[::1]"} if is_loopback(self.host) else {in_brackets(self.host)}
        return frozenset(here | set(self.hosts))

    def dialect_at(self, path: str) -> Dialect | None:
        """Find the dialect that answers at a path."""
        return next((one for one in self.clients if path.startswith(f"{one.prefix}/")), None)

    def is_open(self, path: str) -> bool:
        """Tell whether a path answers without a token."""
        dialect = self.dialect_at(path)
        if dialect is not None:
            return path in dialect.open_paths
        return path in ("/healthz", "/readyz") or not path.startswith(("/v1/", "/metrics"))

    def owner_of(self, token: str | None) -> str | None:
        """Name the owner of what is made with a token, without telling the token; None if it is not allowed."""
        if not self.tokens:
            return LOCAL_OWNER
        given = (token or "").encode()
        matches = [hmac.compare_digest(given, known.encode()) for known in self.tokens]  # all, in constant time
        return hashlib.sha256(given).hexdigest() if any(matches) else None


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def in_brackets(host: str) -> str:
    """Write a host as it stands in a URL, where an IPv6 address is in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def read_tokens(path: Path) -> tuple[str, ...]:
    """Read the tokens of a file, one a line; empty lines and those that begin with # are left out.

    Raises:
        InputError: The file cannot be read, holds none, one is too short, or others than its owner may read it.
    """
    try:
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(
            f"token file {path} cannot be read ({reason}): give a text file with a token a line"
        ) from error
    if mode & 0o077:
        raise InputError(f"token file {path} can be read by others than its owner: do chmod 600 {path}")
    tokens = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    if not tokens:
        raise InputError(f"token file {path} holds no token: write one of at least {LEAST_TOKEN_CHARACTERS} characters")
    if any(len(token) < LEAST_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable() for token in tokens):
        raise InputError(
            f"token file {path} holds a token that is too short or not plain ASCII, allowed are at least "
            f"{LEAST_TOKEN_CHARACTERS} characters: openssl rand -hex 32 makes a good one"
        )
    return tokens
