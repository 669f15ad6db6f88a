"""Where logs begin and end.

A broker answers the requests of a connection one after the other, and holds a fetch back until there is something to
read. What is asked beside an idle fetch takes as long as that: half a second by default.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

from aiokafka import TopicPartition


async def assign_whole(consumer: Any, topics: Iterable[str]) -> None:
    """Assign every partition of topics that exist (names on the broker) to a consumer without a group, paused.

    Raises `KafkaError`.
    """
    firsts = [TopicPartition(topic, 0) for topic in topics]
    _assign(consumer, firsts)
    # The metadata of a topic comes once something of it is asked for.
    await consumer.end_offsets(firsts)
    numbers = {one.topic: sorted(consumer.partitions_for_topic(one.topic) or ()) for one in firsts}
    _assign(consumer, [TopicPartition(topic, number) for topic in numbers for number in numbers[topic]])


def _assign(consumer: Any, places: Iterable[TopicPartition]) -> None:
    consumer.assign(places)
    consumer.pause(*places)


async def log_bounds(consumer: Any) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    """Return the first and the next offset of every partition that a consumer has just been assigned.

    Raises `KafkaError`. Nothing is fetched meanwhile, nor before the caller waits for something.
    """
    places = sorted(consumer.assignment())
    consumer.pause(*places)
    begin, end = await asyncio.gather(consumer.beginning_offsets(places), consumer.end_offsets(places))
    consumer.resume(*places)
    return begin, end
