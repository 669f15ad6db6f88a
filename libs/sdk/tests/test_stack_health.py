"""Probes tell a live server from a dead port, a silent one and one that is still starting."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from tidemill.stack import health


@asynccontextmanager
async def replying(reply: bytes | None) -> AsyncIterator[str]:
    """A TCP server that answers every request with the same bytes, or never."""
    release = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        if reply is None:
            await release.wait()
        else:
            writer.write(reply)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"{host}:{port}"
    finally:
        release.set()
        server.close()


PROBES: dict[str, Callable[[str], Awaitable[bool]]] = {
    "http": health.http_ready,
    "redis": lambda address: health.redis_answers(f"redis://:p@{address}/0"),
    "postgres": lambda address: health.postgres_answers(f"postgresql://u:p@{address}/d"),
    "kafka": health.kafka_answers,
}


@pytest.mark.parametrize("kind", PROBES)
async def test_a_dead_port_is_not_ready(kind: str) -> None:
    async with replying(b"") as address:
        pass
    assert not await PROBES[kind](address)


@pytest.mark.parametrize("kind", PROBES)
async def test_a_silent_server_is_not_ready_and_does_not_hold_the_probe(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_DEADLINE_S", 0.05)
    async with replying(None) as address:
        assert not await PROBES[kind](address)


@pytest.mark.parametrize(
    ("kind", "reply", "expected"),
    [
        ("http", b"HTTP/1.1 200 OK\r\n\r\n", True),
        ("http", b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        ("redis", b"+OK\r\n+PONG\r\n", True),
        ("redis", b"-LOADING Redis is loading the dataset in memory\r\n", False),
        ("redis", b"-WRONGPASS\r\n-NOAUTH Authentication required.\r\n", False),
        ("postgres", b"R\x00\x00\x00\x17\x00\x00\x00\x0a", True),
        ("postgres", b"E\x00\x00\x00\x0cSFATAL\x00", False),
        ("kafka", b"\x00\x00\x00\x10" + b"\x00\x00\x00\x01" + b"\x00" * 4 + b"\x00\x00\x00\x01", True),
        ("kafka", b"\x00\x00\x00\x10" + b"\x00\x00\x00\x01" + b"\x00" * 4 + b"\x00\x00\x00\x00", False),
    ],
)
async def test_a_reply_is_understood(kind: str, reply: bytes, *, expected: bool) -> None:
    async with replying(reply) as address:
        assert await PROBES[kind](address) is expected
