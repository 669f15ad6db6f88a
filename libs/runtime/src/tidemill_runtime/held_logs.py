"""The logs of the partitions that a consumer holds: where they begin and end, and what of them was lost."""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from tidemill_runtime import metrics
from tidemill_runtime.batches import Assignment
from tidemill_runtime.positions import Offsets, Partition, start_offset
from tidemill_runtime.settings import KafkaSettings

log = structlog.get_logger(__name__)


class HeldLogs:
    """Asks the broker on behalf of one consumer; every method raises `KafkaError` unless it says otherwise."""

    def __init__(self, consumer: Any, kafka: KafkaSettings, group: str) -> None:
        self._consumer = consumer
        self._kafka = kafka
        self._group = group
        # Topics of which partitions were held when the lag was last told.
        self._told: Collection[str] = ()

    def partition(self, place: TopicPartition) -> Partition:
        """Return a partition under its logical name."""
        return Partition(self._kafka.logical(place.topic), place.partition)

    def place(self, partition: Partition) -> TopicPartition:
        """Return a partition under its name on the broker."""
        return TopicPartition(self._kafka.physical(partition.topic), partition.number)

    def places(self, offsets: Offsets) -> dict[TopicPartition, int]:
        """Return offsets under the partitions' names on the broker."""
        return {self.place(partition): offset for partition, offset in offsets.items()}

    async def assignment(self, places: Iterable[TopicPartition], *, clamped: bool, anew: bool) -> Assignment:
        """Return where these logs begin and end, and where reading begins by what the group committed; see `starts`.

        `anew`: what ends before that is read from its beginning.
        """
        # Asked for first: whoever held a partition until now may still commit records that were not there a moment ago.
        committed = {self.partition(place): await self._consumer.committed(place) for place in places}
        asked = self._consumer.beginning_offsets(places), self._consumer.end_offsets(places)
        begin, end = map(self._offsets, await asyncio.gather(*asked))
        found = Assignment({}, begin, end)
        for partition, offset in committed.items():
            if anew and offset is not None and offset > end[partition]:
                log.error("the_log_is_another_one", partition=partition, then="it is read from its beginning")
                committed[partition] = None
        return Assignment(self.starts(committed, found, clamped=clamped), begin, end)

    def starts(
        self, wanted: Mapping[Partition, int | None], assignment: Assignment, *, clamped: bool
    ) -> dict[Partition, int]:
        """Return where to read from: the log's beginning where nothing is wanted; counts what retention removed.

        `clamped`: what lies outside the log is no fault. Else raises `Fatal` for what lies behind the log's end.
        """
        found = {}
        for partition, offset in wanted.items():
            begin, end = assignment.begin[partition], assignment.end[partition]
            inside = min(max(offset, begin), end) if clamped and offset is not None else offset
            found[partition], lost = start_offset(partition, inside, begin, end)
            if lost:
                self._note_lost(partition, lost)
        return found

    async def ends(self, partitions: Collection[Partition]) -> Offsets:
        """Return where the logs end now."""
        return self._offsets(await self._consumer.end_offsets([self.place(one) for one in partitions]))

    async def within(self, wanted: Offsets, held: Collection[Partition]) -> Offsets:
        """Return offsets as far as the logs go of the partitions that are held; none of a partition that is gone.

        As they are, where the broker does not say.
        """
        try:
            ends = await self.ends([one for one in wanted if one in held])
        except (KafkaError, IllegalStateError):
            return wanted
        numbers = {one.topic: self._consumer.partitions_for_topic(self.place(one).topic) for one in wanted}
        return {
            one: min(offset, ends.get(one, offset))
            for one, offset in wanted.items()
            if numbers[one.topic] is None or one.number in numbers[one.topic]
        }

    async def note_gap(self, partition: Partition, expected: int, first: int) -> None:
        """Count the records between what was expected and what came, as far as retention removed them.

        Compaction leaves gaps too; only what lies before the log's beginning was lost.
        """
        place = self.place(partition)
        begin = (await self._consumer.beginning_offsets([place]))[place]
        if begin > expected:
            self._note_lost(partition, min(begin, first) - expected)

    def more(self, place: TopicPartition, offset: int) -> bool:
        """Say whether the log is known to go on behind an offset."""
        end = self._consumer.highwater(place)
        return end is not None and end > offset + 1

    async def lag(self, positions: Offsets) -> int | None:
        """Return how many records lie behind these positions; None where the broker does not say.

        Asked of the broker, since a consumer that receives nothing knows of no lag.
        """
        try:
            ends = await self.ends(positions) if positions else {}
        except (KafkaError, IllegalStateError):
            return None
        # What was taken away is another worker's, which tells of it.
        lags = Counter(dict.fromkeys(self._told, 0))
        for partition, end in ends.items():
            lags[partition.topic] += max(0, end - positions[partition])
        for topic, behind in lags.items():
            metrics.stream_lag.labels(self._group, topic).set(behind)
        self._told = {partition.topic for partition in ends}
        return lags.total()

    def _offsets(self, found: Mapping[TopicPartition, int]) -> dict[Partition, int]:
        return {self.partition(place): offset for place, offset in found.items()}

    def _note_lost(self, partition: Partition, count: int) -> None:
        log.error("records_lost_to_retention", group=self._group, partition=partition, count=count)
        metrics.stream_lost.labels(self._group, partition.topic).inc(count)
