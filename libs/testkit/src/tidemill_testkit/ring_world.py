"""One view over one stream without Kafka and Redis: folded live by a worker that may die, read from rings, and offline.

`store` stands for Redis: bytes by key. Brute force says what every feature should be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.admission import Admission, duplicate_mask, late_mask, newest_so_far, rules_of
from tidemill_features.columns import column_of
from tidemill_features.expressions import Column
from tidemill_features.finalise import FeatureValues
from tidemill_features.fold import Events, ViewShards
from tidemill_features.layout import Checkpoint, checkpoint_key, view_id
from tidemill_features.offline import OfflineValues, Rows, features_at
from tidemill_features.plan import ViewPlan, compile_view
from tidemill_features.reader import Lookup, Reader, ViewValues

from tidemill_testkit.brute_force import Answer, Logged, Wanted, brute_force, counted

STATUSES = {1: "PRESENT", 2: "NULL", 3: "NOT_FOUND", 4: "OUTSIDE_MAX_AGE", 5: "BEYOND_KEPT"}
PROJECT = "p"
_GROUP = "g"
_TOPIC_ID = bytes(range(16))

Key = tuple[Any, ...]
Store = dict[bytes, bytes]


@dataclass(frozen=True)
class RingWorld:
    """A view, its stream, the keys that are asked for and what brute force is told of the features."""

    view: definition.View
    stream: definition.Stream
    keys: Sequence[Key]
    wanted: Sequence[Wanted]
    capacity: int = 40

    @cached_property
    def plan(self) -> ViewPlan:
        """The view, ready to be folded and read."""
        return compile_view(self.view, self.stream)

    def live(self, log: Sequence[Logged], sizes: Sequence[int] = (100,), crashes: Sequence[str] = ()) -> Store:
        """Feed a log in batches of any size; after a crash a new worker begins from what the store says.

        `crashes`: per batch "", "before" (nothing written) or "between" (half the shards, no checkpoint).
        """
        store: Store = {}
        worker = _Worker(self, store)
        at = worker.assign()
        step = 0
        while True:
            size, crash = sizes[step % len(sizes)], crashes[step] if step < len(crashes) else ""
            step += 1
            batch: list[Logged] = []
            for partition in range(self.stream.partitions):
                batch += [r for r in log if r.partition == partition and r.offset >= at[partition]][:size]
            if not batch:
                return store
            worker.work(batch, crash)
            at = {p: max([r.offset + 1 for r in batch if r.partition == p], default=first) for p, first in at.items()}
            if crash:
                worker = _Worker(self, store)
                at = worker.assign()

    def read(self, store: Mapping[bytes, bytes], as_of_us: int) -> list[FeatureValues]:
        """Return the features of all keys, read from the rings."""
        return self.read_view(store, as_of_us).features

    def read_view(self, store: Mapping[bytes, bytes], as_of_us: int) -> ViewValues:
        """Return what a read of all keys says."""
        reader = Reader([self.plan], project=PROJECT, group=_GROUP)
        request = reader.request([Lookup(self.view.name, self.keys)])
        return reader.values(request, [store.get(key) for key in request.keys], as_of_us).views[0]

    def offline(self, log: Sequence[Logged], as_of_us: int, cut: Sequence[int]) -> list[FeatureValues]:
        """Return the features of all keys as the offline twin computes them from the whole log, cut at offsets."""
        return self.offline_view(log, as_of_us, cut).features

    def offline_view(self, log: Sequence[Logged], as_of_us: int, cut: Sequence[int]) -> OfflineValues:
        """Return what the offline twin says of all keys."""
        events = self.events([record for p in range(self.stream.partitions) for record in self._counting(log, p)])
        types = {field.name: field.type for field in self.stream.fields}
        keys = [column_of([key[i] for key in self.keys], types[n]) for i, n in enumerate(self.view.entity)]
        cuts = np.full((len(self.keys), self.stream.partitions), cut, np.int64)
        rows = Rows(keys, np.full(len(self.keys), as_of_us, np.int64), cuts)
        return features_at(self.plan, events, rows)

    def expected(self, log: Sequence[Logged], as_of_us: int) -> list[list[Answer]]:
        """Return [key][feature] by brute force."""
        rules = rules_of(self.stream)
        kept = counted(log, rules.dedup_window_us, rules.lateness_us, late_counts=rules.late_counts)
        max_age_us = self.plan.max_age_us
        found = []
        for key in self.keys:
            events = [r for r in kept if None not in key and tuple(r.fields[n] for n in self.view.entity) == key]
            found.append([brute_force(one, events, as_of_us, max_age_us) for one in self.wanted])
        return found

    def events(self, records: Sequence[Logged]) -> Events:
        """Return records as the engine takes them."""

        def numbers(name: str) -> Any:
            return np.array([getattr(record, name) for record in records], np.int64)

        columns: dict[str, Column] = {}
        for field in self.stream.fields:
            at = field.name == self.stream.time_field
            values = [record.event_us if at else record.fields[field.name] for record in records]
            columns[field.name] = column_of(values, field.type)
        return Events(numbers("partition"), numbers("offset"), numbers("event_us"), columns)

    def _counting(self, log: Sequence[Logged], partition: int) -> list[Logged]:
        """Return a partition's records that count, by the functions that judge a whole log at once."""
        mine = sorted((one for one in log if one.partition == partition), key=lambda one: one.offset)
        rules = rules_of(self.stream)
        event_us = _times(mine)
        before = newest_so_far(event_us)
        numbers = {identity: number for number, identity in enumerate({one.identity for one in mine})}
        identities = np.array([numbers[one.identity] for one in mine], np.int64)
        offsets = np.array([one.offset for one in mine], np.int64)
        bad = duplicate_mask(identities, offsets, event_us, before, rules)
        if not rules.late_counts:
            bad |= late_mask(event_us, before, rules.lateness_us)
        return [one for one, refused in zip(mine, bad.tolist(), strict=True) if not refused]


