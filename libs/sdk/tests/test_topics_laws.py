"""Laws of reading topics from outside, on the real Kafka."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from tidemill.clients.topics import KafkaTarget, TopicError, list_topics, read_topic
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.topics import stream_topics
from tidemill_testkit.plugin import Servers

pytestmark = pytest.mark.servers

TOPIC = "events.readings"


@pytest_asyncio.fixture
async def target(servers: Servers, topic_prefix: str) -> AsyncIterator[KafkaTarget]:
    """Two partitions with ten records each, told in turns."""
    client = {"bootstrap_servers": servers.kafka}
    await create_topics(client, stream_topics([("readings", 2)]), topic_prefix)
    producer = AIOKafkaProducer(**client, linger_ms=0)
    await producer.start()
    try:
        for number in range(20):
            await producer.send_and_wait(
                topic_prefix + TOPIC, str(number).encode(), partition=number % 2, timestamp_ms=1_000 + number
            )
    finally:
        await producer.stop()
    yield KafkaTarget(servers.kafka, topic_prefix)


async def values(target: KafkaTarget, last: int | None) -> list[int]:
    async with aclosing(read_topic(target, TOPIC, last=last, follow=False)) as records:
        return [int(record.value) async for record in records]


async def test_the_newest_records_of_all_partitions_come_in_order_of_time(target: KafkaTarget) -> None:
    assert await values(target, 5) == [15, 16, 17, 18, 19]
    assert await values(target, 0) == []


async def test_everything_is_read_to_the_end_and_no_further(target: KafkaTarget) -> None:
    assert sorted(await values(target, None)) == list(range(20))


async def test_following_goes_on_with_what_comes_after_the_newest(target: KafkaTarget) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=target.bootstrap, linger_ms=0)
    await producer.start()
    try:
        async with aclosing(read_topic(target, TOPIC, last=1, follow=True)) as records:
            assert int((await anext(records)).value) == 19
            await producer.send_and_wait(target.prefix + TOPIC, b"20", partition=0)
            assert int((await anext(records)).value) == 20
    finally:
        await producer.stop()


async def test_topics_are_listed_without_their_prefix(target: KafkaTarget) -> None:
    assert await list_topics(target) == [TOPIC, f"{TOPIC}.dlq"]


async def test_a_topic_that_is_not_there_is_said_to_be_missing(target: KafkaTarget) -> None:
    with pytest.raises(TopicError, match=r"there is no topic 'events\.nothing'") as caught:
        async with aclosing(read_topic(target, "events.nothing", last=1, follow=False)) as records:
            await anext(records)
    assert caught.value.reached
