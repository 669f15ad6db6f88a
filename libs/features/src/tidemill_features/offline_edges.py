"""The edges of exact windows in the offline twin: `edges`, for many rows at once.

A slot that an edge cuts is merged as what its events in the window come to, folded in the same order as a read does.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemill_features.accumulators import Accumulator, Slot
from tidemill_features.layout import EMPTY
from tidemill_features.partials import Feature
from tidemill_features.segments import Segments, segments_of

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Events that are taken up at a time, which bounds memory.
_EVENTS = 500_000


@dataclass(frozen=True, slots=True)
class Merging:
    """What slots are merged into: the partials of each row, and its newest event time."""

    sums: Mapping[int, Accumulator]
    newest_us: Ints

    def add(self, slot: Slot, newest_us: Ints) -> None:
        """Merge one slot into each of its rows."""
        for accumulator in self.sums.values():
            accumulator.add(slot)
        self.newest_us[slot.rows] = np.maximum(self.newest_us[slot.rows], newest_us)


@dataclass(frozen=True, slots=True)
class Spans:
    """Each row's exact window: events at after_us < time <= until_us; `first`: its first bucket.

    `tail`: whether there is an edge there. `coarse`, `left_out`: see `finalise.Merged`.
    """

    tail: bool
    after_us: Ints
    until_us: Ints
    first: Ints
    coarse: Bools
    left_out: Bools

    @classmethod
    def of(cls, feature: Feature, as_of_us: Ints, first: Ints) -> "Spans":
        """Return those of a feature; a last without a window has no edge at its tail, its own age decides."""
        tail = not feature.max_age_us
        after_us = as_of_us - feature.window_us if tail else np.full(len(as_of_us), EMPTY)
        return cls(tail, after_us, as_of_us, first, np.zeros(len(first), np.bool_), np.zeros(len(first), np.bool_))


class Cells(NamedTuple):
    """Slots, one for each of `rows` (-1: of none), each up to the event at `place`."""

    rows: Ints
    segment: Ints
    place: Ints


@dataclass(frozen=True, slots=True)
class OfflineEdges:
    """The slots of one ring, and what is left of them at an edge.

    `bucket`: of each segment; `newest_us`, `bytes`: after each event the newest event time, and what the slot would
    need to keep its events, which is `room_bytes` at most; `ahead_us`: see `RingPlan`; `states`: a partial, by its
    index, over the events of segments.
    """

    segments: Segments
    hop_us: int
    bucket: Ints
    event_us: Ints
    newest_us: Ints
    bytes: Ints
    room_bytes: int
    ahead_us: int
    states: Callable[[int, Segments, Ints], Any]

    def merge(self, cells: Cells, spans: Spans, into: Merging) -> Bools:
        """Merge what an edge leaves of slots; return which are not to be merged as they are."""
        rows, segment, place = cells
        newest_us, until_us = self.newest_us[place], spans.until_us[rows]
        reaching = newest_us > until_us
        if spans.tail:
            reaching |= self.bucket[segment] == spans.first[rows]
        reaching &= rows >= 0
        gone = reaching & (newest_us <= spans.after_us[rows])
        full = reaching & ~gone & (self.bytes[place] > self.room_bytes)
        left_out = full & (newest_us > until_us + self.ahead_us)
        spans.coarse[rows[full]] = True
        spans.left_out[rows[left_out]] = True
        cut = np.flatnonzero(reaching & ~gone & ~full)
        blocks = np.cumsum(place[cut] - self.segments.start[segment[cut]] + 1) // _EVENTS
        for number in np.unique(blocks).tolist():
            block = cut[blocks == number]
            self._cut(Cells(rows[block], segment[block], place[block]), spans, into)
        handled = gone | left_out
        handled[cut] = True
        return np.asarray(handled, np.bool_)

    def _cut(self, cells: Cells, spans: Spans, into: Merging) -> None:
        """Merge the events of slots that lie in their rows' windows, as a slot each."""
        rows, segment, place = cells
        whose, events = self.segments.up_to(segment, place)
        event_us = self.event_us[events]
        inside = (event_us > spans.after_us[rows][whose]) & (event_us <= spans.until_us[rows][whose])
        whose, events = whose[inside], events[inside]
        parts = segments_of(whose)
        running = {index: self.states(index, parts, events) for index in into.sums}
        chosen = rows[parts.key]
        age_us = spans.until_us[chosen] - (self.bucket[segment[parts.key]] + 1) * self.hop_us
        newest_us = parts.scan(np.maximum, self.event_us[events])[parts.end - 1]
        into.add(Slot(chosen, np.arange(len(chosen)), age_us, running), newest_us)
