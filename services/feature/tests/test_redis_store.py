"""Laws of the conditional flush, on the real Redis."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from tidemill_feature.adapters.redis_store import Move, RedisStore
from tidemill_features.layout import Checkpoint
from tidemill_runtime.positions import Partition

pytestmark = pytest.mark.servers

HERE, THERE = Partition("events.paid", 0), Partition("events.paid", 1)


def point(offset: int) -> Checkpoint:
    return Checkpoint(bytes(16), offset, 0, 0, frozenset())


@pytest.fixture
async def redis(servers: Any) -> AsyncIterator[Any]:
    async with Redis.from_url(servers.redis) as client:
        yield client


@pytest.fixture
async def stores(redis: Any, redis_namespace: str) -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    """Two workers of one group."""
    pair = RedisStore(redis, redis_namespace, "g"), RedisStore(redis, redis_namespace, "g")
    for store in pair:
        await store.watch([HERE, THERE])
    yield pair
    for store in pair:
        await store.close()


async def test_a_flush_writes_shards_and_checkpoints(stores: Any, redis: Any, redis_namespace: str) -> None:
    shard = f"{redis_namespace}:shard".encode()
    assert (
        await stores[0].flush([Move(HERE, None, point(5)), Move(THERE, None, point(7))], {shard: b"one"}.items()) == {}
    )
    assert await stores[0].checkpoints([HERE, THERE]) == {HERE: point(5), THERE: point(7)}
    assert await stores[0].flush([Move(HERE, point(5), point(6))], {shard: b"two"}.items()) == {}
    assert await redis.get(shard) == b"two"


async def test_a_zombie_never_replaces_newer_shards(stores: Any, redis: Any, redis_namespace: str) -> None:
    shard = f"{redis_namespace}:shard".encode()
    worker, zombie = stores
    assert await worker.flush([Move(HERE, None, point(5))], {shard: b"new"}.items()) == {}
    for _ in range(2):
        refused = await zombie.flush([Move(HERE, None, point(3))], {shard: b"old"}.items())
        assert refused == {HERE: point(5)}
    assert await redis.get(shard) == b"new"
    assert await worker.flush([Move(HERE, point(5), point(6))], {shard: b"newer"}.items()) == {}


async def test_one_stale_partition_holds_back_the_whole_flush(stores: Any, redis: Any, redis_namespace: str) -> None:
    shard = f"{redis_namespace}:shard".encode()
    worker, other = stores
    assert await other.flush([Move(THERE, None, point(9))], {}) == {}
    refused = await worker.flush([Move(HERE, None, point(1)), Move(THERE, None, point(1))], {shard: b"x"}.items())
    assert refused == {HERE: None, THERE: point(9)}
    assert await redis.get(shard) is None


async def test_a_flush_whose_answer_was_lost_counts_as_written(stores: Any) -> None:
    store = stores[0]
    moves = [Move(HERE, None, point(5))]
    assert await store.flush(moves, {}) == {}
    await store.close()
    assert await store.flush(moves, {}) == {}


async def test_writes_that_redis_lost_are_noticed(stores: Any, redis: Any, redis_namespace: str) -> None:
    store = stores[0]
    assert await store.flush([Move(HERE, None, point(5))], {}) == {}
    await redis.delete(f"tm1:checkpoint:{{{redis_namespace}:g}}:events.paid:0")
    assert await store.flush([Move(HERE, point(5), point(6))], {}) == {HERE: None}


async def test_nobody_reads_shards_ahead_of_their_checkpoint_while_a_large_flush_is_written(
    stores: Any, redis: Any, redis_namespace: str
) -> None:
    keys = [f"{redis_namespace}:{number}".encode() for number in range(20_000)]
    checkpoint = f"tm1:checkpoint:{{{redis_namespace}:g}}:events.paid:0"
    assert await stores[0].flush([Move(HERE, None, point(5))], dict.fromkeys(keys, b"5").items()) == {}
    flush = asyncio.create_task(stores[0].flush([Move(HERE, point(5), point(6))], dict.fromkeys(keys, b"6").items()))
    seen = []
    while not flush.done():
        first, last, raw = await redis.mget(keys[0], keys[-1], checkpoint)
        seen.append((first, last, Checkpoint.unpack(raw).next_offset))
    assert await flush == {}
    assert set(seen) <= {(b"5", b"5", 5), (b"6", b"6", 6)}
    assert await redis.get(keys[0]) == b"6"
