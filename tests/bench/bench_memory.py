"""`feature.bytes_per_key`: what Redis takes for a key of a ring of 12 h in hops of 5 min, beside the packed numbers.

One numeric column with count, mean, std and max. The engine gives a window of 12 h a hop of an hour; a ring of it in
hops of 5 min is laid out here by hand. The baseline holds, for each of its buckets, the bucket's number and its numbers
(count, sum, mean, squared deviations, maximum), eight bytes each, and nothing else: no header, no key, no rounding up
by the allocator.
"""

import asyncio
from dataclasses import replace
from typing import Any

from paid import entry, forget, stream, view
from redis.asyncio import Redis
from tidemill.stack.endpoints import Endpoints
from tidemill_features.layout import empty_shard, shard_keys, shard_prefix, shard_suffix
from tidemill_features.plan import HEADER_WORDS, compile_view

PROJECT, KEYS = "bench-memory", 2_000
HOP_US, SLOTS = 300 * 1_000_000, 12 * 12 + 2
WORD_BYTES = 8
VIEW = view("payer", [7_200], ("COUNT", "MEAN", "STD", "MAX"))


async def measure(redis_url: str) -> tuple[list[float], float]:
    """Return what each key takes, and what its numbers alone would."""
    plan = compile_view(VIEW, stream())
    (ring,) = plan.rings
    ring = replace(ring, slots=SLOTS, words=HEADER_WORDS + SLOTS * ring.slot_words)
    blank = empty_shard(ring, bytes(16), 0).tobytes()
    prefix, suffix = shard_prefix(PROJECT, plan.hash), shard_suffix(ring, 0)
    keys = shard_keys(prefix, [b"payer-%d" % number for number in range(KEYS)], [suffix])
    async with Redis.from_url(redis_url) as redis:
        before = (await redis.info("memory"))["used_memory"]
        await redis.mset(dict.fromkeys(keys, blank))
        after = (await redis.info("memory"))["used_memory"]
        sizes = [float(await redis.memory_usage(key) or 0) for key in keys[:100]]
        await forget(redis, PROJECT)
    # The server's own figure also counts its table of keys.
    return [*sizes, (after - before) / KEYS], float(SLOTS * WORD_BYTES * (1 + sum(p.words for p in ring.partials)))


def run(servers: Endpoints) -> list[dict[str, Any]]:
    """Measure and return the entry."""
    sizes, packed = asyncio.run(measure(servers.redis))
    found = entry("feature.bytes_per_key", sizes[-1:], "bytes", "the numbers alone, packed", [packed])
    return [{**found, "memory_usage": round(sum(sizes[:-1]) / len(sizes[:-1]), 1)}]
