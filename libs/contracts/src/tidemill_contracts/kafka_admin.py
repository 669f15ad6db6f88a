"""Creates topics from the catalogue; the one module of the contracts library that talks to Kafka."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code

from tidemill_contracts.topics import DEFAULT_PREFIX, Topic


async def create_topics(
    client: dict[str, Any], topics: Iterable[Topic], prefix: str = DEFAULT_PREFIX, replicas: int = 1
) -> list[str]:
    """Create what is missing and return its names; what exists is left as it is.

    `client`: keyword arguments of the admin client (bootstrap_servers and security). Raises `KafkaError`.
    """
    async with _opened(client) as admin:
        existing = set(await admin.list_topics())
        missing = [topic for topic in topics if prefix + topic.name not in existing]
        if not missing:
            return []
        response = await admin.create_topics(
            [
                NewTopic(prefix + topic.name, topic.partitions, replicas, topic_configs=topic.config())
                for topic in missing
            ]
        )
        for name, code, *_ in response.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                raise error(f"creating topic {name}")
        return [prefix + topic.name for topic in missing]


async def add_partitions(client: dict[str, Any], topics: Iterable[Topic], prefix: str = DEFAULT_PREFIX) -> list[str]:
    """Give topics that have fewer partitions than the catalogue says those that they lack; return their names.

    Raises `KafkaError`.
    """
    wanted = {prefix + topic.name: topic.partitions for topic in topics}
    async with _opened(client) as admin:
        found = {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics(list(wanted))}
        lacking = {name: NewPartitions(count) for name, count in wanted.items() if 0 < found[name] < count}
        if lacking:
            await admin.create_partitions(lacking)
        return list(lacking)


@asynccontextmanager
async def _opened(client: dict[str, Any]) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**client)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()
