"""One view's shards in memory, and the fold of micro-batches into them; pure, so that live and replay share it.

The worker asks where the shards of events lie (`find`), loads those that are missing, folds, and writes what `dirty`
names. At most `capacity` shards per ring stay in memory; those used longest ago give way.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, repeat
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tidemill_features.columns import Coded
from tidemill_features.expressions import Column
from tidemill_features.inputs import evaluate_inputs
from tidemill_features.layout import EntityValue, LayoutError, entity_keys, shard_keys, shard_prefix, shard_suffix
from tidemill_features.plan import WORD_BYTES, ViewPlan
from tidemill_features.ring import RingStore

Ints = NDArray[np.int64]
Objects = NDArray[np.object_]
# An entity's value; of a key of several fields, all of them.
Entity: TypeAlias = EntityValue | tuple[EntityValue, ...]

FIRST_ROWS = 64
# Shards of a view that may wait to be written: all are written in one transaction, which keeps others from reading.
UNWRITTEN = 20_000
# Bytes of the shards that are copied at once to be written: all of them would be memory that is new every time.
_LOT_BYTES = 96 * 1024
# Instead of a row: an event without an entity, or another field that is required; a shard that is not in memory, later
# _MISSING less its number.
_NO_ENTITY, _MISSING = -1, -2


@dataclass(frozen=True, slots=True)
class Events:
    """Events of one stream that count, in offset order within each partition.

    `partition`, `offset`, `event_us`: int64[n]; `columns`: the stream's fields. `coded`: some of these by their words,
    where the events are of one partition; keys that come again and again are then found without being looked at.
    """

    partition: Ints
    offset: Ints
    event_us: Ints
    columns: Mapping[str, Column]
    coded: Mapping[str, Coded] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(slots=True)
class Counts:
    """What became of a view's events; `null_keys`: of those without an entity, or another required field.

    The last two as `ring.Left`, once for each ring that left an event out.
    """

    folded: int = 0
    null_keys: int = 0
    too_late: int = 0
    overtaken: int = 0


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the shards of events lie; `missing`: those that must be loaded before, each once, by partition.

    `keys`: what the missing are stored under, shard by shard and within it ring by ring.
    """

    rows: Ints
    missing: Mapping[int, Sequence[Entity]]
    keys: Sequence[bytes]

    def __len__(self) -> int:
        return sum(map(len, self.missing.values()))


@dataclass(slots=True)
class _Index:
    # A view has one shard per entity and source partition in each of its rings.
    rows: dict[int, dict[Any, int]] = field(default_factory=dict)
    # By row: an entity, and by ring what its shard is stored under; of a row that is free, those that it last had.
    entities: Objects = field(default_factory=lambda: np.empty(0, np.object_))
    keys: list[Objects] = field(default_factory=list)
    # Those taken first lie last.
    free: Ints = field(default_factory=lambda: np.empty(0, np.int64))


