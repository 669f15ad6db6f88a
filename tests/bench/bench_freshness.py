"""`feature.freshness`: from an event's acknowledgement until a read shows it, at half of the maximal load.

The feature service is a process of its own, with one view of ten features and 10,000 hot keys. How many events a
second it folds at most is measured first, when they come at once. Then half as many are sent, made up before so that
sending costs little, and beside them probes: an event of an entity that nobody knows, acknowledged by Kafka, and read
over gRPC until it is there. The baseline is a bare aiokafka consumer under the same load: until it is handed the probe.
"""

import asyncio
import json
import random
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from typing import Any

import grpc
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from bench_reads import cleaned, quantile
from beside import online_feature, process
from paid import START_US, TOPIC, VIEWS, entry, event, fill, stream
from tidemill.stack.endpoints import Endpoints
from tidemill_contracts.canonical import to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_contracts.feature.v1 import feature_pb2_grpc as feature
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.progress.v1 import progress_pb2_grpc as stages
from tidemill_contracts.topics import fixed_topics
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.settings import KafkaSettings

BACKLOG, BURST = 20_000, 40_000
LOAD_S, SLICE_S, PROBE_S = 6.0, 0.01, 0.04
READY_S, SEEN_S = 60.0, 10.0
VIEW = VIEWS[0]
# Returns once a probe, known by its entity and its event time, is there.
Seen = Callable[[str, int], Awaitable[None]]


async def prepare(servers: Endpoints, prefix: str) -> dict[str, str]:
    """Register the view, write the backlog, and return the service's environment."""
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=prefix)
    await create_topics(kafka.client_kwargs(), fixed_topics(), prefix)
    closure = definition.Definition(streams=[stream()], views=[VIEW])
    record = definition.DefinitionRecord(kind="view", name=VIEW.name, definition=closure)
    async with Producer(kafka) as producer:
        key = f"view/{VIEW.name}".encode()
        await producer.send_all([Outgoing("registry.pipelines.v1", to_json(record), key)])
    await fill(kafka, BACKLOG)
    return online_feature(servers, prefix)


class Line:
    """The way into Kafka: events made up before, as whole batches, and probes one by one."""

    def __init__(self, producer: Any, topic: str) -> None:
        self._producer = producer
        self._topic = topic
        self._chance = random.Random(11)
        # Events that were made up so far.
        self.number = BACKLOG

    def batches(self, count: int, size: int) -> list[Any]:
        """Return so many batches of so many events."""
        found = []
        for _ in range(count):
            batch = self._producer.create_batch()
            for _ in range(size):
                one = event(self.number, self._chance)
                batch.append(timestamp=None, key=one.key, value=one.value, headers=list(one.headers))
                self.number += 1
            found.append(batch)
        return found

    async def send(self, batches: Sequence[Any], pause_s: float) -> None:
        """Send batches, one every so often."""
        began, sent = perf_counter(), []
        for number, batch in enumerate(batches):
            sent.append(await self._producer.send_batch(batch, self._topic, partition=0))
            await asyncio.sleep(max(0.0, began + number * pause_s - perf_counter()))
        await asyncio.gather(*sent)

    async def probe(self, name: str) -> int:
        """Send an event of a new entity; return its time once Kafka has acknowledged it."""
        self.number += 1
        one = event(self.number, self._chance)
        value = json.dumps(json.loads(one.value or b"") | {"payer": name}).encode()
        await self._producer.send_and_wait(self._topic, value, name.encode(), partition=0, headers=list(one.headers))
        return START_US + self.number * 10_000


async def probed(line: Line, rate: float, seen: Seen) -> list[float]:
    """Return, of every probe under load, how many milliseconds after its acknowledgement it was seen."""
    batches = line.batches(int(LOAD_S / SLICE_S), max(1, int(rate * SLICE_S)))
    load = asyncio.create_task(line.send(batches, SLICE_S))
    found = []
    while not load.done():
        name = f"probe-{secrets.token_hex(6)}"
        at_us = await line.probe(name)
        began = perf_counter()
        await asyncio.wait_for(seen(name, at_us), SEEN_S)
        found.append((perf_counter() - began) * 1000)
        await asyncio.sleep(PROBE_S)
    await load
    return sorted(found)


