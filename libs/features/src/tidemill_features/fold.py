"""One view's shards in memory, and the fold of micro-batches into them; pure, so that live and replay share it.

The worker asks where the shards of events lie (`find`), loads those that are missing, folds, and writes what `dirty`
names. At most `capacity` shards per ring stay in memory; those used longest ago give way.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemill_features.expressions import Column
from tidemill_features.inputs import evaluate_inputs
from tidemill_features.layout import EntityValue, LayoutError, entity_key, shard_prefix, shard_suffix
from tidemill_features.plan import ViewPlan
from tidemill_features.ring import RingStore

Ints = NDArray[np.int64]

FIRST_ROWS = 64
# Shards of a view that may wait to be written: all are written in one transaction, which keeps others from reading.
UNWRITTEN = 20_000
# Instead of a row: an event without an entity; a shard that is not in memory.
_NO_ENTITY, _ABSENT = -1, -2


class Shard(NamedTuple):
    """The entity's part of a view within one source partition: one shard in each of the view's rings.

    `key`: the entity's value; of a key of several fields, all of them.
    """

    partition: int
    key: EntityValue | tuple[EntityValue, ...]

    @property
    def entity(self) -> bytes:
        """The entity as keys in Redis name it."""
        found = entity_key(self.key if isinstance(self.key, tuple) else (self.key,))
        assert found is not None
        return found


@dataclass(frozen=True, slots=True)
class Events:
    """Events of one stream that count, in offset order within each partition.

    `partition`, `offset`, `event_us`: int64[n]; `columns`: the stream's fields.
    """

    partition: Ints
    offset: Ints
    event_us: Ints
    columns: Mapping[str, Column]

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(slots=True)
class Counts:
    """What became of a view's events; the last two as `ring.Left`, once for each ring that left an event out."""

    folded: int = 0
    null_keys: int = 0
    too_late: int = 0
    overtaken: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the shards of events lie; `missing`: those that must be loaded before, each once."""

    rows: Ints
    missing: Sequence[Shard]
    # The shard of each event that is to be looked up once more, by its number.
    later: Mapping[int, Shard]


@dataclass(slots=True)
class _Index:
    # By partition and key.
    rows: dict[int, dict[Any, int]] = field(default_factory=dict)
    shards: list[Shard | None] = field(default_factory=list)
    # By ring, then by row.
    keys: list[list[bytes]] = field(default_factory=list)
    free: list[int] = field(default_factory=list)


class ViewShards:
    """The shards of one view that are in memory."""

    def __init__(self, plan: ViewPlan, project: str, capacity: int, counts: Counts | None = None) -> None:
        if capacity < 1:
            raise ValueError("at least one shard must fit into memory")
        self.plan = plan
        self.counts = counts or Counts()
        self._prefix = shard_prefix(project, plan.hash, plan.build)
        self._suffixes: dict[int, list[bytes]] = {}
        self._capacity = capacity
        self._rows = min(FIRST_ROWS, capacity)
        self._rings = [RingStore(ring, self._rows) for ring in plan.rings]
        self._index = _Index(keys=[[] for _ in plan.rings])
        self._add_rows(0)
        self._used = np.zeros(self._rows, np.int64)
        self._tick = 0
        # The rows of every fold since the last flush.
        self._dirty: list[Ints] = []

    def __len__(self) -> int:
        return sum(map(len, self._index.rows.values()))

    def has_room(self, events: int) -> bool:
        """Return whether so many events more may be folded before some shards must be written."""
        room = min(self._capacity, UNWRITTEN) - events
        # Events share shards, but to tell how many is work.
        return sum(map(len, self._dirty)) <= room or len(self._dirty_rows()) <= room

    def find(self, events: Events) -> Rows:
        """Return where the shards of events lie, and which must be loaded before they can be folded into."""
        columns = [events.columns[name] for name in self.plan.entity]
        keys: list[Any] = columns[0].values.tolist()
        nulls = columns[0].nulls
        if len(columns) > 1:
            keys = list(zip(*(column.values.tolist() for column in columns), strict=True))
            nulls = np.logical_or.reduce([column.nulls for column in columns])
        rows = self._lookup(events.partition, keys)
        if nulls.any():
            rows[nulls] = _NO_ENTITY
        # What this batch needs must not give way to what it loads.
        self._used[rows[rows >= 0]] = self._tick + 1
        absent = np.flatnonzero(rows == _ABSENT)
        partitions = events.partition[absent].tolist()
        later = {n: Shard(p, keys[n]) for n, p in zip(absent.tolist(), partitions, strict=True)}
        return Rows(rows, list(dict.fromkeys(later.values())), later)

    def _lookup(self, partitions: Ints, keys: Sequence[Any]) -> Ints:
        """Return the row of each key within its partition."""
        rows = np.empty(len(keys), np.int64)
        for partition, place in _by_partition(partitions):
            known = self._index.rows.setdefault(partition, {})
            wanted = keys if place is None else [keys[number] for number in place.tolist()]
            # The loop runs inside `fromiter` and `map`.
            found = np.fromiter(map(known.get, wanted, repeat(_ABSENT)), np.int64, len(wanted))
            rows[slice(None) if place is None else place] = found
        return rows

    def keys(self, shard: Shard) -> list[bytes]:
        """Return the Redis keys of a shard, one per ring."""
        suffixes = self._suffixes.get(shard.partition)
        if suffixes is None:
            suffixes = [shard_suffix(ring, shard.partition) for ring in self.plan.rings]
            self._suffixes[shard.partition] = suffixes
        head = self._prefix + shard.entity
        return [head + suffix for suffix in suffixes]

    def load(self, shard: Shard, raws: Sequence[bytes | None], topic_id: bytes) -> None:
        """Take in a shard as stored, one value per ring.

        Raises `LayoutError` where the bytes do not fit the plan or come from another generation of the log.
        """
        row = self._take_row(shard)
        for ring, raw in zip(self._rings, raws, strict=True):
            generation = ring.load(row, raw, topic_id, shard.partition)
            if generation != topic_id:
                raise LayoutError(
                    f"view {self.plan.name!r}: shard {shard} was folded from another topic of the same name; "
                    "a re-created topic needs its features rebuilt"
                )

    def fold(self, events: Events, found: Rows) -> None:
        """Fold events into shards that are all in memory."""
        rows = found.rows
        for number, shard in found.later.items():
            rows[number] = self._index.rows[shard.partition][shard.key]
        inputs = evaluate_inputs(self.plan, events.columns, len(events))
        event_us, offsets = events.event_us, events.offset
        keyed = rows != _NO_ENTITY
        if not keyed.all():
            self.counts.null_keys += int(len(rows) - keyed.sum())
            rows, event_us, offsets = rows[keyed], event_us[keyed], offsets[keyed]
            inputs = [part.take(keyed) for part in inputs]
        for ring in self._rings:
            left = ring.fold(rows, event_us, offsets, inputs)
            self.counts.too_late += left.too_late
            self.counts.overtaken += left.overtaken
        self.counts.folded += len(rows)
        self._tick += 1
        self._used[rows] = self._tick
        self._dirty.append(rows)

    def dirty(self, next_offsets: Mapping[int, int]) -> dict[bytes, bytes]:
        """Return what must be written, by key; the shards then include everything before `next_offsets` (by partition).

        Stays the same until `written` is called.
        """
        at = self._dirty_rows()
        if not len(at):
            return {}
        rows: list[int] = at.tolist()
        shards = [shard for shard in map(self._index.shards.__getitem__, rows) if shard is not None]
        offsets = np.array([next_offsets[shard.partition] for shard in shards], np.int64)
        values: dict[bytes, bytes] = {}
        for place, ring in enumerate(self._rings):
            ring.include(at, offsets)
            values.update(zip(map(self._index.keys[place].__getitem__, rows), ring.dump(rows), strict=True))
        return values

    def written(self) -> None:
        """Take note that what `dirty` returned is stored."""
        self._dirty.clear()

    def _dirty_rows(self) -> Ints:
        """Return the rows that were folded into since the last flush, rising."""
        if not self._dirty:
            return np.zeros(0, np.int64)
        rows = np.unique(np.concatenate(self._dirty))
        self._dirty = [rows]
        return rows

    def _take_row(self, shard: Shard) -> int:
        index = self._index
        known = index.rows.setdefault(shard.partition, {})
        if shard.key in known:
            return known[shard.key]
        if not index.free:
            self._make_room()
        row = known[shard.key] = index.free.pop()
        index.shards[row] = shard
        for held, key in zip(index.keys, self.keys(shard), strict=True):
            held[row] = key
        self._used[row] = self._tick + 1
        return row

    def _add_rows(self, first: int) -> None:
        """Take note of rows from `first` to the end as free."""
        index, count = self._index, self._rows - first
        index.shards.extend([None] * count)
        for held in index.keys:
            held.extend([b""] * count)
        index.free.extend(range(self._rows - 1, first - 1, -1))

    def _make_room(self) -> None:
        """Double the memory up to the capacity; beyond it, forget a quarter: the clean shards used longest ago."""
        index = self._index
        if self._rows < self._capacity:
            first, self._rows = self._rows, min(2 * self._rows, self._capacity)
            for ring in self._rings:
                ring.grow(self._rows)
            self._used = np.resize(self._used, self._rows)
            self._add_rows(first)
            return
        by_age = np.argsort(self._used, kind="stable")
        clean = np.isin(by_age, self._dirty_rows(), invert=True) & (self._used[by_age] <= self._tick)
        for row in by_age[clean][: max(1, self._rows // 4)].tolist():
            gone = index.shards[row]
            if gone is not None:
                del index.rows[gone.partition][gone.key]
            index.shards[row] = None
            index.free.append(row)
        if not index.free:
            raise MemoryError(f"view {self.plan.name!r}: one batch needs more than {self._capacity} shards in memory")


def _by_partition(partitions: Ints) -> Iterator[tuple[int, Ints | None]]:
    """Yield each partition with the places of its events; None for all of them."""
    if not len(partitions):
        return
    first = int(partitions[0])
    if (partitions == first).all():
        yield first, None
        return
    for partition in np.unique(partitions).tolist():
        yield partition, np.flatnonzero(partitions == partition)
