"""The offline twin: a view's features for many rows at once, each as of its own instant and offsets.

Equal, bit for bit, to reading the rings when they held exactly those offsets: slots are filled in offset order, merge
in the order of (bucket, partition), and are finalised by the same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill_features.accumulators import Accumulator, Decayed, MomentsHeld, NewestK, Simple, SketchesHeld, Slot
from tidemill_features.decay import decays
from tidemill_features.entities import Entities
from tidemill_features.expressions import Column
from tidemill_features.finalise import FeatureValues, Known, Merged, finalise
from tidemill_features.fold import Events
from tidemill_features.inputs import Values, evaluate_inputs
from tidemill_features.layout import EMPTY, INT64_MAX
from tidemill_features.moments import Moments
from tidemill_features.newest import Newest
from tidemill_features.partials import SKETCHES, Feature, Kind, Partial
from tidemill_features.plan import RingPlan, ViewPlan
from tidemill_features.segments import UFUNCS, first_newer, identity_of, segments_of

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Rows computed at a time, which bounds memory.
_ROWS = 200_000
# The same where a view keeps sketches, which are objects.
_SKETCH_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Rows:
    """What is asked: `keys`, a column per entity field; `as_of_us`: int64[n]; `cuts`: int64[n, partitions]."""

    keys: Sequence[Column]
    as_of_us: Ints
    cuts: Ints

    def __len__(self) -> int:
        return len(self.as_of_us)


@dataclass(frozen=True, slots=True)
class OfflineValues:
    """A view's features in the view's order, and where the head bucket was left out."""

    features: list[FeatureValues]
    head_excluded: Bools


def features_at(plan: ViewPlan, events: Events, rows: Rows) -> OfflineValues:
    """Return a view's features for every row.

    `events`: those of the stream that count (no duplicates, late ones by the stream's policy), in any order.
    """
    twin = OfflineView(plan, events)
    step = _SKETCH_ROWS if any(one.kind in SKETCHES for ring in plan.rings for one in ring.partials) else _ROWS
    parts = [twin.values(_slice(rows, first, first + step)) for first in range(0, max(1, len(rows)), step)]
    if len(parts) == 1:
        return parts[0]
    features = [_joined([part.features[index] for part in parts]) for index in range(len(plan.features))]
    return OfflineValues(features, np.concatenate([part.head_excluded for part in parts]))


class OfflineView:
    """One view over a fixed set of events.

    Events that no row's windows and no max_age reach may be missing, but for one thing: whether an entity was ever
    seen. Where some are missing, `unseen` says for which rows that is to be found out, and `values` is told.
    """

    def __init__(self, plan: ViewPlan, events: Events) -> None:
        self.plan = plan
        self._entities = Entities([events.columns[name] for name in plan.entity])
        codes = self._entities.codes
        order = np.lexsort((events.offset, events.partition))
        order = order[codes[order] >= 0]
        self._code = codes[order]
        self._partition = np.asarray(events.partition[order], np.int64)
        self._offset = events.offset[order]
        self._event_us = events.event_us[order]
        # Where each partition begins in arrival order.
        self._first = np.searchsorted(self._partition, np.arange(plan.partitions + 1))
        self._inputs = [part.take(order) for part in evaluate_inputs(plan, events.columns, len(events))]
        self._shards = segments_of(self._code * plan.partitions + self._partition)
        self._newest = self._shards.scan(np.maximum, self._event_us)
        self._rings = [_OfflineRing(self, ring) for ring in plan.rings]

    def unseen(self, rows: Rows) -> Bools:
        """Return the rows with a whole key that see no event of their entity."""
        newest = self._newest_at(self._entities.find(rows.keys), self._cut(rows))
        null = np.zeros(len(rows), np.bool_)
        for column in rows.keys:
            null |= column.nulls
        return np.asarray((newest == EMPTY).all(axis=1) & ~null, np.bool_)

    def values(self, rows: Rows, seen_before: Bools | None = None) -> OfflineValues:
        """Return the view's features for some rows.

        `seen_before`: the rows whose entity had an event that is missing here; None where no event is missing.
        """
        code, cut = self._entities.find(rows.keys), self._cut(rows)
        newest = self._newest_at(code, cut)
        beyond = newest > rows.as_of_us[:, None]
        found = (newest != EMPTY).any(axis=1)
        if seen_before is not None:
            found |= seen_before
        entity = Known(newest.max(axis=1), found, rows.as_of_us, self.plan.max_age_us)
        asked = _Asked(code, rows.as_of_us, cut, beyond, entity)
        values: list[FeatureValues | None] = [None] * len(self.plan.features)
        for index, ring in enumerate(self._rings):
            for window_us in {feature.window_us for feature in self.plan.features if feature.ring == index}:
                wanted = [
                    (place, feature)
                    for place, feature in enumerate(self.plan.features)
                    if feature.ring == index and feature.window_us == window_us
                ]
                merged = ring.merge([feature for _, feature in wanted], window_us, asked)
                for (place, feature), partials in zip(wanted, merged, strict=True):
                    values[place] = finalise(feature, partials, entity, rows.as_of_us)
        return OfflineValues([value for value in values if value is not None], np.asarray(beyond.any(axis=1), np.bool_))

    def _cut(self, rows: Rows) -> Ints:
        """Return int64[rows, partitions]: the first event, in arrival order, that a row does not see."""
        cut = np.empty(rows.cuts.shape, np.int64)
        for number in range(self.plan.partitions):
            first, end = int(self._first[number]), int(self._first[number + 1])
            cut[:, number] = first + np.searchsorted(self._offset[first:end], rows.cuts[:, number])
        return cut

    def _newest_at(self, code: Ints, cut: Ints) -> Ints:
        """Return int64[rows, partitions]: the newest event time that each shard included, EMPTY without one."""
        newest = np.full(cut.shape, EMPTY)
        shards = self._shards
        if not len(shards.key):
            return newest
        for number in range(self.plan.partitions):
            wanted = code * self.plan.partitions + number
            segment = np.minimum(np.searchsorted(shards.key, wanted), len(shards.key) - 1)
            rows = np.flatnonzero((shards.key[segment] == wanted) & (code >= 0))
            place = shards.last_before(segment[rows], cut[rows, number])
            seen = place >= 0
            newest[rows[seen], number] = self._newest[place[seen]]
        return newest


@dataclass(frozen=True, slots=True)
class _Asked:
    code: Ints
    as_of_us: Ints
    cut: Ints
    beyond: Bools
    entity: Known


class _OfflineRing:
    """One ring's slots at any offset."""

    def __init__(self, view: OfflineView, plan: RingPlan) -> None:
        self._plan = plan
        self._view = view
        partitions = view.plan.partitions
        bucket = view._event_us // plan.hop_us
        self._low = int(bucket.min()) if len(bucket) else 0
        self._span = (int(bucket.max()) - self._low + 1) if len(bucket) else 1
        self._segments = segments_of((view._code * self._span + bucket - self._low) * partitions + view._partition)
        first = self._segments.order[self._segments.start]
        self._partition = view._partition[first]
        self._bucket = bucket[first]
        group = (view._code[first] * partitions + self._partition) * plan.slots + self._bucket % plan.slots
        self._newer = first_newer(group, self._bucket, first, len(bucket)) if len(first) else first
        self._newest = self._segments.scan(np.maximum, view._event_us)
        self._age_order = np.lexsort((np.arange(len(bucket)), view._event_us))
        self._ranks = np.empty(len(bucket), np.int64)
        self._ranks[self._age_order] = np.arange(len(bucket))
        self._running = [self._scan(partial, view._inputs[partial.input]) for partial in plan.partials]

    def _scan(self, partial: Partial, part: Values) -> Any:
        """Return the running partial: of first, last and last-k ranks of events by (event time, offset)."""
        if partial.kind in SKETCHES:
            return None
        if partial.kind is Kind.MOMENTS:
            # The count is part of the state while it runs; what is kept of it lies in the partial beside.
            numbers = np.asarray(part.values, np.float64)
            blank = [np.float64(0.0)] * (1 + partial.size)
            return self._segments.step(Moments(), blank, [numbers], part.present)[1:]
        ranks = self._ranks
        if partial.kind is Kind.LAST_K:
            nothing = np.full(partial.size, -1)
            return self._segments.step(Newest(partial.size), [nothing] * 2, [ranks] * 2, part.present)[0]
        values = self._values(partial, part)
        if part.present is not None:
            values = np.where(part.present, values, identity_of(partial.kind, partial.dtype))
        return self._segments.scan(UFUNCS[partial.kind], values)

    def _values(self, partial: Partial, part: Values) -> Any:
        if partial.kind is Kind.COUNT:
            return np.ones(len(self._ranks), np.int64)
        if partial.kind is Kind.NEWEST:
            return self._view._event_us
        if partial.kind in (Kind.FIRST, Kind.LAST):
            return self._ranks
        if partial.kind in (Kind.DECAYED, Kind.DECAYED_COUNT):
            weight = decays(self._view._event_us, self._plan.hop_us, partial.half_life_us)
            return weight if partial.kind is Kind.DECAYED_COUNT else part.values * weight + 0.0
        return part.values

    def merge(self, features: list[Feature], window_us: int, asked: _Asked) -> list[Merged]:
        """Return the merged partials of features that share a window."""
        plan, segments = self._plan, self._segments
        first, head = (asked.as_of_us - window_us) // plan.hop_us, asked.as_of_us // plan.hop_us
        begin = np.searchsorted(segments.key, self._key(asked.code, first))
        end = np.searchsorted(segments.key, self._key(asked.code, head + 1))
        end[asked.code < 0] = begin[asked.code < 0]
        sums = self._accumulators(features, len(begin))
        newest = np.full(len(begin), EMPTY)
        rows = np.flatnonzero(begin < end)
        step = 0
        while len(rows):
            segment = begin[rows] + step
            partition = self._partition[segment]
            cut = asked.cut[rows, partition]
            place = segments.last_before(segment, cut)
            live = (place >= 0) & (self._newer[segment] >= cut)
            live &= ~(asked.beyond[rows, partition] & (self._bucket[segment] == head[rows]))
            chosen, place = rows[live], place[live]
            anchor_us = (self._bucket[segment[live]] + 1) * plan.hop_us
            slot = Slot(chosen, place, asked.as_of_us[chosen] - anchor_us)
            for accumulator in sums.values():
                accumulator.add(slot)
            newest[chosen] = np.maximum(newest[chosen], self._newest[place])
            step += 1
            rows = rows[begin[rows] + step < end[rows]]
        results = {index: accumulator.result() for index, accumulator in sums.items()}
        return [self._merged(feature, results, newest) for feature in features]

    def _accumulators(self, features: list[Feature], rows: int) -> dict[int, Accumulator]:
        """Return an accumulator per partial that the features read; counts come last, since others stand beside."""
        read = {index for one in features for index in (one.count, one.value, one.weight) if index is not None}
        partials = self._plan.partials
        counts = {
            index: Simple(partials[index], self._running[index], rows)
            for index in read
            if partials[index].kind is Kind.COUNT
        }
        found: dict[int, Accumulator] = {}
        for index in sorted(read - counts.keys()):
            partial, running = partials[index], self._running[index]
            if partial.kind in SKETCHES:
                found[index] = SketchesHeld(partial, self._view._inputs[partial.input], self._segments, rows)
            elif partial.kind is Kind.MOMENTS:
                found[index] = MomentsHeld(running, counts[partial.beside], rows)
            elif partial.kind is Kind.LAST_K:
                found[index] = NewestK(partial, running, rows)
            elif partial.kind in (Kind.DECAYED, Kind.DECAYED_COUNT):
                found[index] = Decayed(partial, running, rows)
            else:
                found[index] = Simple(partial, running, rows)
        return {**found, **counts}

    def _key(self, code: Ints, bucket: Ints) -> Ints:
        inside = np.clip(bucket - self._low, 0, self._span)
        return (code * self._span + inside) * self._view.plan.partitions

    def _merged(self, feature: Feature, results: dict[int, Any], newest: Ints) -> Merged:
        count = None if feature.count is None else results[feature.count]
        if feature.value is None:
            return Merged(count, None, newest)
        partial, value = self._plan.partials[feature.value], results[feature.value]
        if partial.kind in (Kind.FIRST, Kind.LAST):
            return self._ranked(partial, np.where(value == INT64_MAX, -1, value))
        if partial.kind is Kind.LAST_K:
            return self._ranked(partial, value[:, feature.element])
        return Merged(count, value, newest, None if feature.weight is None else results[feature.weight])

    def _ranked(self, partial: Partial, rank: Ints) -> Merged:
        """Turn ranks into values; −1 is no event."""
        values = self._view._inputs[partial.input].values
        if not len(values):
            blank = np.zeros(len(rank), values.dtype) if values.dtype != object else np.full(len(rank), None, object)
            return Merged(None, blank, np.full(len(rank), EMPTY))
        event = self._age_order[np.maximum(rank, 0)]
        return Merged(None, values[event], np.where(rank < 0, EMPTY, self._view._event_us[event]))


def _slice(rows: Rows, first: int, end: int) -> Rows:
    keys = [Column(column.values[first:end], column.nulls[first:end]) for column in rows.keys]
    return Rows(keys, rows.as_of_us[first:end], rows.cuts[first:end])


def _joined(parts: list[FeatureValues]) -> FeatureValues:
    head = parts[0]
    arrays = [np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "status", "event_us")]
    return FeatureValues(head.name, head.type, head.counts, *arrays)
