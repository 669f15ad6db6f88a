"""Creates topics from the catalogue, and adds partitions to them."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import InvalidPartitionsError, KafkaTimeoutError, TopicAlreadyExistsError, for_code

from tidemill_contracts.topics import DEFAULT_PREFIX, Topic

# How long the controller's news may take to reach the broker: ten seconds.
_LOOKS, _LOOK_S = 200, 0.05


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

    Returns once the broker tells everybody of all of them. Raises `KafkaError`; `InvalidPartitionsError` where one has
    more than that.
    """
    wanted = {prefix + topic.name: topic.partitions for topic in topics}
    grown: set[str] = set()
    async with _opened(client) as admin:
        for _ in range(_LOOKS):
            found = {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics(list(wanted))}
            for name, count in wanted.items():
                if found[name] > count:
                    raise InvalidPartitionsError(
                        f"topic {name} has {found[name]} partitions: they cannot become {count}"
                    )
            # Of a topic that was made a moment ago the broker may not know any yet.
            lacking = {name for name, count in wanted.items() if found[name] < count}
            if not lacking:
                return sorted(grown)
            if new := {name for name in lacking - grown if found[name]}:
                await admin.create_partitions({name: NewPartitions(wanted[name]) for name in new})
                grown |= new
            await asyncio.sleep(_LOOK_S)
    raise KafkaTimeoutError(f"the broker does not know all partitions of {', '.join(sorted(lacking))}")


@asynccontextmanager
async def _opened(client: dict[str, Any]) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**client)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()
