"""Reads rings from Redis: one trip per node for everything that a micro-batch needs."""

import asyncio
from collections.abc import Sequence

from redis.exceptions import RedisError
from tidemill_runtime.errors import Retryable
from tidemill_runtime.redis_client import Client, fetch_many


class OnlineFeatures:
    """One trip, bounded in time; a Redis that is away is `Retryable`, never a prediction without its features."""

    def __init__(self, redis: Client, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s

    async def fetch(self, keys: list[bytes]) -> Sequence[bytes | None]:
        """Return the values of the keys, None where there is none. Raises `Retryable`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await fetch_many(self._redis, keys)
        except (RedisError, OSError, TimeoutError) as error:
            raise Retryable(f"Redis does not give the features: {error!r}", retry_after_s=0.5) from error
