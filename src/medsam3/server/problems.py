"""Errors as RFC 9457 problem documents: one line that says what was got, what is allowed, and what to do."""

from __future__ import annotations

import http
import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from medsam3.errors import InputError, printable
from medsam3.server.schemas import Problem

_log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"


class RefusedError(Exception):
    """A request that cannot be done now, or at all."""

    def __init__(self, status: int, detail: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after_s = status, detail, retry_after_s


def not_here(what: str) -> RefusedError:
    """Make the answer for an id that is not known, expired, or belongs to someone else."""
    return RefusedError(404, f"there is no such {what}: it was removed, has expired, or is not yours")


def problem(status: int, detail: str, *, retry_after_s: int | None = None) -> JSONResponse:
    """Make a problem document."""
    about = Problem(title=http.HTTPStatus(status).phrase, status=status, detail=printable(" ".join(detail.split())))
    headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(about.model_dump(), status, headers, MEDIA_TYPE)


def answer_errors(app: FastAPI) -> None:
    """Give every error of the app's routes as a problem document."""

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        return problem(error.status, error.detail, retry_after_s=error.retry_after_s)

    @app.exception_handler(InputError)
    async def bad_input(_: Request, error: InputError) -> JSONResponse:
        return problem(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def bad_request(_: Request, error: RequestValidationError) -> JSONResponse:
        return problem(422, _first(error))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        _log.error("unexpected %s", type(error).__name__, exc_info=error)
        return problem(500, f"the server failed ({type(error).__name__}): its log says more")


def _first(error: RequestValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path")) or "the request"
    return f"{place}: {first['msg']} (see: /openapi.json)"
