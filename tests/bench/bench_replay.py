"""`feature.replay`: events per second from the offline log in Iceberg into rings in Redis, beside the live rate.

The same events, view and flush as `feature.fold`: there from Kafka by the live worker with warm keys, here by the
builder, which the worker itself uses for what Kafka no longer holds, from the first event into empty rings.
"""

import asyncio
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from uuid import uuid4

from paid import BATCH, CACHE_BYTES, TOPIC, VIEWS, Pace, fill, stopwatch, stream, working
from redis.asyncio import Redis
from tidemill.stack.endpoints import Endpoints
from tidemill_contracts.catalogue import Catalogue
from tidemill_feature.adapters.archive import ArchivePipeline, Limits
from tidemill_feature.adapters.archived_history import ArchivedHistory
from tidemill_feature.adapters.builder import Builder
from tidemill_feature.adapters.building_site import Job
from tidemill_feature.adapters.redis_store import RedisStore
from tidemill_feature.adapters.view_book import ViewBook
from tidemill_feature.building import Found
from tidemill_feature.sizes import Sizes
from tidemill_features.fold import ViewShards
from tidemill_features.layout import build_id
from tidemill_features.plan import compile_view
from tidemill_runtime.batches import StreamOptions
from tidemill_runtime.lifecycle import running
from tidemill_runtime.positions import Partition
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.stream import StreamRunner

PREFIX = "bench-replay."
# So many that opening the table, a quarter of a second, is not most of it.
EVENTS, WARM, RUNS = 720_000, 40_000, 3
STREAM, VIEW = stream(), VIEWS[0]
HERE = Partition(TOPIC, 0)


async def archive(kafka: KafkaSettings, dsn: str, warehouse: str) -> None:
    """Write the events to Kafka and archive them, once for all runs."""
    await fill(kafka, EVENTS)
    pipeline = ArchivePipeline(dsn, warehouse, Catalogue(streams={"paid": STREAM}), Limits(64 * 1024 * 1024))
    options = StreamOptions(f"bench-{uuid4().hex[:8]}", flush_every_ms=1_000)
    runner: StreamRunner[Any, Any] = StreamRunner(pipeline, kafka, options, topics=[TOPIC])
    async with running(runner):
        await runner.reached({HERE: EVENTS})


async def replay_rate(kafka: KafkaSettings, redis_url: str, dsn: str, warehouse: str) -> float:
    """Return events per second until everything is in Redis and the live worker could take over."""
    project = f"bench-{uuid4().hex[:8]}"
    sizes = Sizes(project, project, CACHE_BYTES, BATCH, 20_000)
    plan = compile_view(VIEW, STREAM)
    build = build_id(plan.hash)
    # As if Kafka had dropped everything.
    found = Found(None, None, bytes(range(16)), 1, EVENTS, EVENTS)
    job = Job(HERE, STREAM, found, frozenset([build]), lambda: EVENTS)
    async with Redis.from_url(redis_url) as redis:
        book = ViewBook(redis, project, project)
        builder = Builder(RedisStore(redis, project, project), book, kafka, sizes, ArchivedHistory(dsn, warehouse))
        capacity = CACHE_BYTES // plan.bytes_per_key
        began = perf_counter()
        builder.start([job], lambda: {build: ViewShards(plan, project, capacity)})
        while not builder.done:
            builder.check()
            await asyncio.sleep(0.005)
        seconds = perf_counter() - began
        builder.stop()
        keys = [key async for key in redis.scan_iter(match=f"*{project}*", count=5_000)]
        await redis.delete(*keys)
    return EVENTS / seconds


async def live_rate(kafka: KafkaSettings, redis_url: str) -> float:
    """Return events per second of the live worker, with the keys warm."""
    async with working(kafka, redis_url, [VIEW], Pace()) as worker:
        begun, took = await worker.folded(WARM), stopwatch()
        await worker.runner.reached({HERE: EVENTS})
        return took(EVENTS - begun).rate


async def measure(servers: Endpoints) -> tuple[list[float], list[float]]:
    """Return the rates of both, taken in turn so that both meet the same machine."""
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=PREFIX)
    with tempfile.TemporaryDirectory(prefix="tm-replay-") as folder:
        warehouse = str(Path(folder) / "warehouse")
        await archive(kafka, servers.postgres_dsn, warehouse)
        replayed: list[float] = []
        live: list[float] = []
        for _ in range(RUNS):
            replayed.append(await replay_rate(kafka, servers.redis, servers.postgres_dsn, warehouse))
            live.append(await live_rate(kafka, servers.redis))
    return replayed, live


def run(servers: Endpoints) -> list[dict[str, Any]]:
    """Measure and return the entry."""
    replayed, live = asyncio.run(measure(servers))
    return [
        {
            "name": "feature.replay",
            "value": round(median(replayed)),
            "unit": "events/s",
            "baseline": "the live worker, from Kafka",
            "baseline_value": round(median(live)),
            "ratio": round(median(replayed) / median(live), 2),
            "min": round(min(replayed)),
            "median": round(median(replayed)),
            "max": round(max(replayed)),
            "runs": RUNS,
        }
    ]
