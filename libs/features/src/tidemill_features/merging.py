"""Merging the shards of one ring at a read: slots in the order of (bucket, partition), floats strictly so."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill_features import moments
from tidemill_features.area import merged_sketches, pointed
from tidemill_features.decay import weights
from tidemill_features.edges import Cut, Edges, Span
from tidemill_features.finalise import Merged
from tidemill_features.layout import (
    EMPTY,
    INT64_MAX,
    NEWEST_WORD,
    NEXT_OFFSET_WORD,
    NO_TOPIC_ID,
    empty_shard,
    empty_slot,
    to_words,
)
from tidemill_features.partials import SKETCHES, Dtype, Feature, Kind, Partial
from tidemill_features.plan import HEADER_WORDS, WORD_BYTES, RingPlan
from tidemill_features.whole_sums import WHOLE_SUM

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Shards:
    """Stored shards: `words` int64[entities, partitions, words], and the bytes that they were."""

    words: Ints
    raws: Sequence[bytes | None]

    def newest_us(self) -> Ints:
        """Return the newest event time of each entity, EMPTY where there is none."""
        return np.asarray(np.maximum.reduce(self.words[:, :, NEWEST_WORD], axis=1), np.int64)

    def found(self) -> Bools:
        """Return which entities have a shard: a stored one always includes at least one record."""
        return np.asarray(np.maximum.reduce(self.words[:, :, NEXT_OFFSET_WORD], axis=1) > 0, np.bool_)


class RingReader:
    """Merges the shards of one ring."""

    def __init__(self, plan: RingPlan, features: Sequence[Feature], partitions: int) -> None:
        self.plan = plan
        self.features = features
        self._partitions = partitions
        self._longest_us = max(feature.window_us for feature in features)
        self._blank = empty_shard(plan, NO_TOPIC_ID, 0).tobytes()
        # As one opaque value: copied word by word, empty slots took a quarter of a merge.
        self._slot = empty_slot(plan).view(f"V{plan.slot_words * WORD_BYTES}")
        self._edges = None if plan.raw is None else Edges(plan)
        # Where each word of each slot lies within the shards of an entity: [slot, partition, word].
        shard = np.arange(partitions)[:, None] * plan.words + HEADER_WORDS
        slot = np.arange(plan.slots)[:, None, None] * plan.slot_words
        self._at = slot + shard + np.arange(plan.slot_words)
        self._last_lanes: tuple[tuple[int, int], Ints, Ints] = ((0, -1), self._at, self._at)

    def shards(self, raws: Sequence[bytes | None]) -> Shards:
        """Return stored shards, entity by entity and within it partition by partition, as words."""
        words = to_words(raws, self.plan, self._blank)
        return Shards(words.reshape(len(raws) // self._partitions, self._partitions, self.plan.words), raws)

    def merge(self, shards: Shards, as_of_us: int, *, ahead: bool) -> list[Merged]:
        """Return each feature's merged partials. `ahead`: whether any entity has events after `as_of_us`."""
        plan, partitions = self.plan, self._partitions
        first, last = plan.window_buckets(as_of_us, self._longest_us)
        entities = len(shards.words)
        at, lanes = self._lanes(first, last)
        # [entity, (bucket, partition), word]: the order in which partials merge.
        slots = shards.words.reshape(entities, partitions * plan.words).take(at, axis=1)
        dead = slots[:, :, 0] != lanes
        left_out = self._left_out(slots, dead, as_of_us) if ahead and self._edges is None else None
        np.copyto(slots.view(self._slot.dtype)[:, :, 0], self._slot, where=dead)
        windows: dict[tuple[int, Span | None], _Window] = {}
        merged = []
        for feature in self.features:
            start = (plan.window_buckets(as_of_us, feature.window_us)[0] - first) * partitions
            span = None if self._edges is None else Span.of(feature, as_of_us)
            window = windows.get((start, span))
            if window is None:
                cut = Cut(slots[:, start:], left_out=left_out)
                if self._edges is not None and span is not None:
                    cut = self._edges.cut(cut.slots, shards.raws, partitions, span)
                window = windows[start, span] = _Window(plan, shards, cut, lanes[start:], as_of_us)
            merged.append(window.feature(feature))
        return merged

    def _left_out(self, slots: Ints, dead: Bools, as_of_us: int) -> Bools | None:
        """Leave out the last bucket where it holds what came after the read; return for whom, None for nobody."""
        newer = slots[:, -self._partitions :, 1] > as_of_us + self.plan.ahead_us
        newer &= ~dead[:, -self._partitions :]
        if not np.count_nonzero(newer):
            return None
        dead[:, -self._partitions :] |= newer
        return np.asarray(newer.any(axis=1), np.bool_)

    def _lanes(self, first: int, last: int) -> tuple[Ints, Ints]:
        """Return where the slots of some buckets lie, and which bucket each lane is: mostly those of the last read."""
        known, at, lanes = self._last_lanes
        if known != (first, last):
            buckets = np.arange(first, last + 1)
            at = self._at[buckets % self.plan.slots].reshape(-1, self.plan.slot_words)
            lanes = buckets.repeat(self._partitions)
            self._last_lanes = (first, last), at, lanes
        return at, lanes


