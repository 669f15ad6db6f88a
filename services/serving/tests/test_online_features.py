"""Feature reads of serving on the real Redis, and on a real Redis Cluster of three nodes."""

import asyncio
from itertools import count
from typing import Any

import pytest
from tidemill_features.layout import checkpoint_key
from tidemill_runtime.errors import Retryable
from tidemill_runtime.redis_client import redis_client
from tidemill_runtime.settings import RedisSettings
from tidemill_serving.adapters.online_features import OnlineFeatures

pytestmark = pytest.mark.servers


async def test_shards_of_a_batch_of_any_size_are_those_of_the_moment_of_its_checkpoints(
    servers: Any, redis_namespace: str
) -> None:
    shards = [b"tm1:{%s:view:%d}:60:0" % (redis_namespace.encode(), n) for n in range(5_000)]
    checkpoint = checkpoint_key(redis_namespace, "g", "events.paid", 0)
    # Two reads of a micro-batch, each with its checkpoint.
    keys = [*shards[:2_500], checkpoint, *shards[2_500:], checkpoint]
    written = {shards[0], shards[2_400], shards[-1], checkpoint}
    ended = asyncio.Event()

    async def flush(redis: Any) -> None:
        for offset in count():
            if ended.is_set():
                return
            await redis.mset(dict.fromkeys(written, offset))

    async with redis_client(RedisSettings(url=servers.redis)) as redis, asyncio.TaskGroup() as tasks:
        tasks.create_task(flush(redis))
        try:
            found = [await OnlineFeatures(redis, 2).fetch(keys) for _ in range(40)]
        finally:
            ended.set()
    moments = [{value for key, value in zip(keys, values, strict=True) if key in written} for values in found]
    assert [len(one) for one in moments] == [1] * 40
    assert len(set(map(frozenset, moments))) > 10, "it is written meanwhile"


async def test_keys_on_all_nodes_of_a_cluster_come_in_the_order_asked(redis_cluster: Any, redis_namespace: str) -> None:
    keys = [b"tm1:{%s:%d}:60:%d" % (redis_namespace.encode(), n // 2, n % 2) for n in range(60)]
    async with redis_client(RedisSettings(url=redis_cluster.url, cluster=True)) as redis:
        for key in keys[::3]:
            await redis.set(key, key)
        found = await OnlineFeatures(redis, 2).fetch(keys)
    assert found == [key if n % 3 == 0 else None for n, key in enumerate(keys)]


async def test_a_node_that_is_away_is_an_outage_and_no_longer_when_it_is_back(
    redis_cluster: Any, redis_namespace: str
) -> None:
    keys = [b"tm1:{%s:%d}:60:0" % (redis_namespace.encode(), n) for n in range(60)]
    async with redis_client(RedisSettings(url=redis_cluster.url, cluster=True, timeout_s=1)) as redis:
        features = OnlineFeatures(redis, 3)
        assert await features.fetch(keys) == [None] * 60
        node = redis_cluster.nodes[1]
        node.kill()
        try:
            with pytest.raises(Retryable):
                await features.fetch(keys)
        finally:
            node.start()
            redis_cluster.settled()
        assert await features.fetch(keys) == [None] * 60
