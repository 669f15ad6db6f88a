"""A primary of a Redis Cluster goes, and its replica takes its place: reads and flushes go on by themselves."""

import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot
from tidemill_feature.adapters.cluster_store import ring_store
from tidemill_feature.adapters.redis_store import Move
from tidemill_features.layout import Checkpoint, checkpoint_key
from tidemill_runtime.errors import Retryable, StateLost
from tidemill_runtime.positions import Partition
from tidemill_runtime.redis_client import redis_client
from tidemill_runtime.settings import RedisSettings
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.redis_cluster import running_cluster

pytestmark = pytest.mark.servers

HERE = Partition("events.paid", 0)


def point(offset: int) -> Checkpoint:
    return Checkpoint(bytes(16), offset, 0, 0, frozenset())


def shard(offset: int) -> bytes:
    """A shard's header, with the offset in its place."""
    return b"TMRG\1\0\0\0" + bytes(16) + struct.pack("<qqqqq", 0, offset, 0, 0, 0)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Any]:
    """Three primaries, each with a replica; of a test's own, since it changes who is who."""
    with running_cluster(tmp_path, replicated=True) as nodes:
        yield nodes


@pytest.fixture
def keys(redis_namespace: str) -> list[bytes]:
    """Keys of shards on all nodes."""
    return [b"tm1:{%s:view:%d}:60:0" % (redis_namespace.encode(), n) for n in range(60)]


@pytest.fixture
async def store(cluster: Any, redis_namespace: str) -> AsyncIterator[Any]:
    async with redis_client(RedisSettings(url=cluster.url, cluster=True, timeout_s=1)) as client:
        found = ring_store(client, redis_namespace, "g")
        await found.watch([HERE])
        yield found
        await found.close()


async def written(store: Any, moves: list[Move], shards: dict[bytes, bytes]) -> bool:
    """Say whether a flush was written; one that meets an outage was not."""
    try:
        return bool(await store.flush(moves, shards.items()) == {})
    except Retryable:
        return False


@pytest.mark.parametrize("with_checkpoints", [True, False])
async def test_shards_are_read_and_written_on_where_a_replica_took_over(
    store: Any, cluster: Any, keys: list[bytes], redis_namespace: str, with_checkpoints: bool
) -> None:
    home = key_slot(checkpoint_key(redis_namespace, "g", *HERE)) * 3 // 16_384
    number = home if with_checkpoints else (home + 1) % 3
    assert await store.flush([Move(HERE, None, point(5))], {key: shard(5) for key in keys}.items()) == {}
    cluster.replicated(number)
    cluster.nodes[number].kill()

    async def read() -> bool:
        try:
            return bool(await store.shards(keys) == [shard(5)] * len(keys))
        except Retryable:
            return False

    await aeventually(read, claim="every shard is read from where it is now")
    moves, shards = [Move(HERE, point(5), point(6))], {key: shard(6) for key in keys}
    await aeventually(lambda: written(store, moves, shards), claim="the next flush is written, and nothing was lost")
    assert await store.shards(keys) == [shard(6)] * len(keys)
    assert await store.watch([HERE]) == {HERE: point(6)}


async def test_a_service_starts_where_the_first_node_of_its_url_is_gone(world: Any, cluster: Any) -> None:
    cluster.nodes[0].kill()
    survivor = cluster.nodes[1].client()
    await aeventually(
        lambda: survivor.cluster("info")["cluster_state"] == "ok", claim="its replica has taken its place"
    )
    await world.register(world.busy)
    feature = await world.start(REDIS__URL=cluster.whole_url, REDIS__CLUSTER="true")
    fields = {"payment": "1", "payer": "ann", "amount": 1.0, "items": 2}
    await world.pay([{"at_us": world.noon_us, "partition": 1, "id": "1", "fields": fields}])
    await feature.reached(await world.ends())
    assert await feature.get("busy", [2], world.noon_us) == [world.log.features(world.busy, 2, world.noon_us)]
    assert await feature.stop() == 0


async def test_a_replica_that_took_over_without_the_writes_is_noticed_and_the_log_is_read_again(
    store: Any, cluster: Any, keys: list[bytes]
) -> None:
    assert await store.flush([Move(HERE, None, point(5))], {key: shard(5) for key in keys}.items()) == {}
    primary, replica = cluster.nodes[1], cluster.replicas[1]
    replica.kill()
    primary.kill()
    replica.start()

    async def noticed() -> bool:
        try:
            # Where the checkpoints lay on the node itself, they are what is not as it should be.
            return bool(await store.flush([Move(HERE, point(5), point(6))], {}) == {HERE: None})
        except StateLost:
            return True
        except Retryable:
            return False

    await aeventually(noticed, claim="the successor has lost writes, and it is noticed")
    assert await store.watch([HERE]) == {HERE: None}
    assert await written(store, [Move(HERE, None, point(6))], {key: shard(6) for key in keys})
    assert await store.shards(keys) == [shard(6)] * len(keys)
