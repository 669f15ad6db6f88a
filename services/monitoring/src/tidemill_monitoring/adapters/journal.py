"""Publishes what a transaction decided, after it committed, and after a crash exactly what is not in Kafka yet.

Everything gets a sequence number in the transaction. The transaction after a publication notes how far it got and
where the topics ended then; what may have been sent in between is found by reading the topics from there. So a crash
between commit and publication loses nothing, and doubles no (pipeline, prediction id, revision). One batch is
published while the next one is joined; whoever waits for a batch's effects waits for `published` too.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from tidemill_contracts.kafka_logs import log_bounds
from tidemill_runtime.errors import Fatal, Retryable, TidemillError
from tidemill_runtime.positions import Partition
from tidemill_runtime.producer import Outgoing, Placed, Producer
from tidemill_runtime.settings import KafkaSettings

from tidemill_monitoring.adapters.store import headers_of
from tidemill_monitoring.join import Outcome, Stored, encode
from tidemill_monitoring.records import OUTCOMES, SOURCE, TRIGGERS

# An outage of Kafka is waited out this long; then the process ends, and the next one finds out what arrived.
ACK_TIMEOUT_S = 240.0
_READ_TIMEOUT_MS = 5_000

_UNSENT_OUTCOMES = """
SELECT o.seq, o.pipeline, o.prediction_id, p.join_key, p.as_of_us, o.scores, p.record,
       o.revision, o.state, o.label, o.label_time_us
FROM monitoring.outcome o
CROSS JOIN LATERAL (
    SELECT p.join_key, p.as_of_us, p.record FROM monitoring.prediction p
    WHERE p.pipeline = o.pipeline AND p.prediction_id = o.prediction_id OFFSET 0) p
