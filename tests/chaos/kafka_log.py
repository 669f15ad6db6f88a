"""What lies in Kafka, and who has committed what."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import KafkaError, NodeNotReadyError
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit.eventually import aeventually


class Log:
    """The topics under one prefix."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._consumer: Any = None
        self._admin: Any = None

    async def __aenter__(self) -> Self:
        await aeventually(self._connect, 30, claim="Kafka answers", tolerate=(KafkaError, OSError))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def create(self, topics: Mapping[str, int]) -> None:
        """Create topics with so many partitions."""
        new = [NewTopic(self._settings.physical(name), count, 1) for name, count in topics.items()]

        async def created() -> bool:
            await self._admin.create_topics(new)
            return True

        # A Kafka that has just begun does not know its controller yet.
        await aeventually(created, 20, claim="topics are created", tolerate=(NodeNotReadyError,))

    async def recreate(self, topic: str) -> None:
        """Delete a topic and create it anew, empty."""
        name, count = self._settings.physical(topic), len(await self._places(topic))
        await self._admin.delete_topics([name])

        async def gone() -> bool:
            return name not in await self._admin.list_topics()

        await aeventually(gone, 20, claim=f"{name} is deleted")
        await self.create({topic: count})

        async def there() -> bool:
            return len(await self.ends(topic)) == count

        await aeventually(there, 20, claim=f"{topic} is there again", tolerate=(KafkaError,))

    async def grow(self, topic: str, more: int) -> int:
        """Give a topic more partitions, and return how many it has then."""
        count = len(await self._places(topic)) + more
        await self._admin.create_partitions({self._settings.physical(topic): NewPartitions(count)})

        async def there() -> bool:
            return len(await self.ends(topic)) == count

        await aeventually(there, 20, claim=f"{topic} has {count} partitions", tolerate=(KafkaError,))
        return count

    async def delete_all(self) -> None:
        """Delete every topic under the prefix."""
        names = [name for name in await self._admin.list_topics() if name.startswith(self._settings.topic_prefix)]
        await self._admin.delete_topics(names)

    async def ends(self, topic: str) -> dict[int, int]:
        """Return the end of each partition of a topic."""
        places = await self._places(topic)
        return {place.partition: end for place, end in (await self._consumer.end_offsets(places)).items()}

    async def records(self, topic: str) -> list[Any]:
        """Return every record of a topic."""
        places = await self._places(topic)
        self._consumer.assign(places)
        await self._consumer.seek_to_beginning(*places)
        ends = await self._consumer.end_offsets(places)
        records: list[Any] = []
        while any([await self._consumer.position(place) < end for place, end in ends.items()]):
            for found in (await self._consumer.getmany(timeout_ms=200)).values():
                records += found
        return records

    async def committed(self, topic: str, group: str) -> dict[int, int]:
        """Return the offsets that a group has committed; the beginning is left out."""
        offsets = await self._admin.list_consumer_group_offsets(self._settings.physical(group))
        name = self._settings.physical(topic)
        return {place.partition: at.offset for place, at in offsets.items() if place.topic == name and at.offset > 0}

    async def _places(self, topic: str) -> list[TopicPartition]:
        name = self._settings.physical(topic)
        (described,) = await self._admin.describe_topics([name])
        return [TopicPartition(name, one["partition"]) for one in described["partitions"]]

    async def _connect(self) -> bool:
        await self._close()
        kwargs = self._settings.client_kwargs()
        self._consumer, self._admin = AIOKafkaConsumer(**kwargs, group_id=None), AIOKafkaAdminClient(**kwargs)
        await self._consumer.start()
        await self._admin.start()
        return True

    async def _close(self) -> None:
        for client, closing in ((self._consumer, "stop"), (self._admin, "close")):
            if client is not None:
                await getattr(client, closing)()
        self._consumer = self._admin = None
