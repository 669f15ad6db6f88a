"""Ask each kind of process whether it is ready; every probe answers within its own short deadline."""

import asyncio
import struct
from urllib.parse import unquote, urlsplit

PROBE_DEADLINE_S = 2.0
REPLY_BYTES_MAX = 65_536


async def _exchange(host: str, port: int, request: bytes, *, reply_bytes: int) -> bytes | None:
    """Send a request and return the first bytes of the reply; None when nobody answers in time."""
    try:
        async with asyncio.timeout(PROBE_DEADLINE_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(request)
                await writer.drain()
                return await reader.read(reply_bytes)
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of the first address of a comma-separated list.

    >>> split_address("127.0.0.1:9092,127.0.0.1:9093")
    ('127.0.0.1', 9092)
    """
    host, _, port = address.split(",", maxsplit=1)[0].rpartition(":")
    return host, int(port)


async def http_ready(address: str) -> bool:
    """Say whether GET /ready answers 200."""
    host, port = split_address(address)
    request = f"GET /ready HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode()
    reply = await _exchange(host, port, request, reply_bytes=REPLY_BYTES_MAX)
    return reply is not None and reply.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))


async def redis_answers(url: str) -> bool:
    """Say whether Redis answers PING (it answers an error while it loads its file)."""
    parts = urlsplit(url)
    words = [[b"PING"]]
    if parts.password is not None:
        user = [unquote(parts.username).encode()] if parts.username else []
        words.insert(0, [b"AUTH", *user, unquote(parts.password).encode()])
    request = b"".join(
        b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in command)
        for command in words
    )
    reply = await _exchange(parts.hostname or "localhost", parts.port or 6379, request, reply_bytes=REPLY_BYTES_MAX)
    return reply is not None and reply.endswith(b"+PONG\r\n")


async def postgres_answers(dsn: str) -> bool:
    """Say whether PostgreSQL accepts sessions: it then asks for a password, and reports an error while it starts."""
    parts = urlsplit(dsn)
    body = b"".join(
        word + b"\0"
        for word in (
            b"user",
            unquote(parts.username or "postgres").encode(),
            b"database",
            unquote(parts.path.lstrip("/") or "postgres").encode(),
            b"",
        )
    )
    request = struct.pack("!ii", len(body) + 8, 196_608) + body
    reply = await _exchange(parts.hostname or "localhost", parts.port or 5432, request, reply_bytes=REPLY_BYTES_MAX)
    return reply is not None and reply.startswith(b"R")


async def kafka_answers(bootstrap: str) -> bool:
    """Say whether the broker answers a metadata request with itself registered as a live broker."""
    host, port = split_address(bootstrap)
    # Metadata v1 (api 3), no topics: header (api, version, correlation, client id), then an empty topic array.
    client = b"tidemill"
    header = struct.pack("!hhih", 3, 4, 1, len(client)) + client
    request = header + struct.pack("!ib", 0, 0)
    reply = await _exchange(host, port, struct.pack("!i", len(request)) + request, reply_bytes=REPLY_BYTES_MAX)
    # Size, correlation, throttle time, then the array of live brokers.
    return reply is not None and len(reply) >= 16 and int(struct.unpack_from("!i", reply, 12)[0]) > 0
