"""Reads rings from Redis: one MGET for everything that a micro-batch needs."""

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError
from tidemill_runtime.errors import Retryable


class OnlineFeatures:
    """One trip, bounded in time; a Redis that is away is `Retryable`, never a prediction without its features."""

    def __init__(self, redis: Redis, timeout_s: float) -> None:
        self._redis: Any = redis
        self._timeout_s = timeout_s

    async def fetch(self, keys: list[bytes]) -> Sequence[bytes | None]:
        """Return the values of the keys, None where there is none. Raises `Retryable`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                values: Sequence[bytes | None] = await self._redis.mget(keys)
        except (RedisError, OSError, TimeoutError) as error:
            raise Retryable(f"Redis does not give the features: {error!r}", retry_after_s=0.5) from error
        return values
