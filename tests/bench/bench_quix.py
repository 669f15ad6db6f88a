"""`feature.vs_quix`: one worker against Quix Streams, both with a count and a mean per key and five minutes in Redis.

The same topic, keyed by the entity (Quix keeps state by the record's key), from its beginning, both cold. Quix runs in
a virtual environment and a process of its own and writes each window's value as it changes, in a transaction every few
seconds; its state and changelog are as they come. `ratio_cpu` compares events per second of the processor's time.
"""

import asyncio
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import quix_app
from paid import TOPIC, Pace, Took, entry, fill, stopwatch, view, working
from redis.asyncio import Redis
from tidemill.stack.endpoints import Endpoints
from tidemill_runtime.positions import Partition
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit.orphans import dying_with_us

PREFIX = "bench-quix."
EVENTS, RUNS = 40_000, 3
# A ring in hops of five minutes.
VIEW = view("payer", [3_600], ("COUNT", "MEAN"))


async def online(kafka: KafkaSettings, redis_url: str) -> Took:
    """Return what the worker takes from the first event until everything is in Redis."""
    async with working(kafka, redis_url, [VIEW], Pace()) as worker:
        await worker.runner.reached({Partition(TOPIC, 0): 0})
        took = stopwatch()
        await worker.runner.reached({Partition(TOPIC, 0): EVENTS})
        return took(EVENTS)


def quix(kafka: KafkaSettings, redis_url: str) -> Took:
    """Return what Quix takes."""
    with tempfile.TemporaryDirectory(prefix="tm-quix-") as folder:
        command = quix_app.command(kafka.bootstrap, kafka.physical(TOPIC), redis_url, EVENTS, Path(folder))
        wall_s, cpu_s = quix_app.taken(dying_with_us(command))
    return Took(EVENTS, wall_s, cpu_s)


async def cleared(redis_url: str) -> None:
    """Delete what Quix wrote."""
    async with Redis.from_url(redis_url, db=1) as redis:
        await redis.flushdb()


def run(servers: Endpoints) -> list[dict[str, Any]]:
    """Measure and return the entry; none where Quix does not install."""
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=PREFIX)
    asyncio.run(fill(kafka, EVENTS, key_field="payer"))
    ours, theirs = [], []
    for _ in range(RUNS):
        ours.append(asyncio.run(online(kafka, servers.redis)))
        theirs.append(quix(kafka, servers.redis))
    asyncio.run(cleared(servers.redis))
    found = entry(
        "feature.vs_quix",
        [took.rate for took in ours],
        "events/s",
        f"Quix Streams {quix_app.VERSION}, the same windows",
        [took.rate for took in theirs],
    )
    per_cpu_s, other = (median(took.rate_cpu for took in runs) for runs in (ours, theirs))
    return [
        {
            **found,
            "per_cpu_s": round(per_cpu_s),
            "quix_per_cpu_s": round(other),
            "ratio_cpu": round(per_cpu_s / other, 2),
        }
    ]
