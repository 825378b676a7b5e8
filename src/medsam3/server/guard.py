"""Who may ask: Host and Origin lists, tokens, sizes, security headers, an audit line and counts for each request."""

from __future__ import annotations

import base64
import logging
import time
from collections import deque
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medsam3.server.problems import RefusedError, problem
from medsam3.server.settings import Settings

_audit = logging.getLogger("medsam3.server.audit")
MOST_LINES = 1000
SMALL_BODY_BYTES = 2 * 2**20
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": _CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, PUT, DELETE",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Accept, Cache-Control, X-Requested-With",
    "Access-Control-Max-Age": "600",
}


class Metrics:
    """Counts in Prometheus' form, of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "medsam3_requests",
            "Requests by method, route and status",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "medsam3_request_seconds", "Time to answer by route", ("route",), registry=self.registry
        )
        self.waiting = Gauge("medsam3_waiting", "Tasks that wait or run", ("worker",), registry=self.registry)
        self.restarts = Gauge(
            "medsam3_restarts", "Times a worker was started again", ("worker",), registry=self.registry
        )
        self.memory = Gauge(
            "medsam3_worker_bytes", "Memory of a worker, where the system tells it", ("worker",), registry=self.registry
        )
        self.images = Gauge("medsam3_images", "Images that are held", registry=self.registry)
        self.lines: deque[str] = deque(maxlen=MOST_LINES)
        """The last lines of the audit log."""


class Guard:
    """The outermost layer: refuses what may not ask before anything of it is read."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or answer it by a problem document."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_private = scope["path"].startswith("/v1/") or self._settings.dialect_at(scope["path"]) is not None
        begun, answered = time.perf_counter(), _Answered(send, self._cors(scope), is_private=is_private)
        body = _Counted(receive, self._most_bytes(scope))
        try:
            self._check(scope, body)
            if scope["method"] == "OPTIONS" and answered.is_foreign:
                await Response(status_code=204, headers=_PREFLIGHT)(scope, receive, answered)
            else:
                await self._app(scope, body, answered)
        except RefusedError as error:
            await self._refuse(error, scope, receive, answered)
        finally:
            route = getattr(scope.get("route"), "path", "other")  # the pattern: no id and no name gets into the log
            seconds = time.perf_counter() - begun
            self._metrics.requests.labels(scope["method"], route, str(answered.status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            owner = scope.get("state", {}).get("owner", "-")
            line = f"{scope['method']} {route} {answered.status} {seconds:.3f} s by {owner:.8}"
            self._metrics.lines.append(f"{time.strftime('%H:%M:%S')} {line}")
            _audit.info("%s", line)

    async def _refuse(self, error: RefusedError, scope: Scope, receive: Receive, answered: _Answered) -> None:
        if answered.status == 0:
            await problem(error.status, error.detail, retry_after_s=error.retry_after_s)(scope, receive, answered)

    def _check(self, scope: Scope, body: _Counted) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        if _name_of(host) not in self._settings.allowed_hosts:
            raise RefusedError(421, f"host {host!r} is not served here: use the address that it told, or --allow-host")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and urlsplit(origin).netloc != host and origin not in self._settings.origins:
            raise RefusedError(403, "pages of other sites may not ask this server")
        length = headers.get(b"content-length", b"0").decode("latin-1")
        if not length.isdecimal() or int(length) > body.most:
            raise body.too_large()
        owner = self._settings.owner_of(token_in(headers.get(b"authorization", b"").decode("latin-1")))
        is_preflight = scope["method"] == "OPTIONS" and origin in self._settings.origins  # carries no token
        if owner is None and not (self._settings.is_open(scope["path"]) or is_preflight):
            raise RefusedError(401, "a token is needed: send it as Authorization: Bearer TOKEN")
        scope.setdefault("state", {})["owner"] = owner or "-"

    def _cors(self, scope: Scope) -> dict[str, str]:
        """Headers that let a page of another site read the answer, if it is on the list."""
        origin = dict(scope["headers"]).get(b"origin", b"").decode("latin-1")
        if origin not in self._settings.origins:
            return {}
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin", "Cross-Origin-Resource-Policy": "cross-origin"}

    def _most_bytes(self, scope: Scope) -> int:
        is_upload = scope["method"] == "POST" and scope["path"].rstrip("/") == "/v1/images"
        is_upload = is_upload or self._settings.dialect_at(scope["path"]) is not None
        return self._settings.limits.upload_bytes if is_upload else SMALL_BODY_BYTES


def token_in(authorization: str) -> str | None:
    """Take the token out of an Authorization header: Bearer, or the password of Basic, for tools that know no other."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return given.strip()
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(given.strip(), validate=True).decode("utf-8").partition(":")[2]
    except ValueError:  # not base64, or not UTF-8
        return None


def owner_of(request: Request) -> str:
    """Name who asks, as the guard found out."""
    owner: str = request.state.owner
    return owner


class _Counted:
    """The body of a request as it comes in, refused once it is too large."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self.most, self._size = receive, most, 0

    def too_large(self) -> RefusedError:
        return RefusedError(413, f"the request is larger than {self.most} bytes, which are allowed: send less at once")

    async def __call__(self) -> Message:
        message = await self._receive()
        self._size += len(message.get("body", b""))
        if self._size > self.most:
            raise self.too_large()
        return message


class _Answered:
    """The answer as it goes out, with the security headers; `status` is 0 until it begins."""

    def __init__(self, send: Send, cors: dict[str, str], *, is_private: bool) -> None:
        self._send, self.status, self.is_foreign = send, 0, bool(cors)
        self._added = HEADERS | cors | ({"Cache-Control": "no-store"} if is_private else {})

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = {name.lower() for name, _ in message.get("headers", [])}
            added = [(name.lower().encode(), value.encode()) for name, value in self._added.items()]
            message["headers"] = [*message.get("headers", []), *(one for one in added if one[0] not in given)]
        await self._send(message)


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].lower()
