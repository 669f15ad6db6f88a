"""How far a reader has come, per partition, and waiting for it without polling."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tidemill_runtime.errors import Fatal, StateLost


class Partition(NamedTuple):
    """One partition of a topic; `topic` is the logical name, without the prefix."""

    topic: str
    number: int


# The next offset of each partition: what lies before it counts.
Offsets = Mapping[Partition, int]
# Returns offsets as far as their logs go now.
Within = Callable[[Offsets], Awaitable[Offsets]]

# How long offsets are waited for before it is asked whether their logs go as far.
_PATIENCE_S = 5.0


def start_offset(partition: Partition, wanted: int | None, begin: int, end: int) -> tuple[int, int]:
    """Return where to read from, within what the log holds, and how many wanted records retention has removed.

    >>> start_offset(Partition("t", 0), 3, 5, 9)
    (5, 2)

    Raises `Fatal` where the log ends before `wanted`: going on would skip whatever a new log brings.
    """
    if wanted is None:
        return begin, 0
    if wanted > end:
        raise Fatal(
            f"{partition.topic}[{partition.number}] ends at {end}, before the offset {wanted} that was applied: "
            "the topic was re-created or truncated; reset the group's offsets and its state together"
        )
    return max(wanted, begin), max(0, begin - wanted)


class LostEnds:
    """Finds logs that end before what was read of them: Kafka has lost their end.

    That is believed only where the end was asked for after it was seen: at first it was asked for before, and whoever
    held the partition until now may have moved both on meanwhile.
    """

    def __init__(self) -> None:
        self._seen: Offsets = {}

    def among(self, read: Offsets, ends: Offsets) -> dict[Partition, int]:
        """Return where the logs end that end too early. Raises `StateLost` where that is not sure yet."""
        found = {partition: end for partition, end in ends.items() if read.get(partition, 0) > end}
        seen, self._seen = self._seen, {partition: read[partition] for partition in found}
        if unsure := sorted(partition for partition, end in found.items() if seen.get(partition, 0) <= end):
            raise StateLost(f"{', '.join(f'{p.topic}[{p.number}]' for p in unsure)}: moved on, or lost its end")
        return found


@dataclass(eq=False, slots=True)
class _Waiter:
    wanted: dict[Partition, int]
    done: asyncio.Future[None]


class Positions:
    """The next offset to apply of every partition read; `reached` resolves when all wanted ones are applied."""

    def __init__(self, topics: Iterable[str] = ()) -> None:
        self._topics = frozenset(topics)
        self._next: dict[Partition, int] = {}
        self._waiters: list[_Waiter] = []

    @property
    def next(self) -> Offsets:
        """The next offset of each partition held now."""
        return self._next

    def follow(self, topics: Iterable[str]) -> None:
        """Replace the topics that count; positions wanted in other topics are ignored."""
        self._topics = frozenset(topics)
        self._wake()

    def reset(self, offsets: Offsets) -> None:
        """Replace all positions, after an assignment; they may lie before the old ones."""
        self._next = dict(offsets)
        self._wake()

    def advance(self, offsets: Offsets) -> None:
        """Say that everything before these offsets is applied."""
        self._next.update(offsets)
        if self._waiters:
            self._wake()

    async def reached(self, offsets: Offsets) -> None:
        """Return once everything before `offsets` is applied; topics that are not read do not count.

        A partition held by another worker is never reached here: bound the wait with a deadline.
        """
        if self._covers(offsets):
            return
        waiter = _Waiter(dict(offsets), asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            await waiter.done
        finally:
            self._waiters.remove(waiter)

    async def reached_within(self, offsets: Offsets, within: Within) -> Offsets:
        """Return once everything before `offsets` is applied that their logs hold, and how far that is; see `reached`.

        Who asks may have been told of a topic that was made anew since, or of records that Kafka has lost: they come
        no more.
        """
        wanted = offsets
        while True:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await self.reached(wanted)
            except TimeoutError:
                wanted = await within(offsets)
            else:
                return wanted

    def _covers(self, wanted: Offsets) -> bool:
        return all(
            self._next.get(partition, -1) >= offset
            for partition, offset in wanted.items()
            if partition.topic in self._topics
        )

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done.done() and self._covers(waiter.wanted):
                waiter.done.set_result(None)