def in_reads(channel: grpc.aio.Channel) -> Seen:
    """Return what waits until a read shows a probe."""
    get = feature.FeatureServiceStub(channel).GetFeatures

    async def seen(name: str, at_us: int) -> None:
        key = messages.EntityKey(values=[messages.Scalar(string_value=name)])
        request = messages.GetFeaturesRequest(
            views=[messages.ViewKeys(view=VIEW.name, keys=[key])], as_of_us=at_us, columnar=True
        )
        while (await get(request)).columns[0].features[0].statuses[0] != messages.STATUS_PRESENT:
            pass

    return seen


@asynccontextmanager
async def in_log(kafka: KafkaSettings) -> AsyncIterator[Seen]:
    """Yield what waits until a bare consumer is handed a probe."""
    met: dict[bytes, asyncio.Event] = defaultdict(asyncio.Event)
    consumer: Any = AIOKafkaConsumer(**kafka.client_kwargs(), enable_auto_commit=False)
    await consumer.start()
    place = TopicPartition(kafka.physical(TOPIC), 0)
    consumer.assign([place])
    await consumer.seek_to_end(place)

    async def read() -> None:
        while True:
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    if record.key.startswith(b"probe-"):
                        met[record.key].set()
            await asyncio.sleep(0)

    async def seen(name: str, _: int) -> None:
        await met[name.encode()].wait()

    reading = asyncio.create_task(read())
    try:
        yield seen
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
        await consumer.stop()


async def most(line: Line, channel: grpc.aio.Channel) -> float:
    """Return how many events a second the service folds when they come at once."""
    stub = stages.ProgressServiceStub(channel)

    async def folded() -> None:
        offsets = [progress.TopicPartitionOffset(topic=TOPIC, partition=0, next_offset=line.number)]
        request = progress.WaitProgressRequest(stage="online", offsets=offsets)
        await stub.WaitProgress(request, timeout=READY_S, wait_for_ready=True)

    await folded()
    batches = line.batches(BURST // 500, 500)
    began = perf_counter()
    await line.send(batches, 0.0)
    await folded()
    return BURST / (perf_counter() - began)


async def measure(kafka: KafkaSettings, target: str) -> tuple[float, list[float], list[float]]:
    """Return the load in events a second, and the milliseconds of both."""
    producer: Any = AIOKafkaProducer(**kafka.client_kwargs(), acks="all", max_batch_size=4 * 1024 * 1024)
    async with grpc.aio.insecure_channel(target) as channel, producer:
        line = Line(producer, kafka.physical(TOPIC))
        rate = await most(line, channel) / 2
        ours = await probed(line, rate, in_reads(channel))
        async with in_log(kafka) as seen:
            return rate, ours, await probed(line, rate, seen)


def run(servers: Endpoints) -> list[dict[str, Any]]:
    """Measure and return the entry."""
    prefix = f"bench-{secrets.token_hex(4)}."
    environment = asyncio.run(prepare(servers, prefix))
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=prefix)
    try:
        with process("-m", "tidemill_feature", **environment):
            rate, ours, bare = asyncio.run(measure(kafka, environment["TIDEMILL_FEATURE_GRPC__LISTEN"]))
    finally:
        asyncio.run(cleaned(servers, prefix.rstrip(".")))
    found = entry("feature.freshness", ours, "ms (p50)", "bare aiokafka consumer, same load", bare)
    quantiles = {"p99_ms": quantile(ours, 0.99), "baseline_p99_ms": quantile(bare, 0.99)}
    return [{**found, **{name: round(value, 1) for name, value in quantiles.items()}, "load_per_s": round(rate)}]
