"""Shards in memory, in the very words that are stored, and the vectorised fold into them.

All shards of a ring lie in one array of words; a shard's row is its entity's within one source partition, the same in
every ring of a view. Floats are added strictly in offset order (`np.add.at`): `np.add.reduce` would make the last bits
depend on how the log was cut into batches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemill_features.accumulate import ACCUMULATE, Batch, Memory
from tidemill_features.area import Area
from tidemill_features.inputs import Values
from tidemill_features.layout import (
    NEWEST_WORD,
    NEXT_OFFSET_WORD,
    TOPIC_ID_WORDS,
    empty_shard,
    empty_slot,
    to_words,
)
from tidemill_features.partials import Kind, Partial, RawPlan
from tidemill_features.plan import HEADER_WORDS, WORD_BYTES, RingPlan
from tidemill_features.raw_events import Encoded, appended, encode
from tidemill_features.sequential import runs_of

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Left(NamedTuple):
    """How many events a ring left out, since a newer bucket has their slot.

    `too_late`: it had it before their batch; `overtaken`: within it, so that no read could have found them, as happens
    where a backlog is read whose batches are longer than the ring.
    """

    too_late: int
    overtaken: int


class RingStore:
    """The shards of one ring that are in memory."""

    def __init__(self, plan: RingPlan, rows: int) -> None:
        self.plan = plan
        # The system gives memory as it is used: a row that never was takes none.
        self._words = np.zeros(rows * plan.words, np.int64)
        self._slot = empty_slot(plan)
        # Empty shards by topic id and partition.
        self._blanks: dict[tuple[bytes, int], bytes] = {}
        self._area = Area(plan)
        # Counts come last: what is beside one needs the number before the batch.
        self._order = sorted(plan.partials, key=lambda partial: partial.kind is Kind.COUNT)

    @property
    def _shards(self) -> Ints:
        """The words, a row per shard."""
        return self._words.reshape(-1, self.plan.words)

    def load(self, rows: Ints, raws: Sequence[bytes | None], topic_id: bytes, partition: int) -> Ints:
        """Put stored shards of a partition (None: an empty one) into rows; return which come from another topic.

        Raises `LayoutError` where the bytes do not fit the plan.
        """
        plan = self.plan
        blank = self._blanks.get((topic_id, partition))
        if blank is None:
            blank = self._blanks[topic_id, partition] = empty_shard(plan, topic_id, partition).tobytes()
        words = to_words(raws, plan, blank)
        self._shards[rows] = words
        if plan.pointers:
            for row, shard, raw in zip(rows.tolist(), words, raws, strict=True):
                self._area.load(row, shard, raw)
        return np.flatnonzero((words[:, TOPIC_ID_WORDS] != np.frombuffer(topic_id, "<i8")).any(axis=1))

    def dump(self, rows: Ints) -> list[bytes]:
        """Return the stored bytes of shards."""
        shards = self._shards[rows]
        if not self.plan.pointers:
            # As one opaque value each.
            found: list[bytes] = shards.view(f"V{self.plan.words * WORD_BYTES}").ravel().tolist()
            return found
        return [self._area.dump(row, shard) for row, shard in zip(rows.tolist(), shards, strict=True)]

    def include(self, rows: Ints, next_offsets: Ints) -> None:
        """Say that the shards in `rows` include everything before `next_offsets`; one that is ahead stays so."""
        at = rows * self.plan.words + NEXT_OFFSET_WORD
        self._words[at] = np.maximum(self._words[at], next_offsets)

    def fold(self, rows: Ints, event_us: Ints, offsets: Ints, inputs: Sequence[Values]) -> Left:
        """Fold events, in offset order within each partition, into the shards in `rows`; return what was left out.

        An event that its shard's header includes is skipped.
        """
        plan, words = self.plan, self._words
        base = rows * plan.words
        fresh = offsets >= words[base + NEXT_OFFSET_WORD]
        if not fresh.all():
            if not fresh.any():
                return Left(0, 0)
            base, event_us, offsets = base[fresh], event_us[fresh], offsets[fresh]
            inputs = [part.take(fresh) for part in inputs]
        bucket = event_us // plan.hop_us
        at = base + HEADER_WORDS + (bucket % plan.slots) * plan.slot_words
        before = words[at]
        newer = bucket > before
        if newer.any():
            self._turn(at[newer], bucket[newer])
        np.maximum.at(words, base + NEWEST_WORD, event_us)
        held = bucket == words[at]
        left = Left(0, 0)
        if not held.all():
            too_late = int((bucket < before).sum())
            left = Left(too_late, int(len(held) - held.sum()) - too_late)
            at, event_us, offsets = at[held], event_us[held], offsets[held]
            inputs = [part.take(held) for part in inputs]
        np.maximum.at(words, at + 1, event_us)
        memory = Memory(words, words.view(np.float64), self._area)
        for partial in self._order:
            self._accumulate(memory, partial, at, event_us, offsets, inputs[partial.input])
        if plan.raw is not None and len(at):
            self._keep(plan.raw, at, encode(plan.raw, event_us, offsets, inputs))
        return left

    def _keep(self, plan: RawPlan, slot: Ints, events: Encoded) -> None:
        """Add raw events to those of their slots."""
        order, start, end = runs_of(slot)
        rows = events.rows[order]
        texts = None if events.texts is None else [events.texts[event] for event in order.tolist()]
        places = (slot[order][start] + plan.word).tolist()
        area = self._area
        for place, first, last in zip(places, start.tolist(), end.tolist(), strict=True):
            text = b"" if texts is None else b"".join(texts[first:last])
            area.put(place, appended(plan, area.find(place), rows[first:last], text))

    def _turn(self, at: Ints, bucket: Ints) -> None:
        """Give slots to newer buckets."""
        np.maximum.at(self._words, at, bucket)
        # At each word, what follows it in a slot: one write per event, though several may be of one slot.
        rest = self.plan.slot_words - 1
        shape, strides = (len(self._words) - rest, rest), (WORD_BYTES, WORD_BYTES)
        behind = np.ndarray(shape, np.int64, self._words, WORD_BYTES, strides)
        behind[at] = self._slot[1:]
        self._area.forget_slots(at)

    def _accumulate(
        self, memory: Memory, partial: Partial, slot: Ints, event_us: Ints, offsets: Ints, part: Values
    ) -> None:
        values, present = part
        if present is not None:
            slot, event_us, offsets = slot[present], event_us[present], offsets[present]
            values = None if values is None else values[present]
        if not len(slot):
            return
        beside = None
        if partial.beside >= 0:
            beside = slot + self.plan.partials[partial.beside].word
        batch = Batch(slot + partial.word, event_us, offsets, values, beside, self.plan.hop_us)
        ACCUMULATE[partial.kind](memory, partial, batch)
