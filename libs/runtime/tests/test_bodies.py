"""Bodies of HTTP requests, over real connections on the loopback: bounded each, together, and in time."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI, Request
from tidemill_runtime.bodies import BoundedBodies, Room
from tidemill_runtime.errors import Overloaded
from tidemill_runtime.health import Health
from tidemill_runtime.http_server import HttpServer
from tidemill_runtime.lifecycle import running
from tidemill_runtime.problems import install_problems
from tidemill_runtime.settings import HttpSettings

SIZE = 50_000


@asynccontextmanager
async def echo(**bounds: Any) -> AsyncIterator[tuple[int, list[int]]]:
    """Serve an application that takes bodies, and lend its port and the lengths of what it was given."""
    app, seen = FastAPI(), list[int]()
    install_problems(app)
    app.add_middleware(BoundedBodies, max_bytes=SIZE, **bounds)

    @app.post("/size")
    async def size(request: Request) -> int:
        seen.append(len(await request.body()))
        return seen[-1]

    async with running(HttpServer(HttpSettings(), Health(), app)) as server:
        yield server.port, seen


async def post(port: int, body: bytes, missing: int = 0) -> bytes:
    """Send a body of which so many bytes never come, and return what is answered until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /size HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body) + missing}\r\n"
    writer.write((head + ("" if missing else "connection: close\r\n") + "\r\n").encode() + body)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_unfinished_bodies_are_bounded_together_and_given_up_once_nothing_of_them_comes() -> None:
    async with echo(max_held_bytes=2 * SIZE + 10, idle_s=2.0) as (port, seen), asyncio.timeout(60):
        answers = await asyncio.gather(*(post(port, b" " * (SIZE - 1), 1) for _ in range(10)))
        told = Counter(answer.split(b" ", 2)[1] for answer in answers)
        assert set(told) == {b"429", b"504"}
        assert told[b"504"] <= 2
        assert b"retry-after" in next(answer for answer in answers if b" 429 " in answer).lower()
        assert seen == []
        assert b" 200 " in await post(port, b" " * SIZE)


async def test_a_body_is_bounded_by_itself_whatever_room_there_is() -> None:
    async with echo(max_held_bytes=10, idle_s=60.0) as (port, seen), asyncio.timeout(60):
        # One alone has room.
        assert b" 200 " in await post(port, b" " * SIZE)
        assert b'"reason":"oversized"' in await post(port, b" " * (SIZE + 1))
        assert seen == [SIZE]


async def test_a_body_that_breaks_off_reaches_no_application_and_leaves_its_room() -> None:
    async with echo(max_held_bytes=SIZE, idle_s=60.0) as (port, seen), asyncio.timeout(60):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /size HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % SIZE + b" " * (SIZE - 1))
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        while b" 200 " not in await post(port, b" " * SIZE):
            assert seen == []
        assert seen == [SIZE]


async def test_room_is_given_back_and_waited_for() -> None:
    room = Room(10)
    with room.hold() as first:
        first.add(8)
        with room.hold() as second, pytest.raises(Overloaded):
            second.add(3)
        assert room.held_bytes == 8
        waiting = asyncio.create_task(room.free(3))
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
    assert room.held_bytes == 0
