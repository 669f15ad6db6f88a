"""One view's shards in memory, and the fold of micro-batches into them; pure, so that live and replay share it.

The worker asks what is `missing`, loads it from Redis, folds, and writes what `dirty` names. At most `capacity` shards
per ring stay in memory; those used longest ago give way.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
# Encoded keys that are kept; beyond it they are encoded anew.
_ENTITIES_MAX = 50_000
_UNKNOWN = object()


class Shard(NamedTuple):
    """The entity's part of a view within one source partition: one shard in each of the view's rings."""

    partition: int
    entity: bytes


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
    """What became of a view's events."""

    folded: int = 0
    null_keys: int = 0
    too_late: int = 0


@dataclass(slots=True)
class _Index:
    # By shard; a pair without an entity is no key, but may be asked for.
    rows: dict[tuple[int, bytes | None], int] = field(default_factory=dict)
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
        self._dirty: set[int] = set()
        # Encoded keys of entities seen lately.
        self._entities: dict[tuple[EntityValue, ...], Any] = {}

    def __len__(self) -> int:
        return len(self._index.rows)

    @property
    def room(self) -> int:
        """How many more shards may be folded into before some must be written."""
        return self._capacity - len(self._dirty)

    def entities(self, events: Events) -> list[bytes | None]:
        """Return the entity of each event; None where a part of its key is null."""
        parts = [_values(events.columns[name]) for name in self.plan.entity]
        found = []
        known = self._entities
        for values in zip(*parts, strict=True):
            entity = known.get(values, _UNKNOWN)
            if entity is _UNKNOWN:
                entity = known[values] = entity_key(values)
            found.append(entity)
        if len(known) > _ENTITIES_MAX:
            known.clear()
        return found

    def missing(self, wanted: Iterable[tuple[int, bytes | None]]) -> list[Shard]:
        """Return the shards that must be loaded before they can be folded into, each once.

        `wanted`: partition and entity of events; without an entity there is no shard.
        """
        rows = self._index.rows
        # A plain pair finds a shard, and costs no making of one.
        pairs = {pair for pair in wanted if pair[1] is not None}
        present = [row for row in map(rows.get, pairs) if row is not None]
        # What this batch needs must not give way to what it loads.
        self._used[present] = self._tick + 1
        if len(present) == len(pairs):
            return []
        return [Shard(partition, entity) for partition, entity in sorted(pairs - rows.keys()) if entity is not None]

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

    def fold(self, events: Events, entities: Sequence[bytes | None]) -> None:
        """Fold events into shards that are all in memory."""
        rows_of = self._index.rows
        partitions = events.partition.tolist()
        # A plain pair finds a shard, and costs no making of one.
        pairs = zip(partitions, entities, strict=True)
        rows = np.array([-1 if pair[1] is None else rows_of[pair] for pair in pairs], np.int64)
        inputs = evaluate_inputs(self.plan, events.columns, len(events))
        event_us, offsets = events.event_us, events.offset
        keyed = rows >= 0
        if not keyed.all():
            self.counts.null_keys += int(len(rows) - keyed.sum())
            rows, event_us, offsets = rows[keyed], event_us[keyed], offsets[keyed]
            inputs = [part.take(keyed) for part in inputs]
        for ring in self._rings:
            self.counts.too_late += ring.fold(rows, event_us, offsets, inputs)
        self.counts.folded += len(rows)
        self._tick += 1
        self._used[rows] = self._tick
        self._dirty.update(rows.tolist())

    def dirty(self, next_offsets: Mapping[int, int]) -> dict[bytes, bytes]:
        """Return what must be written, by key; the shards then include everything before `next_offsets` (by partition).

        Stays the same until `written` is called.
        """
        if not self._dirty:
            return {}
        rows = sorted(self._dirty)
        shards = [shard for shard in map(self._index.shards.__getitem__, rows) if shard is not None]
        offsets = np.array([next_offsets[shard.partition] for shard in shards], np.int64)
        at = np.array(rows, np.int64)
        values: dict[bytes, bytes] = {}
        for place, ring in enumerate(self._rings):
            ring.include(at, offsets)
            values.update(zip(map(self._index.keys[place].__getitem__, rows), ring.dump(rows), strict=True))
        return values

    def written(self) -> None:
        """Take note that what `dirty` returned is stored."""
        self._dirty.clear()

    def _take_row(self, shard: Shard) -> int:
        index = self._index
        if shard in index.rows:
            return index.rows[shard]
        if not index.free:
            self._make_room()
        row = index.free.pop()
        index.rows[shard] = row
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
        by_age = np.argsort(self._used, kind="stable").tolist()
        clean = [row for row in by_age if row not in self._dirty and self._used[row] <= self._tick]
        for row in clean[: max(1, self._rows // 4)]:
            gone = index.shards[row]
            if gone is not None:
                del index.rows[gone]
            index.shards[row] = None
            index.free.append(row)
        if not index.free:
            raise MemoryError(f"view {self.plan.name!r}: one batch needs more than {self._capacity} shards in memory")


def _values(column: Column) -> list[EntityValue]:
    values: list[EntityValue] = column.values.tolist()
    if not column.nulls.any():
        return values
    return [None if null else value for value, null in zip(values, column.nulls.tolist(), strict=True)]
