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
    assert await stores[0].flush([Move(HERE, None, point(5)), Move(THERE, None, point(7))], {shard: b"one"}) == {}
    assert await stores[0].checkpoints([HERE, THERE]) == {HERE: point(5), THERE: point(7)}
    assert await stores[0].flush([Move(HERE, point(5), point(6))], {shard: b"two"}) == {}
    assert await redis.get(shard) == b"two"


async def test_a_zombie_never_replaces_newer_shards(stores: Any, redis: Any, redis_namespace: str) -> None:
    shard = f"{redis_namespace}:shard".encode()
    worker, zombie = stores
    assert await worker.flush([Move(HERE, None, point(5))], {shard: b"new"}) == {}
    for _ in range(2):
        refused = await zombie.flush([Move(HERE, None, point(3))], {shard: b"old"})
        assert refused == {HERE: point(5)}
    assert await redis.get(shard) == b"new"
    assert await worker.flush([Move(HERE, point(5), point(6))], {shard: b"newer"}) == {}


async def test_one_stale_partition_holds_back_the_whole_flush(stores: Any, redis: Any, redis_namespace: str) -> None:
    shard = f"{redis_namespace}:shard".encode()
    worker, other = stores
    assert await other.flush([Move(THERE, None, point(9))], {}) == {}
    refused = await worker.flush([Move(HERE, None, point(1)), Move(THERE, None, point(1))], {shard: b"x"})
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


async def test_a_large_flush_is_written_in_parts_as_long_as_nobody_moves_a_checkpoint(
    stores: Any, redis: Any, redis_namespace: str
) -> None:
    worker, other = stores
    keys = [f"{redis_namespace}:{number}".encode() for number in range(12_345)]
    shards = dict.fromkeys(keys, b"one")
    assert await worker.flush([Move(HERE, None, point(5))], shards) == {}
    assert await redis.mget(keys) == list(shards.values())
    # Both believe that the rings are at 5 by now; whoever comes between the other's parts ends them.
    await other.watch([HERE, THERE])
    moves = [Move(HERE, point(5), point(6))], [Move(HERE, point(5), point(7))]
    large, small = await asyncio.gather(
        worker.flush(moves[0], dict.fromkeys(keys, b"two")), other.flush(moves[1], {keys[-1]: b"small"})
    )
    assert (large, small) in [({}, {HERE: point(6)}), ({HERE: point(7)}, {})]
    assert await redis.get(keys[-1]) == (b"small" if large else b"two")
