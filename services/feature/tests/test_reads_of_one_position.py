"""What a read names as positions is what its values include, however many pieces it goes in, while a worker writes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_feature.adapters.cluster_store import ring_store
from tidemill_feature.adapters.redis_store import Move, RedisStore
from tidemill_features.columns import column_of
from tidemill_features.fold import Events, ViewShards
from tidemill_features.layout import Checkpoint, build_id
from tidemill_features.plan import compile_view
from tidemill_features.reader import Lookup, Place, Reader
from tidemill_runtime.positions import Partition
from tidemill_runtime.redis_client import redis_client
from tidemill_runtime.settings import RedisSettings

pytestmark = pytest.mark.servers

HERE, TOPIC_ID, NOON_US = Partition("events.paid", 0), bytes(range(16)), 1_370_347_200_000_000
READS = 40
STREAM = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="payer", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="payer",
    time_field="at",
    partitions=1,
)
COUNT = definition.Aggregation(
    name="count",
    function=definition.AGGREGATION_FUNCTION_COUNT,
    window_ms=3_600_000,
    type=definition.FIELD_TYPE_INT64,
)
PLAN = compile_view(definition.View(name="payer", stream="paid", entity=["payer"], features=[COUNT]), STREAM)


@asynccontextmanager
async def paid_on(client: Any, project: str) -> AsyncIterator[RedisStore]:
    """A worker that folds and flushes payments of "0", the only payer there is, one after the other."""
    store = ring_store(client, project, project)
    await store.watch([HERE])
    shards = ViewShards(PLAN, project, 100)
    ended = asyncio.Event()

    async def pay() -> None:
        held: Checkpoint | None = None
        paid = {
            "payer": column_of(["0"], definition.FIELD_TYPE_STRING),
            "at": column_of([NOON_US], definition.FIELD_TYPE_TIMESTAMP),
        }
        while not ended.is_set():
            offset = 0 if held is None else held.next_offset
            events = Events(np.zeros(1, np.int64), np.array([offset]), np.array([NOON_US]), paid)
            found = shards.find(events)
            shards.fold(events, shards.load(found, [None] * len(found.keys), lambda _: TOPIC_ID))
            point = Checkpoint(TOPIC_ID, offset + 1, 0, NOON_US, frozenset({build_id(PLAN.hash)}), 1)
            assert await store.flush([Move(HERE, held, point)], shards.dirty({0: offset + 1})) == {}
            shards.written()
            held = point

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(pay())
        try:
            yield store
        finally:
            ended.set()
    await store.close()


async def reads(store: RedisStore, project: str, payers: int) -> list[tuple[int, int]]:
    """Return what reads of many payers say: how often "0" has paid, and the position that they name."""
    reader = Reader([PLAN], project=project, group=project)
    found = []
    for _ in range(READS):
        request = reader.request([Lookup("payer", [(str(number),) for number in range(payers)])])
        result = reader.values(request, await store.shards(request.keys), NOON_US)
        found.append((int(result.views[0].features[0].values[0]), result.positions[Place(*HERE)]))
    return found


@pytest.mark.parametrize("payers", [1, 2_500, 10_000])
async def test_values_are_those_at_the_positions_named(servers: Any, redis_namespace: str, payers: int) -> None:
    async with (
        redis_client(RedisSettings(url=servers.redis)) as client,
        paid_on(client, redis_namespace) as store,
    ):
        found = await reads(store, redis_namespace, payers)
    assert [count - position for count, position in found] == [0] * READS
    assert len(set(found)) > READS // 4, "the worker writes meanwhile"


@pytest.mark.parametrize("payers", [1, 50, 2_500])
async def test_in_a_cluster_no_position_is_named_that_the_values_do_not_include(
    redis_cluster: Any, redis_namespace: str, payers: int
) -> None:
    redis_cluster.settled()
    async with (
        redis_client(RedisSettings(url=redis_cluster.url, cluster=True, timeout_s=2)) as client,
        paid_on(client, redis_namespace) as store,
    ):
        found = await reads(store, redis_namespace, payers)
    assert min(count - position for count, position in found) >= 0
    assert len(set(found)) > READS // 4, "the worker writes meanwhile"