class ViewShards:
    """The shards of one view that are in memory."""

    def __init__(self, plan: ViewPlan, project: str, capacity: int, counts: Counts | None = None) -> None:
        if capacity < 1:
            raise ValueError("at least one shard must fit into memory")
        self.plan = plan
        self.counts = counts or Counts()
        self._prefix = shard_prefix(project, plan.hash, plan.build)
        self._capacity = capacity
        self._rows = min(FIRST_ROWS, capacity)
        self._rings = [RingStore(ring, capacity) for ring in plan.rings]
        self._index = _Index(keys=[np.empty(0, np.object_) for _ in plan.rings])
        self._add_rows(0)
        # Whether shards have given way, so that one that is not in memory may have been.
        self.forgot = False
        # By row: when it was last needed, whose it is, and whether it was folded into since the last flush.
        self._used = np.zeros(self._rows, np.int64)
        self._partition = np.zeros(self._rows, np.int64)
        self._is_dirty = np.zeros(self._rows, np.bool_)
        self._tick = 0
        # The words that were coded last, and the row of each as far as it is known.
        self._words: tuple[Any, Ints] = (None, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return sum(map(len, self._index.rows.values()))

    @property
    def capacity(self) -> int:
        """How many shards fit into memory."""
        return self._capacity

    def has_room(self, events: int) -> bool:
        """Return whether so many events more may be folded before some shards must be written."""
        return self._unwritten <= min(self._capacity, UNWRITTEN) - events

    @property
    def _unwritten(self) -> int:
        return int(np.count_nonzero(self._is_dirty))

    def find(self, events: Events) -> Rows:
        """Return where the shards of events lie, and which must be loaded before they can be folded into."""
        columns = [events.columns[name] for name in self.plan.entity]
        nulls = np.logical_or.reduce([events.columns[name].nulls for name in self.plan.required])
        coded = events.coded.get(self.plan.entity[0])
        if coded is None or len(columns) > 1 or self.forgot:
            rows = self._lookup(events.partition, _keys_at(columns, slice(None)))
        else:
            rows = self._lookup_coded(events.partition, columns, coded)
        if nulls.any():
            rows[nulls] = _NO_ENTITY
        # What this batch needs must not give way to what it loads.
        self._used[rows[rows >= 0]] = self._tick + 1
        missing = self._missing(rows, events.partition, columns)
        return Rows(rows, missing, self._keys(missing))

    def _missing(self, rows: Ints, partitions: Ints, columns: Sequence[Column]) -> dict[int, list[Entity]]:
        """Return by partition the shards that are not in memory, and put their numbers into `rows`."""
        absent, found, first = np.flatnonzero(rows == _MISSING), dict[int, list[Entity]](), 0
        for partition, place in _by_partition(partitions[absent]):
            mine = absent if place is None else absent[place]
            wanted = _keys_at(columns, mine)
            distinct = dict.fromkeys(wanted)
            numbers: Any = np.arange(first, first + len(wanted))
            if len(distinct) < len(wanted):
                number_of = dict(zip(distinct, count(first), strict=False))
                numbers = np.fromiter(map(number_of.__getitem__, wanted), np.int64, len(wanted))
            rows[mine] = _MISSING - numbers
            found[partition] = list(distinct)
            first += len(distinct)
        return found

    def _lookup(self, partitions: Ints, keys: Sequence[Any]) -> Ints:
        """Return the row of each key within its partition."""
        rows = np.empty(len(keys), np.int64)
        for partition, place in _by_partition(partitions):
            known = self._index.rows.setdefault(partition, {})
            wanted = keys if place is None else [keys[number] for number in place.tolist()]
            # The loop runs inside `fromiter` and `map`.
            found = np.fromiter(map(known.get, wanted, repeat(_MISSING)), np.int64, len(wanted))
            rows[slice(None) if place is None else place] = found
        return rows

    def _lookup_coded(self, partitions: Ints, columns: Sequence[Column], coded: Coded) -> Ints:
        """Return the row of each key: its word's, which is looked up until it has one."""
        if self._words[0] is not coded.words:
            self._words = (coded.words, np.full(len(coded.words), _MISSING))
        known, codes = self._words[1], coded.codes
        rows = known[codes]
        absent = np.flatnonzero(rows == _MISSING)
        if len(absent):
            rows[absent] = known[codes[absent]] = self._lookup(partitions[absent], _keys_at(columns, absent))
        return rows

    def _keys(self, missing: Mapping[int, Sequence[Entity]]) -> list[bytes]:
        """Return the Redis keys of shards, of each one per ring."""
        prefix, found = self._prefix, list[bytes]()
        for partition, entities in missing.items():
            ends = [shard_suffix(ring, partition) for ring in self.plan.rings]
            found += shard_keys(prefix, entity_keys(entities), ends)
        return found

    def load(self, found: Rows, raws: Sequence[bytes | None], topic_id: Callable[[int], bytes]) -> Ints:
        """Take in the missing shards as stored, in the order of `found.keys`; return the row of every event.

        `topic_id`: by partition. Raises `LayoutError` where bytes do not fit the plan or come from another generation
        of the log.
        """
        if not found.missing:
            return found.rows
        rows, each, first = self._take_rows(found), len(self._rings), 0
        for partition, entities in found.missing.items():
            end = first + len(entities)
            for number, ring in enumerate(self._rings):
                stored = raws[first * each + number : end * each : each]
                foreign = ring.load(rows[first:end], stored, topic_id(partition), partition)
                if len(foreign):
                    raise LayoutError(
                        f"view {self.plan.name!r}: {entities[foreign[0]]!r} in partition {partition} was folded from "
                        "another topic of the same name; a re-created topic needs its features rebuilt"
                    )
            first = end
        everything = found.rows.copy()
        absent = np.flatnonzero(everything <= _MISSING)
        everything[absent] = rows[_MISSING - everything[absent]]
        return everything

    def fold(self, events: Events, rows: Ints) -> None:
        """Fold events into the shards in `rows`, as `load` returned them."""
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
        self._is_dirty[rows] = True

    def dirty(self, next_offsets: Mapping[int, int]) -> Iterator[tuple[bytes, bytes]]:
        """Return what must be written; the shards then include everything before `next_offsets` (by partition).

        Stays the same until `written` is called. What is iterated over must be so before the next fold.
        """
        rows = np.flatnonzero(self._is_dirty)
        ends = np.fromiter(map(next_offsets.__getitem__, self._partition[rows].tolist()), np.int64, len(rows))
        for ring in self._rings:
            ring.include(rows, ends)
        return chain.from_iterable(self._dumped(rows))

    def _dumped(self, rows: Ints) -> Iterator[Iterator[tuple[bytes, bytes]]]:
        for ring, keys in zip(self._rings, self._index.keys, strict=True):
            step = max(1, _LOT_BYTES // (ring.plan.words * WORD_BYTES))
            for first in range(0, len(rows), step):
                lot = rows[first : first + step]
                yield zip(keys[lot].tolist(), ring.dump(lot), strict=True)

    def written(self) -> int:
        """Take note that what `dirty` returned is stored; return how much that was."""
        count = self._unwritten * len(self._rings)
        self._is_dirty[:] = False
        return count

    def _take_rows(self, found: Rows) -> Ints:
        """Return rows for the missing shards, in their order."""
        index, needed = self._index, len(found)
        if len(index.free) < needed:
            self._make_room(needed)
        index.free, rows = index.free[:-needed], index.free[-needed:][::-1]
        first = 0
        for partition, entities in found.missing.items():
            mine = rows[first : first + len(entities)]
            index.rows[partition].update(zip(entities, mine.tolist(), strict=True))
            # Not as an array of the entities: those of several fields are tuples, which would be its columns.
            index.entities[mine] = np.fromiter(entities, np.object_, len(entities))
            self._partition[mine] = partition
            first += len(entities)
        for number, held in enumerate(index.keys):
            held[rows] = found.keys[number :: len(index.keys)]
        self._used[rows] = self._tick + 1
        return rows

    def _grow(self, first: int) -> None:
        """Make room for all rows, of which there were `first` before."""
        self._used, self._partition, self._is_dirty = (
            np.concatenate((held, np.zeros(self._rows - first, held.dtype)))
            for held in (self._used, self._partition, self._is_dirty)
        )
        self._add_rows(first)

    def _add_rows(self, first: int) -> None:
        """Take note of rows from `first` to the end as free."""
        index, more = self._index, self._rows - first
        blank = np.empty(more, np.object_)
        index.entities = np.concatenate((index.entities, blank))
        index.keys = [np.concatenate((held, blank)) for held in index.keys]
        # Those taken first lie first.
        index.free = np.concatenate((np.arange(self._rows - 1, first - 1, -1), index.free))

    def _make_room(self, needed: int) -> None:
        """Double the rows up to the capacity; beyond it, forget a quarter: the clean shards used longest ago."""
        index, first = self._index, self._rows
        if first < self._capacity:
            while len(index.free) + self._rows - first < needed and self._rows < self._capacity:
                self._rows = min(2 * self._rows, self._capacity)
            self._grow(first)
        if len(index.free) >= needed:
            return
        self.forgot = True
        is_held = ~self._is_dirty & (self._used <= self._tick)
        is_held[index.free] = False
        going, wanted = np.flatnonzero(is_held), max(needed, self._rows // 4)
        if len(going) > wanted:
            going = going[np.argpartition(self._used[going], wanted)[:wanted]]
        for partition, gone in zip(self._partition[going].tolist(), index.entities[going].tolist(), strict=True):
            del index.rows[partition][gone]
        index.free = np.concatenate((index.free, going))
        if len(index.free) < needed:
            raise MemoryError(f"view {self.plan.name!r}: one batch needs more than {self._capacity} shards in memory")


def _keys_at(columns: Sequence[Column], rows: Any) -> list[Any]:
    """Return the keys of some rows; of several fields, tuples."""
    parts = [column.values[rows].tolist() for column in columns]
    found: list[Any] = parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))
    return found


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
