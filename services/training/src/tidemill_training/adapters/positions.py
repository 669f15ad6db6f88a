"""Completing a request's positions from Kafka, and reading a pipeline's clock, by short-lived consumers."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from tidemill_contracts.canonical import from_json
from tidemill_contracts.kafka_logs import log_bounds
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_runtime.errors import Retryable
from tidemill_runtime.positions import Partition
from tidemill_runtime.progress import from_wire, to_wire
from tidemill_runtime.settings import KafkaSettings

CLOCK_TOPIC = "monitoring.clock.v1"
_READ_TIMEOUT_MS = 2_000


async def completed(
    kafka: KafkaSettings, given: Sequence[progress.TopicPartitionOffset], topics: Sequence[str]
) -> list[progress.TopicPartitionOffset]:
    """Return the positions with every partition of `topics`: the end of the log where they name none.

    Raises `Retryable` where Kafka does not answer. A topic that does not exist adds nothing.
    """
    known = from_wire(given)
    async with _reading(kafka, topics) as consumer:
        _, ends = ({}, {}) if consumer is None else await log_bounds(consumer)
    found = {Partition(kafka.logical(place.topic), place.partition): offset for place, offset in ends.items()}
    return to_wire({**found, **known})


async def latest_clock(kafka: KafkaSettings, pipeline: str) -> monitoring.ClockRecord | None:
    """Return the newest record of a pipeline's clock, or None. Raises `Retryable` where Kafka does not answer."""
    newest: bytes | None = None
    async with _reading(kafka, [CLOCK_TOPIC]) as consumer:
        if consumer is None:
            return None
        begins, ends = await log_bounds(consumer)
        left = {place for place, begin in begins.items() if begin < ends[place]}
        while left:
            for batch in (await consumer.getmany(*left, timeout_ms=_READ_TIMEOUT_MS)).values():
                newest = next((one.value for one in reversed(batch) if one.key == pipeline.encode()), newest)
            left = {place for place in left if await consumer.position(place) < ends[place]}
    return None if newest is None else from_json(newest, monitoring.ClockRecord())


@asynccontextmanager
async def _reading(kafka: KafkaSettings, topics: Sequence[str]) -> AsyncIterator[Any]:
    """Lend a consumer of every partition of those topics that exist, or None where none does."""
    admin = AIOKafkaAdminClient(**kafka.client_kwargs())
    try:
        try:
            await admin.start()
            existing = set(await admin.list_topics())
        finally:
            await admin.close()
        names = [name for name in map(kafka.physical, topics) if name in existing]
        if not names:
            yield None
            return
        consumer = AIOKafkaConsumer(
            *names, **kafka.client_kwargs(), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest"
        )
        try:
            await consumer.start()
            yield consumer
        finally:
            await consumer.stop()
    except (KafkaError, OSError) as error:
        raise Retryable(f"Kafka: {error!r}") from error
