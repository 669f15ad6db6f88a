"""One call to a service: deadline, actor, and the service's own reason when it says no."""

import getpass
import json
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2

from tidemill.clients.errors import ClientError

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
DEADLINE_S = 30.0
DETAILS_KEY = "grpc-status-details-bin"
ACTOR_KEY = "x-tidemill-actor"
_NOT_REACHED = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
_REPEATABLE = {*_NOT_REACHED, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED}

# Reads change nothing: what was not answered is asked again, four times at most and within the call's deadline.
_REPEATED = {
    "name": [{"service": "tidemill.feature.v1.FeatureService"}],
    "retryPolicy": {
        "maxAttempts": 4,
        "initialBackoff": "0.05s",
        "maxBackoff": "1s",
        "backoffMultiplier": 3,
        "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
    },
}

T = TypeVar("T")


class CallError(ClientError):
    """A service said no, or nothing."""

    def __init__(
        self,
        service: str,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        violations: Sequence[tuple[str, str]] = (),
    ) -> None:
        field = violations[0][0] if violations else ""
        reached = code not in _NOT_REACHED
        super().__init__(f"{service}: {message}", reached=reached, reason=reason, field=field, violations=violations)
        self.service = service
        self.code = code

    @property
    def repeatable(self) -> bool:
        """Whether the same call may succeed a little later."""
        return self.code in _REPEATABLE


@dataclass(frozen=True)
class Tls:
    """Files (PEM) for calls over TLS; certificate and key only where the service asks for them."""

    ca: Path
    certificate: Path | None = None
    key: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Tls | None":
        """Read TIDEMILL_TLS_CA, TIDEMILL_TLS_CERT and TIDEMILL_TLS_KEY; None without the first."""
        paths = [environment.get(f"TIDEMILL_TLS_{name}") for name in ("CA", "CERT", "KEY")]
        ca, certificate, key = (Path(path) if path else None for path in paths)
        return None if ca is None else cls(ca, certificate, key)

    def credentials(self) -> grpc.ChannelCredentials:
        """Return gRPC's form of them. Raises `ClientError` where a file cannot be read."""
        try:
            read = [None if path is None else path.read_bytes() for path in (self.ca, self.key, self.certificate)]
        except OSError as error:
            raise ClientError(f"TIDEMILL_TLS_…: {error.filename}: {error.strerror}", reached=True) from error
        return grpc.ssl_channel_credentials(*read)


def actor(environment: Mapping[str, str] = os.environ) -> str:
    """Return who a change is ascribed to: TIDEMILL_ACTOR, else the user's name."""
    given = environment.get("TIDEMILL_ACTOR") or environment.get("USER")
    if given:
        return given
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user need not be in its passwd file.
        return f"uid {os.getuid()}"


def _metadata(by: str | None) -> list[tuple[str, str]]:
    """Return what a call says of itself. Raises `ClientError` for an actor that gRPC does not carry."""
    if by is None:
        return []
    if not (by.isascii() and by.isprintable()):
        message = f"{by!r} cannot be sent as the actor, which is printable ASCII: set TIDEMILL_ACTOR"
        raise ClientError(message, reached=True, reason="missing_actor", field=ACTOR_KEY)
    return [(ACTOR_KEY, by)]


def channel_options() -> list[tuple[str, Any]]:
    """Return the options of every channel: bounded messages, and reads repeated where they were not answered."""
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.service_config", json.dumps({"methodConfig": [_REPEATED]})),
        # A service that restarts should be found again within a call's deadline.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]


class Connection:
    """A channel to one service; close it, or use it in a `with`."""

    def __init__(self, service: str, address: str, tls: Tls | None = None) -> None:
        self.service = service
        self.address = address
        options = channel_options()
        if tls is None:
            self.channel = grpc.insecure_channel(address, options=options)
        else:
            self.channel = grpc.secure_channel(address, tls.credentials(), options=options)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.channel.close()

    def call(
        self, method: Callable[..., T], request: object, *, by: str | None = None, deadline_s: float = DEADLINE_S
    ) -> T:
        """Return the method's answer; `by` is the actor of a change. Raises `ClientError`, mostly a `CallError`."""
        metadata = _metadata(by)
        try:
            return method(request, metadata=metadata, timeout=deadline_s)
        except grpc.RpcError as error:
            raise translated(self.service, self.address, error) from error


class AsyncConnection:
    """The same for asyncio; open it where the event loop runs, in an `async with`."""

    def __init__(self, service: str, address: str, tls: Tls | None = None) -> None:
        self.service = service
        self.address = address
        options = channel_options()
        if tls is None:
            self.channel = grpc.aio.insecure_channel(address, options=options)
        else:
            self.channel = grpc.aio.secure_channel(address, tls.credentials(), options=options)

    async def __aenter__(self) -> "AsyncConnection":
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.channel.close()

    async def call(self, method: Callable[..., Awaitable[T]], request: object, *, deadline_s: float = DEADLINE_S) -> T:
        """Return the method's answer. Raises `CallError`."""
        try:
            return await method(request, timeout=deadline_s)
        except grpc.aio.AioRpcError as error:
            raise translated(self.service, self.address, error) from error


# What gRPC says of a connection that was refused, and what to do about it.
_REFUSALS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted; let TIDEMILL_TLS_CA name the CA that signed it",
    "is not in peer certificate": "its certificate is made out to another name than the address",
    "WRONG_VERSION_NUMBER": "it does not speak TLS; leave out TIDEMILL_TLS_CA",
    "Socket closed": "it hangs up; where it speaks TLS, set TIDEMILL_TLS_CA, and where it asks for a certificate, "
    "TIDEMILL_TLS_CERT and TIDEMILL_TLS_KEY",
}


def _refusal(said: str) -> str:
    return next((f": {advice}" for sign, advice in _REFUSALS.items() if sign in said), "")


def translated(service: str, address: str, error: Any) -> CallError:
    """Return gRPC's error with what `google.rpc.Status` says of it."""
    status, info, bad = status_pb2.Status(), details.ErrorInfo(), details.BadRequest()
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            status.ParseFromString(value)
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    code = error.code()
    message = error.details() or code.name
    if code is grpc.StatusCode.UNAVAILABLE and not info.reason:
        message = f"not reachable at {address}{_refusal(message)}"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED and not info.reason:
        message = f"no answer from {address} in time"
    violations = [(one.field, one.description) for one in bad.field_violations]
    return CallError(service, code, message, reason=info.reason.lower(), violations=violations)
