"""Telling two processes of one replica's name apart: the later one keeps it.

A name in the group (`KafkaSettings.instance`) hands a killed replica's partitions to its successor at once. Where the
replica was only frozen, it wakes, joins again under its name and takes the partitions back, and so in turn for ever:
the client's heartbeats do not carry the name by which the broker would fence it. Therefore each process says who it is
in a group that has the name to itself and no members, so that nobody can be thrown out while it says so: a term one
higher than the name's last, and the process. Whoever finds a later process of its own name ends.
"""

import json
from collections.abc import Iterable, Sequence
from secrets import token_hex
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from tidemill_runtime.consumer import close
from tidemill_runtime.errors import Fatal
from tidemill_runtime.settings import KafkaSettings


class Term(NamedTuple):
    """How often the name was taken, and by which process; the greater one is later."""

    number: int
    process: str


class Claim:
    """One process's claim to its name within a group; without a name there is nothing to claim."""

    def __init__(self, kafka: KafkaSettings, group: str) -> None:
        self._kafka = kafka
        self._group = group
        self._process = token_hex(8)
        self._term: Term | None = None
        self._noticed: set[TopicPartition] = set()

    @property
    def named(self) -> bool:
        """Whether there is a name to claim."""
        return self._kafka.instance is not None

    async def check(self, assignment: Sequence[TopicPartition]) -> None:
        """Take the name at the first assignment; later see that nobody else did.

        Raises `Fatal` where a later process has it, `KafkaError` where Kafka does not say.
        """
        if self._kafka.instance is None or not assignment:
            return
        name = f"{self._group}.{self._kafka.instance}"
        held = latest([at.metadata for at in (await self._committed(name)).values()])
        if self._term is None:
            self._term = Term(held.number + 1 if held else 1, self._process)
        if held is not None and held > self._term:
            raise Fatal(
                f"another process has taken over as {self._kafka.instance!r} in group {self._group}; "
                "where both are meant to run, give each replica a name of its own (kafka instance)"
            )
        if held != self._term:
            await self._lay(name, self._term, assignment[0])

    async def overlooked(self, consumer: Any, topics: Iterable[str]) -> bool:
        """Say, once for each, whether there are partitions that nobody in the group has ever held.

        A replica that comes back under its name gets its assignment from the broker as it was, and does not learn that
        it leads the group (that came with KIP-814, which the client does not speak): of partitions that were added
        nobody would take note until it joins anew.
        """
        if self._kafka.instance is None:
            return False
        names = map(self._kafka.physical, topics)
        there = {TopicPartition(name, number) for name in names for number in consumer.partitions_for_topic(name) or ()}
        try:
            # Whoever has a name commits what it is given at once.
            missing = there - (await self._committed(self._group)).keys()
        except (KafkaError, OSError):
            return False
        news, self._noticed = missing - self._noticed, missing
        return bool(news)

    async def _lay(self, name: str, term: Term, place: TopicPartition) -> None:
        """Commit who has the name; offsets mean nothing there, but need a partition to be of."""
        group = self._kafka.physical(name)
        consumer: Any = AIOKafkaConsumer(**self._kafka.client_kwargs(), group_id=group, enable_auto_commit=False)
        try:
            await consumer.start()
            consumer.assign([place])
            consumer.pause(place)
            await consumer.commit({place: (0, json.dumps({"term": term.number, "process": term.process}))})
        finally:
            await close(consumer)

    async def _committed(self, group: str) -> dict[TopicPartition, Any]:
        admin: Any = AIOKafkaAdminClient(**self._kafka.client_kwargs())
        try:
            await admin.start()
            found: dict[TopicPartition, Any] = await admin.list_consumer_group_offsets(self._kafka.physical(group))
        finally:
            await admin.close()
        return found


def latest(metadata: Iterable[str]) -> Term | None:
    """Return the latest term among the metadata of a name's commits; what is not ours is passed over.

    >>> latest(['{"term": 2, "process": "x"}', "", "2"])
    Term(number=2, process='x')
    """
    terms = []
    for text in metadata:
        try:
            said = json.loads(text)
            terms.append(Term(int(said["term"]), str(said["process"])))
        except (ValueError, TypeError, KeyError):
            continue
    return max(terms, default=None)
