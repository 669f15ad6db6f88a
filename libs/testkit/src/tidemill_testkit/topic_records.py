"""What a topic holds, read to its present end."""

from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from tidemill_contracts.kafka_logs import log_bounds


async def topic_records(client: Mapping[str, Any], topic: str, partitions: Iterable[int] | None = None) -> list[Any]:
    """Return every record of a topic, by partition and offset.

    `client`: how clients connect; `topic`: its physical name; `partitions`: None for all that the broker names.
    """
    named = [topic] if partitions is None else []
    consumer = AIOKafkaConsumer(*named, **client, auto_offset_reset="earliest", enable_auto_commit=False)
    await consumer.start()
    try:
        if partitions is not None:
            consumer.assign([TopicPartition(topic, number) for number in partitions])
        _, ends = await log_bounds(consumer)
        found: list[Any] = []
        while behind := [place for place, end in ends.items() if await consumer.position(place) < end]:
            for records in (await consumer.getmany(*behind, timeout_ms=200)).values():
                found += records
        return sorted(found, key=lambda record: (record.partition, record.offset))
    finally:
        await consumer.stop()
