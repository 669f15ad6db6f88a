"""Repeating what `Retryable` interrupts, for a limited time and with the consumer paused, so that nothing piles up."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from time import monotonic
from typing import Any, TypeVar

from tidemill_runtime import metrics
from tidemill_runtime.batches import StreamOptions
from tidemill_runtime.consumer import sleep_unless
from tidemill_runtime.errors import Fatal, Retryable, StateLost
from tidemill_runtime.retries import delays
from tidemill_runtime.standing import Standing

R = TypeVar("R")

_POLL_S = 0.1


class Abandoned(Exception):  # noqa: N818 -- control flow, not an error: the batch in work will be read again
    """While an attempt was repeated the service was stopped or the partitions were taken away."""


class Patience:
    """Repeats the attempts of one stream on one consumer; `stopping` ends every wait, `changed` every repetition."""

    def __init__(
        self,
        consumer: Any,
        options: StreamOptions,
        standing: Standing,
        stopping: asyncio.Event,
        changed: asyncio.Event,
    ) -> None:
        self._consumer = consumer
        self._options = options
        self._standing = standing
        self._stopping = stopping
        self._changed = changed

    async def outlast(self, attempt: Callable[[], Awaitable[R]], is_current: Callable[[], bool]) -> R:
        """Return what `attempt` does at last.

        Raises `Fatal` after `retry_limit_s`, and `Abandoned` once the service stops or is to read other topics, or
        `is_current` says no.
        """
        began_s = monotonic()
        for delay_s in delays():
            try:
                result = await attempt()
            except StateLost:
                raise
            except Retryable as error:
                waited_s = monotonic() - began_s
                if waited_s > self._options.retry_limit_s:
                    raise Fatal(f"gave up after {waited_s:.0f} s: {error}") from error
                metrics.stream_retries.labels(self._options.group).inc()
                self._standing.waits(f"retrying: {error}")
                self._standing.excused = True
                await self._pause(max(delay_s, error.retry_after_s or 0))
                if self._stopping.is_set() or self._changed.is_set() or not is_current():
                    raise Abandoned from error
            else:
                if not is_current():
                    raise Abandoned
                if self._standing.excused:
                    self._standing.goes_on()
                    self.resume()
                return result
        raise AssertionError("delays never end")

    def resume(self) -> None:
        """Let the consumer fetch again."""
        self._consumer.resume(*self._consumer.assignment())

    async def _pause(self, seconds: float) -> None:
        self._consumer.pause(*self._consumer.assignment())
        await sleep_unless(self._stopping, seconds)
        # An empty poll says that the consumer lives; without it the group would expel the worker. Amid a rebalance it
        # would not return before that is over, which may wait for what is attempted here.
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_S):
                await self._consumer.getmany(timeout_ms=0)
