"""`feature.growth`: the processor's time per event with more keys and with more partitions.

One view of two features, in batches as they are where the worker keeps up, each written at once: hardly any key comes
twice in one, so that what a batch writes is the same however many keys there are. All keys lie in Redis before. The
baseline is the smallest: a thousand keys, one partition. A million keys do not fit into the worker's memory: it reads
them from Redis as they come.
"""

import asyncio
from statistics import median
from typing import Any
from uuid import uuid4

from paid import TOPIC, Pace, Took, entry, fill, stopwatch, stream, view, working
from redis.asyncio import Redis
from tidemill.stack.endpoints import Endpoints
from tidemill_feature.adapters.topic_ids import TopicLook
from tidemill_features.layout import empty_shard, shard_keys, shard_prefix, shard_suffix
from tidemill_features.plan import compile_view
from tidemill_runtime.positions import Partition
from tidemill_runtime.settings import KafkaSettings

# Keys and partitions.
CASES = ((1_000, 1), (30_000, 1), (1_000_000, 1), (1_000, 8))
EVENTS, WARM, PART, RUNS = 40_000, 10_000, 9_000, 3
BATCH = 500
CACHE_BYTES = 64 * 1024 * 1024
AT_ONCE = 20_000
VIEW = view("payer", [12], ("COUNT", "MEAN"))


async def settled(kafka: KafkaSettings, redis_url: str, project: str, keys: int) -> None:
    """Write an empty shard of every key that a single partition may have."""
    look = TopicLook(kafka.client_kwargs())
    topic = kafka.physical(TOPIC)
    topic_id = (await look.topics([topic]))[topic].id
    await look.close()
    plan = compile_view(VIEW, stream())
    prefix, suffix = shard_prefix(project, plan.hash), shard_suffix(plan.rings[0], 0)
    blank = empty_shard(plan.rings[0], topic_id, 0).tobytes()
    async with Redis.from_url(redis_url) as redis:
        for first in range(0, keys, AT_ONCE):
            entities = [b"payer-%d" % number for number in range(first, min(keys, first + AT_ONCE))]
            await redis.mset(dict.fromkeys(shard_keys(prefix, entities, [suffix]), blank))


async def case(servers: Endpoints, keys: int, partitions: int) -> list[Took]:
    """Return what each part of the events takes with so many keys and partitions."""
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=f"bench-growth-{keys}-{partitions}.")
    await fill(kafka, EVENTS, keys=keys, partitions=partitions)
    project = f"bench-{uuid4().hex[:8]}"
    if partitions == 1:
        await settled(kafka, servers.redis, project, keys)
    found = []
    pace = Pace(BATCH, 0, CACHE_BYTES, partitions)
    async with working(kafka, servers.redis, [VIEW], pace, project) as worker:
        for part in range(RUNS + 1):
            begun, took = sum(worker.runner.positions.next.values()), stopwatch()
            end = (WARM + part * PART) // partitions
            await worker.runner.reached({Partition(TOPIC, number): end for number in range(partitions)})
            found.append(took(sum(worker.runner.positions.next.values()) - begun))
    # The first part also met every key for the first time.
    return found[1:]


def run(servers: Endpoints) -> list[dict[str, Any]]:
    """Measure and return the entry: its value is the dearest case."""
    cases = {case_: [took.cpu_us for took in asyncio.run(case(servers, *case_))] for case_ in CASES}
    dearest = max(CASES[1:], key=lambda one: median(cases[one]))
    found = entry("feature.growth", cases[dearest], "CPU us/event", "1,000 keys, 1 partition", cases[CASES[0]])
    return [{**found, **{f"keys_{k}_partitions_{p}": round(median(runs), 2) for (k, p), runs in cases.items()}}]
