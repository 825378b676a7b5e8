"""Archives that fail, hang, lie or are cut off: one line for the user, and nothing half stored."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from made_archive import Orthanc, cutting
from made_study import Study, made_study
from medsam3.cli.main import main
from medsam3.errors import InputError
from medsam3.io import read
from medsam3.pacs.dicomweb import Access, Archive
from medsam3.pacs.series import Series, UnreachableError
from threshold_segmenter import ThresholdSegmenter

Answer = Callable[[BaseHTTPRequestHandler], None]
SERIES = Series("1.2", "1.2.3", instances=("1.2.3.4",))


def _answers(status: int, body: bytes = b"", kind: str = "application/dicom+json", **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)

    return answer


def _hangs(request: BaseHTTPRequestHandler) -> None:
    time.sleep(5)


@contextmanager
def serving(answer: Answer, secure: ssl.SSLContext | None = None) -> Iterator[tuple[str, list[str]]]:
    """A server that answers everything in one way: its root, and the tokens that it was sent."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            answer(self)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if secure is not None:
        server.socket = secure.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http{'s' * (secure is not None)}://127.0.0.1:{server.server_address[1]}/dicom-web", seen
    server.shutdown()
    server.server_close()


def _ignored(done: int, count: int) -> None:
    """Show nothing."""


CASES = [
    ("500", _answers(500), "answers 500: try again later"),
    ("503", _answers(503), "answers 503: try again later"),
    (
        "302",
        _answers(302, Location="https://login.example.org/?secret=1"),
        "sends on to https://login.example.org/",
    ),
    ("403", _answers(403), "does not allow this to who asks"),
    ("no DICOM JSON", _answers(200, b'{"a": 1}'), "answers with something else than DICOM JSON"),
    ("a page", _answers(200, b"<html>", "text/html"), "answers with something else than DICOM JSON"),
    ("silence", _hangs, "does not answer within 0.5 s"),
]


@pytest.mark.parametrize(("answer", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_bad_answer_is_one_line(
    answer: Answer,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    threshold_model: ThresholdSegmenter,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medsam3.pacs.dicomweb.time", SimpleNamespace(sleep=lambda seconds: None))
    with serving(answer) as (root, _):
        command = ["segment", f"dicomweb:{root}/studies/1.2", "--text", "polyp", "--timeout", "0.5", "--store"]
        assert main([*command, "--model", "threshold"]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_token_is_sent_as_a_bearer_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDSAM3_DICOMWEB_USER", raising=False)
    monkeypatch.setenv("MEDSAM3_DICOMWEB_TOKEN", "a-token")
    with serving(_answers(200, b"[]")) as (root, seen), Archive(root, Access.from_environment()) as archive:
        assert not archive.holds("1.2", "1.2.3")
    assert set(seen) == {"Bearer a-token"}
    assert "a-token" not in repr(Access.from_environment())


@pytest.mark.parametrize("environment", [{"TOKEN": "a b"}, {"TOKEN": "t", "USER": "u"}, {"USER": "u"}])
def test_who_asks_is_told_wholly_or_refused(environment: dict[str, str]) -> None:
    with pytest.raises(InputError):
        Access.from_environment({f"MEDSAM3_DICOMWEB_{name}": value for name, value in environment.items()})


def test_not_now_is_asked_again() -> None:
    answers = iter([_answers(503), _answers(429), _answers(200, b"[]"), _answers(200, b"[]")])

    def answer(request: BaseHTTPRequestHandler) -> None:
        next(answers)(request)

    with serving(answer) as (root, seen):
        with Archive(root, Access(waits_s=(0.0, 0.0))) as archive:
            assert not archive.holds("1.2", "1.2.3")
        assert len(seen) == 3


def test_what_the_archive_holds_is_asked_once() -> None:
    body = b'[{"00080018": {"vr": "UI", "Value": ["1.2.3"]}}]'
    with serving(_answers(200, body)) as (root, seen), Archive(root, Access()) as archive:
        assert archive.holds("1.2", "1.2.3")
        assert len(seen) == 1


def test_a_refusal_to_store_tells_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"anything")
    body = b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [290]}}]}}'

    def answer(request: BaseHTTPRequestHandler) -> None:
        _answers(409, body)(request) if request.command == "POST" else _answers(200, b"[]")(request)

    said = pytest.raises(InputError, match=r"did not store the result \(failure reason 290\)")
    with serving(answer) as (root, _), Archive(root, Access()) as archive, said:
        archive.store(tmp_path / "a.dcm", "1.2", "1.2.3")


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"<html>", "text/html", "in place of DICOM files"),
        (
            b"--x\r\n\r\nno DICOM\r\n--x--\r\n",
            'multipart/related; type="application/dicom"; boundary=x',
            "gives 0|not a DICOM|as DICOM",
        ),
        (b"broken", 'multipart/related; type="application/dicom"; boundary=x', "cannot be told apart"),
        (b"", "", "in place of DICOM files"),
    ],
)
def test_a_series_that_is_none_is_one_line_and_leaves_nothing(
    body: bytes, kind: str, message: str, tmp_path: Path
) -> None:
    said = pytest.raises(InputError, match=message)
    with serving(_answers(200, body, kind)) as (root, _), Archive(root, Access()) as archive, said:
        archive.fetch(SERIES, tmp_path / "images", _ignored)
    assert list((tmp_path / "images").iterdir()) == []


