"""`feature.backfill`: acknowledged to visible while four views are built from the past, beside the same before.

The worker is the service's process. One view is live; four more of ten features are then registered, and built from
the offline log, which is all that is left of 200,000 events. A probe is a batch of twenty events and the wait until the
rings hold it, one after the other all the while. `peak_mb` is the most that the worker ever took, `steady_mb` what it
took before.
"""

import asyncio
import os
import random
import socket
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import uuid4

import grpc
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition
from paid import TOPIC, VIEWS, event, fill, forget, stream
from redis.asyncio import Redis
from tidemill.stack.endpoints import Endpoints
from tidemill_contracts.canonical import to_json
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_contracts.feature.v1.feature_pb2_grpc import FeatureServiceStub
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.progress.v1.progress_pb2_grpc import ProgressServiceStub
from tidemill_contracts.topics import fixed_topics
from tidemill_feature.adapters.archive import ArchivePipeline, Limits
from tidemill_runtime.batches import StreamOptions
from tidemill_runtime.lifecycle import running
from tidemill_runtime.positions import Partition
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.stream import StreamRunner
from tidemill_testkit.orphans import dying_with_us

EVENTS, PROBE, PROBES_BEFORE = 200_000, 20, 200
MEGABYTE = 1024


@dataclass(frozen=True)
class Worker:
    """The feature service's process, and its doors."""

    process: Process
    features: Any
    progress: Any

    def memory_mb(self, what: str) -> float:
        """Return VmRSS or VmHWM."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(what)) / MEGABYTE

    async def waits(self, offset: int) -> None:
        """Wait until the rings hold everything before an offset."""
        place = progress.TopicPartitionOffset(topic=TOPIC, partition=0, next_offset=offset)
        await self.progress.WaitProgress(progress.WaitProgressRequest(stage="online", offsets=[place]), timeout=120)

    async def built(self, views: int) -> bool:
        """Return whether so many views are there and answer."""
        found = (await self.features.GetBuilds(messages.GetBuildsRequest(), timeout=10)).views
        return len(found) == views and all(one.ready for one in found)


@asynccontextmanager
async def worker(settings: Mapping[str, str], folder: Path) -> AsyncIterator[Worker]:
    """Run the service's online role."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        door, http = (f"127.0.0.1:{bound.getsockname()[1]}" for bound in (one, other))
    settings = {**settings, "ROLES": "online", "GRPC__LISTEN": door, "HTTP__LISTEN": http}
    with (folder / "worker.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *dying_with_us([sys.executable, "-m", "tidemill_feature"]),
            env={**os.environ, **{f"TIDEMILL_FEATURE_{name}": value for name, value in settings.items()}},
            stdout=log,
            stderr=log,
        )
    try:
        async with grpc.aio.insecure_channel(door) as channel:
            found = Worker(process, FeatureServiceStub(channel), ProgressServiceStub(channel))
            await found.features.GetStats(messages.GetStatsRequest(), wait_for_ready=True, timeout=60)
            yield found
    finally:
        process.terminate()
        await process.wait()


async def archive(kafka: KafkaSettings, dsn: str, warehouse: Path) -> None:
    """Move the events from Kafka to the offline log."""
    pipeline = ArchivePipeline(dsn, str(warehouse), Catalogue(streams={"paid": stream()}), Limits(64 * 1024 * 1024))
    options = StreamOptions(f"bench-{uuid4().hex[:8]}", flush_every_ms=1_000)
    runner: StreamRunner[Any, Any] = StreamRunner(pipeline, kafka, options, topics=[TOPIC])
    async with running(runner):
        await runner.reached({Partition(TOPIC, 0): EVENTS})
    admin = AIOKafkaAdminClient(**kafka.client_kwargs())
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(kafka.physical(TOPIC), 0): RecordsToDelete(before_offset=EVENTS)})
    finally:
        await admin.close()


async def register(producer: Producer, *views: definition.View) -> None:
    """Register views of the stream."""
    for view in views:
        closure = definition.Definition(streams=[stream()], views=[view])
        record = definition.DefinitionRecord(kind="view", name=view.name, revision=1, definition=closure)
        await producer.send_all([Outgoing("registry.pipelines.v1", to_json(record), key=f"view/{view.name}".encode())])


class Probes:
    """Sends events and waits for them, over and over."""

    def __init__(self, producer: Producer, one: Worker) -> None:
        self._producer = producer
        self._worker = one
        self._chance = random.Random(11)
        self._sent = EVENTS

    async def take(self) -> float:
        """Return the milliseconds from the acknowledgement to the rings."""
        events = [event(self._sent + number, self._chance) for number in range(PROBE)]
        placed = await self._producer.send_all(events)
        began = perf_counter()
        self._sent += PROBE
        await self._worker.waits(max(one.offset for one in placed) + 1)
        return (perf_counter() - began) * 1000


async def measure(servers: Endpoints, home: Path) -> dict[str, Any]:
    """Return the figures of one backfill."""
    project = f"bench-{uuid4().hex[:8]}"
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=f"{project}.")
    warehouse = home / "warehouse"
    await create_topics(kafka.client_kwargs(), fixed_topics(), kafka.topic_prefix)
    await fill(kafka, EVENTS)
    settings = {
        "KAFKA__BOOTSTRAP": servers.kafka,
        "KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
        "REDIS__URL": servers.redis,
        "POSTGRES__DSN": servers.postgres_dsn,
        "WAREHOUSE": str(warehouse),
        "PROJECT": project,
    }
    async with Producer(kafka) as producer, Redis.from_url(servers.redis) as redis:
        await register(producer, VIEWS[0])
        try:
            async with worker(settings, home) as one:
                await one.waits(EVENTS)
                await archive(kafka, servers.postgres_dsn, warehouse)
                probes = Probes(producer, one)
                before = [await probes.take() for _ in range(PROBES_BEFORE)]
                steady_mb = one.memory_mb("VmRSS")
                await register(producer, *VIEWS[1:])
                began, during = perf_counter(), list[float]()
                while not await one.built(len(VIEWS)):
                    during.append(await probes.take())
                seconds = perf_counter() - began
                peak_mb = one.memory_mb("VmHWM")
        finally:
            await forget(redis, project)
    return {"before": sorted(before), "during": sorted(during), "s": seconds, "steady": steady_mb, "peak": peak_mb}


def quantile(ordered: list[float], share: float) -> float:
    """Return an order statistic."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def run(servers: Endpoints) -> list[dict[str, Any]]:
    """Measure and return the entry."""
    with tempfile.TemporaryDirectory(prefix="tm-backfill-") as home:
        found = asyncio.run(measure(servers, Path(home)))
    before, during = found["before"], found["during"]
    return [
        {
            "name": "feature.backfill",
            "value": round(quantile(during, 0.5), 1),
            "unit": "ms to visible",
            "baseline": "before the backfill",
            "baseline_value": round(quantile(before, 0.5), 1),
            "ratio": round(quantile(during, 0.5) / quantile(before, 0.5), 2),
            "min": round(during[0], 1),
            "median": round(quantile(during, 0.5), 1),
            "max": round(during[-1], 1),
            "runs": len(during),
            "p99": round(quantile(during, 0.99), 1),
            "baseline_p99": round(quantile(before, 0.99), 1),
            "events_per_s": round(EVENTS / found["s"]),
            "steady_mb": round(found["steady"]),
            "peak_mb": round(found["peak"]),
        }
    ]
