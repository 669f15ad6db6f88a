"""What the benchmarks of the online worker share: a stream of payments, views of ten features, a worker, a stopwatch.

The worker is the service's own consumer with its own pipeline, in the benchmark's process and on its event loop, so
that the processor's time of the process is the worker's.
"""

import asyncio
import gc
import json
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter, process_time
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis
from tidemill_contracts.canonical import to_json
from tidemill_contracts.cloudevents import EVENT_TYPE, Attributes, to_headers
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import format_us
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.topics import stream_topics
from tidemill_feature.adapters.builder import NoHistory
from tidemill_feature.adapters.online_stream import OnlinePipeline
from tidemill_feature.adapters.roles import BEHIND_FLUSH_MS, online_pipeline
from tidemill_feature.registered import Definitions
from tidemill_feature.sizes import Sizes
from tidemill_runtime.batches import StreamOptions
from tidemill_runtime.lifecycle import running
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.stream import StreamRunner

TOPIC = "events.paid"
ENTITIES = ("payer", "card", "shop", "city", "device")
KEYS, BATCH = 10_000, 5_000
CACHE_BYTES = 512 * 1024 * 1024
START_US = 1_370_347_200_000_000
_STRING, _FLOAT, _INT = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_INT64


def stream(partitions: int = 1) -> definition.Stream:
    """Return the stream."""
    names = ("payment", *ENTITIES)
    return definition.Stream(
        name="paid",
        fields=[
            *(definition.Field(name=name, type=_STRING) for name in names),
            definition.Field(name="amount", type=_FLOAT),
            definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
        ],
        key_field="payment",
        time_field="at",
        partitions=partitions,
        lateness_ms=60_000,
        late_policy=definition.LATE_POLICY_DROP,
        dedup_window_ms=60_000,
    )


def view(
    entity: str, windows_s: Sequence[int], functions: Sequence[str] = ("COUNT", "SUM", "MEAN", "MIN", "MAX")
) -> definition.View:
    """Return a view with these aggregates over each window."""
    features = [
        definition.Aggregation(
            name=f"{name.lower()}_{window_s}s",
            function=definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{name}"),
            window_ms=window_s * 1000,
            expression="" if name == "COUNT" else "amount",
            type=_INT if name == "COUNT" else _FLOAT,
        )
        for window_s in windows_s
        for name in functions
    ]
    accuracy = definition.ACCURACY_HOP
    return definition.View(name=entity, stream="paid", entity=[entity], features=features, accuracy=accuracy)


# Ten features each, over two rings.
VIEWS = [view(entity, [7_200, 21_600]) for entity in ENTITIES]


def event(number: int, chance: random.Random, keys: int = KEYS, key_field: str = "payment") -> Outgoing:
    """Return one payment; a second passes every hundred."""
    at_us = START_US + number * 10_000
    fields: dict[str, Any] = {
        "payment": f"p{number}",
        **{name: f"{name}-{chance.randrange(keys)}" for name in ENTITIES},
        "amount": round(chance.uniform(1, 500), 2),
        "at": format_us(at_us),
    }
    headers = to_headers(Attributes(f"p{number}", "bench", EVENT_TYPE, at_us, "paid"))
    return Outgoing(TOPIC, json.dumps(fields).encode(), key=fields[key_field].encode(), headers=headers)


async def fill(
    kafka: KafkaSettings, count: int, *, keys: int = KEYS, partitions: int = 1, key_field: str = "payment"
) -> None:
    """Write events, once for all runs."""
    await create_topics(kafka.client_kwargs(), stream_topics([("paid", partitions)]), kafka.topic_prefix)
    chance = random.Random(7)
    async with Producer(kafka) as producer:
        for first in range(0, count, BATCH):
            await producer.send_all([event(n, chance, keys, key_field) for n in range(first, first + BATCH)])


@dataclass(frozen=True, slots=True)
class Took:
    """What some events took: on the clock, and of the processor in this process."""

    events: int
    wall_s: float
    cpu_s: float

    @property
    def rate(self) -> float:
        return self.events / self.wall_s

    @property
    def rate_cpu(self) -> float:
        return self.events / self.cpu_s

    @property
    def cpu_us(self) -> float:
        return self.cpu_s / self.events * 1e6


def stopwatch() -> Callable[[int], Took]:
    """Start; the returned function says what so many events took since."""
    wall_s, cpu_s = perf_counter(), process_time()
    return lambda events: Took(events, perf_counter() - wall_s, process_time() - cpu_s)


@dataclass(frozen=True, slots=True)
class Pace:
    """How much a worker takes at once, and how it writes."""

    batch: int = BATCH
    behind_flush_ms: int = BEHIND_FLUSH_MS
    cache_bytes: int = CACHE_BYTES
    partitions: int = 1


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker at work."""

    runner: StreamRunner[Any, Any]
    pipeline: OnlinePipeline

    async def folded(self, events: int) -> int:
        """Return how many events were folded, once these are so many: written they are later."""
        while (found := self.pipeline.streams["paid"].events if self.pipeline.streams else 0) < events:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        return found


@asynccontextmanager
async def working(
    kafka: KafkaSettings, redis_url: str, views: Iterable[definition.View], pace: Pace, project: str = ""
) -> AsyncIterator[Worker]:
    """Run a worker that begins with the log; what it wrote is deleted."""
    project = project or f"bench-{uuid4().hex[:8]}"
    definitions = Definitions()
    closure = definition.Definition(streams=[stream(pace.partitions)], views=views)
    for one in closure.views:
        definitions.fold(to_json(definition.DefinitionRecord(kind="view", name=one.name, definition=closure)))
    async with Redis.from_url(redis_url) as redis:
        sizes = Sizes(project, project, pace.cache_bytes, pace.batch, 20_000)
        pipeline, _ = online_pipeline(definitions, redis, kafka, sizes, NoHistory())
        options = StreamOptions(project, max_records=pace.batch, behind_flush_ms=pace.behind_flush_ms)
        # As the service does once it has started.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        try:
            async with running(StreamRunner(pipeline, kafka, options, topics=[TOPIC])) as runner:
                yield Worker(runner, pipeline)
        finally:
            await pipeline.close()
            await forget(redis, project)


async def forget(redis: Redis, project: str) -> None:
    """Delete what lies in Redis of a project."""
    keys = [key async for key in redis.scan_iter(match=f"*{project}*", count=5_000)]
    for first in range(0, len(keys), BATCH):
        await redis.unlink(*keys[first : first + BATCH])


def entry(name: str, values: Sequence[float], unit: str, baseline: str, others: Sequence[float]) -> dict[str, Any]:
    """Return the entry of runs that were taken in turn with the baseline's."""
    ours, theirs = sorted(values)[len(values) // 2], sorted(others)[len(others) // 2]
    return {
        "name": name,
        "value": round(ours, 1),
        "unit": unit,
        "baseline": baseline,
        "baseline_value": round(theirs, 1),
        "ratio": round(ours / theirs, 2),
        "min": round(min(values), 1),
        "median": round(ours, 1),
        "max": round(max(values), 1),
        "runs": len(values),
    }
