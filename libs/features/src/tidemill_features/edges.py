"""The edges of an exact window at a read: buckets that an edge cuts are folded again from their raw events.

An event lies in the window where after_us < its time <= until_us. A bucket that overflowed cannot be cut: at the tail
it counts as a whole, and at the head it is left out where it holds events that came after the read, by more than
producers' clocks may differ; either way the value says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemill_features.area import pointed
from tidemill_features.layout import EMPTY, NO_TOPIC_ID, empty_slot
from tidemill_features.partials import Feature
from tidemill_features.plan import HEADER_WORDS, WORD_BYTES, RingPlan
from tidemill_features.raw_events import decode, overflowed, times_of
from tidemill_features.ring import RingStore

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Span:
    """An exact window: events at after_us < time <= until_us. Without an edge at its tail `after_us` is EMPTY."""

    after_us: int
    until_us: int

    @classmethod
    def of(cls, feature: Feature, as_of_us: int) -> "Span":
        """Return a feature's; a last without a window has no edge at its tail, its own age decides."""
        return cls(EMPTY if feature.max_age_us else as_of_us - feature.window_us, as_of_us)

    def holds(self, event_us: Ints) -> Bools:
        """Return which events lie in it."""
        return np.asarray((event_us > self.after_us) & (event_us <= self.until_us), np.bool_)


class Cut(NamedTuple):
    """The slots of a window with its edges cut, and by (entity, lane) the shards of one slot that cut ones point into.

    `coarse`: the entities with a bucket at an edge that could not be cut, None for none; `left_out`: those with one
    that was left out.
    """

    slots: Ints
    shards: Mapping[tuple[int, int], bytes] = MappingProxyType({})
    coarse: Bools | None = None
    left_out: Bools | None = None


class Edges:
    """Cuts the slots of one ring. `scratch`: a ring of one slot and no raw events, what cut buckets are folded into."""

    def __init__(self, plan: RingPlan) -> None:
        assert plan.raw is not None
        self._raw = plan.raw
        self._area = plan.words * WORD_BYTES
        self._ahead_us = plan.ahead_us
        self._blank = empty_slot(plan)
        self.scratch = replace(
            plan,
            slots=1,
            words=HEADER_WORDS + plan.slot_words,
            pointers=tuple(word for word in plan.pointers if word != plan.raw.word),
            raw=None,
        )

    def cut(self, slots: Ints, raws: Sequence[bytes | None], partitions: int, span: Span) -> Cut:
        """Return the slots of a window with what lies outside it taken away.

        `slots`: int64[entities, lanes, words], a lane per (bucket, partition); `raws`: the stored shards, entity by
        entity and within it partition by partition.
        """
        slots = slots.copy()
        coarse, left_out = np.zeros(len(slots), np.bool_), np.zeros(len(slots), np.bool_)
        pieces: dict[tuple[int, int], tuple[bytes, Bools]] = {}
        for row, lane in self._at_edges(slots, partitions, span):
            words = slots[row, lane]
            newest_us = int(words[1])
            if newest_us <= span.after_us:
                words[:] = self._blank
                continue
            shard = raws[row * partitions + lane % partitions]
            assert shard is not None
            raw = pointed(shard, self._area, int(words[self._raw.word]))
            if overflowed(raw):
                coarse[row] = True
                if newest_us > span.until_us + self._ahead_us:
                    left_out[row] = True
                    words[:] = self._blank
                continue
            inside = span.holds(times_of(self._raw, raw)[0])
            if not inside.all():
                pieces[row, lane] = raw, inside
        shards = dict(zip(pieces, self.folded(list(pieces.values())), strict=True))
        for cell, one in shards.items():
            slots[cell] = self.slot(one)
        return Cut(slots, shards, coarse, left_out) if coarse.any() else Cut(slots, shards)

    def folded(self, pieces: Sequence[tuple[bytes, Bools]]) -> list[bytes]:
        """Return, for each slot's raw events and a mask over them, a shard of one slot with those chosen."""
        if not pieces:
            return []
        store = RingStore(self.scratch, len(pieces))
        rows = np.arange(len(pieces))
        store.load(rows, [None] * len(rows), NO_TOPIC_ID, 0)
        found = decode(self._raw, pieces)
        store.fold(found.slot, found.event_us, found.offsets, found.inputs)
        return store.dump(rows)

    def slot(self, shard: bytes) -> Ints:
        """Return the slot of a shard of one slot; EMPTY where no event was in the window."""
        return np.frombuffer(shard, "<i8", self.scratch.slot_words, HEADER_WORDS * WORD_BYTES)

    def _at_edges(self, slots: Ints, partitions: int, span: Span) -> list[list[int]]:
        """Return (entity, lane) of the slots that may reach over an edge."""
        newest_us = slots[:, :, 1]
        reaching = newest_us > span.until_us
        if span.after_us != EMPTY:
            reaching[:, :partitions] |= newest_us[:, :partitions] != EMPTY
        found: list[list[int]] = np.argwhere(reaching).tolist()
        return found
