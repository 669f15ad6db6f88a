"""Writes predictions to Kafka: DURABLE before the answer, ASYNC through a bounded queue beside it."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from types import TracebackType
from typing import Self

import structlog
from tidemill_runtime.errors import Fatal, Overloaded, Poison, Retryable, TidemillError
from tidemill_runtime.positions import Partition
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.retries import delays

from tidemill_serving import metrics

_MAX_SEND = 500
# How long an ASYNC record may wait for company; what a killed process loses at most, besides what is in flight.
LINGER_S = 0.02

log = structlog.get_logger(__name__)


class PredictionTopic:
    """A `Component`: its `run` empties the ASYNC queue. Nothing is dropped while the queue has room."""

    def __init__(self, producer: Producer, *, queue_records: int, drain_s: float) -> None:
        self._producer = producer
        self._queue: deque[Outgoing] = deque()
        self._queue_records = queue_records
        self._drain_s = drain_s
        self._filled = asyncio.Event()
        self._stopping = asyncio.Event()
        metrics.log_waiting.set_function(lambda: len(self._queue))

    @property
    def written(self) -> dict[Partition, int]:
        """End offsets of every partition of the predictions topic written since the start."""
        return self._producer.written

    async def write(self, predictions: Sequence[Outgoing]) -> None:
        """Write before the answer; returns when Kafka has acknowledged all. Raises `Retryable` where it does not."""
        await self._producer.send_all(predictions)

    def offer(self, predictions: Sequence[Outgoing]) -> None:
        """Queue predictions; what does not fit is dropped, counted, and leaves a gap in the sequence."""
        room = self._queue_records - len(self._queue)
        self._queue.extend(predictions[:room])
        if room < len(predictions):
            metrics.log_dropped.inc(len(predictions) - max(room, 0))
        self._filled.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._queue:
            metrics.log_dropped.inc(len(self._queue))
            log.error("prediction_log_lost", records=len(self._queue))

    def stop(self) -> None:
        """Send what is queued, for as long as the drain allows, then end."""
        self._stopping.set()
        self._filled.set()

    async def run(self) -> None:
        """Send until `stop`, then what is left. Raises `Fatal` where Kafka will not have this producer."""
        working = asyncio.create_task(self._work(), name="prediction-log")
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                await asyncio.wait({working}, timeout=self._drain_s)
            if working.done():
                working.result()
        finally:
            stopping.cancel()
            working.cancel()

    async def _work(self) -> None:
        retries = delays()
        while not (self._stopping.is_set() and not self._queue):
            if not self._queue:
                self._filled.clear()
                await self._filled.wait()
                await self._linger()
                continue
            if await self._send(list(islice(self._queue, _MAX_SEND))):
                retries = delays()
            else:
                await asyncio.sleep(next(retries))

    async def _linger(self) -> None:
        """Let a batch come together: nobody waits for these records, and a request to Kafka costs as much as twenty."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), LINGER_S)

    async def _send(self, batch: list[Outgoing]) -> bool:
        """Send the head of the queue; what was not acknowledged stays there, and is sent again."""
        try:
            outcomes = await self._producer.send_each(batch)
        except Overloaded:
            return False
        kept: list[Outgoing] = []
        for record, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Fatal):
                raise outcome
            if isinstance(outcome, Retryable):
                kept.append(record)
            elif isinstance(outcome, Poison):
                metrics.log_dropped.inc()
                log.error("prediction_not_logged", reason=outcome.reason, error=str(outcome))
            elif isinstance(outcome, TidemillError):
                raise outcome
        for _ in batch:
            self._queue.popleft()
        self._queue.extendleft(reversed(kept))
        return not kept
