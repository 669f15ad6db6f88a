"""The variable-length areas of the shards in memory: strings as bytes, sketches as bytes until they are taken up."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill_features.layout import EMPTY, INT64_MAX, SIZES_WORD, LayoutError
from tidemill_features.partials import SKETCHES, Partial
from tidemill_features.plan import HEADER_WORDS, WORD_BYTES, RingPlan
from tidemill_features.sketches import Merged, Sketch, blank, merge, unpack

Ints = NDArray[np.int64]


class Area:
    """What the words of a ring's shards point to, by row and by word within the shard."""

    def __init__(self, plan: RingPlan) -> None:
        self._plan = plan
        self._held: dict[int, dict[int, Any]] = {}
        partials = [(partial, pointer) for partial in plan.partials for pointer in partial.pointers]
        # Every pointing word of a shard, and whether it is 0 where there is nothing, as of a sketch.
        self._pointers = [
            (HEADER_WORDS + slot * plan.slot_words + pointer, partial.kind in SKETCHES, partial.words)
            for slot in range(plan.slots)
            for partial, pointer in partials
        ]
        if plan.raw is not None:
            first = range(HEADER_WORDS + plan.raw.word, plan.words, plan.slot_words)
            self._pointers += [(word, True, 1) for word in first]

    def put(self, place: int, raw: bytes) -> None:
        """Point a word (counted from the first shard's first) to a string, or to raw events."""
        row, word = divmod(place, self._plan.words)
        self._held.setdefault(row, {})[word] = raw

    def get(self, place: int) -> bytes:
        """Return the string that a word points to."""
        row, word = divmod(place, self._plan.words)
        raw: bytes = self._held[row][word]
        return raw

    def find(self, place: int) -> bytes | None:
        """Return what a word points to, which is no sketch; None for nothing."""
        row, word = divmod(place, self._plan.words)
        held = self._held.get(row)
        return None if held is None else held.get(word)

    def sketch(self, place: int, partial: Partial) -> Sketch:
        """Return the sketch that a word points to, ready to be added to."""
        row, word = divmod(place, self._plan.words)
        held = self._held.setdefault(row, {})
        found = held.get(word)
        if found is None:
            found = held[word] = blank(partial)
        elif isinstance(found, bytes):
            found = held[word] = stored_sketch(partial, found)
        sketch: Sketch = found
        return sketch

    def forget_slots(self, at: Ints) -> None:
        """Forget those of slots, given by their first words."""
        if not self._plan.pointers:
            return
        for place in at.tolist():
            row, word = divmod(place, self._plan.words)
            held = self._held.get(row)
            if held:
                for pointer in self._plan.pointers:
                    held.pop(word + pointer, None)

    def load(self, row: int, words: Ints, raw: bytes | None) -> None:
        """Take in the variable-length area of a stored shard (None: an empty one). Raises `LayoutError`."""
        if raw is None:
            self._held.pop(row, None)
            return
        area = self._plan.words * WORD_BYTES
        if len(raw) != area + (int(words[SIZES_WORD]) & 0xFFFFFFFF):
            raise LayoutError("a shard cut short")
        held: dict[int, Any] = {}
        for word, is_zero, width in self._pointers:
            pointer = int(words[word])
            # The event time stands before a string: two words of `last`, whose offset lies between, else one.
            present = pointer != 0 if is_zero else int(words[word - (2 if width == 3 else 1)]) not in _NO_TIME
            if present:
                held[word] = pointed(raw, area, pointer)
        self._held[row] = held

    def dump(self, row: int, words: Ints) -> bytes:
        """Return a shard's bytes with its area behind the slots, by word: equal states, equal bytes."""
        held = self._held.get(row, {})
        order = sorted(held)
        pieces, pointers, size = [], [], 0
        for word in order:
            raw = held[word]
            if not isinstance(raw, bytes):
                # Kept as bytes until the next value comes: most slots of a shard are never written again.
                raw = held[word] = raw.pack()
            pieces.append(raw)
            pointers.append(size | len(raw) << 32)
            size += len(raw)
        # All at once: a word at a time takes three times as long.
        words[order] = pointers
        words[SIZES_WORD] = size | self._plan.slot_words << 32
        return b"".join([words.tobytes(), *pieces])


_NO_TIME = (EMPTY, INT64_MAX)


def stored_sketch(partial: Partial, raw: bytes) -> Sketch:
    """Return a stored sketch. Raises `LayoutError` where the bytes are none."""
    try:
        return unpack(partial, raw)
    except ValueError as error:
        raise LayoutError(str(error)) from error


def merged_sketches(partial: Partial, raws: Sequence[bytes]) -> Merged:
    """Return what stored sketches say together. Raises `LayoutError` where bytes are none."""
    try:
        return merge(partial, raws)
    except ValueError as error:
        raise LayoutError(str(error)) from error


def pointed(raw: bytes, area: int, pointer: int) -> bytes:
    """Return what a pointer of a shard names; `area` is where the variable-length area begins."""
    first = area + (pointer & 0xFFFFFFFF)
    return raw[first : first + (pointer >> 32)]
