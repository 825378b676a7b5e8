"""An archive by DICOMweb: search (QIDO-RS), fetch (WADO-RS) and store (STOW-RS), with what goes wrong in one line.

Source: DICOM PS3.18. It knows nothing of models; what an answer says of patients is neither kept nor logged.
"""

from __future__ import annotations

import json
import logging
import os
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx2

from medsam3 import __version__
from medsam3.errors import InputError, printable, reason_of
from medsam3.io.dicom_uids import heading_of
from medsam3.pacs.multipart import DICOM, PartFiles, Upload
from medsam3.pacs.series import ArchiveAddress, Series, UnreachableError, is_uid

if TYPE_CHECKING:  # models, which an archive needs none of
    from medsam3.segmentation.run import Report

_log = logging.getLogger(__name__)
JSON = "application/dicom+json"
PAGE = 1000
"""Matches that are asked for at once; an archive may give fewer."""
_MOST_JSON_BYTES = 2**28
_MOST_SERIES_BYTES = 2**36
_PASSING = (429, 502, 503, 504)
"""Answers that say: not now."""
_WAITS_S = (0.5, 2.0, 4.0)
_TAGS = {
    "study": "0020000D",
    "uid": "0020000E",
    "instance": "00080018",
    "modality": "00080060",
    "body_part": "00180015",
    "description": "0008103E",
    "count": "00201209",
}
_STORED, _REFUSED, _REFERENCE, _REASON = "00081199", "00081198", "00081155", "00081197"


