"""The gRPC server of a service: TLS, health, reflection, deadlines, bounds, errors with reasons, metrics."""

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from pathlib import Path
from random import Random
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tidemill_contracts.reasons import Reason

from tidemill_runtime import metrics
from tidemill_runtime.errors import Fatal, Overloaded, Poison, Retryable, TidemillError
from tidemill_runtime.health import Health
from tidemill_runtime.rpc_errors import DETAILS_KEY, reason_of, to_status
from tidemill_runtime.settings import GrpcSettings, split_address

_UNBOUNDED = "/tidemill.progress."
_HEALTH = "grpc.health.v1.Health"
_WATCH_EVERY_S = 1.0
_STOP_GRACE_S = 5.0
# The caller's clock runs out a moment before ours: a call that is cancelled so near to its deadline has passed it.
_NEAR_S = 0.02

log = structlog.get_logger(__name__)


class DeadlinePassedError(Retryable):
    """The call's deadline passed before the answer was there."""

    reason = Reason.DEADLINE_EXCEEDED


class Guard:
    """Stands before every call: bound, deadline, test delay, metrics, and errors turned into rich statuses.

    It wraps handlers once, when they are registered; an interceptor would cost every call another tenth of its time,
    and so would a timer. A deadline that the caller names is gRPC's to keep: it cancels the call where that has passed.
    """

    def __init__(self, settings: GrpcSettings, *, hop_delay_ms: int = 0, seed: int = 0) -> None:
        self._settings = settings
        self._hop_delay_ms = hop_delay_ms
        self._random = Random(seed)
        self._in_flight = self._answering = 0
        metrics.rpc_in_flight.set_function(lambda: self._answering)
        self.fatal: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def wrap(self, handler: Any, method: str) -> Any:
        """Return a method's handler with the guard before it."""
        return self._streaming(handler, method) if handler.response_streaming else self._single(handler, method)

    def _single(self, handler: Any, method: str) -> "grpc.RpcMethodHandler[Any, Any]":
        inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
        kind = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )

        parse, deserializer = _parsing(handler)
        bounded = not method.startswith(_UNBOUNDED)

        async def answer(request: Any, context: Any) -> Any:
            began, code = self._begin(bounded), grpc.StatusCode.OK
            try:
                self._admit(bounded)
                if self._hop_delay_ms or context.time_remaining() is None:
                    return await self._delayed(inner, parse(request), context)
                return await inner(parse(request), context)
            except BaseException as error:
                code, refusal = self._judged(method, context, error)
                if refusal is None:
                    raise
                await self._abort(method, context, refusal)
            finally:
                self._end(bounded, method, code, began)

        return kind(answer, deserializer, handler.response_serializer)

    def _streaming(self, handler: Any, method: str) -> "grpc.RpcMethodHandler[Any, Any]":
        inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
        kind = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )

        parse, deserializer = _parsing(handler)
        bounded = not method.startswith(_UNBOUNDED)

        async def answer(request: Any, context: Any) -> AsyncIterator[Any]:
            began, code = self._begin(bounded), grpc.StatusCode.OK
            try:
                self._admit(bounded)
                await self._hop()
                # Without a deadline of its own: a watch is meant to last.
                async for response in inner(parse(request), context):
                    yield response
            except BaseException as error:
                code, refusal = self._judged(method, context, error)
                if refusal is None:
                    raise
                await self._abort(method, context, refusal)
            finally:
                self._end(bounded, method, code, began)

        return kind(answer, deserializer, handler.response_serializer)

    def _begin(self, bounded: bool) -> float:
        self._answering += 1
        self._in_flight += bounded
        return perf_counter()

    def _admit(self, bounded: bool) -> None:
        if bounded and self._in_flight > self._settings.max_in_flight:
            raise Overloaded(f"{self._settings.max_in_flight} calls are being answered", retry_after_s=0.1)

    def _end(self, bounded: bool, method: str, code: grpc.StatusCode, began: float) -> None:
        self._answering -= 1
        self._in_flight -= bounded
        _seconds(method, code).observe(perf_counter() - began)

    async def _delayed(self, inner: Any, request: Any, context: Any) -> Any:
        """Answer a call that names no deadline, or after a test's delay."""
        own_s = self._settings.default_deadline_s if context.time_remaining() is None else None
        async with asyncio.timeout(own_s):
            await self._hop()
            return await inner(request, context)

    async def _hop(self) -> None:
        if self._hop_delay_ms:
            await asyncio.sleep(self._random.random() * self._hop_delay_ms / 1000)

    def _judged(self, method: str, context: Any, error: BaseException) -> tuple[grpc.StatusCode, TidemillError | None]:
        """Return the code that a call ends with, and what to refuse it with: None where gRPC has ended it."""
        if isinstance(error, TimeoutError):
            refusal = DeadlinePassedError("the deadline passed before the answer was ready")
            return grpc.StatusCode.DEADLINE_EXCEEDED, refusal
        if isinstance(error, TidemillError):
            if isinstance(error, Fatal) and not self.fatal.done():
                self.fatal.set_exception(error)
            return to_status(error)[0], error
        if isinstance(error, Exception) and not isinstance(error, grpc.aio.AbortError):
            log.exception("rpc_failed", method=method)
            return grpc.StatusCode.INTERNAL, Fatal(str(error))
        remaining_s = context.time_remaining()
        if remaining_s is not None and remaining_s < _NEAR_S:
            metrics.rpc_refused.labels(method, Reason.DEADLINE_EXCEEDED).inc()
            return grpc.StatusCode.DEADLINE_EXCEEDED, None
        return grpc.StatusCode.CANCELLED, None

    async def _abort(self, method: str, context: Any, error: TidemillError) -> None:
        code, status = to_status(error)
        metrics.rpc_refused.labels(method, reason_of(error)).inc()
        await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))


