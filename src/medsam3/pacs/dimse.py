"""Images in and results out by DICOM's own network protocol (C-ECHO and C-STORE), through pynetdicom.

A series is taken as complete when none of it has come in for a while. Source: DICOM PS3.4 annex B, PS3.7 and PS3.8.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.events import Event

from medsam3.errors import InputError
from medsam3.io.dicom_uids import heading_of
from medsam3.pacs.line import Line, SeriesError, Tell
from medsam3.pacs.series import Series, UnreachableError, fitting, is_uid
from medsam3.segmentation.run import Report
from medsam3.store import replacing

_log = logging.getLogger("medsam3.pacs")
VERIFICATION = "1.2.840.10008.1.1"
_SYNTAXES = [
    "1.2.840.10008.1.2.1",  # Explicit VR Little Endian first: nothing is lost by it
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.5",
    *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)),
]
_ROUND_S, _LONGEST_S = 0.5, 60.0
_SUCCESS, _NO_ROOM, _NOT_UNDERSTOOD, _NOT_ALLOWED = 0x0000, 0xA700, 0xC000, 0x0124
_TITLE = re.compile(r"[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?")  # DICOM PS3.5 6.2: AE, no backslash


def check_title(title: str) -> str:
    """Give an AE title that the protocol can carry.

    Raises:
        InputError: It is empty, longer than 16 characters, or holds others than ASCII.
    """
    if _TITLE.fullmatch(title) is None:
        raise InputError(f"AE title is {title[:40]!r}, allowed are 1 to 16 ASCII characters without a backslash")
    return title


@dataclass(frozen=True)
class IntakeLimits:
    """Bounds on what is taken in.

    Attributes:
        instance_bytes: Most bytes that one instance may have.
        total_bytes: Most bytes that wait to be segmented; more is refused as "out of resources".
        free_bytes: Least bytes that stay free on the disk.
        associations: Most connections at once.
        settle_s: Time without a new instance after which a series is complete.
    """

    instance_bytes: int = 2**31
    total_bytes: int = 50 * 2**30
    free_bytes: int = 2**30
    associations: int = 10
    settle_s: float = 10.0


@dataclass(frozen=True)
class Node:
    """A place in the network that takes results by C-STORE; a `ResultTarget`.

    Attributes:
        title: Its AE title.
        host: Its address.
        port: Its port.
        own_title: The AE title that it is asked by.
        timeout_s: Longest silence.
    """

    title: str
    host: str
    port: int
    own_title: str
    timeout_s: float = 60.0

    @classmethod
    def from_text(cls, text: str, own_title: str, timeout_s: float) -> Self:
        """Read TITLE@HOST:PORT.

        Raises:
            InputError: Not of that form.
        """
        found = re.fullmatch(r"([^@]+)@(\[[0-9A-Fa-f:]+\]|[^@:\s]+):(\d{1,5})", text)
        if found is None or not 0 < int(found[3]) < 65536:
            raise InputError(f"{text!r} is no DICOM node, allowed is TITLE@HOST:PORT such as ARCHIVE@192.168.1.5:104")
        return cls(check_title(found[1]), found[2].strip("[]"), int(found[3]), own_title, timeout_s)

    @property
    def label(self) -> str:
        """As it is written on the command line."""
        return f"{self.title}@{self.host}:{self.port}"

    def holds(self, study: str, instance: str) -> bool:
        """Tell nothing: C-STORE has no question for it, and a second copy of the same instance does no harm."""
        del study, instance
        return False

    def store(self, path: Path, study: str, instance: str) -> None:
        """Send a result.

        Raises:
            InputError: The node refuses it; `UnreachableError` if it cannot be reached, or has no room now.
        """
        del study, instance
        entity = AE(ae_title=self.own_title)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.timeout_s
        entity.connection_timeout = min(10.0, self.timeout_s)
        entity.add_requested_context(heading_of(path).sop_class, _SYNTAXES[:2])
        association = entity.associate(self.host, self.port, ae_title=self.title)
        if not association.is_established:
            why = "refuses the connection or the kind of file" if association.is_rejected else "cannot be reached"
            raise UnreachableError(f"{self.label} {why}: see that it runs, and that it knows {self.own_title}")
        try:
            status = association.send_c_store(path).get("Status")
        except ValueError as error:  # no presentation context was accepted
            raise UnreachableError(f"{self.label} takes no files of this kind: ask its keeper to allow them") from error
        finally:
            association.release()
        if status is None:
            raise UnreachableError(f"{self.label} broke off: see that it runs")
        if status & 0xFF00 == _NO_ROOM:
            raise UnreachableError(f"{self.label} has no room (status {status:04X}): ask its keeper")
        if status != _SUCCESS and status & 0xF000 != 0xB000:
            raise InputError(f"{self.label} did not take the result (status {status:04X}): ask its keeper")


class Intake:
    """Takes series in by C-STORE, and gives those that are complete to a line. A context manager."""

    def __init__(self, line: Line, title: str, callers: tuple[str, ...], limits: IntakeLimits, tell: Tell) -> None:
        """Prepare; nothing is listened to yet.

        Args:
            line: Segments and stores.
            title: AE title that it answers to, and to no other.
            callers: AE titles that may send; empty lets any.
            limits: What is taken in.
            tell: Told what is done and what fails, in lines.
        """
        self._line, self._limits, self._tell = line, limits, tell
        self._entity = AE(ae_title=check_title(title))
        self._entity.require_called_aet = True
        self._entity.require_calling_aet = [check_title(caller) for caller in callers]
        self._entity.maximum_associations = limits.associations
        self._entity.supported_contexts = AllStoragePresentationContexts
        for context in self._entity.supported_contexts:
            context.transfer_syntax = _SYNTAXES  # type: ignore[assignment]
        self._entity.add_supported_context(VERIFICATION)
        for left in line.under_way.parent.glob(".*"):  # of a process that was killed
            left.unlink()
        self._lock = threading.Lock()
        self._bytes = 0
        self._recount()
        self._pending: dict[Any, int] = {}
        self._server: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._server is not None:
            self._server.shutdown()

    def listen(self, host: str, port: int) -> int:
        """Take connections; returns the port.

        Raises:
            InputError: The address or port cannot be listened on.
        """
        handlers: list[Any] = [
            (evt.EVT_C_ECHO, lambda event: _SUCCESS),
            (evt.EVT_C_STORE, self._take),
            (evt.EVT_PDU_RECV, self._count),
            (evt.EVT_CONN_CLOSE, self._forget),
        ]
        try:
            self._server = self._entity.start_server((host, port), block=False, evt_handlers=handlers)
        except OSError as error:
            raise InputError(
                f"{host} port {port} cannot be listened on ({error.strerror or error}): name another one with "
                "--dicom-port or --dicom-host"
            ) from error
        found: int = self._server.socket.getsockname()[1]
        return found

    def run(self, report: Report) -> None:
        """Deal with what comes in until interrupted."""
        tries = 0
        while True:
            tries = 0 if self.round(report) else min(tries + 1, 10)
            time.sleep(min(_ROUND_S * 2**tries, _LONGEST_S))

    def round(self, report: Report) -> bool:
        """Deal with the series that are complete.

        Returns:
            False if one waits for its target, which is tried again.
        """
        for folder in sorted(self._line.under_way.iterdir()):
            try:
                series = self._complete(folder)
                if series is None:
                    continue
                count = self._work(series, report)
                self._tell(f"series {series.uid}: {count} results stored")
            except SeriesError as error:
                self._tell(f"series {folder.name}: {error}")
            except InputError as error:
                self._tell(f"series {folder.name}: {error}; tried again later")
                return False
        return True

    def _work(self, series: Series, report: Report) -> int:
        try:
            return self._line.work(series, _lies_there, report)
        finally:
            self._recount()

    def _take(self, event: Event) -> int:
        """Put one instance among those of its series; what no rule asks for is not kept."""
        self._forget(event)
        content = event.encoded_dataset()
        room = shutil.disk_usage(self._line.under_way).free - self._limits.free_bytes
        if len(content) > min(room, self._limits.total_bytes - self._bytes):
            _log.warning("no room for what comes in: it is refused")
            return _NO_ROOM
        incoming = self._line.under_way.parent / f".{threading.get_ident()}.dcm"
        try:
            with replacing(incoming) as temporary:
                temporary.write_bytes(content)
            heading = heading_of(incoming)
            if not all(is_uid(uid) for uid in (heading.study, heading.series, heading.instance)):
                return _NOT_UNDERSTOOD
            about = (heading.modality, heading.body_part, heading.description)
            if not fitting(self._line.recipe.rules, Series(heading.study, heading.series, *about)):
                return _SUCCESS
            images = self._line.images_of(heading.series)
            images.mkdir(parents=True, exist_ok=True, mode=0o700)
            incoming.replace(images / f"{heading.instance}.dcm")
        except InputError as error:
            _log.debug("cannot be taken in", exc_info=True)
            return _NO_ROOM if isinstance(error.__cause__, OSError) else _NOT_UNDERSTOOD
        except OSError:
            _log.warning("cannot be written: refused", exc_info=True)
            return _NO_ROOM
        finally:
            incoming.unlink(missing_ok=True)
        with self._lock:
            self._bytes += len(content)
        return _SUCCESS

    def _count(self, event: Event) -> None:
        """Break a connection off whose instance grows beyond the limit."""
        items = getattr(event.pdu, "presentation_data_value_items", None) or []
        with self._lock:
            size = self._pending.get(event.assoc, 0) + sum(len(item.presentation_data_value) for item in items)
            self._pending[event.assoc] = size
        if size > self._limits.instance_bytes:
            _log.warning("an instance is larger than allowed: the connection is broken off")
            event.assoc.abort()

    def _forget(self, event: Event) -> None:
        with self._lock:
            self._pending.pop(event.assoc, None)

    def _complete(self, folder: Path) -> Series | None:
        """Give the series in a folder if it has been complete for a while."""
        files = sorted((folder / "images").glob("*.dcm"))
        if not files or not is_uid(folder.name):
            return None
        if time.time() - max(path.stat().st_mtime for path in files) < self._limits.settle_s:
            return None
        heading = heading_of(files[0])
        about = (heading.modality, heading.body_part, heading.description)
        return Series(heading.study, heading.series, *about, len(files), tuple(path.stem for path in files))

    def _recount(self) -> None:
        held = sum(path.stat().st_size for path in self._line.under_way.rglob("*.dcm"))
        with self._lock:
            self._bytes = held


def _lies_there(series: Series, folder: Path, report: Report) -> None:
    """Bring nothing: the images came in by themselves."""
    report(len(series.instances), len(series.instances))
    del folder
