"""Runs of events that fold into one slot, and their running partials: the offline twin's counterpart of shards.

Events are sorted into segments (entity, bucket, partition), in offset order within each. A running partial at position
i is the slot's state after event i, computed in the same order as the live fold, so that it has the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill_features.layout import INT64_MAX, INT64_MIN
from tidemill_features.partials import Dtype, Kind
from tidemill_features.sequential import Step, states
from tidemill_features.whole_sums import WHOLE_SUM, WholeSum

Ints = NDArray[np.int64]

# With fewer long segments than this left, each is scanned on its own.
_FEW = 8
# How partials merge that are one number, but for sums of integers.
_UFUNCS = {
    Kind.COUNT: np.add,
    Kind.SUM: np.add,
    Kind.DECAYED: np.add,
    Kind.DECAYED_COUNT: np.add,
    Kind.MIN: np.minimum,
    Kind.FIRST: np.minimum,
    Kind.MAX: np.maximum,
    Kind.LAST: np.maximum,
    Kind.NEWEST: np.maximum,
}


def ufunc_of(kind: Kind, dtype: Dtype) -> np.ufunc | WholeSum:
    """Return how a partial merges that is one number."""
    return WHOLE_SUM if kind is Kind.SUM and dtype is Dtype.INT else _UFUNCS[kind]


@dataclass(frozen=True, slots=True)
class Segments:
    """`order`: the events, sorted; `start`, `end`: of each segment within it; `key`: each segment's sort key."""

    order: Ints
    start: Ints
    end: Ints
    key: Ints
    # Segment number * (events + 1) + event: rises throughout, so that one search finds a place within a segment.
    ladder: Ints

    def last_before(self, segment: Ints, event: Ints) -> Ints:
        """Return the place of the last event of each segment before `event` (in arrival order); -1 where none is."""
        steps = len(self.order) + 1
        place = self.end[segment] - 1
        partial = np.flatnonzero(self.order[place] >= event)
        if len(partial):
            found = np.searchsorted(self.ladder, segment[partial] * steps + event[partial]) - 1
            place[partial] = np.where(found >= self.start[segment[partial]], found, -1)
        return place

    def up_to(self, segment: Ints, place: Ints) -> tuple[Ints, Ints]:
        """Return the events of segments, each up to a place: whose they are (0, 1, … as given), and which."""
        counts = place - self.start[segment] + 1
        whose = np.repeat(np.arange(len(segment)), counts)
        within = np.arange(len(whose)) - np.repeat(np.cumsum(counts) - counts, counts)
        return whose, self.order[self.start[segment][whose] + within]

    def scan(self, ufunc: np.ufunc | WholeSum, values: Any) -> Any:
        """Return, per place, `ufunc` over the segment's values up to there, strictly one after the other.

        `values`: per event, in arrival order.
        """
        out = values[self.order]
        lengths = self.end - self.start
        by_length = np.argsort(-lengths, kind="stable")
        starts, ends, falling = self.start[by_length], self.end[by_length], -lengths[by_length]
        rank = 1
        while True:
            active = int(np.searchsorted(falling, -rank))
            if active <= _FEW:
                break
            at = starts[:active] + rank
            out[at] = ufunc(out[at - 1], out[at])
            rank += 1
        for first, end in zip(starts[:active].tolist(), ends[:active].tolist(), strict=True):
            out[first + rank - 1 : end] = ufunc.accumulate(out[first + rank - 1 : end])
        return out

    def step(self, step: Step, blank: Sequence[Any], values: Sequence[Any], present: Any) -> list[Any]:
        """Return, per place, the state after the segment's events up to there.

        `blank`: the parts of the state before the first event; `values`: the parts of each event, in arrival order;
        `present`: which events count, None for all.
        """
        order = self.order
        kept = np.ones(len(order), np.bool_) if present is None else present[order]
        seen = np.cumsum(kept)
        before, after = seen[self.start] - kept[self.start], seen[self.end - 1]
        filled = after > before
        initial = [np.repeat(part[None], int(filled.sum()), axis=0) for part in map(np.asarray, blank)]
        events = order[kept]
        found = states(before[filled], after[filled], initial, [part[events] for part in values], step)
        # A place before the segment's first value has the blank state, which is put behind all others.
        at = np.where(seen > np.repeat(before, self.end - self.start), seen - 1, len(events))
        return [np.concatenate((part, np.asarray(one)[None]))[at] for part, one in zip(found, blank, strict=True)]


def segments_of(key: Ints) -> Segments:
    """Return the segments of events, given each event's sort key in arrival order."""
    order = np.argsort(key, kind="stable")
    keys = key[order]
    start = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if len(keys) else np.zeros(0, np.int64)
    end = np.append(start[1:], len(keys)) if len(keys) else start
    numbers = np.repeat(np.arange(len(start)), end - start)
    return Segments(order, start, end, keys[start], numbers * (len(order) + 1) + order)


def identity_of(kind: Kind, dtype: Dtype) -> Any:
    """Return what an absent value is scanned as."""
    if kind in (Kind.COUNT, Kind.SUM, Kind.DECAYED, Kind.DECAYED_COUNT):
        return 0.0 if dtype is Dtype.FLOAT else 0
    if kind is Kind.LAST:
        return -1
    if kind is Kind.FIRST:
        return INT64_MAX
    if kind is Kind.NEWEST:
        return INT64_MIN
    low = kind is Kind.MAX
    if dtype is Dtype.FLOAT:
        return -np.inf if low else np.inf
    return INT64_MIN if low else INT64_MAX


def first_newer(group: Ints, bucket: Ints, first_event: Ints, events: int) -> Ints:
    """Return, per segment, the first event of any later bucket that shares its slot (`events` where there is none).

    From that event on the slot holds another bucket. `group`: equal for segments that share a slot.
    """
    order = np.lexsort((bucket, group))[::-1]
    groups, arrived = group[order], first_event[order]
    number = np.concatenate(([0], np.cumsum(groups[1:] != groups[:-1])))
    # Each group's values lie below all before it, so that the running minimum begins anew with every group.
    shifted = arrived - number * (events + 1)
    running = np.minimum.accumulate(shifted)
    newer = np.full(len(group), events, np.int64)
    same = np.flatnonzero(groups[1:] == groups[:-1]) + 1
    newer[order[same]] = running[same - 1] + number[same] * (events + 1)
    return newer
