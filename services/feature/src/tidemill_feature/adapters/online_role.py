"""What the online role has decided of a stream's records, for whoever must not decide otherwise."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from tidemill_runtime.consumer import close
from tidemill_runtime.errors import Retryable
from tidemill_runtime.positions import Offsets, Partition
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.sieve import Sieve

from tidemill_feature.adapters.definition_feed import TOPIC

_ASK_S = 10.0
# How long it is taken to be on its way where it has said nothing yet.
_COMING_S = 60.0
_DEFINITIONS = Partition(TOPIC, 0)


class OnlineRole:
    """Asks Kafka how far the role has come; `sieve` knows what it has refused.

    `follow` returns once the definitions are known here up to some offsets.
    """

    def __init__(self, kafka: KafkaSettings, group: str, follow: Callable[[Offsets], Awaitable[None]]) -> None:
        self._kafka = kafka
        self._group = group
        self._follow = follow
        # When each partition was first asked about.
        self._asked_s: dict[Partition, float] = {}
        self.sieve = Sieve(kafka, group)

    async def passed(self, partitions: Iterable[Partition]) -> Offsets:
        """Return before which offsets it has decided, once every definition by which it did is known here.

        Without a partition of which it has not said so for a while: nobody decides there but the caller. Raises
        `Retryable`.
        """
        places = {self._physical(partition): partition for partition in partitions}
        if not places:
            return {}
        group = self._kafka.physical(self._group)
        consumer: Any = AIOKafkaConsumer(**self._kafka.client_kwargs(), group_id=group, enable_auto_commit=False)
        try:
            async with asyncio.timeout(_ASK_S):
                await consumer.start()
                committed = await asyncio.gather(*map(consumer.committed, places))
                # Asked for afterwards: what it decided by then, it decided by one of these.
                end = (await consumer.end_offsets([self._physical(_DEFINITIONS)])).popitem()[1]
                await self._follow({_DEFINITIONS: end})
        except (KafkaError, OSError) as error:
            raise Retryable(f"Kafka does not say how far the online role is: {error!r}") from error
        finally:
            await close(consumer)
        said = {place: self._said(place, offset) for place, offset in zip(places.values(), committed, strict=True)}
        return {place: offset for place, offset in said.items() if offset is not None}

    def _said(self, partition: Partition, committed: int | None) -> int | None:
        now_s = monotonic()
        coming = now_s - self._asked_s.setdefault(partition, now_s) < _COMING_S
        return 0 if committed is None and coming else committed

    def _physical(self, partition: Partition) -> TopicPartition:
        return TopicPartition(self._kafka.physical(partition.topic), partition.number)