class _Window:
    """The slots of one window; what features share is merged once."""

    def __init__(self, plan: RingPlan, shards: Shards, cut: Cut, buckets: Ints, as_of_us: int) -> None:
        self._plan = plan
        self._shards = shards
        self._cut = cut
        self._slots = slots = cut.slots
        self._buckets = buckets
        self._as_of_us = as_of_us
        self._newest = np.maximum.reduce(slots[:, :, 1], axis=1)
        self._known: dict[int, Any] = {}

    def feature(self, feature: Feature) -> Merged:
        """Return a feature's merged partials."""
        merged = self._merged(feature)
        cut = self._cut
        if cut.coarse is None and cut.left_out is None:
            return merged
        return replace(merged, coarse=cut.coarse, left_out=cut.left_out)

    def _merged(self, feature: Feature) -> Merged:
        count = None if feature.count is None else self._partial(feature.count)
        if feature.value is None:
            return Merged(count, None, self._newest)
        kind = self._plan.partials[feature.value].kind
        value = self._partial(feature.value)
        if kind in (Kind.FIRST, Kind.LAST):
            return Merged(None, *value)
        if kind is Kind.LAST_K:
            return Merged(None, value[0][:, feature.element], value[1][:, feature.element])
        weight = None if feature.weight is None else self._partial(feature.weight)
        return Merged(count, value, self._newest, weight)

    def _partial(self, index: int) -> Any:
        if index not in self._known:
            self._known[index] = self._merge(self._plan.partials[index])
        return self._known[index]

    def _merge(self, partial: Partial) -> Any:
        if partial.kind in SKETCHES:
            return self._sketches(partial)
        if partial.kind in (Kind.FIRST, Kind.LAST):
            return self._one(partial)
        if partial.kind is Kind.LAST_K:
            return self._newest_k(partial)
        if partial.kind is Kind.MOMENTS:
            return self._moments(partial)
        lane = self._typed(partial.dtype)[:, :, partial.word]
        if partial.kind is Kind.COUNT:
            return np.add.reduce(lane, axis=1)
        decaying = partial.kind in (Kind.DECAYED, Kind.DECAYED_COUNT)
        if decaying:
            anchor_us = (self._buckets + 1) * self._plan.hop_us
            lane = lane * weights(self._as_of_us - anchor_us, partial.half_life_us) + 0.0
        if partial.kind is Kind.SUM and partial.dtype is Dtype.INT:
            return WHOLE_SUM.accumulate(lane, axis=1)[:, -1]
        if decaying or partial.kind is Kind.SUM:
            # accumulate adds one after the other; reduce adds in pairs, so that bits would hang on the shape.
            return np.add.accumulate(lane, axis=1)[:, -1]
        ufunc = np.minimum if partial.kind is Kind.MIN else np.maximum
        return ufunc.reduce(lane, axis=1)

    def _moments(self, partial: Partial) -> Any:
        floats = self._typed(Dtype.FLOAT)
        counts = self._slots[:, :, self._plan.partials[partial.beside].word].astype(np.float64)
        words = range(partial.word, partial.word + partial.size)
        state: Any = (counts[:, 0], *(floats[:, 0, word] for word in words))
        for lane in np.flatnonzero(counts.any(axis=0)).tolist():
            if lane:
                state = moments.merged(state, (counts[:, lane], *(floats[:, lane, word] for word in words)))
        return state

    def _one(self, partial: Partial) -> tuple[Any, Ints]:
        """Return the first's or the last's value and event time."""
        times = self._slots[:, :, partial.word]
        # Equal times lie in one bucket, so that of equal times the highest partition comes last.
        if partial.kind is Kind.FIRST:
            chosen = times.argmin(axis=1)
        else:
            chosen = times.shape[1] - 1 - times[:, ::-1].argmax(axis=1)
        rows = np.arange(len(times))
        event_us = times[rows, chosen]
        if partial.kind is Kind.FIRST:
            event_us = np.where(event_us == INT64_MAX, EMPTY, event_us)
        return self._values(partial, rows, chosen, partial.word + partial.words - 1, event_us), event_us

    def _newest_k(self, partial: Partial) -> tuple[Any, Ints]:
        """Return values and event times, newest first, as [entity, place]."""
        size, entities = partial.size, len(self._slots)
        words = slice(partial.word, partial.word + partial.words, 2)
        # Lanes backwards: of equal times the highest partition, and within a slot the order that it has.
        times = self._slots[:, ::-1, words].reshape(entities, -1)
        order = np.argsort(~times, axis=1, kind="stable")[:, :size]
        event_us = np.take_along_axis(times, order, axis=1)
        lane, place = self._slots.shape[1] - 1 - order // size, order % size
        rows = np.arange(entities).repeat(size)
        values = self._values(partial, rows, lane.ravel(), partial.word + 1 + 2 * place.ravel(), event_us.ravel())
        return values.reshape(entities, size), event_us

    def _values(self, partial: Partial, rows: Ints, lane: Ints, word: Any, event_us: Ints) -> Any:
        """Return chosen words as values; strings are looked up, None where there is no event."""
        if partial.dtype is not Dtype.STRING:
            return self._typed(partial.dtype)[rows, lane, word]
        strings = np.full(len(rows), None, object)
        pointers = self._slots[rows, lane, word]
        for index in np.flatnonzero(event_us != EMPTY).tolist():
            raw = self._pointed(int(rows[index]), int(lane[index]), int(pointers[index]))
            strings[index] = raw.decode("utf-8", "surrogatepass")
        return strings

    def _sketches(self, partial: Partial) -> Any:
        """Return what each entity's sketches say together."""
        pointers = self._slots[:, :, partial.word]
        found = np.empty(len(pointers), object)
        for row, lanes in enumerate(pointers):
            held = np.flatnonzero(lanes).tolist()
            raws = [self._pointed(row, lane, int(lanes[lane])) for lane in held]
            found[row] = merged_sketches(partial, raws)
        return found

    def _pointed(self, row: int, lane: int, pointer: int) -> bytes:
        cut = self._cut.shards.get((row, lane))
        if cut is not None:
            return pointed(cut, (HEADER_WORDS + self._plan.slot_words) * WORD_BYTES, pointer)
        partitions = self._shards.words.shape[1]
        # Windows begin with a bucket, so that lanes count partitions from 0.
        raw = self._shards.raws[row * partitions + lane % partitions]
        assert raw is not None
        return pointed(raw, self._plan.words * WORD_BYTES, pointer)

    def _typed(self, dtype: Dtype) -> Any:
        return self._slots.view(np.float64) if dtype is Dtype.FLOAT else self._slots
