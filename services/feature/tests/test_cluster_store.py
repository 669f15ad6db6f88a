"""Laws of flushes and reads on a real Redis Cluster of three nodes: what one Redis guarantees holds there too."""

import asyncio
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.crc import key_slot
from redis.exceptions import MovedError
from tidemill_feature.adapters.cluster_store import ClusterStore, ring_store
from tidemill_feature.adapters.redis_store import Move
from tidemill_feature.adapters.view_book import ViewBook
from tidemill_features.layout import Checkpoint
from tidemill_runtime.errors import Retryable, StateLost
from tidemill_runtime.positions import Partition
from tidemill_runtime.redis_client import redis_client
from tidemill_runtime.redis_reads import fetch_many
from tidemill_runtime.settings import RedisSettings
from tidemill_testkit.eventually import aeventually

pytestmark = pytest.mark.servers

HERE, THERE = Partition("events.paid", 0), Partition("events.paid", 1)
MIGRATE_MS = 10_000
TOPIC, OTHER_TOPIC = bytes(16), b"\1" * 16


def point(offset: int, topic: bytes = TOPIC) -> Checkpoint:
    return Checkpoint(topic, offset, 0, 0, frozenset())


def shard(offset: int, body: bytes = b"", topic: bytes = TOPIC) -> bytes:
    """A shard's header, with the offset in its place."""
    return b"TMRG\1\0\0\0" + topic + struct.pack("<qqqqq", 0, offset, 0, 0, 0) + body


@pytest.fixture
async def cluster(redis_cluster: Any) -> AsyncIterator[Any]:
    redis_cluster.settled()
    async with redis_client(RedisSettings(url=redis_cluster.url, cluster=True, timeout_s=2)) as client:
        yield client