@dataclass(frozen=True)
class Access:
    """How an archive is reached.

    Attributes:
        token: Bearer token; None sends none.
        user: User and password of basic authentication; None sends none.
        ca_file: Certificates to trust in place of the system's, such as those of a hospital.
        timeout_s: Longest silence of the archive.
        waits_s: Pauses before a request is sent again that met no answer, or one that says "not now".
    """

    token: str | None = field(default=None, repr=False)
    user: tuple[str, str] | None = field(default=None, repr=False)
    ca_file: Path | None = None
    timeout_s: float = 60.0
    waits_s: tuple[float, ...] = _WAITS_S

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Take MEDSAM3_DICOMWEB_TOKEN, or MEDSAM3_DICOMWEB_USER and MEDSAM3_DICOMWEB_PASSWORD, where they are set.

        Raises:
            InputError: A token and a user, a user without a password, or a token that no header can hold.
        """
        told = os.environ if environment is None else environment
        token, user, password = (told.get(f"MEDSAM3_DICOMWEB_{name}") for name in ("TOKEN", "USER", "PASSWORD"))
        if token and user:
            raise InputError("both MEDSAM3_DICOMWEB_TOKEN and MEDSAM3_DICOMWEB_USER are set: unset one of them")
        if bool(user) != bool(password):
            raise InputError("MEDSAM3_DICOMWEB_USER and MEDSAM3_DICOMWEB_PASSWORD go together: set both, or none")
        return cls(token=check_token(token) if token else None, user=(user, password) if user and password else None)


def check_token(token: str) -> str:
    """Give a token that a header can hold.

    Raises:
        InputError: It holds line ends, blanks or other than ASCII.
    """
    if not (token and token.isascii() and token.isprintable() and " " not in token):
        raise InputError(
            "the token is empty or holds blanks, line ends or other than ASCII: copy it again, in one line"
        )
    return token


class Archive:
    """A DICOMweb archive. A context manager; requests that change nothing for being sent twice are sent again."""

    def __init__(self, root: str, access: Access) -> None:
        """Prepare to ask; nothing is sent yet.

        Args:
            root: URL that `/studies` lies below.
            access: Token, certificates, patience.

        Raises:
            InputError: Certificates that cannot be read.
        """
        self.root, self._access = root, access
        self.host = httpx2.URL(root).netloc.decode()
        headers = {"User-Agent": f"medsam3/{__version__}"}
        if access.token is not None:
            headers["Authorization"] = f"Bearer {access.token}"
        try:
            context = ssl.create_default_context(cafile=access.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"{access.ca_file} cannot be read as certificates: give a PEM file") from error
        self._client = httpx2.Client(
            auth=access.user,
            headers=headers,
            verify=context,
            timeout=httpx2.Timeout(access.timeout_s, connect=min(10.0, access.timeout_s)),
            follow_redirects=False,  # a token is sent to no other place
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def series_at(self, address: ArchiveAddress) -> list[Series]:
        """List the series at an address, without their instances.

        Raises:
            InputError: The archive refuses; `UnreachableError` if it does not answer.
        """
        if address.study is not None:
            chosen = {} if address.series is None else {"SeriesInstanceUID": address.series}
            searches = [(address.study, tuple(chosen.items()))]
        elif address.of_studies:
            studies = {_text(item, _TAGS["study"]) for item in self._search("/studies", address.query)}
            searches = [(study, ()) for study in sorted(studies) if is_uid(study)]
        else:
            searches = [("", address.query)]
        found: dict[str, Series] = {}
        for study, query in searches:
            path = f"/studies/{study}/series" if study else "/series"
            for item in self._search(path, [*query, ("includefield", _TAGS["body_part"])]):
                series = _series_from(item, study)
                if series is not None and address.series in (None, series.uid):
                    found.setdefault(series.uid, series)
        return list(found.values())

    def with_instances(self, series: Series) -> Series:
        """Give the series with the identifiers of its instances.

        Raises:
            InputError: It has none, or as `series_at`.
        """
        path = f"/studies/{series.study}/series/{series.uid}/instances"
        instances = {_text(item, _TAGS["instance"]) for item in self._search(path, [])}
        if not instances:
            raise InputError(f"{self.host} has no instance of series {series.uid}: correct the address")
        return replace(series, instances=tuple(sorted(instances)))

    def body_part_of(self, series: Series) -> str:
        """Look up the body part in the first instance, for archives that do not search by it."""
        path = f"/studies/{series.study}/series/{series.uid}/instances/{series.instances[0]}/metadata"
        items = self._json(path)
        return _text(items[0], _TAGS["body_part"]) if items else ""

    def holds(self, study: str, instance: str) -> bool:
        """Tell whether the archive has an instance.

        Raises:
            InputError: As `series_at`.
        """
        found = self._search(f"/studies/{study}/instances", [("SOPInstanceUID", instance)])
        return any(_text(item, _TAGS["instance"]) == instance for item in found)

    def fetch(self, series: Series, folder: Path, report: Report) -> None:
        """Bring the instances of a series into a folder, each on disk as it comes; what lies there is not asked for.

        Args:
            series: With its instances.
            folder: Made if it is not there; nobody else may look into it.
            report: Told how many lie there and how many there are.

        Raises:
            InputError: One cannot be had, or the disk is full; `UnreachableError` if the archive does not answer.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in folder.glob(".*"):
            left.unlink()
        missing = set(series.instances) - {path.stem for path in folder.glob("*.dcm")}
        count = len(series.instances)

        def keep(path: Path) -> None:
            heading = heading_of(path)
            if heading.series == series.uid and heading.instance in missing:
                path.replace(folder / f"{heading.instance}.dcm")
                missing.remove(heading.instance)
                report(count - len(missing), count)

        report(count - len(missing), count)
        place = f"/studies/{series.study}/series/{series.uid}"
        before = len(missing)
        if 2 * before > count:
            try:
                self._files(place, folder, keep)
            except UnreachableError:
                if len(missing) == before:
                    raise
                _log.debug("what did not come is asked for one by one", exc_info=True)
        for instance in sorted(missing):
            self._files(f"{place}/instances/{instance}", folder, keep)
        if missing:
            raise InputError(
                f"{self.host} lists {count} instances of series {series.uid} and gives {count - len(missing)}: try "
                "again when the series is complete"
            )

    def store(self, path: Path, study: str, instance: str) -> None:
        """Store a file; one that the archive has already stays as it is.

        Raises:
            InputError: The archive refuses it; `UnreachableError` if it does not answer.
        """
        upload = Upload(path)
        headers = {"Accept": JSON, **upload.headers}
        with self._answer("POST", f"/studies/{study}", headers=headers, content=upload, also=(409,)) as response:
            answer = _parsed(self._read(response))
        if instance in _references(answer) or self.holds(study, instance):
            return
        reasons = [_text(item, _REASON) for item in _items(answer, _REFUSED)]
        raise InputError(
            f"{self.host} did not store the result (failure reason {', '.join(reasons) or 'not told'}): "
            "ask its keeper whether it takes results of this kind"
        )

    def _search(self, path: str, query: Sequence[tuple[str, str]]) -> Iterator[Any]:
        """Give all matches, page by page as they are wanted: an archive may give fewer at once than it is asked for."""
        seen: set[str] = set()
        while True:
            page = self._json(path, [*query, ("limit", str(PAGE)), ("offset", str(len(seen)))])
            fresh = {json.dumps(item, sort_keys=True): item for item in page}
            if fresh.keys() <= seen:  # also if the archive heeds no offset and gives the same again
                return
            yield from (item for key, item in fresh.items() if key not in seen)
            seen.update(fresh)

    def _json(self, path: str, query: Sequence[tuple[str, str]] = ()) -> list[Any]:
        with self._answer("GET", path, params=query, headers={"Accept": JSON}) as response:
            if response.status_code == 204:
                return []
            content = _parsed(self._read(response))
        if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
            raise InputError(f"{self.host} answers with something else than DICOM JSON: {_WHAT_ROOT}")
        return content

    def _files(self, path: str, folder: Path, keep: Callable[[Path], None]) -> None:
        accept = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
        with self._answer("GET", path, headers={"Accept": accept}) as response:
            kind = response.headers.get("Content-Type", "")
            with PartFiles(kind, folder, keep, most_bytes=_MOST_SERIES_BYTES) as parts:
                parts.write(response.iter_bytes())

    def _read(self, response: httpx2.Response) -> bytes:
        body = bytearray()
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _MOST_JSON_BYTES:
                raise InputError(f"{self.host} gives too long an answer: search for less")
        return bytes(body)

    @contextmanager
    def _answer(self, method: str, path: str, *, also: tuple[int, ...] = (), **asked: Any) -> Iterator[httpx2.Response]:
        """Give the head of a good answer, whose body is read inside the block.

        Raises:
            InputError: The archive refuses; `UnreachableError` if it does not answer, or breaks off.
        """
        try:
            response = self._sent(method, self.root + path, asked)
            try:
                if not response.is_success and response.status_code not in also:
                    raise self._refused(response)
                yield response
            finally:
                response.close()
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise self._unanswered(error) from error

    def _sent(self, method: str, url: str, asked: Mapping[str, Any]) -> httpx2.Response:
        """Send, and send again after a while, if there is no answer or one that says "not now"."""
        for wait_s in self._access.waits_s:
            try:
                response = self._client.send(self._client.build_request(method, url, **asked), stream=True)
                if response.status_code not in _PASSING:
                    return response
                response.close()
            except httpx2.TimeoutException:
                raise  # it was waited for long enough
            except httpx2.TransportError as error:
                if _certificate_error(error) is not None:
                    raise
                _log.debug("sent again", exc_info=True)
            time.sleep(wait_s)
        return self._client.send(self._client.build_request(method, url, **asked), stream=True)

    def _refused(self, response: httpx2.Response) -> InputError:
        status = response.status_code
        if status >= 500 or status == 429:
            return UnreachableError(f"{self.host} answers {status}: try again later, or tell its keeper")
        if response.is_redirect:
            place = httpx2.URL(response.headers.get("Location", "")).copy_with(query=None)
            return InputError(f"{self.host} sends on to {printable(str(place))[:200]}: give that address")
        return InputError(f"{self.host} {_REFUSALS.get(status, f'answers {status}: {_WHAT_ROOT}')}")

    def _unanswered(self, error: Exception) -> InputError:
        certificate = _certificate_error(error)
        if certificate is not None:
            return InputError(
                f"{self.host} is not known to be what it says ({certificate.verify_message}): give the certificates to "
                "trust with --ca-file"
            )
        if isinstance(error, httpx2.TimeoutException):
            return UnreachableError(
                f"{self.host} does not answer within {self._access.timeout_s:g} s: try again later, or wait longer "
                "with --timeout"
            )
        what = "cannot be reached" if isinstance(error, httpx2.ConnectError) else "broke off"
        return UnreachableError(f"{self.host} {what} ({_cause(error)}): see that it runs, and try again")