def _parsing(handler: Any) -> tuple[Callable[[Any], Any], Callable[[bytes], Any] | None]:
    """Return how the method's request is parsed, and what gRPC is to parse itself.

    A single request is parsed behind the guard, so that bytes which are no request get their named reason too.
    """
    if handler.request_streaming or handler.request_deserializer is None:
        return _untouched, handler.request_deserializer

    def parse(raw: bytes) -> Any:
        try:
            return handler.request_deserializer(raw)
        except DecodeError as error:
            reason = Reason.BAD_UTF8 if "UTF-8" in str(error) else Reason.UNDECODABLE
            raise Poison(reason, f"the request cannot be read: {error}") from error

    return parse, None


def _untouched(request: Any) -> Any:
    return request


@lru_cache(1024)
def _seconds(method: str, code: grpc.StatusCode) -> Any:
    """Return the histogram of one method and code; registered methods are few, and finding it takes a lock."""
    return metrics.rpc_seconds.labels(method, code.name)


class _HealthServicer:
    """Readiness under the empty name and each service's name; liveness under `liveness`."""

    def __init__(self, health: Health, services: list[str]) -> None:
        self._health = health
        self._services = services

    def _status(self, name: str) -> "health_pb2.HealthCheckResponse.ServingStatus.ValueType":
        if name and name != "liveness" and name not in self._services:
            return health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        faults = self._health.live() if name == "liveness" else self._health.ready()
        return health_pb2.HealthCheckResponse.NOT_SERVING if faults else health_pb2.HealthCheckResponse.SERVING

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802 -- the wire's name
        status = self._status(request.service)
        if status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r} here")
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: Any, context: Any) -> health_pb2.HealthListResponse:  # noqa: N802 -- the wire's name
        names = ["", "liveness", *self._services]
        statuses = {name: health_pb2.HealthCheckResponse(status=self._status(name)) for name in names}
        return health_pb2.HealthListResponse(statuses=statuses)

    async def Watch(  # noqa: N802 -- the wire's name
        self, request: Any, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        last = None
        while True:
            status = self._status(request.service)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status)
            await asyncio.sleep(_WATCH_EVERY_S)


class _Guarded(grpc.GenericRpcHandler):
    """A service's methods with the guard before each."""

    def __init__(self, inner: Any, guard: Guard) -> None:
        self._inner = inner
        self._guard = guard
        self._wrapped: dict[str, Any] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the method's handler, None where the service has no such method."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = self._inner.service(handler_call_details)
            # What is not there is not remembered: callers choose its name.
            if handler is None:
                return None
            wrapped = self._wrapped[method] = self._guard.wrap(handler, method)
        return wrapped


class _Registrar:
    """Takes what generated `add_…_to_server` functions register, guards it, and keeps the services' names."""

    def __init__(self, server: grpc.aio.Server, guard: Guard) -> None:
        self._server = server
        self._guard = guard
        self.names: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        self.names += [handler.service_name() for handler in handlers]
        self._server.add_generic_rpc_handlers([_Guarded(handler, self._guard) for handler in handlers])

    def add_registered_method_handlers(self, service: str, handlers: Any) -> None:
        """The aio server takes them from the generic handlers."""


class GrpcServer:
    """Serves what was added; a `Component` for `running`, opened after everything that its methods use."""

    def __init__(self, settings: GrpcSettings, health: Health, *, hop_delay_ms: int = 0, seed: int = 0) -> None:
        self._settings = settings
        self._health = health
        self._guard = Guard(settings, hop_delay_ms=hop_delay_ms, seed=seed)
        size = settings.max_message_bytes
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", size),
                ("grpc.so_reuseport", 0),
            ],
        )
        self._registrar = _Registrar(self._server, self._guard)
        self._stopping = asyncio.Event()
        self.port = 0

    def add(self, add_to_server: Callable[[Any, Any], None], servicer: object) -> Self:
        """Register a servicer with its generated `add_…_to_server`; returns the server, so that calls chain."""
        add_to_server(servicer, self._registrar)
        return self

    async def __aenter__(self) -> Self:
        names = list(self._registrar.names)
        health_pb2_grpc.add_HealthServicer_to_server(_HealthServicer(self._health, names), self._server)
        reflection.enable_server_reflection([*names, _HEALTH, reflection.SERVICE_NAME], self._server)
        host, _ = split_address(self._settings.listen)
        self.port = self._bind(self._settings.listen)
        starting = asyncio.ensure_future(self._server.start())
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            # Half started it could not be stopped, and gRPC would wait for its calls when the process ends.
            await starting
            await self._server.stop(None)
            raise
        log.info("grpc_listening", address=f"{host}:{self.port}", services=names)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._server.stop(_STOP_GRACE_S)

    async def run(self) -> None:
        """Serve until `stop`; calls being answered get a grace. Raises what a method called fatal."""
        stopping: asyncio.Future[Any] = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({stopping, self._guard.fatal}, return_when=asyncio.FIRST_COMPLETED)
            if self._guard.fatal.done():
                self._guard.fatal.result()
        finally:
            stopping.cancel()
            self._guard.fatal.cancel()

    def stop(self) -> None:
        """Take no more calls."""
        self._stopping.set()

    def _bind(self, address: str) -> int:
        if self._settings.tls_cert is None or self._settings.tls_key is None:
            return self._server.add_insecure_port(address)
        pair = (Path(self._settings.tls_key).read_bytes(), Path(self._settings.tls_cert).read_bytes())
        ca = Path(self._settings.tls_ca).read_bytes() if self._settings.tls_ca else None
        return self._server.add_secure_port(
            address, grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)
        )