def answers(features: Sequence[FeatureValues]) -> list[list[Answer]]:
    """Return [key][feature], floats as they are."""
    return [
        [
            Answer(
                STATUSES[int(f.status[row])],
                None if f.nulls[row] else f.values[row],
                coarse=f.coarse is not None and bool(f.coarse[row]),
            )
            for f in features
        ]
        for row in range(len(features[0].status))
    ]


class _Worker:
    """A feature worker: `store` is what survives it."""

    def __init__(self, world: RingWorld, store: Store) -> None:
        self.store = store
        self.plan = world.plan
        self.shards = ViewShards(self.plan, PROJECT, world.capacity)
        self.rules = rules_of(world.stream)
        self.world = world
        self.admissions: dict[int, Admission] = {}
        self.next: dict[int, int] = {}
        # What was read, which is less while identities are remembered again.
        self.seen: dict[int, int] = {}

    def assign(self) -> dict[int, int]:
        """Restore every partition; return where reading starts."""
        starts = {}
        for partition in range(self.plan.partitions):
            raw = self.store.get(self._checkpoint(partition))
            point = Checkpoint.unpack(raw) if raw else None
            self.admissions[partition] = Admission(self.rules, *([point.newest_event_us] if point else []))
            self.next[partition] = point.next_offset if point else 0
            starts[partition] = point.dedup_low_offset if point else 0
        self.seen = dict(starts)
        return starts

    def work(self, records: Sequence[Logged], crash: str) -> None:
        """Take in one batch; the worker may die before it writes, or between half the shards and the checkpoint."""
        counting = [record for partition in self.next for record in self._admitted(records, partition)]
        events = self.world.events(counting)
        found = self.shards.find(events)
        rows = self.shards.load(found, [self.store.get(key) for key in found.keys], lambda _: _TOPIC_ID)
        self.shards.fold(events, rows)
        dirty = dict(self.shards.dirty(self.next))
        if crash == "between":
            self.store.update(list(dirty.items())[::2])
        if not crash:
            self.store.update(dirty)
            self.shards.written()
            for partition, admission in self.admissions.items():
                at = self.next[partition]
                low, views = admission.low_offset(min(at, self.seen[partition])), frozenset({view_id(self.plan.hash)})
                point = Checkpoint(_TOPIC_ID, at, low, admission.newest_us, views)
                self.store[self._checkpoint(partition)] = point.pack()

    def _admitted(self, records: Sequence[Logged], partition: int) -> list[Logged]:
        mine = [r for r in records if r.partition == partition]
        old = [r for r in mine if r.offset < self.next[partition]]
        new = [r for r in mine if r.offset >= self.next[partition]]
        admission = self.admissions[partition]
        admission.remember([r.offset for r in old], _times(old), [r.identity for r in old])
        verdict = admission.admit([r.offset for r in new], _times(new), [r.identity for r in new])
        kept = ~verdict.duplicate if self.rules.late_counts else ~(verdict.duplicate | verdict.late)
        if new:
            self.next[partition] = new[-1].offset + 1
        if mine:
            self.seen[partition] = mine[-1].offset + 1
        return [r for r, keep in zip(new, kept.tolist(), strict=True) if keep]

    def _checkpoint(self, partition: int) -> bytes:
        return checkpoint_key(PROJECT, _GROUP, f"events.{self.plan.stream}", partition)


def _times(records: Sequence[Logged]) -> Any:
    return np.array([r.event_us for r in records], np.int64)