def fetch_series(root: str, access: Access, uid: str, folder: Path) -> bool:
    """Bring the series of a UID, whatever study it is of, into a folder; False if the archive has none.

    Raises:
        InputError: As `Archive.series_at` and `Archive.fetch`.
    """
    with Archive(root, access) as archive:
        found = archive.series_at(ArchiveAddress(root, query=(("SeriesInstanceUID", uid),)))
        series = next((one for one in found if one.uid == uid), None)
        if series is not None:
            archive.fetch(archive.with_instances(series), folder, lambda done, count: None)
    return series is not None


def store_result(root: str, access: Access, path: Path) -> None:
    """Store a DICOM file in the study that it is of.

    Raises:
        InputError: As `Archive.store`.
    """
    heading = heading_of(path)
    with Archive(root, access) as archive:
        archive.store(path, heading.study, heading.instance)


_WHAT_ROOT = "is the address that of its DICOMweb service, such as https://HOST/dicom-web?"
_REFUSALS = {
    401: "does not know who asks: correct MEDSAM3_DICOMWEB_TOKEN, or MEDSAM3_DICOMWEB_USER and ..._PASSWORD",
    403: "does not allow this to who asks: ask its keeper for the right to read and to store",
    404: "has no such study, series or service: correct the address",
    413: "takes no result of this size: ask its keeper to raise the limit",
}


