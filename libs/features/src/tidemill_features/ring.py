"""Shards in memory, in the very words that are stored, and the vectorised fold into them.

All shards of a ring lie in one array of words; a shard's row is its entity's within one source partition, the same in
every ring of a view. Floats are added strictly in offset order (`np.add.at`): `np.add.reduce` would make the last bits
depend on how the log was cut into batches.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill_features.inputs import Values
from tidemill_features.layout import (
    EMPTY,
    NEWEST_WORD,
    NEXT_OFFSET_WORD,
    SIZES_WORD,
    check_shard,
    empty_shard,
    empty_slot,
    topic_id_of,
)
from tidemill_features.plan import HEADER_WORDS, Dtype, Kind, Partial, RingPlan

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class RingStore:
    """The shards of one ring that are in memory."""

    def __init__(self, plan: RingPlan, rows: int) -> None:
        self.plan = plan
        self._words = np.zeros(rows * plan.words, np.int64)
        self._floats = self._words.view(np.float64)
        self._slot = empty_slot(plan)
        # The reset of a slot, as offsets from its first word and what goes there.
        self._reset_at = np.arange(1, plan.slot_words)
        # Empty shards by topic id and partition.
        self._blanks: dict[tuple[bytes, int], Ints] = {}
        # (row, word within the shard) -> string; only rings with strings fill it.
        self._strings: dict[int, dict[int, bytes]] = {}

    def grow(self, rows: int) -> None:
        """Make room for `rows` shards."""
        grown = np.zeros(rows * self.plan.words, np.int64)
        grown[: len(self._words)] = self._words
        self._words = grown
        self._floats = grown.view(np.float64)

    def load(self, row: int, raw: bytes | None, topic_id: bytes, partition: int) -> bytes:
        """Put a stored shard (None: an empty one) into a row; return the log generation that it was folded from.

        Raises `LayoutError` where the bytes do not fit the plan.
        """
        plan = self.plan
        first = row * plan.words
        self._strings.pop(row, None)
        if raw is None:
            blank = self._blanks.get((topic_id, partition))
            if blank is None:
                blank = self._blanks[topic_id, partition] = empty_shard(plan, topic_id, partition)
            self._words[first : first + plan.words] = blank
            return topic_id
        words = np.frombuffer(raw[: plan.words * 8], "<i8")
        check_shard(words, plan, len(raw))
        self._words[first : first + plan.words] = words
        if plan.has_strings:
            self._strings[row] = dict(_strings_in(words, raw, plan))
        return topic_id_of(words)

    def dump(self, rows: Sequence[int]) -> list[bytes]:
        """Return the stored bytes of shards."""
        plan = self.plan
        size = plan.words * 8
        if not plan.has_strings:
            raw = self._words.data.cast("B")
            return [bytes(raw[row * size : (row + 1) * size]) for row in rows]
        shards = self._words.reshape(-1, plan.words)[list(rows)]
        return [_with_strings(shards[at], self._strings.get(row, {}), plan) for at, row in enumerate(rows)]

    def include(self, rows: Ints, next_offsets: Ints) -> None:
        """Say that the shards in `rows` include everything before `next_offsets`; one that is ahead stays so."""
        at = rows * self.plan.words + NEXT_OFFSET_WORD
        self._words[at] = np.maximum(self._words[at], next_offsets)

    def fold(self, rows: Ints, event_us: Ints, offsets: Ints, inputs: Sequence[Values]) -> int:
        """Fold events, in offset order within each partition, into the shards in `rows`; return how many came too late.

        An event that its shard's header includes is skipped; one whose bucket gave way to a newer one is too late.
        """
        plan, words = self.plan, self._words
        base = rows * plan.words
        fresh = offsets >= words[base + NEXT_OFFSET_WORD]
        if not fresh.all():
            if not fresh.any():
                return 0
            base, event_us, offsets = base[fresh], event_us[fresh], offsets[fresh]
            inputs = [part.take(fresh) for part in inputs]
        bucket = event_us // plan.hop_us
        at = base + HEADER_WORDS + (bucket % plan.slots) * plan.slot_words
        newer = bucket > words[at]
        if newer.any():
            self._turn(at[newer], bucket[newer])
        np.maximum.at(words, base + NEWEST_WORD, event_us)
        held = bucket == words[at]
        lost = 0
        if not held.all():
            lost = int(len(held) - held.sum())
            at, event_us, offsets = at[held], event_us[held], offsets[held]
            inputs = [part.take(held) for part in inputs]
        np.maximum.at(words, at + 1, event_us)
        for partial in plan.partials:
            self._accumulate(partial, at + partial.word, event_us, offsets, inputs[partial.input])
        return lost

    def _turn(self, at: Ints, bucket: Ints) -> None:
        """Give slots to newer buckets."""
        np.maximum.at(self._words, at, bucket)
        at = np.unique(at)
        self._words[at[:, None] + self._reset_at] = self._slot[1:]
        if self.plan.has_strings:
            self._forget_strings(at)

    def _accumulate(self, partial: Partial, at: Ints, event_us: Ints, offsets: Ints, part: Values) -> None:
        values, present = part
        if present is not None:
            at, event_us, offsets = at[present], event_us[present], offsets[present]
            values = None if values is None else values[present]
            if not len(at):
                return
        memory: Any = self._floats if partial.dtype is Dtype.FLOAT else self._words
        if partial.kind is Kind.COUNT:
            np.add.at(memory, at, 1)
        elif partial.kind is Kind.SUM:
            np.add.at(memory, at, values)
        elif partial.kind is Kind.MIN:
            np.minimum.at(memory, at, values)
        elif partial.kind is Kind.MAX:
            np.maximum.at(memory, at, values)
        else:
            self._keep_last(partial, at, event_us, offsets, values)

    def _keep_last(self, partial: Partial, at: Ints, event_us: Ints, offsets: Ints, values: Any) -> None:
        """Keep, per slot, the value of the newest event; of equal times that with the highest offset."""
        words = self._words
        np.maximum.at(words, at, event_us)
        newest = np.flatnonzero(event_us == words[at])
        at, offsets, values = at[newest], offsets[newest], values[newest]
        # Offsets rise within a shard, so the last write of a slot is the one that stays.
        words[at + 1] = offsets
        if partial.dtype is Dtype.STRING:
            self._keep_strings(at + 2, values)
        elif partial.dtype is Dtype.FLOAT:
            self._floats[at + 2] = values
        else:
            words[at + 2] = values

    def _keep_strings(self, at: Ints, values: Any) -> None:
        for place, value in zip(at.tolist(), values, strict=True):
            row, word = divmod(place, self.plan.words)
            self._strings.setdefault(row, {})[word] = value.encode("utf-8", "surrogatepass")

    def _forget_strings(self, at: Ints) -> None:
        for place in at.tolist():
            row, word = divmod(place, self.plan.words)
            held = self._strings.get(row)
            if held:
                for partial in self.plan.partials:
                    held.pop(word + partial.word + 2, None)


def _string_words(plan: RingPlan) -> list[int]:
    """Return, in order, the words of a shard that point to a string."""
    words = [partial.word + 2 for partial in plan.partials if partial.dtype is Dtype.STRING]
    return [HEADER_WORDS + slot * plan.slot_words + word for slot in range(plan.slots) for word in words]


def _strings_in(words: Ints, raw: bytes, plan: RingPlan) -> list[tuple[int, bytes]]:
    area = plan.words * 8
    present = [word for word in _string_words(plan) if words[word - 2] != EMPTY]
    return [(word, pointed(raw, area, int(words[word]))) for word in present]


def pointed(raw: bytes, area: int, pointer: int) -> bytes:
    """Return the string that a pointer of a shard names; `area` is where the variable-length area begins."""
    first = area + (pointer & 0xFFFFFFFF)
    return raw[first : first + (pointer >> 32)]


def _with_strings(words: Ints, strings: dict[int, bytes], plan: RingPlan) -> bytes:
    """Return a shard's bytes with its strings behind the slots, in their order: equal states, equal bytes."""
    area = bytearray()
    for word in sorted(strings):
        words[word] = len(area) | len(strings[word]) << 32
        area += strings[word]
    words[SIZES_WORD] = len(area) | plan.slot_words << 32
    return words.tobytes() + bytes(area)
