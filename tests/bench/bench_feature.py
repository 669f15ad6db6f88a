"""`feature.fold`: events per second from Kafka into rings in Redis by one worker, beside a Faust agent doing nothing.

Both read the same topic, filled before, from its beginning; each runs on one event loop, so on one core. The worker is
the service's own consumer with its own pipeline: decode, deduplicate, fold ten features over two rings with 10,000 hot
keys, one transaction per batch. The agent gets raw bytes and drops them.
"""

import asyncio
import json
import random
import tempfile
from collections.abc import Sequence
from statistics import median
from time import perf_counter
from typing import Any
from uuid import uuid4

import faust
from redis.asyncio import Redis
from tidemill.stack.endpoints import Endpoints
from tidemill_contracts.canonical import to_json
from tidemill_contracts.cloudevents import EVENT_TYPE, Attributes, to_headers
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import format_us
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.topics import stream_topics
from tidemill_feature.adapters.builder import NoHistory
from tidemill_feature.adapters.roles import online_pipeline
from tidemill_feature.registered import Definitions
from tidemill_feature.sizes import Sizes
from tidemill_runtime.batches import StreamOptions
from tidemill_runtime.lifecycle import running
from tidemill_runtime.positions import Partition
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.stream import StreamRunner

PREFIX = "bench-feature."
TOPIC = "events.paid"
EVENTS, KEYS, RUNS = 120_000, 10_000, 5
# By then every key has been seen.
WARM = 40_000
# The agent is some ten times slower; fewer events measure it as well.
AGENT_EVENTS = 30_000
BATCH = 5_000
START_US = 1_370_347_200_000_000
_STRING, _FLOAT, _INT = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_INT64

STREAM = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="payment", type=_STRING),
        definition.Field(name="payer", type=_STRING),
        definition.Field(name="amount", type=_FLOAT),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="payment",
    time_field="at",
    partitions=1,
    lateness_ms=60_000,
    late_policy=definition.LATE_POLICY_DROP,
    dedup_window_ms=60_000,
)


def view(entity: str, windows_s: Sequence[int]) -> definition.View:
    """Return a view with five features over each window."""
    features = [
        definition.Aggregation(
            name=f"{name.lower()}_{window_s}s",
            function=definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{name}"),
            window_ms=window_s * 1000,
            expression="" if name == "COUNT" else "amount",
            type=_INT if name == "COUNT" else _FLOAT,
        )
        for window_s in windows_s
        for name in ("COUNT", "SUM", "MEAN", "MIN", "MAX")
    ]
    accuracy = definition.ACCURACY_HOP
    return definition.View(name=entity, stream="paid", entity=[entity], features=features, accuracy=accuracy)


VIEW = view("payer", [7_200, 21_600])


def event(number: int, chance: random.Random) -> Outgoing:
    """Return one payment; a second passes every hundred."""
    at_us = START_US + number * 10_000
    fields = {
        "payment": f"p{number}",
        "payer": f"payer-{chance.randrange(KEYS)}",
        "amount": round(chance.uniform(1, 500), 2),
        "at": format_us(at_us),
    }
    headers = to_headers(Attributes(f"p{number}", "bench", EVENT_TYPE, at_us, "paid"))
    return Outgoing(TOPIC, json.dumps(fields).encode(), key=f"p{number}".encode(), headers=headers)


async def fill(kafka: KafkaSettings) -> None:
    """Write the events, once for all runs."""
    await create_topics(kafka.client_kwargs(), stream_topics([("paid", 1)]), PREFIX)
    chance = random.Random(7)
    async with Producer(kafka) as producer:
        for first in range(0, EVENTS, BATCH):
            await producer.send_all([event(number, chance) for number in range(first, first + BATCH)])


async def worker_rate(kafka: KafkaSettings, redis_url: str) -> float:
    """Return events per second, with the keys warm, until everything is in Redis."""
    project = f"bench-{uuid4().hex[:8]}"
    definitions = Definitions()
    closure = definition.Definition(streams=[STREAM], views=[VIEW])
    definitions.fold(to_json(definition.DefinitionRecord(kind="view", name=VIEW.name, definition=closure)))
    async with Redis.from_url(redis_url) as redis:
        sizes = Sizes(project, project, 256 * 1024 * 1024, BATCH, 20_000)
        pipeline, _ = online_pipeline(definitions, redis, kafka, sizes, NoHistory())
        runner = StreamRunner(pipeline, kafka, StreamOptions(project, max_records=BATCH), topics=[TOPIC])
        async with running(runner):
            await runner.reached({Partition(TOPIC, 0): WARM})
            began = perf_counter()
            await runner.reached({Partition(TOPIC, 0): EVENTS})
            seconds = perf_counter() - began
            done = EVENTS - WARM
        keys = [key async for key in redis.scan_iter(match=f"*{project}*", count=5_000)]
        await redis.delete(*keys)
    return done / seconds


async def agent_rate(kafka: KafkaSettings) -> float:
    """Return events per second of a Faust agent that does nothing."""
    with tempfile.TemporaryDirectory() as folder:
        app = faust.App(
            f"bench-{uuid4().hex[:8]}",
            broker=f"kafka://{kafka.bootstrap}",
            key_serializer="raw",
            value_serializer="raw",
            store="memory://",
            autodiscover=False,
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            reply_create_topic=False,
            table_standby_replicas=0,
            consumer_auto_offset_reset="earliest",
            datadir=folder,
            loop=asyncio.get_running_loop(),
        )
        topic = app.topic(kafka.physical(TOPIC), key_serializer="raw", value_serializer="raw")
        seen, first, last = 0, 0.0, asyncio.Event()

        async def nothing(stream: Any) -> None:
            nonlocal seen, first
            async for _ in stream:
                first = first or perf_counter()
                seen += 1
                if seen == AGENT_EVENTS:
                    last.set()

        app.agent(topic)(nothing)
        app.finalize()
        await app.start()
        try:
            await last.wait()
            return AGENT_EVENTS / (perf_counter() - first)
        finally:
            await asyncio.wait({asyncio.ensure_future(app.stop())}, timeout=10)


async def measure(servers: Endpoints) -> tuple[list[float], list[float]]:
    """Return the rates of both, taken in turn so that both meet the same machine."""
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=PREFIX)
    await fill(kafka)
    ours: list[float] = []
    agents: list[float] = []
    for _ in range(RUNS):
        ours.append(await worker_rate(kafka, servers.redis))
        agents.append(await agent_rate(kafka))
    return ours, agents


def run(servers: Endpoints) -> list[dict[str, Any]]:
    """Measure and return the entry."""
    ours, agents = asyncio.run(measure(servers))
    return [
        {
            "name": "feature.fold",
            "value": round(median(ours)),
            "unit": "events/s",
            "baseline": "Faust agent that does nothing",
            "baseline_value": round(median(agents)),
            "ratio": round(median(ours) / median(agents), 2),
            "min": round(min(ours)),
            "median": round(median(ours)),
            "max": round(max(ours)),
            "runs": RUNS,
        }
    ]
