"""Following a compacted topic: its whole content, then what comes, folded into memory; no consumer group."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiokafka.errors import KafkaError
from tidemill_contracts.kafka_logs import assign_whole, log_bounds

from tidemill_runtime import metrics
from tidemill_runtime.batches import Record
from tidemill_runtime.consumer import close, connect, sleep_unless, unless
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.health import Health
from tidemill_runtime.lifecycle import Component
from tidemill_runtime.positions import Offsets, Partition, Positions
from tidemill_runtime.retries import delays
from tidemill_runtime.settings import KafkaSettings

OnRecord = Callable[[Record], Awaitable[None] | None]

_POLL_MS = 200
_MISSING_S = 0.5
_GROUP = "follower"

log = structlog.get_logger(__name__)


class TopicFollower(Component):
    """Calls `on_record` for every record of one topic from its beginning, in order; a `Component` for `running`.

    `on_record` may be a coroutine function; the position advances after it returned. `Poison` from it is logged,
    counted and passed over, `Retryable` is retried until it holds, anything else ends the service. Kafka
    being away is waited out: what was folded stays.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        topic: str,
        on_record: OnRecord,
        *,
        health: Health | None = None,
        fetch_wait_ms: int = 500,
    ) -> None:
        self._kafka = kafka
        self._topic = topic
        self._on_record = on_record
        self._fetch_wait_ms = fetch_wait_ms
        self._stopping = asyncio.Event()
        self._end: dict[Partition, int] = {}
        self._fault: str | None = "not connected yet"
        self.positions = Positions([topic])
        # Set once everything that was in the topic at the start is folded.
        self.caught_up = asyncio.Event()
        if health is not None:
            health.require_ready(f"follower:{topic}", self.fault)

    def fault(self) -> str | None:
        """Return what is wrong, for readiness; an outage after catching up is not: the last state still serves."""
        return None if self.caught_up.is_set() else self._fault

    def stop(self) -> None:
        """Read nothing more."""
        self._stopping.set()

    async def reached(self, offsets: Offsets) -> None:
        """Return once everything before `offsets` is folded; other topics do not count."""
        await self.positions.reached(offsets)

    async def run(self) -> None:
        """Follow until `stop`."""
        options: dict[str, Any] = {"group_id": None, "auto_offset_reset": "earliest", "enable_auto_commit": False}
        options |= {"fetch_max_wait_ms": self._fetch_wait_ms, "metadata_max_age_ms": 5_000}
        consumer = await connect(self._kafka, options, self._stopping, self._set_fault)
        if consumer is None:
            return
        try:
            while not self._stopping.is_set():
                await self._poll(consumer)
        finally:
            await close(consumer)

    async def _begin(self, consumer: Any) -> None:
        name = self._kafka.physical(self._topic)
        # A topic that does not exist yet is waited for like a broker that is away.
        if name not in await consumer.topics():
            self._set_fault(f"topic {name} does not exist yet")
            await sleep_unless(self._stopping, _MISSING_S)
            return
        await assign_whole(consumer, [name])
        begin, end = await log_bounds(consumer)
        # Of a topic that is subscribed to the client notices that it is made anew.
        consumer.unsubscribe()
        consumer.subscribe([name])
        self._end = {Partition(self._topic, place.partition): offset for place, offset in end.items()}
        self.positions.reset({Partition(self._topic, p.partition): offset for p, offset in begin.items()})
        self._set_fault("reading the topic from its beginning")
        self._note_caught_up()

    async def _poll(self, consumer: Any) -> None:
        try:
            if not self._end:
                await self._begin(consumer)
                return
            fetched = await unless(self._stopping, consumer.getmany(timeout_ms=_POLL_MS)) or {}
        except (KafkaError, OSError) as error:
            self._set_fault(f"Kafka: {error!r}")
            await sleep_unless(self._stopping, 0.5)
            return
        for place, records in fetched.items():
            for record in records:
                if not await self._fold(record):
                    return
                self.positions.advance({Partition(self._topic, place.partition): record.offset + 1})
        if fetched and not self.caught_up.is_set():
            self._note_caught_up()

    async def _fold(self, record: Record) -> bool:
        for delay_s in delays():
            try:
                pending = self._on_record(record)
                if inspect.isawaitable(pending):
                    await pending
            except Poison as poison:
                detail = {"offset": record.offset, "reason": poison.reason, "error": str(poison)}
                log.warning("record_passed_over", topic=self._topic, **detail)
                metrics.dead_letters.labels(_GROUP, self._topic, poison.reason).inc()
            except Retryable as error:
                log.warning("record_retried", topic=self._topic, offset=record.offset, error=str(error))
                await sleep_unless(self._stopping, delay_s)
                if self._stopping.is_set():
                    return False
                continue
            return True
        return False

    def _note_caught_up(self) -> None:
        held = self.positions.next
        if all(held[partition] >= end for partition, end in self._end.items()):
            self.caught_up.set()
            log.info("caught_up", topic=self._topic)

    def _set_fault(self, fault: str) -> None:
        self._fault = fault