def _cause(error: Exception) -> str:
    """Say what lies at the bottom of an error of the network, in a few words."""
    return printable(reason_of(error)[:120])


def _certificate_error(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _parsed(body: bytes) -> Any:
    """Read JSON; None if it is none, as of an archive that knows XML alone."""
    try:
        return json.loads(body or b"[]")
    except (ValueError, RecursionError):
        return None


def _text(item: Any, tag: str) -> str:
    """Read the first value of an attribute in DICOM JSON as text; "" if there is none."""
    element = item.get(tag) if isinstance(item, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]) if isinstance(values, list) and values and values[0] is not None else ""


def _items(answer: Any, tag: str) -> list[Any]:
    """Read the items of a sequence in the answer to an upload."""
    first = answer[0] if isinstance(answer, list) and answer else answer
    element = first.get(tag) if isinstance(first, dict) else None
    values = element.get("Value") if isinstance(element, dict) else None
    return values if isinstance(values, list) else []


def _references(answer: Any) -> set[str]:
    return {_text(item, _REFERENCE) for item in _items(answer, _STORED)}


def _series_from(item: Any, study: str) -> Series | None:
    """Read a match of a search; None if it tells no identifier, or one that is none."""
    told = {name: _text(item, tag) for name, tag in _TAGS.items()}
    study, uid, count = told["study"] or study, told["uid"], told["count"]
    if not (is_uid(uid) and is_uid(study)):
        return None
    about = (told["modality"], told["body_part"], told["description"])
    return Series(study, uid, *about, count=int(count) if count.isdecimal() else None)
