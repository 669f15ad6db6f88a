"""The pipeline clock: event time reached by every partition of a pipeline's streams, and the ticks it passes."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from tidemill_runtime.positions import Partition

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US


def tick_after(instant_us: int, tick_us: int = HOUR_US) -> int:
    """Return the first tick strictly after an instant: the evaluation to which what became known then belongs.

    Strictly, since a partition's clock stands at T as soon as one event at T was seen, and more at T may follow.

    >>> tick_after(0, 10), tick_after(9, 10), tick_after(10, 10)
    (10, 10, 20)
    """
    return instant_us - instant_us % tick_us + tick_us


def spoken(newest: Collection[Partition], topics: Iterable[str]) -> dict[str, int]:
    """Return, by topic, how many of its partitions, from the first one on, have carried an event.

    >>> spoken([Partition("a", 0), Partition("a", 1), Partition("a", 3), Partition("b", 1)], ["a", "b"])
    {'a': 2, 'b': 0}
    """
    found = {}
    for topic in topics:
        count = 0
        while Partition(topic, count) in newest:
            count += 1
        found[topic] = count
    return found


class EventTimes:
    """The newest event time of each partition read, watermarks included; of a prediction, its `as_of`.

    A partition that was added to a stream whose others have all spoken does not hold the clock before it speaks: its
    keys may be rare, and nobody may ever send it a watermark.

    After a start, predictions that were logged before it may lie unread while events run ahead. Until they are read,
    the clock does not pass the newest of them: else days would be evaluated before their answers were known.
    """

    def __init__(
        self,
        newest: Mapping[Partition, int] | None = None,
        *,
        whole: Mapping[str, int] | None = None,
        idle_us: int = 0,
        now_us: int = 0,
    ) -> None:
        """Begin with what was known; `whole`: of topics all of whose partitions had spoken, how many those were."""
        self._newest: dict[Partition, int] = dict(newest or {})
        self._whole: dict[str, int] = dict(whole or {})
        # Wall clock of the last record; only kept where silence releases the clock.
        self._heard: dict[Partition, int] = {}
        self._idle_us = idle_us
        self._began_us = now_us
        self._held: dict[Partition, int] = {}

    def observe(self, partition: Partition, event_time_us: int) -> int:
        """Take in one record's event time and return the partition's newest."""
        newest = max(event_time_us, self._newest.get(partition, event_time_us))
        self._newest[partition] = newest
        return newest

    def hold(self, until: Mapping[Partition, int]) -> None:
        """Let the clock wait until these partitions are read up to these offsets."""
        self._held.update(until)

    def read(self, partition: Partition, next_offset: int) -> None:
        """Note how far a partition is read."""
        if next_offset >= self._held.get(partition, next_offset + 1):
            del self._held[partition]

    def hear(self, partition: Partition, now_us: int) -> None:
        """Note that a partition is not silent."""
        if self._idle_us:
            self._heard[partition] = now_us

    def newest(self, partition: Partition) -> int | None:
        """Return the partition's newest event time."""
        return self._newest.get(partition)

    def silent(self, partitions: Iterable[Partition]) -> list[Partition]:
        """Return those without which there is no clock, as they have never carried an event."""
        return [one for one in partitions if one not in self._newest and not self.added(one)]

    def clock(self, partitions: Iterable[Partition], now_us: int) -> int | None:
        """Return the minimum over the partitions; None while one of them has never carried an event.

        A partition silent for longer than the idle timeout does not count, as long as another one does; nor does one
        that was added and has not spoken yet.
        """
        partitions = list(partitions)
        self._note_whole(partitions)
        times = [self._newest.get(partition) for partition in self._counted(partitions, now_us)]
        known = [time for time in times if time is not None]
        if not known or len(known) < len(times):
            return None
        waited_for = [self._newest.get(partition) for partition in self._held]
        unread = [time for time in waited_for if time is not None]
        return min([*known, *unread]) if len(unread) == len(waited_for) else None

    def holding(self, partitions: Iterable[Partition], now_us: int) -> list[Partition]:
        """Return those that the clock waits for: that have never carried an event, else that lie furthest behind."""
        counted = self._counted(partitions, now_us)
        behind = min((self._newest.get(one, -1) for one in counted), default=-1)
        return [one for one in counted if self._newest.get(one, -1) == behind]

    def _counted(self, partitions: Iterable[Partition], now_us: int) -> list[Partition]:
        return [one for one in partitions if not self._idle(one, now_us) and not self.added(one)]

    def added(self, partition: Partition) -> bool:
        """Say whether a partition has not spoken, and came after all others of its topic had."""
        return partition not in self._newest and 0 < self._whole.get(partition.topic, 0) <= partition.number

    def _note_whole(self, partitions: Collection[Partition]) -> None:
        counts = Counter(partition.topic for partition in partitions)
        heard = Counter(partition.topic for partition in partitions if partition in self._newest)
        for topic, count in counts.items():
            if heard[topic] == count:
                self._whole[topic] = max(count, self._whole.get(topic, 0))

    def _idle(self, partition: Partition, now_us: int) -> bool:
        if not self._idle_us:
            return False
        return now_us - self._heard.get(partition, self._began_us) > self._idle_us
