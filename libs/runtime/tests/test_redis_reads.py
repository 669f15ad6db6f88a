"""Laws of reads over a line to a real Redis, which ends, freezes and comes back."""

import asyncio
import importlib
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisDownError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisSlowError
from tidemill_runtime.redis_client import packed, redis_client
from tidemill_runtime.redis_lines import Line
from tidemill_runtime.redis_reads import fetch_many
from tidemill_runtime.settings import RedisSettings
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.orphans import dying_with_us
from tidemill_testkit.ports import free_address

pytestmark = pytest.mark.servers

FOUND_S = 10.0
TIMEOUT_S = 1.0
KEYS = [b"key:%d" % number for number in range(5_000)]


def value(key: bytes) -> bytes | None:
    """Every third key has none; the others differ in length by four powers of ten."""
    number = int(key.split(b":")[1])
    return None if number % 3 == 0 else key * 10 ** (number % 4)


class OwnRedis:
    """One server; killed it has lost its data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_address().rpartition(":")[2]
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        server = importlib.import_module("tidemill.stack.wheels").redis_server()
        command = [str(server), "--port", self._port, "--save", "", "--dir", str(self._folder)]
        with (self._folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(dying_with_us(command), stdout=log, stderr=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(FOUND_S)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnRedis]:
    own = OwnRedis(tmp_path)
    own.start()
    yield own
    own.kill()


@pytest.fixture
async def redis(server: OwnRedis) -> AsyncIterator[Any]:
    async with redis_client(RedisSettings(url=server.url, timeout_s=TIMEOUT_S)) as client:
        await aeventually(lambda: answers(client), FOUND_S, claim="Redis answers")
        await client.mset({key: held for key in KEYS if (held := value(key)) is not None})
        yield client


async def answers(redis: Any) -> bool:
    try:
        return await fetch_many(redis, [b"none"]) == [None]
    except RedisDownError:
        return False


async def test_every_caller_of_many_at_once_has_its_own_values_over_one_connection(redis: Any) -> None:
    asked = [KEYS[first :: number + 1] for number, first in enumerate(range(0, 120, 3))]
    found = await asyncio.gather(*(fetch_many(redis, keys) for keys in asked))
    assert found == [[value(key) for key in keys] for keys in asked]
    assert len([one for one in await redis.client_list() if one["cmd"] == "mget"]) == 1


async def test_a_read_of_any_length_is_of_one_instant_where_every_write_moves_a_stamp(redis: Any) -> None:
    stamp, ended = b"stamp:0", asyncio.Event()
    written = [KEYS[0], KEYS[2_400], KEYS[-1], stamp]

    async def write() -> None:
        for number in count():
            if ended.is_set():
                return
            await redis.mset(dict.fromkeys(written, number))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write())
        try:
            await aeventually(lambda: redis.exists(stamp), FOUND_S, claim="the first write is there")
            # The stamp twice, as two reads in one ask for it, and short reads on the line in between.
            asked = [[*KEYS[:2_500], stamp, *KEYS[2_500:], stamp], KEYS[1:41], [*written, b"none"]]
            many = asked * 20
            found = await asyncio.gather(*(fetch_many(redis, keys, stamps=b"stamp:") for keys in many))
        finally:
            ended.set()
    said = [dict(zip(keys, values, strict=True)) for keys, values in zip(many, found, strict=True)]
    assert {len({read[key] for key in written}) for read in said[::3]} == {1}
    assert len({read[stamp] for read in said[::3]}) > 1, "what is read is written meanwhile"
    assert all(read[key] == value(key) for read in said for key in read if key not in [*written, b"none"])


async def test_a_caller_who_gives_up_leaves_the_others_their_answers(redis: Any) -> None:
    tasks = [asyncio.ensure_future(fetch_many(redis, KEYS[number : number + 50])) for number in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in found[::2])
    assert found[1::2] == [[value(key) for key in KEYS[number : number + 50]] for number in range(1, 20, 2)]


async def test_an_answer_that_is_an_error_is_that_of_its_command_alone(redis: Any) -> None:
    line = Line(await redis.connection_pool.get_connection())
    first, second, third = await line.ask([packed(("GET", KEYS[1])), packed(("LPUSH", KEYS[1], 1)), packed(("PING",))])
    assert (first, third) == (value(KEYS[1]), b"PONG")
    assert isinstance(second, ResponseError)
    assert line.lost is None


async def test_a_server_that_was_started_again_is_read_at_once(redis: Any, server: OwnRedis) -> None:
    assert await fetch_many(redis, KEYS[:5]) == [value(key) for key in KEYS[:5]]
    server.kill()
    for _ in range(3):
        with pytest.raises(RedisDownError):
            await asyncio.gather(*(fetch_many(redis, KEYS[:5]) for _ in range(8)))
    server.start()
    await aeventually(lambda: answers(redis), FOUND_S, claim="Redis answers again")
    assert await fetch_many(redis, KEYS[:5]) == [None] * 5


async def test_a_server_that_freezes_is_given_up_in_time_and_read_once_it_moves(redis: Any, server: OwnRedis) -> None:
    assert await answers(redis)
    server.process.send_signal(signal.SIGSTOP)
    try:
        async with asyncio.timeout(FOUND_S):
            found = await asyncio.gather(*(fetch_many(redis, KEYS[:5]) for _ in range(8)), return_exceptions=True)
        assert [type(one) for one in found] == [RedisSlowError] * 8
    finally:
        server.process.send_signal(signal.SIGCONT)
    assert await fetch_many(redis, KEYS[:5]) == [value(key) for key in KEYS[:5]]


async def test_a_client_that_closes_closes_its_line(redis: Any, server: OwnRedis) -> None:
    async with redis_client(RedisSettings(url=server.url, timeout_s=TIMEOUT_S)) as other:
        assert await answers(other)
        assert len(await redis.client_list()) == 3, "two clients' lines, and the connection that asks"
    await aeventually(lambda: alone(redis), FOUND_S, claim="the other client's line is closed")


async def alone(redis: Any) -> bool:
    return len(await redis.client_list()) == 2