@pytest.fixture
async def keys(redis_namespace: str) -> list[bytes]:
    """Keys of shards on all nodes; two of each entity, which share a slot."""
    found = [b"tm1:{%s:view:%d}:60:%d" % (redis_namespace.encode(), n // 2, n % 2) for n in range(120)]
    assert {key_slot(key) * 3 // 16_384 for key in found} == {0, 1, 2}
    return found


@pytest.fixture
async def stores(cluster: Any, redis_namespace: str) -> AsyncIterator[tuple[Any, Any]]:
    """Two workers of one group."""
    pair = ring_store(cluster, redis_namespace, "g"), ring_store(cluster, redis_namespace, "g")
    for store in pair:
        assert isinstance(store, ClusterStore)
        await store.watch([HERE, THERE])
    yield pair
    for store in pair:
        await store.close()


async def test_a_flush_writes_shards_on_all_nodes_and_checkpoints(stores: Any, keys: list[bytes]) -> None:
    first = {key: shard(5, key) for key in keys}
    assert await stores[0].flush([Move(HERE, None, point(5)), Move(THERE, None, point(7))], first.items()) == {}
    assert await stores[0].checkpoints([HERE, THERE]) == {HERE: point(5), THERE: point(7)}
    assert await stores[0].shards(keys) == [first[key] for key in keys]
    second = {key: shard(6, b"longer" + key) for key in keys}
    assert await stores[0].flush([Move(HERE, point(5), point(6))], second.items()) == {}
    assert await stores[0].shards([*keys, b"none"]) == [*(second[key] for key in keys), None]


async def test_a_shard_stays_without_an_expiry_and_nothing_is_left_aside(
    stores: Any, cluster: Any, keys: list[bytes], redis_namespace: str
) -> None:
    await stores[0].flush([Move(HERE, None, point(5))], {key: shard(5) for key in keys}.items())
    assert {await cluster.ttl(key) for key in keys} == {-1}
    aside = [key async for key in cluster.scan_iter(match=f"tm1:{{{redis_namespace}:view:*") if key not in keys]
    assert aside == []


async def test_a_zombie_never_replaces_newer_shards(stores: Any, keys: list[bytes]) -> None:
    worker, zombie = stores
    newer = {key: shard(5, b"new") for key in keys}
    assert await worker.flush([Move(HERE, None, point(5))], newer.items()) == {}
    for _ in range(2):
        assert await zombie.flush([Move(HERE, None, point(3))], {key: shard(3, b"old") for key in keys}.items()) == {
            HERE: point(5)
        }
    assert await worker.shards(keys) == [newer[key] for key in keys]
    newest = {key: shard(6, b"newer") for key in keys}
    assert await worker.flush([Move(HERE, point(5), point(6))], newest.items()) == {}
    assert await worker.shards(keys) == [newest[key] for key in keys]


async def test_offsets_are_compared_as_numbers(stores: Any, keys: list[bytes]) -> None:
    offsets = [1, 255, 256, 257, 65_535, 65_536, 2**40, 2**40 + 1]
    held = None
    for offset in offsets:
        assert await stores[0].flush([Move(HERE, held, point(offset))], {keys[0]: shard(offset)}.items()) == {}
        held = point(offset)
        assert await stores[0].shards(keys[:1]) == [shard(offset)]
    for offset in offsets[:-1]:
        await stores[0].flush([Move(THERE, None, None)], {keys[0]: shard(offset)}.items())
        assert await stores[0].shards(keys[:1]) == [shard(offsets[-1])]


async def test_a_shard_of_another_log_gives_way(stores: Any, keys: list[bytes]) -> None:
    await stores[0].flush([Move(HERE, None, point(9))], {keys[0]: shard(9)}.items())
    anew = shard(2, topic=OTHER_TOPIC)
    await stores[0].flush([Move(HERE, point(9), point(2, OTHER_TOPIC))], {keys[0]: anew}.items())
    assert await stores[0].shards(keys[:1]) == [anew]


async def test_a_flush_whose_answer_was_lost_counts_as_written(stores: Any, keys: list[bytes]) -> None:
    store = stores[0]
    moves, shards = [Move(HERE, None, point(5))], {key: shard(5) for key in keys}.items()
    assert await store.flush(moves, shards) == {}
    await store.close()
    assert await store.flush(moves, shards) == {}


async def test_a_flush_cut_short_leaves_shards_ahead_of_their_checkpoint_and_is_repeated(
    stores: Any, keys: list[bytes]
) -> None:
    store, other = stores
    # All nodes have taken theirs, and the checkpoint was not written.
    for name, lane in store._lanes.items():
        mine = {key: shard(5) for key in keys if store._node(key).name == name}
        await lane.write(mine, {HERE: point(5)})
    assert await other.watch([HERE, THERE]) == {HERE: None, THERE: None}
    assert await other.flush([Move(HERE, None, point(4))], {key: shard(4) for key in keys}.items()) == {}
    assert await other.shards(keys) == [shard(5)] * len(keys)
    assert await other.flush([Move(HERE, point(4), point(6))], {key: shard(6) for key in keys}.items()) == {}
    assert await other.shards(keys) == [shard(6)] * len(keys)


@pytest.mark.parametrize("number", range(3))
async def test_a_node_that_lost_its_data_sets_the_checkpoints_back(
    stores: Any, keys: list[bytes], redis_cluster: Any, number: int
) -> None:
    store = stores[0]
    before = {key: shard(5) for key in keys}
    assert await store.flush([Move(HERE, None, point(5)), Move(THERE, None, point(7))], before.items()) == {}
    run_id = await store.run_id()
    node = redis_cluster.nodes[number]
    node.kill()
    node.start()
    redis_cluster.settled()

    async def noticed() -> bool:
        try:
            found = await store.flush([Move(THERE, point(7), point(8))], {})
        except StateLost:
            return True
        except Retryable:
            return False
        # The checkpoints lay on the node itself.
        assert found == {THERE: None}
        return True

    await aeventually(noticed, claim="a node has lost writes, and it is noticed")
    assert await store.run_id() != run_id
    assert await store.watch([HERE, THERE]) == {HERE: None, THERE: None}
    assert await store.checkpoints([HERE, THERE]) == {HERE: None, THERE: None}
    after = {key: shard(6) for key in keys}
    assert await store.flush([Move(HERE, None, point(6)), Move(THERE, None, point(8))], after.items()) == {}
    assert await store.shards(keys) == [shard(6)] * len(keys)
    assert await store.watch([HERE, THERE]) == {HERE: point(6), THERE: point(8)}


async def test_more_reads_at_once_than_there_are_connections_are_all_answered(cluster: Any, keys: list[bytes]) -> None:
    for key in keys:
        await cluster.set(key, key)
    found = await asyncio.gather(*(fetch_many(cluster, keys[n : n + 20]) for n in range(100) for _ in range(2)))
    assert found == [keys[n : n + 20] for n in range(100) for _ in range(2)]


async def test_keys_are_found_while_their_slot_moves(cluster: Any, keys: list[bytes], redis_cluster: Any) -> None:
    for key in keys:
        await cluster.set(key, key)
    slot = key_slot(keys[0])
    first, *others = [key for key in keys if key_slot(key) == slot]
    source = redis_cluster.owner(slot)
    target = next(node for node in redis_cluster.nodes if node is not source)
    holding, taking = source.client(), target.client()
    taking.cluster("setslot", slot, "importing", holding.cluster("myid").decode())
    holding.cluster("setslot", slot, "migrating", taking.cluster("myid").decode())
    try:
        holding.execute_command("MIGRATE", "127.0.0.1", target.port, first, 0, MIGRATE_MS)
        # One key of the slot is here and one there: an MGET of both is refused, by whichever node.
        assert await fetch_many(cluster, keys) == keys
        for key in others:
            holding.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, MIGRATE_MS)
        assert await fetch_many(cluster, keys) == keys
        redis_cluster.give(slot, target)
        with pytest.raises(MovedError):
            holding.get(first)
        assert await fetch_many(cluster, keys) == keys
    finally:
        taking.delete(first, *others)
        redis_cluster.give(slot, source)
        redis_cluster.settled()


async def test_who_begins_while_the_node_that_it_knows_is_away_waits_for_it(
    redis_cluster: Any, redis_namespace: str
) -> None:
    node = redis_cluster.nodes[0]
    node.kill()
    try:
        async with redis_client(RedisSettings(url=redis_cluster.url, cluster=True, timeout_s=2)) as client:
            store, book = ring_store(client, redis_namespace, "g"), ViewBook(client, redis_namespace, "g")
            for asked in (lambda: store.watch([HERE]), store.run_id, book.read):
                with pytest.raises(Retryable):
                    await asked()
            node.start()
            redis_cluster.settled()
            assert await store.watch([HERE]) == {HERE: None}
            assert not (await book.read()).versions
            await store.close()
    finally:
        node.start()
        redis_cluster.settled()
