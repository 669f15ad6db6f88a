"""Creates topics from the catalogue; the one module of the contracts library that talks to Kafka."""

from collections.abc import Iterable
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import TopicAlreadyExistsError, for_code

from tidemill_contracts.topics import DEFAULT_PREFIX, Topic


async def create_topics(
    client: dict[str, Any], topics: Iterable[Topic], prefix: str = DEFAULT_PREFIX, replicas: int = 1
) -> list[str]:
    """Create what is missing and return its names; what exists is left as it is.

    `client`: keyword arguments of the admin client (bootstrap_servers and security). Raises `KafkaError`.
    """
    admin = AIOKafkaAdminClient(**client)
    await admin.start()
    try:
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
    finally:
        await admin.close()
