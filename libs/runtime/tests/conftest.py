"""A corner of the real Kafka: settings with a prefix of the test's own, and topics made on demand."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from tidemill_runtime.settings import KafkaSettings

MakeTopic = Callable[..., Awaitable[None]]
ReadTopic = Callable[[str], Awaitable[list[Any]]]
Committed = Callable[..., Awaitable[int]]


@pytest.fixture
def kafka(request: pytest.FixtureRequest, topic_prefix: str) -> KafkaSettings:
    return KafkaSettings(bootstrap=request.getfixturevalue("servers").kafka, topic_prefix=topic_prefix)


@pytest.fixture
async def make_topic(kafka: KafkaSettings) -> AsyncIterator[MakeTopic]:
    admin = AIOKafkaAdminClient(**kafka.client_kwargs())
    await admin.start()
    made: list[str] = []

    async def make(topic: str, partitions: int = 1, **config: str) -> None:
        name = kafka.physical(topic)
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=config)])
        made.append(name)

    yield make
    if made:
        await admin.delete_topics(made)
    await admin.close()


@pytest.fixture
def read_topic(kafka: KafkaSettings) -> ReadTopic:
    async def read(topic: str) -> list[Any]:
        consumer = AIOKafkaConsumer(**kafka.client_kwargs())
        await consumer.start()
        try:
            name = kafka.physical(topic)
            # Only of topics that it reads does the client know the partitions.
            consumer.assign([TopicPartition(name, 0)])
            await consumer.end_offsets(consumer.assignment())
            places = [TopicPartition(name, number) for number in sorted(consumer.partitions_for_topic(name) or ())]
            consumer.assign(places)
            await consumer.seek_to_beginning(*places)
            end = sum((await consumer.end_offsets(places)).values())
            records: list[Any] = []
            while len(records) < end:
                for fetched in (await consumer.getmany(timeout_ms=200)).values():
                    records += fetched
            return records
        finally:
            await consumer.stop()

    return read


@pytest.fixture
def committed(kafka: KafkaSettings) -> Committed:
    async def read(topic: str, group: str = "laws") -> int:
        """Return the group's committed offset in the first partition; -1 where there is none."""
        admin = AIOKafkaAdminClient(**kafka.client_kwargs())
        await admin.start()
        try:
            stored = await admin.list_consumer_group_offsets(kafka.physical(group))
        finally:
            await admin.close()
        found = stored.get(TopicPartition(kafka.physical(topic), 0))
        return found.offset if found is not None else -1

    return read
