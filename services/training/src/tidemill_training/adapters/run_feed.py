"""Where records of runs go: the topic, and whoever watches a run in this process."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from tidemill_contracts.canonical import to_json
from tidemill_contracts.training.v1 import training_pb2 as training
from tidemill_runtime.errors import TidemillError
from tidemill_runtime.producer import Outgoing, Producer

from tidemill_training import metrics
from tidemill_training.run_records import TOPIC

# Of one run: more than it says while a Kafka that is well acknowledges one.
_MOST_WAITING = 64
# How long the last record of a run waits for those before it.
_SETTLE_S = 5.0

log = structlog.get_logger(__name__)


class RunFeed:
    """Publishes records, and wakes those who wait for a change."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._change = asyncio.Event()

    async def publish(self, record: training.RunRecord) -> None:
        """Write a record to the topic. Raises `Retryable` where Kafka does not acknowledge it."""
        key = record.run_id or record.request_id
        headers = [("content-type", b"application/json")]
        await self._producer.send(Outgoing(TOPIC, to_json(record), key.encode(), headers))

    @asynccontextmanager
    async def telling(self, cause_key: str) -> AsyncIterator["Telling"]:
        """Lend a way to say how far a cause's run is; what still waits at the end is dropped."""
        telling = Telling(self, cause_key)
        try:
            yield telling
        finally:
            await telling.drop()

    def wake(self) -> None:
        """Wake who waits: something in the ledger changed."""
        self._change.set()
        self._change = asyncio.Event()

    async def changed(self, at_most_s: float) -> None:
        """Return at the next change, or after a while, since another replica's changes are not heard here."""
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._change.wait()


class Telling:
    """Says how far a run is, in order, and never keeps it waiting: what Kafka does not take in time is dropped."""

    def __init__(self, feed: RunFeed, cause_key: str) -> None:
        self._feed = feed
        self._cause_key = cause_key
        self._waiting: deque[training.RunRecord] = deque()
        self._sending: asyncio.Task[None] | None = None
        # Dropped since the log last told of it.
        self._untold = 0

    def say(self, record: training.RunRecord) -> None:
        """Publish a record in the background."""
        if len(self._waiting) >= _MOST_WAITING:
            self._lose(1)
            return
        self._waiting.append(record)
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(), name=f"telling {self._cause_key}")

    async def settle(self) -> None:
        """Give what was said a moment to be acknowledged: what is published next comes behind all of it."""
        if self._sending is not None:
            await asyncio.wait({self._sending}, timeout=_SETTLE_S)
        await self.drop()

    async def drop(self) -> None:
        """Give up what waits."""
        if self._sending is not None and not self._sending.done():
            self._sending.cancel()
            await asyncio.wait({self._sending})
        self._lose(len(self._waiting))
        self._waiting.clear()
        self._report("not acknowledged in time")

    async def _send(self) -> None:
        while self._waiting:
            try:
                await self._feed.publish(self._waiting[0])
            except TidemillError as error:
                self._lose(1)
                self._report(str(error))
            self._waiting.popleft()

    def _lose(self, count: int) -> None:
        metrics.records_dropped.inc(count)
        self._untold += count

    def _report(self, why: str) -> None:
        if self._untold:
            log.warning("run_records_dropped", cause_key=self._cause_key, count=self._untold, why=why)
            self._untold = 0
