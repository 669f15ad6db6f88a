"""What is built from the first event on, on the real Redis, alone and as a cluster."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_feature.adapters.building_site import Job, Lot, Site
from tidemill_feature.adapters.cluster_store import ring_store
from tidemill_feature.adapters.redis_store import RedisStore
from tidemill_feature.building import Found
from tidemill_feature.decode import StreamDecoder
from tidemill_feature.replaying import Chunk, Replay
from tidemill_features.columns import column_of
from tidemill_features.fold import ViewShards
from tidemill_features.layout import EMPTY, Checkpoint, build_id
from tidemill_features.plan import compile_view
from tidemill_features.reader import Lookup, Reader
from tidemill_runtime.errors import Retryable
from tidemill_runtime.positions import Partition
from tidemill_runtime.redis_client import redis_client
from tidemill_runtime.redis_reads import fetch_many
from tidemill_runtime.settings import RedisSettings

pytestmark = pytest.mark.servers

HERE, TOPIC_ID = Partition("events.paid", 0), bytes(range(16))
PAYERS = [f"payer-{number}" for number in range(10)]
STREAM = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="payer", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="payer",
    time_field="at",
    partitions=1,
    dedup_window_ms=60_000,
)
VIEW = definition.View(
    name="payer",
    stream="paid",
    entity=["payer"],
    features=[
        definition.Aggregation(
            name="count",
            function=definition.AGGREGATION_FUNCTION_COUNT,
            window_ms=60_000,
            type=definition.FIELD_TYPE_INT64,
        )
    ],
)
PLAN = compile_view(VIEW, STREAM)


@pytest.fixture(params=["alone", "cluster"])
async def redis(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    clustered = request.param == "cluster"
    if clustered:
        nodes = request.getfixturevalue("redis_cluster")
        nodes.settled()
    url = nodes.url if clustered else request.getfixturevalue("servers").redis
    async with redis_client(RedisSettings(url=url, cluster=clustered, timeout_s=2)) as client:
        yield client


async def site(store: RedisStore, project: str, capacity: int) -> Site:
    """Return a site of one partition that begins with the first event, as a worker does."""
    held = (await store.watch([HERE]))[HERE]
    builds = frozenset([build_id(PLAN.hash)])
    views = [ViewShards(PLAN, project, capacity)]
    replay = Replay(HERE, StreamDecoder(STREAM), views, Checkpoint(TOPIC_ID, 0, 0, EMPTY, builds, 1), builds)
    job = Job(HERE, STREAM, Found(None, None, TOPIC_ID, 1, 0, 30), builds, lambda: 30)
    return await Site.claimed(store, {HERE: Lot(job, replay, held, 0)}, asyncio.Lock())


async def build(one: Site, end: int, begin: int = 0) -> None:
    """Fold events of every payer in turn, a piece at a time, and write."""
    for first in range(begin, end, 5):
        offsets = np.arange(first, first + 5)
        names = [PAYERS[number % 10] for number in offsets.tolist()]
        columns = {"payer": column_of(names, definition.FIELD_TYPE_STRING)}
        identities = [str(number) for number in offsets.tolist()]
        await one.fold([(one.lots[HERE], Chunk(offsets, offsets * 1_000_000, identities, columns, first + 5))])
    await one.flush()


async def counts(redis: Any, project: str) -> list[Any]:
    """Return what is read of every payer after the last event."""
    reader = Reader([PLAN], project=project, group=project)
    request = reader.request([Lookup("payer", [(payer,) for payer in PAYERS])])
    raws = await fetch_many(redis, request.keys)
    return [int(one) for one in reader.values(request, raws, 50_000_000).views[0].features[0].values]


@pytest.mark.parametrize("redis", ["alone"], indirect=True)
async def test_a_build_writes_over_what_an_attempt_left_that_got_nowhere(redis: Any, redis_namespace: str) -> None:
    store = ring_store(redis, redis_namespace, redis_namespace)
    await build(await site(store, redis_namespace, 100), 30)
    assert await counts(redis, redis_namespace) == [3] * 10
    await store.forget([HERE])
    await build(await site(store, redis_namespace, 100), 20)
    assert await counts(redis, redis_namespace) == [2] * 10
    await store.close()


@pytest.mark.parametrize("redis", ["cluster"], indirect=True)
async def test_in_a_cluster_a_ring_that_includes_more_stays_until_the_build_is_past_it(
    redis: Any, redis_namespace: str
) -> None:
    store = ring_store(redis, redis_namespace, redis_namespace)
    await build(await site(store, redis_namespace, 100), 30)
    await store.forget([HERE])
    again = await site(store, redis_namespace, 100)
    await build(again, 20)
    assert await counts(redis, redis_namespace) == [3] * 10
    await build(again, 40, begin=20)
    assert await counts(redis, redis_namespace) == [4] * 10
    await store.close()


@pytest.mark.parametrize("redis", ["alone"], indirect=True)
async def test_a_builder_whose_place_was_taken_writes_no_ring_though_nobody_has_come_anywhere(
    redis: Any, redis_namespace: str
) -> None:
    old, new = (ring_store(redis, redis_namespace, redis_namespace) for _ in range(2))
    zombie = await site(old, redis_namespace, 100)
    await site(new, redis_namespace, 100)
    with pytest.raises(Retryable, match="another worker"):
        await build(zombie, 20)
    assert await counts(redis, redis_namespace) == [0] * 10
    await new.close()
    await old.close()


async def test_a_builder_whose_place_was_taken_is_never_in_the_way(redis: Any, redis_namespace: str) -> None:
    old, new = (ring_store(redis, redis_namespace, redis_namespace) for _ in range(2))
    zombie = await site(old, redis_namespace, 100)
    heir = await site(new, redis_namespace, 100)
    with pytest.raises(Retryable, match="another worker"):
        await build(zombie, 20)
    # Nor may it go on from the checkpoint that it holds, once its connection is another.
    await old.close()
    with pytest.raises(Retryable, match="another worker"):
        await zombie.flush()
    await build(heir, 30)
    assert await counts(redis, redis_namespace) == [3] * 10
    with pytest.raises(Retryable, match="another worker"):
        await zombie.flush()
    assert await counts(redis, redis_namespace) == [3] * 10
    await new.close()
    await old.close()


async def test_a_build_reads_the_shards_again_that_gave_way(redis: Any, redis_namespace: str) -> None:
    store = ring_store(redis, redis_namespace, redis_namespace)
    # Each piece needs all that fits.
    await build(await site(store, redis_namespace, 5), 30)
    assert await counts(redis, redis_namespace) == [3] * 10
    await store.close()
