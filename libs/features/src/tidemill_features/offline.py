"""The offline twin: a view's features for many rows at once, each as of its own instant and offsets.

Equal, bit for bit, to reading the rings when they held exactly those offsets: slots are filled in offset order, merge
in the order of (bucket, partition), and are finalised by the same code.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill_features.accumulators import (
    Accumulator,
    Decayed,
    MomentsHeld,
    NewestK,
    Simple,
    SketchesHeld,
    Slot,
    sketch_of,
)
from tidemill_features.decay import decays
from tidemill_features.entities import Entities
from tidemill_features.expressions import Column
from tidemill_features.finalise import FeatureValues, Known, Merged, finalise
from tidemill_features.fold import Events
from tidemill_features.inputs import Values, evaluate_inputs
from tidemill_features.layout import EMPTY, INT64_MAX
from tidemill_features.moments import Moments
from tidemill_features.newest import Newest
from tidemill_features.offline_edges import Cells, Merging, OfflineEdges, Spans
from tidemill_features.partials import SKETCHES, Feature, Kind, Partial
from tidemill_features.plan import RingPlan, ViewPlan
from tidemill_features.raw_events import sizes
from tidemill_features.segments import Segments, first_newer, identity_of, segments_of, ufunc_of

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_ALL = slice(None)

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
        mine = (codes >= 0) & ~np.logical_or.reduce([events.columns[name].nulls for name in plan.required])
        order = order[mine[order]]
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
        found = (newest != EMPTY).any(axis=1)
        if seen_before is not None:
            found |= seen_before
        entity = Known(newest.max(axis=1), found, rows.as_of_us, self.plan.max_age_us)
        asked = _Asked(code, rows.as_of_us, cut, entity)
        excluded = np.zeros(len(rows), np.bool_)
        values: list[FeatureValues | None] = [None] * len(self.plan.features)
        for index, ring in enumerate(self._rings):
            # A last without a window has one that is held to its age alone.
            windows: dict[tuple[int, int], list[tuple[int, Feature]]] = {}
            for place, feature in enumerate(self.plan.features):
                if feature.ring == index:
                    windows.setdefault((feature.window_us, feature.max_age_us), []).append((place, feature))
            for (window_us, _), wanted in windows.items():
                merged = ring.merge([feature for _, feature in wanted], window_us, asked)
                for (place, feature), partials in zip(wanted, merged, strict=True):
                    values[place] = finalise(feature, self.plan.rings[index], partials, entity, rows.as_of_us)
                    if partials.left_out is not None:
                        excluded |= partials.left_out
        return OfflineValues([value for value in values if value is not None], excluded)

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
        self._running = {index: self._scan(partial, self._segments) for index, partial in enumerate(plan.partials)}
        self._edges = None
        if plan.raw is not None:
            self._edges = OfflineEdges(
                self._segments,
                plan.hop_us,
                self._bucket,
                view._event_us,
                self._newest,
                self._segments.scan(np.add, sizes(plan.raw, view._inputs, len(bucket))),
                plan.raw.room_bytes,
                plan.ahead_us,
                self._states,
            )

    def _scan(self, partial: Partial, segments: Segments, events: Any = _ALL) -> Any:
        """Return the running partial over some events: of first, last and last-k ranks by (event time, offset)."""
        if partial.kind in SKETCHES:
            return None
        part, ranks = self._view._inputs[partial.input].take(events), self._ranks[events]
        if partial.kind is Kind.MOMENTS:
            # The count is part of the state while it runs; what is kept of it lies in the partial beside.
            numbers = np.asarray(part.values, np.float64)
            blank = [np.float64(0.0)] * (1 + partial.size)
            return segments.step(Moments(), blank, [numbers], part.present)[1:]
        if partial.kind is Kind.LAST_K:
            nothing = np.full(partial.size, -1)
            return segments.step(Newest(partial.size), [nothing] * 2, [ranks] * 2, part.present)[0]
        values = self._values(partial, part, ranks, self._view._event_us[events])
        if part.present is not None:
            values = np.where(part.present, values, identity_of(partial.kind, partial.dtype))
        return segments.scan(ufunc_of(partial.kind, partial.dtype), values)

    def _values(self, partial: Partial, part: Values, ranks: Ints, event_us: Ints) -> Any:
        if partial.kind is Kind.COUNT:
            return np.ones(len(ranks), np.int64)
        if partial.kind is Kind.NEWEST:
            return event_us
        if partial.kind in (Kind.FIRST, Kind.LAST):
            return ranks
        if partial.kind in (Kind.DECAYED, Kind.DECAYED_COUNT):
            weight = decays(event_us, self._plan.hop_us, partial.half_life_us)
            return weight if partial.kind is Kind.DECAYED_COUNT else part.values * weight + 0.0
        return part.values

    def merge(self, features: list[Feature], window_us: int, asked: _Asked) -> list[Merged]:
        """Return the merged partials of features that share a window."""
        plan, segments = self._plan, self._segments
        first, head = (asked.as_of_us - window_us) // plan.hop_us, asked.as_of_us // plan.hop_us
        begin = np.searchsorted(segments.key, self._key(asked.code, first))
        end = np.searchsorted(segments.key, self._key(asked.code, head + 1))
        end[asked.code < 0] = begin[asked.code < 0]
        into = Merging(self._accumulators(features, len(begin)), np.full(len(begin), EMPTY))
        spans = Spans.of(features[0], asked.as_of_us, first)
        rows = np.flatnonzero(begin < end)
        step = 0
        while len(rows):
            segment = begin[rows] + step
            partition = self._partition[segment]
            cut = asked.cut[rows, partition]
            place = segments.last_before(segment, cut)
            live = (place >= 0) & (self._newer[segment] >= cut)
            if self._edges is None:
                newer = self._newest[place] > asked.as_of_us[rows] + plan.ahead_us
                newer &= live & (self._bucket[segment] == head[rows])
                spans.left_out[rows[newer]] = True
                live &= ~newer
            else:
                live &= ~self._edges.merge(Cells(np.where(live, rows, -1), segment, place), spans, into)
            chosen, place = rows[live], place[live]
            age_us = asked.as_of_us[chosen] - (self._bucket[segment[live]] + 1) * plan.hop_us
            into.add(Slot(chosen, place, age_us, self._running), self._newest[place])
            step += 1
            rows = rows[begin[rows] + step < end[rows]]
        results = {index: accumulator.result() for index, accumulator in into.sums.items()}
        merged = [self._merged(feature, results, into.newest_us) for feature in features]
        coarse, left_out = (told if told.any() else None for told in (spans.coarse, spans.left_out))
        return [replace(one, coarse=coarse, left_out=left_out) for one in merged]

    def _states(self, index: int, parts: Segments, events: Ints) -> Any:
        """Return a partial over the events of each part: of a sketch its bytes."""
        partial = self._plan.partials[index]
        if partial.kind in SKETCHES:
            part = self._view._inputs[partial.input]
            bounds = zip(parts.start.tolist(), parts.end.tolist(), strict=True)
            return [sketch_of(partial, part, events[start:end]) for start, end in bounds]
        running = self._scan(partial, parts, events)
        last = parts.end - 1
        return [part[last] for part in running] if isinstance(running, list) else running[last]

    def _accumulators(self, features: list[Feature], rows: int) -> dict[int, Accumulator]:
        """Return an accumulator per partial that the features read; counts come last, since others stand beside."""
        read = {index for one in features for index in (one.count, one.value, one.weight) if index is not None}
        partials = self._plan.partials
        counts = {index: Simple(partials[index], index, rows) for index in read if partials[index].kind is Kind.COUNT}
        found: dict[int, Accumulator] = {}
        for index in sorted(read - counts.keys()):
            partial = partials[index]
            if partial.kind in SKETCHES:
                found[index] = SketchesHeld(partial, index, self._view._inputs[partial.input], self._segments, rows)
            elif partial.kind is Kind.MOMENTS:
                found[index] = MomentsHeld(partial, index, counts[partial.beside], rows)
            elif partial.kind is Kind.LAST_K:
                found[index] = NewestK(partial, index, rows)
            elif partial.kind in (Kind.DECAYED, Kind.DECAYED_COUNT):
                found[index] = Decayed(partial, index, rows)
            else:
                found[index] = Simple(partial, index, rows)
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
    coarse = [np.zeros(len(part.status), np.bool_) if part.coarse is None else part.coarse for part in parts]
    joined = FeatureValues(head.name, head.type, head.counts, *arrays)
    return joined if all(part.coarse is None for part in parts) else replace(joined, coarse=np.concatenate(coarse))
