"""What is being built, in memory: folded piece by piece, written when there is enough of it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from secrets import randbits
from time import monotonic

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.layout import Checkpoint
from tidemill_runtime.errors import Retryable
from tidemill_runtime.positions import Partition

from tidemill_feature import metrics
from tidemill_feature.adapters.folding import fold
from tidemill_feature.adapters.redis_store import Move, Pairs, RedisStore
from tidemill_feature.building import Found
from tidemill_feature.replaying import Chunk, Replay

# Events folded at once into one view, at least and at most: live events wait for so many, and no more shards can be
# needed at once than of these. What is in memory must be written while there is room for a piece, so that a large one
# is but a small share of it.
_PIECE_EVENTS = (500, 2_000)
_PIECE_SHARE = 8
# Nobody reads what is being built: it is written when it has been folded for a while, or does not fit any more.
_WRITE_S = 10.0
_CLAIM_BITS = 62


@dataclass(slots=True)
class Job:
    """One partition whose views are to be built, and how far the folded ones have come."""

    partition: Partition
    stream: definition.Stream
    found: Found
    missing: frozenset[bytes]
    live: Callable[[], int]


@dataclass(slots=True)
class Lot:
    """One partition at work: `held` is what Redis holds of it; `first` is where building began."""

    job: Job
    replay: Replay
    held: Checkpoint | None
    first: int

    @property
    def behind(self) -> int:
        return self.job.live() - self.replay.next_offset

    @property
    def piece_events(self) -> int:
        """How many events are folded at once."""
        least, most = _PIECE_EVENTS
        return max(least, min(most, min(view.capacity for view in self.replay.views) // _PIECE_SHARE))


@dataclass(slots=True)
class Site:
    """All partitions that one worker builds; it writes through a store whose checkpoints are those of building.

    `turn`: held while a piece is folded here, and while live events are.
    """

    store: RedisStore
    lots: dict[Partition, Lot]
    turn: asyncio.Lock
    _written_s: float = field(default_factory=monotonic)
    # Of no other worker, nor of this one at another time.
    _claim: int = field(default_factory=lambda: randbits(_CLAIM_BITS))

    @classmethod
    async def claimed(cls, store: RedisStore, lots: dict[Partition, Lot], turn: asyncio.Lock) -> "Site":
        """Return a site that is this worker's: whoever built the same until now is refused from its next write on.

        Raises `Retryable` where another worker was first.
        """
        site = cls(store, lots, turn)
        await site._move({place: lot.held or lot.replay.checkpoint() for place, lot in lots.items()})
        return site

    async def fold(self, parts: Sequence[tuple[Lot, Chunk]]) -> None:
        """Fold the next events of some partitions, and write when it is time."""
        for lot, chunk in parts:
            count = len(chunk.offset)
            if not all(view.has_room(count) for view in lot.replay.views):
                await self.flush()
            folding = lot.replay.take(chunk)
            if folding is not None:
                for view in folding.shards:
                    # What was written by an attempt that got nowhere is written over.
                    anew = not lot.first and not view.forgot
                    async with self.turn:
                        await fold(self.store, [replace(folding, shards=[view])], self._topic_id, anew=anew)
            metrics.build_records.labels(lot.job.stream.name).inc(count)
        if monotonic() - self._written_s >= _WRITE_S:
            await self.flush()

    async def flush(self) -> None:
        """Write the rings, view by view, then how far they have come; live events get their turn in between.

        Raises `Retryable` where another worker was first. Rings that are ahead of their checkpoint skip what they
        include when the log is read again.
        """
        views = {id(view): (partition.topic, view) for partition, lot in self.lots.items() for view in lot.replay.views}
        for topic, view in views.values():
            ends = {place.number: lot.replay.next_offset for place, lot in self.lots.items() if place.topic == topic}
            await self._write([Move(place, lot.held, None) for place, lot in self.lots.items()], view.dirty(ends))
            view.written()
        await self._move({place: lot.replay.checkpoint() for place, lot in self.lots.items()})
        self._written_s = monotonic()

    async def _move(self, points: Mapping[Partition, Checkpoint]) -> None:
        """Write how far the rings have come, and whose they are: nobody reads them, `ready_from` is free for that."""
        claimed = {place: replace(point, ready_from=self._claim) for place, point in points.items()}
        await self._write([Move(place, self.lots[place].held, point) for place, point in claimed.items()], ())
        for place, point in claimed.items():
            self.lots[place].held = point

    async def _write(self, moves: Sequence[Move], shards: Pairs) -> None:
        if await self.store.flush(moves, shards):
            raise Retryable("another worker builds the same views, or Redis has lost writes")

    def _topic_id(self, partition: Partition) -> bytes:
        return self.lots[partition].job.found.topic_id
