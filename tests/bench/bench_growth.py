"""`feature.growth`: the processor's time per event with more keys and with more partitions.

One view of two features, in batches as they are where the worker keeps up, each written at once: hardly any key comes
twice in one, so that what a batch writes is the same however many keys there are. All keys lie in Redis before. The
baseline is the smallest: a thousand keys, one partition. A million keys do not fit into the worker's memory, which is
full before anything is measured: it reads them from Redis as they come. Every round measures each case once.
"""

import asyncio
from statistics import median
from typing import Any
from uuid import uuid4

from paid import TOPIC, Pace, Took, entry, fill, stopwatch, stream, view, working
from redis.asyncio import Redis
from tidemill.stack.endpoints import Endpoints
from tidemill_features.layout import empty_shard, shard_keys, shard_prefix, shard_suffix
from tidemill_features.plan import compile_view
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.topic_ids import TopicLook

# Keys and partitions.
CASES = ((1_000, 1), (30_000, 1), (1_000_000, 1), (1_000, 8))
# Measured from the first to the second, before the log ends.
WARM, MEASURED, EVENTS, RUNS = 40_000, 75_000, 80_000, 3
BATCH = 500
CACHE_BYTES = 16 * 1024 * 1024
AT_ONCE = 20_000
VIEW = view("payer", [12], ("COUNT", "MEAN"))


async def settled(kafka: KafkaSettings, redis_url: str, project: str, keys: int) -> None:
    """Write an empty shard of every key that a single partition may have."""
    look = TopicLook(kafka)
    topic_id = (await look.topics([TOPIC]))[TOPIC].id
    await look.close()
    plan = compile_view(VIEW, stream())
    prefix, suffix = shard_prefix(project, plan.hash), shard_suffix(plan.rings[0], 0)
    blank = empty_shard(plan.rings[0], topic_id, 0).tobytes()
    async with Redis.from_url(redis_url) as redis:
        for first in range(0, keys, AT_ONCE):
            entities = [b"payer-%d" % number for number in range(first, min(keys, first + AT_ONCE))]
            await redis.mset(dict.fromkeys(shard_keys(prefix, entities, [suffix]), blank))


async def measured(servers: Endpoints, kafka: KafkaSettings, keys: int, partitions: int) -> Took:
    """Return what the events after the first take with so many keys and partitions."""
    project = f"bench-{uuid4().hex[:8]}"
    if partitions == 1:
        await settled(kafka, servers.redis, project, keys)
    pace = Pace(BATCH, 0, CACHE_BYTES, partitions)
    async with working(kafka, servers.redis, [VIEW], pace, project) as worker:
        begun, took = await worker.folded(WARM), stopwatch()
        return took(await worker.folded(MEASURED) - begun)


async def rounds(servers: Endpoints) -> dict[tuple[int, int], list[float]]:
    """Return the processor's microseconds per event, by case."""
    topics = {
        (keys, partitions): KafkaSettings(bootstrap=servers.kafka, topic_prefix=f"bench-growth-{keys}-{partitions}.")
        for keys, partitions in CASES
    }
    for (keys, partitions), kafka in topics.items():
        await fill(kafka, EVENTS, keys=keys, partitions=partitions)
    found: dict[tuple[int, int], list[float]] = {case: [] for case in CASES}
    for _ in range(RUNS):
        for case, kafka in topics.items():
            found[case].append((await measured(servers, kafka, *case)).cpu_us)
    return found


def run(servers: Endpoints) -> list[dict[str, Any]]:
    """Measure and return the entry: its value is the dearest case."""
    cases = asyncio.run(rounds(servers))
    dearest = max(CASES[1:], key=lambda one: median(cases[one]))
    found = entry("feature.growth", cases[dearest], "CPU us/event", "1,000 keys, 1 partition", cases[CASES[0]])
    return [{**found, **{f"keys_{k}_partitions_{p}": round(median(runs), 2) for (k, p), runs in cases.items()}}]