WHERE o.seq > $1 ORDER BY o.seq
"""
_OUTCOME_HEADERS = [
    ("ce_specversion", b"1.0"),
    ("ce_source", SOURCE.encode()),
    ("ce_type", b"tidemill.outcome.v1"),
    ("content-type", b"application/protobuf"),
]

# The pipeline and an id within it: prediction ids are the callers', and two pipelines may be asked with the same one.
_Identity = tuple[bytes, bytes]

log = structlog.get_logger(__name__)


class Standing(NamedTuple):
    """How far the writer is: the next number to give out, and the last one known to be in Kafka."""

    next_seq: int
    published_seq: int


def outcome_record(outcome: Outcome) -> Outgoing:
    """Return an outcome ready to be written."""
    identity = f"{outcome.prediction.prediction_id}/{outcome.revision}"
    headers = [
        *_OUTCOME_HEADERS,
        ("ce_id", identity.encode()),
        ("ce_subject", outcome.prediction.pipeline.encode()),
    ]
    return Outgoing(OUTCOMES, encode(outcome), outcome.prediction.join_key.encode(), headers)


class Journal:
    """What waits for Kafka, in order; owned by the joiner."""

    def __init__(self, producer: Producer, kafka: KafkaSettings) -> None:
        self._producer = producer
        self._kafka = kafka
        self._pending: deque[tuple[int, Outgoing]] = deque()
        self._next_seq = 1
        self.published_seq = 0
        # The end of the triggers topic after the last trigger sent; what the policy must have reached.
        self.trigger_end: dict[Partition, int] = {}
        self._publishing: asyncio.Task[None] | None = None
        self._told_us = 0
        self._clock_told = asyncio.Condition()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            await self.published()
        elif self._publishing is not None:
            # What was not sent is committed, and sent by the next process.
            self._publishing.cancel()

    @property
    def standing(self) -> Standing:
        """How far numbering and publication are, for the transaction to note."""
        return Standing(self._next_seq, self.published_seq)

    @property
    def written(self) -> Mapping[Partition, int]:
        """Return the end offsets of what was written since the start."""
        return self._producer.written

    def number(self, count: int) -> range:
        """Give out sequence numbers."""
        first, self._next_seq = self._next_seq, self._next_seq + count
        return range(first, self._next_seq)

    def append(self, numbered: Iterable[tuple[int, Outgoing]]) -> None:
        """Queue what a transaction has committed."""
        self._pending.extend(numbered)

    def publish(self, unnumbered: Sequence[Outgoing] = (), clock_us: int | None = None) -> None:
        """Begin to write everything queued, then records that may be lost (a clock is told again).

        `clock_us`: the furthest pipeline's clock, told once all that is written; None: it stands where it stood.
        """
        self._publishing = asyncio.create_task(self._publish(unnumbered, clock_us), name="publish")

    async def published(self) -> None:
        """Return once everything committed before this call is in Kafka. Raises `Fatal`."""
        if self._publishing is not None:
            await asyncio.shield(self._publishing)

    async def reached_time(self, event_time_us: int) -> int:
        """Return the furthest pipeline's clock, once it stands at `event_time_us` (0: asks for no time)."""
        if event_time_us:
            async with self._clock_told:
                await self._clock_told.wait_for(lambda: self._told_us >= event_time_us)
        return self._told_us

    async def _publish(self, unnumbered: Sequence[Outgoing], clock_us: int | None) -> None:
        await self._send(unnumbered)
        if clock_us is None:
            return
        async with self._clock_told:
            self._told_us = clock_us
            self._clock_told.notify_all()

    async def _send(self, unnumbered: Sequence[Outgoing]) -> None:
        """Write; a record that was not acknowledged may still arrive, so that this process does not send it again."""
        queued, self._pending = self._pending, deque()
        records = [*(record for _, record in queued), *unnumbered]
        if not records:
            return
        for outcome in await self._producer.send_each(records):
            if isinstance(outcome, TidemillError):
                raise Fatal(f"Kafka did not take what was decided: {outcome}") from outcome
            self._note(outcome)
        if queued:
            self.published_seq = queued[-1][0]

    def _note(self, placed: Placed) -> None:
        if placed.topic == TRIGGERS:
            self.trigger_end[Partition(placed.topic, placed.partition)] = placed.offset + 1

    def _heed(self, ends: Mapping[Partition, int]) -> None:
        self.trigger_end.update((place, end) for place, end in ends.items() if place.topic == TRIGGERS)

    async def recover(self, connection: Any) -> None:
        """Take up where the last transaction stood: queue what is committed and not in Kafka. Raises `Retryable`."""
        row = await connection.fetchrow("SELECT next_seq, published_seq FROM monitoring.writer")
        self._next_seq, self.published_seq = row["next_seq"], row["published_seq"]
        unsent = await self._unsent(connection)
        self._pending.clear()
        stored = await connection.fetch("SELECT topic, partition, next_offset FROM monitoring.published")
        ends = {Partition(topic, number): offset for topic, number, offset in stored}
        self._heed(ends)
        if not unsent:
            return
        try:
            arrived = await self._arrived({record.topic for _, record in unsent}, ends)
        except (KafkaError, OSError) as error:
            raise Retryable(f"Kafka: {error!r}") from error
        missing = [(seq, record) for seq, record in unsent if _identity(record.headers) not in arrived]
        log.warning("publication_taken_up", committed=len(unsent), missing=len(missing))
        self._pending.extend(missing)
        if not missing:
            self.published_seq = unsent[-1][0]

    async def _unsent(self, connection: Any) -> list[tuple[int, Outgoing]]:
        outcomes = await connection.fetch(_UNSENT_OUTCOMES, self.published_seq)
        found = [(row[0], outcome_record(_outcome(row))) for row in outcomes]
        entries = await connection.fetch(
            "SELECT seq, topic, key, value, headers::text FROM monitoring.journal WHERE seq > $1 ORDER BY seq",
            self.published_seq,
        )
        found += [(row[0], Outgoing(row[1], row[3], row[2], headers_of(row[4]))) for row in entries]
        return sorted(found, key=lambda one: one[0])

    async def _arrived(self, topics: set[str], ends: Mapping[Partition, int]) -> set[_Identity]:
        """Return the identities of what the topics hold since the last noted publication."""
        # Without a group it is given every partition of the topics it names.
        names = [self._kafka.physical(topic) for topic in sorted(topics)]
        consumer = AIOKafkaConsumer(*names, **self._kafka.client_kwargs(), auto_offset_reset="earliest")
        await consumer.start()
        try:
            places = await self._seek(consumer, ends)
            self._heed(
                {Partition(self._kafka.logical(place.topic), place.partition): places[place] for place in places}
            )
            found: set[_Identity] = set()
            while behind := [place for place, end in places.items() if await consumer.position(place) < end]:
                batches = await consumer.getmany(*behind, timeout_ms=_READ_TIMEOUT_MS)
                found |= {_identity(record.headers) for records in batches.values() for record in records}
            return found
        finally:
            await consumer.stop()

    async def _seek(self, consumer: Any, ends: Mapping[Partition, int]) -> dict[TopicPartition, int]:
        """Read from the noted ends; returns where the topics end now."""
        begin, end = await log_bounds(consumer)
        for place, first in begin.items():
            noted = ends.get(Partition(self._kafka.logical(place.topic), place.partition), 0)
            consumer.seek(place, max(noted, first))
        return end


def _outcome(row: Any) -> Outcome:
    return Outcome(Stored(*row[1:7]), row[7], row[8], row[9], row[10], ready_us=0)


def _identity(headers: Iterable[tuple[str, bytes]]) -> _Identity:
    found = dict(headers)
    return found.get("ce_subject", b""), found.get("ce_id", b"")
