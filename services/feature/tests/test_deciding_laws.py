"""That both roles take the same records for events while the definition of their stream is mended (I2)."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import grpc
import httpx
import pytest
from redis.asyncio import Redis
from tidemill_contracts.canonical import to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import format_us
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_feature.adapters.builder import NoHistory
from tidemill_feature.adapters.roles import online_pipeline
from tidemill_feature.registered import Definitions
from tidemill_feature.settings import Settings
from tidemill_features.iceberg import Archive
from tidemill_runtime.batches import Assignment, Batch
from tidemill_runtime.errors import Retryable, StateLost
from tidemill_runtime.outgoing import Outgoing
from tidemill_runtime.positions import Partition
from tidemill_testkit.click_world import event
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.paid_world import PAID, SECOND

pytestmark = pytest.mark.servers


def mended() -> definition.Stream:
    """Return the stream as it should have been: large payments are payments too."""
    stream = definition.Stream()
    stream.CopyFrom(PAID)
    stream.max_event_bytes *= 4
    return stream


def payments(world: Any, first: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "at_us": world.noon_us + number * SECOND,
            "partition": number % 2,
            "id": f"p{number}",
            "fields": {"payment": f"p{number}", "payer": "ann", "amount": 1.0, "items": 1},
        }
        for number in range(first, first + count)
    ]


async def send_large(world: Any, number: int) -> Any:
    """Send a payment that is larger than its stream allows at first; return where it lies."""
    fields = {"payment": "p" * 5000, "payer": "ann", "amount": 1.0, "items": 1}
    body = json.dumps({**fields, "at": format_us(world.noon_us + number * SECOND)}).encode()
    (placed,) = await world.send(Outgoing("events.paid", body, key=b"k", partition=0))
    return placed


def roles(world: Any, database: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """Return the settings of a worker that folds and of one that archives."""
    places = {"POSTGRES__DSN": database, "WAREHOUSE": str(world.folder / "warehouse")}
    return {"ROLES": "online", **places}, {"ROLES": "offline", "ARCHIVE_EVERY_S": "0.2", **places}


async def archived(worker: Any, offsets: Any, timeout_s: float = 20) -> None:
    request = progress.WaitProgressRequest(stage="offline", offsets=offsets)
    await worker.progress.WaitProgress(request, timeout=timeout_s)


def held(world: Any, database: str) -> list[tuple[int, int]]:
    rows, _ = Archive(database, str(world.folder / "warehouse")).read("events.paid")
    return [] if rows is None else sorted(zip(rows["_partition"].to_pylist(), rows["_offset"].to_pylist(), strict=True))


async def count_of(worker: Any, world: Any, at_us: int) -> Any:
    try:
        ((first, *_),) = await worker.get("payer", ["ann"], at_us)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            raise
        return None
    return first


async def test_what_online_has_not_judged_yet_is_archived_as_online_will_judge_it(world: Any, database: str) -> None:
    for topic in ("serving.predictions.v1", "monitoring.outcomes.v1"):
        await world.create(topic, 1)
    await world.register(world.payer)
    folding, archiving = roles(world, database)
    online = await world.start(**folding)
    await world.pay(payments(world, 0, 10))
    await online.reached(await world.ends())
    offline = await world.start(**archiving)
    await archived(offline, await world.ends())
    # Sure to be said to Kafka when it has ended.
    await online.stop()

    refused = await send_large(world, 10)
    await world.pay(payments(world, 11, 10))

    async def waits() -> bool:
        async with httpx.AsyncClient(base_url=f"http://{offline.http}") as http:
            return "events.paid: not decided by the online role yet" in (await http.get("/ready")).text

    await aeventually(waits, 20, claim="the offline role waits, and says so")
    with pytest.raises(grpc.aio.AioRpcError):
        await archived(offline, await world.ends(), 1)
    assert await offline.stop() == 0, "what waits is read again, by whoever comes next"
    offline = await world.start(**archiving)
    await aeventually(waits, 20, claim="so does the next")
    assert (0, refused.offset) not in held(world, database)

    await world.register(world.payer, stream=mended())
    online = await world.start(**folding)
    await online.reached(await world.ends())

    async def is_counted() -> bool:
        return bool(await count_of(online, world, world.noon_us + 30 * SECOND) == ("PRESENT", 21))

    await aeventually(is_counted, 20, claim="online takes the large payment for an event")
    await aeventually(lambda: archives(offline, world), 20, claim="the offline role goes on by itself")
    ends = {one.partition: one.next_offset for one in await world.ends()}
    assert held(world, database) == [(number, offset) for number in sorted(ends) for offset in range(ends[number])]
    assert await world.read("events.paid.dlq") == []


async def archives(worker: Any, world: Any) -> bool:
    try:
        await archived(worker, await world.ends(), 5)
    except grpc.aio.AioRpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise
        return False
    return True


async def test_a_worker_refuses_nothing_by_a_definition_that_it_knows_to_be_old(world: Any) -> None:
    await world.register(world.payer)
    known, place = Definitions(), Partition("events.paid", 0)
    known.fold(to_json(definition_of(world, PAID)))
    large = event(place.topic, 0, fields={"payment": "p" * 5000, "payer": "ann", "items": 1})
    async with Redis.from_url(world.redis_url) as redis:
        sizes = Settings(project=world.project).online_sizes
        pipeline, _ = online_pipeline(known, redis, world.kafka, sizes, NoHistory())

        async def restored() -> Any:
            try:
                return (await pipeline.restore(Assignment({place: 0}, {place: 0}, {place: 0}))).state
            except Retryable:
                return None

        try:
            state = await aeventually(restored, 10, claim="Kafka's nodes know the topic")
            step = pipeline.step(state, Batch({place: [large]}), 0)
            assert [refused.record for refused in step.refused] == [large]
            known.fold(to_json(definition_of(world, mended())))
            later = replace(large, offset=1)
            with pytest.raises(StateLost, match="have changed"):
                pipeline.step(state, Batch({place: [later]}), 0)
            state = await aeventually(restored, 10, claim="Kafka's nodes know the topic")
            assert not pipeline.step(state, Batch({place: [later]}), 0).refused
        finally:
            await pipeline.close()


def definition_of(world: Any, stream: definition.Stream) -> definition.DefinitionRecord:
    closure = definition.Definition(streams=[stream], views=[world.payer])
    return definition.DefinitionRecord(kind="view", name=world.payer.name, revision=1, definition=closure)
