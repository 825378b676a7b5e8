"""The server as one application: guard, routes, page, beginning and end. It knows no torch and no file format."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import generate_latest

from medsam3 import __version__
from medsam3.errors import InputError, require
from medsam3.server.guard import Guard, Metrics
from medsam3.server.problems import answer_errors
from medsam3.server.routes import router, service_of
from medsam3.server.service import Service
from medsam3.server.settings import Settings, in_brackets

PAGE = Path(__file__).parent / "page"
DOCS = Path(__file__).parent / "docs"
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def make_app(settings: Settings) -> FastAPI:
    """Make the application of a server; its workers live from startup to shutdown."""
    metrics = Metrics()

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = Service(settings)
        await app.state.service.start()
        try:
            yield
        finally:
            await app.state.service.stop()

    app = FastAPI(
        title="medsam3", version=__version__, lifespan=life, docs_url=None, redoc_url=None, openapi_url="/openapi.json"
    )
    app.state.metrics = metrics
    answer_errors(app)
    app.include_router(router)
    for dialect in settings.clients:
        app.include_router(dialect.router(), prefix=dialect.prefix, tags=[dialect.name])
    _add_health(app, metrics)
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    app.mount("/docs/swagger", StaticFiles(directory=_swagger()), name="swagger")
    app.mount("/docs", StaticFiles(directory=DOCS, html=True), name="docs")
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    return app


def _swagger() -> Path:
    """Find the files of Swagger UI, which a package brings, so that nothing comes from elsewhere."""
    package = require("fastapi_swagger", extra="server")
    return Path(str(package.__file__)).parent / "resources"


def _add_health(app: FastAPI, metrics: Metrics) -> None:
    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """Tell that the server answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def ready(request: Request) -> JSONResponse:
        """Tell whether the model is loaded: 200 if it is, else 503."""
        is_ready = service_of(request).model is not None
        return JSONResponse({"status": "ready" if is_ready else "loading"}, 200 if is_ready else 503)

    @app.get("/metrics", response_class=Response)
    async def count(request: Request) -> Response:
        """Give counts in Prometheus' form."""
        service = service_of(request)
        metrics.images.set(len(service.holdings))
        for worker in service.workers:
            metrics.waiting.labels(worker.name).set(worker.waiting)
            metrics.restarts.labels(worker.name).set(worker.restarts)
            metrics.memory.labels(worker.name).set(worker.resident_bytes())
        return Response(generate_latest(metrics.registry), media_type=_METRICS_TYPE)


def serve(settings: Settings, *, when_ready: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        settings: Address, model, limits.
        when_ready: Told the address once connections are taken.

    Raises:
        InputError: The address or port cannot be listened on.
    """
    import uvicorn  # noqa: PLC0415  only to serve, not for tests of the application

    listening = _listen(settings)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                when_ready(f"http://{in_brackets(settings.host)}:{listening.getsockname()[1]}/")

    config = uvicorn.Config(
        make_app(settings),
        log_level="warning",
        access_log=False,  # the guard writes one line a request, without ids
        server_header=False,
        timeout_graceful_shutdown=3,
        timeout_keep_alive=75,  # a busy client may pause longer than five seconds between two requests
    )
    with listening, contextlib.suppress(KeyboardInterrupt):  # how a server is ended; uvicorn has shut down by then
        Server(config).run(sockets=[listening])


def _listen(settings: Settings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host.strip("[]"), settings.port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(
            f"{settings.host} port {settings.port} cannot be listened on ({error.strerror or error}): "
            "name another one with --port or --host"
        ) from error
