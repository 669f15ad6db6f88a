"""Reads Kafka topics from outside: no consumer group, nothing committed."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError
from aiokafka.structs import ConsumerRecord, TopicPartition
from tidemill_contracts.kafka_logs import log_bounds
from tidemill_contracts.kafka_refusals import refusal
from tidemill_contracts.progress.v1 import progress_pb2 as progress

from tidemill.clients.errors import ClientError
from tidemill.kafka_login import LoginError, login

POLL_MS = 500
STEP_RECORDS = 500


class TopicError(ClientError):
    """A topic cannot be read."""


@dataclass(frozen=True)
class KafkaTarget:
    """Where Kafka is and how it is talked to; `prefix` starts the name of every topic."""

    bootstrap: str
    prefix: str = "tidemill."
    security: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_environment(cls, bootstrap: str, prefix: str, environment: Mapping[str, str]) -> "KafkaTarget":
        """Read TIDEMILL_KAFKA_SECURITY_PROTOCOL, _SASL_… and _SSL_…. Raises `TopicError` where one is wrong."""
        try:
            return cls(bootstrap, prefix, login(environment))
        except LoginError as error:
            raise TopicError(str(error), reached=True) from error

    def client_kwargs(self) -> dict[str, Any]:
        """Return the keyword arguments that every aiokafka client takes."""
        return {"bootstrap_servers": self.bootstrap, "security_protocol": "PLAINTEXT", **self.security}


async def kafka_fault(target: KafkaTarget, error: KafkaError) -> TopicError:
    """Return what to say of a client's error: why nobody is let in, or that it may go better in a moment."""
    if isinstance(error, KafkaConnectionError):
        why = await refusal(target.client_kwargs())
        return TopicError(why or f"Kafka is not reachable at {target.bootstrap}", reached=False)
    # Of a node that has just begun the client says no more than that the answer was unexpected.
    if error.retriable or type(error) in (KafkaError, KafkaTimeoutError):
        return TopicError(f"Kafka is not ready: {error!r}; try again", reached=False)
    return TopicError(f"Kafka says: {error!r}", reached=True)


@asynccontextmanager
async def _consumer(target: KafkaTarget, *physical: str) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        *physical,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=100,
        **target.client_kwargs(),
    )
    try:
        await consumer.start()
        yield consumer
    except KafkaError as error:
        raise await kafka_fault(target, error) from error
    finally:
        await consumer.stop()


async def list_topics(target: KafkaTarget) -> list[str]:
    """Return the logical names of the topics under the prefix, sorted."""
    async with _consumer(target) as consumer:
        found = await consumer.topics()
    return sorted(name.removeprefix(target.prefix) for name in found if name.startswith(target.prefix))


async def read_topic(
    target: KafkaTarget, topic: str, *, last: int | None, follow: bool
) -> AsyncGenerator[ConsumerRecord, None]:
    """Yield the newest `last` records (None: all) of a logical topic in order of time, then with `follow` new ones.

    Raises `TopicError` where Kafka or the topic is not there.
    """
    if topic not in await list_topics(target):
        raise TopicError(f"there is no topic {topic!r} (under the prefix {target.prefix!r})", reached=True)
    # Named at the start: without a group, that is what assigns every partition.
    async with _consumer(target, target.prefix + topic) as consumer:
        starts, ends = await log_bounds(consumer)
        for place, start in starts.items():
            consumer.seek(place, start if last is None else max(start, ends[place] - last))
        kept: list[ConsumerRecord] = []
        async for record in _until(consumer, ends):
            if last is None:
                yield record
            else:
                kept.append(record)
        for record in sorted(kept, key=lambda one: (one.timestamp, one.partition, one.offset))[-(last or 0) :]:
            yield record
        while follow:
            for records in (await consumer.getmany(timeout_ms=POLL_MS, max_records=STEP_RECORDS)).values():
                for record in records:
                    yield record


async def positions_now(target: KafkaTarget, topics: Iterable[str]) -> list[progress.TopicPartitionOffset]:
    """Return where the partitions of logical topics end; one that is not there has none. Raises `TopicError`."""
    names = set(topics) & set(await list_topics(target))
    if not names:
        return []
    async with _consumer(target, *(target.prefix + name for name in sorted(names))) as consumer:
        _, ends = await log_bounds(consumer)
    return [
        progress.TopicPartitionOffset(
            topic=place.topic.removeprefix(target.prefix), partition=place.partition, next_offset=end
        )
        for place, end in sorted(ends.items())
    ]


async def read_from(
    target: KafkaTarget, topic: str, start: Callable[[int, int], int]
) -> AsyncGenerator[ConsumerRecord, None]:
    """Yield the records of a logical topic up to its present end; `start` gives a partition's first offset by its end.

    Raises `TopicError`.
    """
    async with _consumer(target, target.prefix + topic) as consumer:
        begins, ends = await log_bounds(consumer)
        for place, begin in begins.items():
            consumer.seek(place, min(ends[place], max(begin, start(place.partition, ends[place]))))
        async for record in _until(consumer, ends):
            yield record


async def _until(consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]) -> AsyncIterator[ConsumerRecord]:
    """Yield everything before the given end offsets; the consumer's position is then exactly there."""
    left = {place for place, end in ends.items() if await consumer.position(place) < end}
    while left:
        for place, records in (await consumer.getmany(*left, timeout_ms=POLL_MS, max_records=STEP_RECORDS)).items():
            for record in records:
                if record.offset < ends[place]:
                    yield record
            if await consumer.position(place) > ends[place]:
                consumer.seek(place, ends[place])
        # Asked of the position, not of records: a compacted or transactional log may end in none.
        left = {place for place in left if await consumer.position(place) < ends[place]}
