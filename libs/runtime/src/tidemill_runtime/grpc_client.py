"""Channels to peers: TLS, bounded messages, a deadline on every call, retries of what is safe to repeat."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from tidemill_runtime.actor import ACTOR_KEY
from tidemill_runtime.settings import GrpcSettings


class _Defaults(grpc.aio.UnaryUnaryClientInterceptor):
    """Gives a deadline to calls without one, and says who calls."""

    def __init__(self, deadline_s: float, actor: str) -> None:
        self._deadline_s = deadline_s
        self._actor = actor

    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        metadata = client_call_details.metadata or grpc.aio.Metadata()
        if self._actor and metadata.get(ACTOR_KEY) is None:
            metadata.add(ACTOR_KEY, self._actor)
        details = grpc.aio.ClientCallDetails(
            method=client_call_details.method,
            timeout=client_call_details.timeout or self._deadline_s,
            metadata=metadata,
            credentials=client_call_details.credentials,
            wait_for_ready=client_call_details.wait_for_ready,
        )
        return await continuation(details, request)


def channel(
    address: str, settings: GrpcSettings, *, actor: str = "", idempotent: Sequence[str] = ()
) -> grpc.aio.Channel:
    """Return a channel, to be used as an async context manager; it connects at the first call.

    `idempotent`: full service names (`tidemill.feature.v1.FeatureService`) or `service/Method` whose calls are repeated
    on UNAVAILABLE; nothing else is. `actor`: sent with every unary call.
    """
    size = settings.max_message_bytes
    options = [
        ("grpc.max_receive_message_length", size),
        ("grpc.max_send_message_length", size),
        ("grpc.service_config", json.dumps(_service_config(idempotent))),
        # A peer that restarts should be found again at once.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    interceptors = [_Defaults(settings.default_deadline_s, actor)]
    if not settings.peer_tls:
        return grpc.aio.insecure_channel(address, options=options, interceptors=interceptors)
    return grpc.aio.secure_channel(address, _credentials(settings), options=options, interceptors=interceptors)


def _credentials(settings: GrpcSettings) -> grpc.ChannelCredentials:
    ca, key, cert = (
        Path(path).read_bytes() if path else None for path in (settings.tls_ca, settings.tls_key, settings.tls_cert)
    )
    return grpc.ssl_channel_credentials(ca, key, cert)


def _service_config(idempotent: Sequence[str]) -> dict[str, Any]:
    names = [
        {"service": service, "method": method} if method else {"service": service}
        for service, _, method in (name.partition("/") for name in idempotent)
    ]
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.05s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    return {"methodConfig": [{"name": names, "retryPolicy": retry}]} if names else {}