@pytest.fixture
def study(tmp_path: Path, orthanc: Orthanc) -> Study:
    made = made_study(tmp_path / "scans", slices=12, size=(300, 300))  # 180,000 bytes a slice
    orthanc.send(made.folder)
    return made


def test_a_connection_that_is_cut_while_slices_come_loses_none(orthanc: Orthanc, study: Study, tmp_path: Path) -> None:
    access = Access.from_environment()
    series = Series(study.study, study.series, instances=study.instances)
    with cutting(orthanc.http_port, down=1_000_000) as port:  # in the sixth slice
        archive = Archive(f"http://127.0.0.1:{port}/dicom-web", access)
        archive.fetch(series, tmp_path / "images", _ignored)
        archive.close()
    assert read(tmp_path / "images") == read(study.folder)


def test_an_upload_that_is_cut_stores_nothing_and_can_be_repeated(orthanc: Orthanc, tmp_path: Path) -> None:
    new = made_study(tmp_path / "new", slices=5, size=(300, 300))
    path, instance = new.folder / "00001.dcm", new.instances[-1]
    access = replace(Access.from_environment(), waits_s=())
    with cutting(orthanc.http_port, up=100_000) as port:
        archive = Archive(f"http://127.0.0.1:{port}/dicom-web", access)
        with pytest.raises(UnreachableError):
            archive.store(path, new.study, instance)
        time.sleep(0.5)
        assert not archive.holds(new.study, instance)
        for _ in range(2):
            archive.store(path, new.study, instance)
        archive.close()
    assert orthanc.count(new.study, "CT") == 1


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed: apt-get install openssl")
def test_a_certificate_that_is_not_known_is_refused_and_one_that_is_given_is_trusted(tmp_path: Path) -> None:
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    files = ["-keyout", "key.pem", "-out", "ca.pem"]
    subprocess.run([*make, *files, *subject], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")
    with serving(_answers(200, b"[]"), context) as (root, seen):
        refused = pytest.raises(InputError, match=r"is not known to be what it says .*--ca-file")
        with Archive(root, Access(token="secret")) as archive, refused:
            archive.holds("1.2", "1.2.3")
        assert seen == []  # the token was not sent
        with Archive(root, Access(token="secret", ca_file=tmp_path / "ca.pem")) as archive:
            assert not archive.holds("1.2", "1.2.3")
    assert seen == ["Bearer secret"]


_FETCH = """
import resource, sys
from pathlib import Path
from medsam3.pacs.dicomweb import Access, Archive
from medsam3.pacs.series import Series
root, study, series, folder = sys.argv[1:]
with Archive(root, Access.from_environment()) as archive:
    archive.fetch(archive.with_instances(Series(study, series)), Path(folder), lambda done, count: None)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_2000_slices_take_no_more_memory_than_20(orthanc: Orthanc, tmp_path: Path) -> None:
    peaks = []
    for count in (20, 2000):
        made = made_study(tmp_path / str(count), slices=count, size=(64, 64))
        orthanc.send(made.folder)
        place = [orthanc.root.removeprefix("dicomweb:"), made.study, made.series, str(tmp_path / f"images-{count}")]
        done = subprocess.run([sys.executable, "-c", _FETCH, *place], check=True, capture_output=True, text=True)
        assert len(list((tmp_path / f"images-{count}").glob("*.dcm"))) == count
        peaks.append(int(done.stdout) / 1024)
    print(f"peaks: {peaks} MiB")
    assert peaks[1] - peaks[0] < 25  # MiB; the list of 2,000 instances is 3 MB of JSON
