"""`feature.fold`: events per second from Kafka into rings in Redis by one worker, five views of ten features each.

Each view has an entity of its own with 10,000 hot keys, and two rings: an event changes ten values in Redis. All read
the same topic, filled before, from its beginning, on one event loop: the worker (decode, deduplicate, fold, flush), a
Faust agent that gets raw bytes and drops them, and a bare aiokafka loop that drops whole batches.

`per_cpu_s` is events per second of the processor's time, which stays what it is where others use the machine too; the
ratios compare that, since what they are compared with waits for nobody.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from statistics import median
from typing import Any
from uuid import uuid4

import faust
from aiokafka import AIOKafkaConsumer, TopicPartition
from paid import BATCH, TOPIC, VIEWS, Pace, Took, entry, fill, stopwatch, working
from tidemill.stack.endpoints import Endpoints
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_runtime.positions import Partition
from tidemill_runtime.settings import KafkaSettings

PREFIX = "bench-feature."
EVENTS, RUNS = 160_000, 3
# By then every key has been seen.
WARM = 60_000
# The agent is some ten times slower; fewer events measure it as well.
AGENT_EVENTS = 30_000


async def online(
    kafka: KafkaSettings, redis_url: str, views: Sequence[definition.View] = VIEWS, events: int = EVENTS
) -> Took:
    """Return what the worker takes, with the keys warm, until everything is in Redis."""
    async with working(kafka, redis_url, views, Pace()) as worker:
        begun, took = await worker.folded(WARM), stopwatch()
        await worker.runner.reached({Partition(TOPIC, 0): events})
        return took(events - begun)


async def bare(kafka: KafkaSettings) -> Took:
    """Return what a loop takes that only consumes."""
    consumer: Any = AIOKafkaConsumer(
        **kafka.client_kwargs(), enable_auto_commit=False, max_partition_fetch_bytes=4 * 1024 * 1024
    )
    await consumer.start()
    try:
        place = TopicPartition(kafka.physical(TOPIC), 0)
        consumer.assign([place])
        await consumer.seek_to_beginning(place)
        seen, took = 0, stopwatch()
        while seen < EVENTS:
            seen += sum(map(len, (await consumer.getmany(timeout_ms=200, max_records=BATCH)).values()))
        return took(seen)
    finally:
        await consumer.stop()


async def agent(kafka: KafkaSettings) -> Took:
    """Return what a Faust agent takes that does nothing."""
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
        seen, took, last = 0, stopwatch(), asyncio.Event()

        async def nothing(stream: Any) -> None:
            nonlocal seen, took
            async for _ in stream:
                if not seen:
                    took = stopwatch()
                seen += 1
                if seen == AGENT_EVENTS:
                    last.set()

        app.agent(topic)(nothing)
        app.finalize()
        await app.start()
        try:
            await last.wait()
            return took(AGENT_EVENTS)
        finally:
            await asyncio.wait({asyncio.ensure_future(app.stop())}, timeout=10)


async def measure(servers: Endpoints) -> list[tuple[Took, Took, Took]]:
    """Return what each takes, in turn so that all meet the same machine."""
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=PREFIX)
    await fill(kafka, EVENTS)
    return [(await online(kafka, servers.redis), await agent(kafka), await bare(kafka)) for _ in range(RUNS)]


def run(servers: Endpoints) -> list[dict[str, Any]]:
    """Measure and return the entry."""
    workers, agents, loops = zip(*asyncio.run(measure(servers)), strict=True)
    found = entry(
        "feature.fold",
        [took.rate for took in workers],
        "events/s",
        "Faust agent that does nothing",
        [took.rate for took in agents],
    )
    per_cpu_s, of_agent, of_loop = (median(took.rate_cpu for took in runs) for runs in (workers, agents, loops))
    return [
        {
            **found,
            "ratio": round(per_cpu_s / of_agent, 2),
            "ratio_bare": round(per_cpu_s / of_loop, 2),
            "per_cpu_s": round(per_cpu_s),
            "agent_per_cpu_s": round(of_agent),
            "bare_per_cpu_s": round(of_loop),
            "cpu_us_per_event": round(1e6 / per_cpu_s, 2),
        }
    ]
