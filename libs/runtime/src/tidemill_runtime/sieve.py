"""Keeps from a consumer group the records that are not for it, before any of them has an effect.

A dead letter is final: where the log is read again (a lost store, a new view), what the group refused once stays
refused, whatever the definitions say by then, and comes back through a redrive alone. Otherwise a record would count
at its own place and again where it was sent to. And what is redriven for others, the group has applied already.

Late events are the exception: what is late is for the stream's rules to say, which each reader of the log, the offline
one included, applies anew. So they are never redriven, and count where they lie once the rules allow it.
"""

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from tidemill_contracts.dead_letters import (
    GROUP,
    OFFSET,
    PARTITION,
    REASON,
    REDRIVEN_FOR,
    TOPIC,
    addressed_to,
    left_out,
)
from tidemill_contracts.kafka_logs import assign_whole, log_bounds
from tidemill_contracts.reasons import Reason
from tidemill_contracts.topics import dead_letter_topic

from tidemill_runtime.batches import Batch, Headed, Record
from tidemill_runtime.consumer import close
from tidemill_runtime.errors import Retryable
from tidemill_runtime.positions import Offsets, Partition
from tidemill_runtime.settings import KafkaSettings

_READ_MS = 200
# A partition or an offset; whatever else a foreign hand wrote is no letter of ours.
_NUMBER = re.compile(rb"[0-9]{1,19}")

log = structlog.get_logger(__name__)


class Sieve:
    """Knows one group's dead letters from the offsets on at which it reads."""

    def __init__(self, kafka: KafkaSettings, group: str) -> None:
        """Take the group that decides; a group that shares another's letters names that one."""
        self._kafka = kafka
        self._group = group
        # Hash of what was refused, by partition and offset: a topic that was made anew has the old places again.
        self._refused: dict[Partition, dict[int, int]] = {}

    async def recall(self, start: Offsets, end: Offsets) -> None:
        """Read which records from `start` on the group refused before. Raises `Retryable`."""
        self._refused = {}
        topics = {partition.topic for partition, offset in start.items() if offset < end.get(partition, 0)}
        wanted = {dead_letter_topic(topic) for topic in topics if not topic.endswith(".dlq")}
        try:
            await self._read(sorted(map(self._kafka.physical, wanted)), start)
        except (KafkaError, OSError) as error:
            raise Retryable(f"the dead letters cannot be read: {error!r}") from error
        if self._refused:
            log.info("refused_before", group=self._group, records=sum(map(len, self._refused.values())))

    def sift(self, batch: Batch) -> Batch:
        """Return the batch without what is not for the group; it still says how far it was read."""
        if self._refused.keys().isdisjoint(batch.partitions) and not any(map(_marked, batch.partitions.values())):
            return batch
        kept = {
            partition: [record for record in records if self._mine(self._refused.get(partition, {}), record)]
            for partition, records in batch.partitions.items()
        }
        return Batch({place: records for place, records in kept.items() if records}, batch.next_offsets)

    def _mine(self, refused: Mapping[int, int], record: Record) -> bool:
        if (mark := refused.get(record.offset)) is not None:
            digest = _digest(record.value)
            if mark in (hash((record.key, digest)), hash(digest)):
                return False
        return addressed_to(record.headers, self._group)

    async def _read(self, topics: Sequence[str], start: Offsets) -> None:
        if not topics:
            return
        consumer: Any = AIOKafkaConsumer(**self._kafka.client_kwargs(), enable_auto_commit=False, fetch_max_wait_ms=50)
        try:
            await consumer.start()
            present = await consumer.topics()
            await assign_whole(consumer, [topic for topic in topics if topic in present])
            begins, ends = await log_bounds(consumer)
            left = {place for place, begin in begins.items() if begin < ends[place]}
            for place, begin in begins.items():
                consumer.seek(place, begin)
            while left:
                fetched: Mapping[Any, Sequence[Record]] = await consumer.getmany(*left, timeout_ms=_READ_MS)
                for letter in (letter for letters in fetched.values() for letter in letters):
                    self._note(letter, start)
                left = {place for place in left if await consumer.position(place) < ends[place]}
        finally:
            await close(consumer)

    def _note(self, letter: Record, start: Offsets) -> None:
        headers = dict(letter.headers)
        number, offset = headers.get(PARTITION) or b"", headers.get(OFFSET) or b""
        if headers.get(GROUP) != self._group.encode() or not (_NUMBER.fullmatch(number) and _NUMBER.fullmatch(offset)):
            return
        if headers.get(REASON) == Reason.TOO_LATE.encode():
            return
        place = Partition((headers.get(TOPIC) or b"").decode("utf-8", "replace"), int(number))
        if place in start and int(offset) >= start[place]:
            # A letter without its value, which did not fit, may lack the key too.
            cut = left_out(letter.headers)
            mark = hash((letter.key, _digest(letter.value))) if cut is None else hash(cut)
            self._refused.setdefault(place, {})[int(offset)] = mark


def _digest(value: bytes | None) -> bytes:
    return sha256(value or b"").hexdigest().encode()


def _marked(records: Sequence[Record]) -> bool:
    """Return whether any record was sent again for some."""
    if isinstance(records, Headed):
        return records.has(REDRIVEN_FOR)
    return any(headers[-1][0] == REDRIVEN_FOR for record in records if (headers := record.headers))
