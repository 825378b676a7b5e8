"""A real Orthanc with its DICOMweb plug-in on free ports, which can be stopped, killed and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2

TESTS = Path(__file__).parent


def of_the_system(program: str) -> str | None:
    """Find a program that does not lie beside Python: pynetdicom brings a storescu that says less than DCMTK's."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    return shutil.which(
        program, path=os.pathsep.join(one for one in folders if one != str(Path(sys.executable).parent))
    )


STORESCU, ECHOSCU = of_the_system("storescu"), of_the_system("echoscu")
USER, PASSWORD = "reader", "made-up-password"
PLUGINS = [Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so"), Path("/usr/lib/orthanc/libOrthancDicomWeb.so")]
PROGRAM = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
MISSING = next(
    (
        f"{what} is not installed: apt-get install orthanc orthanc-dicomweb dcmtk dicom3tools"
        for what, is_there in (
            ("Orthanc", Path(PROGRAM).exists()),
            ("Orthanc's DICOMweb plug-in", any(path.exists() for path in PLUGINS)),
            ("dcmtk", STORESCU is not None and ECHOSCU is not None),
            ("dicom3tools", shutil.which("dciodvfy") is not None),
        )
        if not is_there
    ),
    None,
)
"""Why the tests cannot run; None if they can."""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


class Orthanc:
    """One archive; its files lie in `folder` and outlive it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.http_port, self.dicom_port = folder, free_port(), free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.origin = f"http://127.0.0.1:{self.http_port}"
        self._settings: dict[str, Any] = {
            "Name": "made for tests",
            "StorageDirectory": str(folder / "db"),
            "IndexDirectory": str(folder / "db"),
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": "ORTHANC",
            "DicomAlwaysAllowStore": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "Plugins": [str(next((path for path in PLUGINS if path.exists()), ""))],
            "SyncStorageArea": False,
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def root(self) -> str:
        return f"dicomweb:{self.origin}/dicom-web"

    def start(self) -> Orthanc:
        config = self.folder / "orthanc.json"
        config.write_text(json.dumps(self._settings), encoding="utf-8")
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([PROGRAM, str(config)], stdout=log, stderr=log)
        for _ in range(300):
            try:
                self.ask("/system")
            except (httpx2.TransportError, ConnectionError):
                assert self._process.poll() is None, (self.folder / "log").read_text(errors="replace")[-2000:]
                time.sleep(0.1)
            else:
                return self
        raise AssertionError("Orthanc did not start within 30 s")

    def stop(self, *, kill: bool = False) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            self._process.wait(30)
            self._process = None

    def ask(self, path: str) -> Any:
        answer = httpx2.get(f"{self.origin}{path}", auth=(USER, PASSWORD), timeout=30)
        answer.raise_for_status()
        return answer.json()

    def send(self, folder: Path) -> None:
        """Send files as a scanner does."""
        storescu(self.dicom_port, "ORTHANC", folder)

    def series_of(self, study: str, modality: str) -> list[dict[str, Any]]:
        found = self.ask(f"/dicom-web/studies/{study}/series?Modality={modality}")
        assert isinstance(found, list)
        return found

    def count(self, study: str, modality: str) -> int:
        return len(self.ask(f"/dicom-web/studies/{study}/instances?Modality={modality}"))


def storescu(port: int, title: str, folder: Path, *more: str) -> None:
    assert STORESCU is not None
    command = [STORESCU, "-aet", "SCANNER", "-aec", title, *more, "127.0.0.1", str(port), "+sd", "+r", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


def errors_of(path: Path) -> Sequence[str]:
    """What dciodvfy calls an error in a file."""
    done = subprocess.run(["dciodvfy", "-new", str(path)], check=False, capture_output=True, text=True, timeout=60)
    said = (done.stdout + done.stderr).splitlines()
    assert said, "dciodvfy says at least what the file is"
    return [line for line in said if line.startswith("Error")]


def until(is_so: Callable[[], bool], timeout_s: float = 90.0) -> None:
    """Wait for something that another process does."""
    for _ in range(int(timeout_s * 10)):
        if is_so():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come about")


def start_fake(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start the command line with the fake model as a process."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(TESTS / "fake_medsam3.py"), *arguments]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, text=True, **options)


@contextmanager
def cutting(port: int, *, up: int | None = None, down: int | None = None) -> Iterator[int]:
    """Give a port before another one, whose first connection ends after so many bytes up or down; later ones do not."""

    def serve(listening: socket.socket) -> None:
        limits = (up, down)
        with suppress(OSError):  # the end of the test
            while True:
                inside, outside = listening.accept()[0], socket.create_connection(("127.0.0.1", port))
                for source, target, limit in ((inside, outside, limits[0]), (outside, inside, limits[1])):
                    threading.Thread(target=_pass_on, args=(source, target, limit), daemon=True).start()
                limits = (None, None)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        yield listening.getsockname()[1]


def _pass_on(source: socket.socket, target: socket.socket, left: int | None) -> None:
    with suppress(OSError):
        while (left is None or left > 0) and (piece := source.recv(65536 if left is None else min(65536, left))):
            target.sendall(piece)
            left = None if left is None else left - len(piece)
    for one in (source, target):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
