"""The HTTP side of a service: /live, /ready, /metrics, and the service's own routes beside them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from tidemill_runtime.errors import Fatal
from tidemill_runtime.health import Health
from tidemill_runtime.settings import HttpSettings, split_address

_START_LIMIT_S = 10.0
_STOP_GRACE_S = 5

log = structlog.get_logger(__name__)


class _Uvicorn(uvicorn.Server):
    """Leaves the process's signals to the lifecycle."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves health, metrics and `app` (any ASGI application; its lifespan is not run); a `Component`."""

    def __init__(self, settings: HttpSettings, health: Health, app: ASGIApp | None = None) -> None:
        self._health = health
        self._stopping = asyncio.Event()
        host, port = split_address(settings.listen)
        routes: list[BaseRoute] = [
            Route("/live", self._live),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
        ]
        if app is not None:
            routes.append(Mount("/", app))
        config = uvicorn.Config(
            Starlette(routes=routes),
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            lifespan="off",
            ssl_certfile=settings.tls_cert,
            ssl_keyfile=settings.tls_key,
            timeout_graceful_shutdown=_STOP_GRACE_S,
        )
        self._server = _Uvicorn(config)
        self._serving: asyncio.Task[None] | None = None
        self.port = 0

    async def __aenter__(self) -> Self:
        self._serving = asyncio.create_task(self._serve(), name="http")
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                while not self._server.started:
                    if self._serving.done():
                        self._serving.result()
                    await asyncio.sleep(0.005)
        except BaseException:
            self._server.should_exit = True
            await asyncio.wait({self._serving})
            raise
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        log.info("http_listening", port=self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._serving is not None
        self._server.should_exit = True
        await self._serving

    async def _serve(self) -> None:
        try:
            await self._server.serve()
        except SystemExit as error:
            # uvicorn exits the process where the port is taken; here that is an error like any other.
            raise Fatal("the HTTP port cannot be bound") from error

    async def run(self) -> None:
        """Serve until `stop`."""
        await self._stopping.wait()

    def stop(self) -> None:
        """Take no more requests once closed."""
        self._stopping.set()

    async def _live(self, request: Request) -> Response:
        return _verdict(self._health.live())

    async def _ready(self, request: Request) -> Response:
        return _verdict(self._health.ready())

    async def _metrics(self, request: Request) -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


def _verdict(faults: dict[str, str]) -> Response:
    body: dict[str, Any] = {"ok": not faults, "faults": faults}
    return JSONResponse(body, status_code=503 if faults else 200)
