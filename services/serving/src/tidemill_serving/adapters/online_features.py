"""Reads rings from Redis: one trip per node for everything that a micro-batch needs."""

import asyncio
from collections.abc import Sequence

from redis.exceptions import RedisError
from tidemill_features.layout import CHECKPOINT_PREFIX
from tidemill_runtime.errors import Retryable
from tidemill_runtime.redis_client import Client
from tidemill_runtime.redis_reads import fetch_many

from tidemill_serving.deployer import ViewsBuildingError
from tidemill_serving.served import Served

# A reader that begins finds the newest builds of its views, and partitions that were added, one after the other.
_LOOKS = 4


class OnlineFeatures:
    """One trip, bounded in time; a Redis that is away is `Retryable`, never a prediction without its features."""

    def __init__(self, redis: Client, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s

    async def fetch(self, keys: list[bytes]) -> Sequence[bytes | None]:
        """Return the values of the keys, None where there is none. Raises `Retryable`.

        Shards include what the checkpoints among the keys tell of.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await fetch_many(self._redis, keys, stamps=CHECKPOINT_PREFIX)
        except (RedisError, OSError, TimeoutError) as error:
            raise Retryable(f"Redis does not give the features: {error!r}", retry_after_s=0.5) from error

    async def built(self, served: Served) -> None:
        """Return where all views of an entry can be read. Raises `ViewsBuildingError`, `Retryable` without Redis."""
        for _ in range(_LOOKS):
            request = served.reader.request([])
            unready, moved = served.unready(request, await self.fetch(request.keys))
            if not unready:
                return
            if not moved:
                break
        raise ViewsBuildingError(f"view {', '.join(unready)} is still being built from the log")
