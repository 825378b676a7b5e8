"""Requests to a server: the token, problem documents as errors in one line, and coming back when it is busy.

It knows no image: bodies are JSON, or files that are streamed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from medsam3.errors import InputError, printable, require

if TYPE_CHECKING:
    import httpx

LONGEST_ANSWER_S = 3700.0
"""A step of a volume may take as long as the server's jobs may."""
CONNECT_S = 10.0
LONGEST_PAUSE_S = 60.0
_CHUNK_BYTES = 2**20

Form = Sequence[tuple[str, Path]]
"""Files of an upload: the name that the server is told, and where it lies."""


class ServerError(InputError):
    """An answer of the server that is no success, or none at all; `status` is 0 if none came."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Connection:
    """One server, asked one thing after the other."""

    def __init__(self, url: str, token: str | None, patience_s: float) -> None:
        """Remember where it is; nothing is asked yet.

        Args:
            url: Such as http://127.0.0.1:8080.
            token: None for a server that needs none.
            patience_s: Longest time that a busy server is waited for.

        Raises:
            InputError: No URL of http or https, or one that carries a password.
        """
        require("httpx", extra="client")
        import httpx  # noqa: PLC0415  only whoever asks a server needs it

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"server is {url!r}, allowed is an address such as http://127.0.0.1:8080")
        if "@" in parts.netloc:
            raise InputError("the server's address carries a user or password: give the token by itself")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.url, self._patience_s = url.rstrip("/"), patience_s
        timeout = httpx.Timeout(LONGEST_ANSWER_S, connect=CONNECT_S)
        self._http: httpx.Client = httpx.Client(base_url=self.url, headers=headers, timeout=timeout)

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """Ask, and read the answer; None for an empty one.

        Raises:
            ServerError: It cannot be reached, refuses, or is busy for longer than the patience.
        """
        answer = self._patiently(lambda: self._http.request(method, path, json=body))
        return self._json_of(answer) if answer.content else None

    def remove(self, path: str) -> None:
        """Remove what lies at a path; errors as `json`, but none if it, or the server with it, is gone already."""
        try:
            self.json("DELETE", path)
        except ServerError as error:
            if error.status not in (0, 404):
                raise

    def upload(self, path: str, files: Form) -> Any:
        """Send files as a form, read from disk as they go; errors as `json`."""

        def send() -> httpx.Response:
            with contextlib.ExitStack() as stack:
                form = [("files", (name, stack.enter_context(place.open("rb")))) for name, place in files]
                return self._http.post(path, files=form)

        return self._json_of(self._patiently(send))

    def content(self, path: str) -> bytes:
        """Ask for a file, and give it; errors as `json`."""
        return self._patiently(lambda: self._http.get(path)).content

    def save(self, path: str, folder: Path) -> Path:
        """Ask for a file, and save it under the server's name for it as it comes in; errors as `json`."""

        def take() -> httpx.Response:
            with self._http.stream("GET", path) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    return answer
                named = answer.headers.get("content-disposition", "").partition('filename="')[2].partition('"')[0]
                target = folder / (Path(named).name or "result")
                with target.open("wb") as stream:
                    for piece in answer.iter_bytes(_CHUNK_BYTES):
                        stream.write(piece)
                saved.append(target)
                return answer

        saved: list[Path] = []
        self._patiently(take)
        return saved[-1]

    def _patiently(self, ask: Callable[[], httpx.Response]) -> httpx.Response:
        """Ask again as long as the server is busy and the patience lasts."""
        deadline = time.monotonic() + self._patience_s
        while True:
            with self._reached():
                answer = ask()
            if answer.status_code < 400:
                return answer
            pause = _pause_s(answer)
            if pause is None or time.monotonic() + pause > deadline:
                raise self._problem(answer)
            time.sleep(pause)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        import httpx  # noqa: PLC0415

        try:
            yield
        except httpx.TimeoutException as error:
            raise ServerError(f"the server at {self.url} did not answer in time: look whether it still runs") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            reason = printable(str(error)) or type(error).__name__
            raise ServerError(
                f"no server answers at {self.url} ({reason}): start it with medsam3 serve, or correct the address"
            ) from error

    def _problem(self, answer: httpx.Response) -> ServerError:
        status = answer.status_code
        if status == 401:
            return ServerError(
                f"the server at {self.url} refuses the token: give the one that it was started with", 401
            )
        try:
            detail = str(answer.json()["detail"])
        except (ValueError, KeyError, TypeError):
            return self._foreign(answer)
        if status == 503:
            detail += f" (waited {self._patience_s:g} s)"
        return ServerError(printable(" ".join(detail.split())), status)

    def _json_of(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except ValueError as error:
            raise self._foreign(answer) from error

    def _foreign(self, answer: httpx.Response) -> ServerError:
        return ServerError(
            f"{self.url} answered {answer.status_code}, and not as medsam3 serve does: correct the address",
            answer.status_code,
        )


def _pause_s(answer: httpx.Response) -> float | None:
    """How long a busy server asks to be left alone; None if it is not busy."""
    if answer.status_code != 503:
        return None
    told = answer.headers.get("retry-after", "1")
    return min(float(told), LONGEST_PAUSE_S) if told.isdecimal() else 1.0
